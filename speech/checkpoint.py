"""A Hugging Face folder, looked at without loading it: is it whole, and does it fit its own config.json?

Invariant: only headers are read, so a checkpoint of any size is refused in moments, before anything starts.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

LAYER = re.compile(r"\blayers\.(\d+)\.")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint. ValueError names the file and the rule."""
    if not file.is_file():
        raise ValueError(f"{file}: a checkpoint folder must hold this file")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: must be JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: must be a JSON object: got {type(content).__name__}")
    return content


def weight_files(path: Path) -> list[Path]:
    """The model's own safetensors files; a codec may lie beside them. ValueError: one is not there."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(Path(str(file)).name == file for file in shards.values()):
            raise ValueError(f"{index}: weight_map must give each tensor a file of this folder")
        files = sorted({path / file for file in shards.values()})
    else:
        files = [path / "model.safetensors"]
    for file in (*files, path / "config.json"):
        if not file.is_file():
            raise ValueError(
                f"{path}: a checkpoint must hold {file.name} (other weight formats are not read)"
            )
    return files


@dataclass(frozen=True, slots=True)
class Header:
    """Where a tensor lies and what it is. ``type``: as safetensors calls it, ``BF16``."""

    file: Path
    shape: tuple[int, ...]
    type: str


def headers(path: Path) -> dict[str, Header]:
    """Tensor name -> header. ValueError names a file that is not there or cut short."""
    found: dict[str, Header] = {}
    for file in weight_files(path):
        try:
            with safe_open(str(file), framework="numpy") as shard:
                for name in shard.keys():  # noqa: SIM118 - not a mapping
                    tensor = shard.get_slice(name)
                    found[name] = Header(file, tuple(tensor.get_shape()), tensor.get_dtype())
        except SafetensorError as error:
            raise ValueError(f"{file}: must be a whole safetensors file: {error}") from error
    return found


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, from the headers. ValueError: as of ``headers``."""
    return {name: header.shape for name, header in headers(path).items()}


def depth(path: Path, layers: str) -> int:
    """How many layers the headers have whose tensors' names begin with ``layers`` and a number."""
    return len({name.removeprefix(layers).split(".")[0] for name in shapes(path) if name.startswith(layers)})


def check(
    path: Path,
    max_length: int,
    backbone: Mapping[str, Any],
    parts: Callable[[str], Sequence[str]],
    streams: int = 1,
) -> None:
    """The language model's weights fit its config and reach ``max_length`` ids. ValueError: they do not.

    Looks at what every decoder declares: vocabulary, width, number of layers, positions. ``parts``: what the
    config's kind of model calls a tensor of the folder. ``streams``: ids per position.
    """
    found = {part: shape for name, shape in shapes(path).items() for part in parts(name)}
    declared = tuple(backbone.get(name) for name in ("vocab_size", "hidden_size"))
    tables = [(name, shape) for name, shape in found.items() if name.endswith("embed_tokens.weight")]
    for name, shape in tables if None not in declared else []:
        if shape != declared:
            raise ValueError(f"{path}: {name} must have the shape {declared} of config.json: got {shape}")
    layers = {int(match[1]) for name in found if (match := LAYER.search(name))}
    wanted, reach = (
        _number(path, backbone, name) for name in ("num_hidden_layers", "max_position_embeddings")
    )
    if layers and wanted is not None and len(layers) < wanted:
        raise ValueError(f"{path}: config.json says {wanted} layers: the weights have {len(layers)}")
    if reach is not None and max_length > reach * streams:
        raise ValueError(f"{path}: reaches {reach * streams} tokens: model.max_length={max_length} is more")


def _number(path: Path, backbone: Mapping[str, Any], name: str) -> int | None:
    found = backbone.get(name)
    if found is not None and (not isinstance(found, int) or found < 1):
        raise ValueError(f"{path}: config.json: {name} must be a positive integer: got {found}")
    return found
