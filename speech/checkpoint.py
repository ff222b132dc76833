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

STEP = "wavgate_step"  # in the metadata of exported weights
LAYER = re.compile(r"\blayers\.(\d+)\.")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OWN_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
ADAPTER = re.compile(r"adapter_config\.json|adapter_model\.(safetensors|bin)")
OTHER_WEIGHTS = re.compile(  # one model's weights under names that are not read
    r"(model|pytorch_model|consolidated|flax_model|tf_model|rust_model)[.-].*"
    r"(safetensors|bin|pth?|msgpack|h5|ot)(\.index.*\.json)?|.*\.gguf|(?!.*codec).*\.safetensors"
    r"|(optimizer|scheduler|scaler|rng_state.*)\.(pt|pth|bin)|training_args\.bin"  # of a training run
)
OTHER_FOLDERS = re.compile(r"checkpoint-\d+|global_step\d+|original|onnx|openvino")  # the same, and older


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint. ValueError names the file and the rule."""
    if not file.is_file():
        raise ValueError(f"{file}: a checkpoint folder must hold this file")
    try:
        content = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:  # the latter: nested too deep
        raise ValueError(f"{file}: must be JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: must be a JSON object: got {type(content).__name__}")
    return content


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object that says each key once, of which JSON would keep the last."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name} must be there once")
        found[name] = value
    return found


def weight_files(path: Path) -> list[Path]:
    """The model's own safetensors files; a codec may lie beside them.

    ValueError: one is not there, or lies beside an index that does not name it; an adapter lies beside them.
    """
    shards = _index(path)
    files = [path / SINGLE] if shards is None else sorted({path / file for file in shards.values()})
    for file in (*files, path / "config.json"):
        if not file.is_file():
            raise ValueError(f"{path}: a checkpoint must hold {file.name} (other weight formats are not read)")
    for other in sorted(path.iterdir()):
        if ADAPTER.fullmatch(other.name):
            raise ValueError(f"{other}: must not lie here unread: merge the adapter into the weights")
        if OWN_WEIGHTS.fullmatch(other.name) and other not in files:
            why = f"{INDEX} does not name it" if shards is not None else f"{SINGLE} is what is read"
            raise ValueError(f"{other}: must not lie here unread: {why}")
    return files


def is_stale(name: str) -> bool:
    """Whether a file or folder beside the weights that were read holds a model's weights in another form, or
    what was left of training them.
    """
    return name != INDEX and bool(OTHER_WEIGHTS.fullmatch(name) or OTHER_FOLDERS.fullmatch(name))


def _index(path: Path) -> dict[str, str] | None:
    """Tensor name -> file, as the index says; None: there is none."""
    file = path / INDEX
    if not file.is_file():
        return None
    shards = read_json(file).get("weight_map")
    if not isinstance(shards, dict) or not all(Path(str(name)).name == name for name in shards.values()):
        raise ValueError(f"{file}: weight_map must give each tensor a file of this folder")
    return shards


@dataclass(frozen=True, slots=True)
class Header:
    """Where a tensor lies and what it is. ``type``: as safetensors calls it, ``BF16``."""

    file: Path
    shape: tuple[int, ...]
    type: str


def headers(path: Path) -> dict[str, Header]:
    """Tensor name -> header. ValueError names a file that is not there, cut short or not as indexed."""
    found: dict[str, Header] = {}
    index = _index(path)
    for file in weight_files(path):
        try:
            with safe_open(str(file), framework="numpy") as shard:
                for name in shard.keys():  # noqa: SIM118 - not a mapping
                    tensor = shard.get_slice(name)
                    if index is not None and index.get(name) != file.name:
                        rule = f"{name} must be in the file that {INDEX} names"
                        raise ValueError(f"{file}: {rule}: it names {index.get(name, 'none')}")
                    found[name] = Header(file, tuple(tensor.get_shape()), tensor.get_dtype())
        except SafetensorError as error:
            raise ValueError(f"{file}: must be a whole safetensors file: {error}") from error
    if lacking := sorted(set(index or ()) - set(found)):
        rule = f"names {len(lacking)} tensors that its files do not hold"
        raise ValueError(f"{path / INDEX}: {rule}: {', '.join(lacking[:3])}")
    return found


def step_of(path: Path) -> int:
    """The step at which a run exported these weights; 0: none did."""
    with safe_open(str(weight_files(path)[0]), framework="numpy") as stored:
        told = (stored.metadata() or {}).get(STEP, "0")
    return int(told) if told.isdecimal() else 0


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
    wanted, reach = (_number(path, backbone, name) for name in ("num_hidden_layers", "max_position_embeddings"))
    if layers and wanted is not None and len(layers) < wanted:
        raise ValueError(f"{path}: config.json says {wanted} layers: the weights have {len(layers)}")
    if reach is not None and max_length > reach * streams:
        raise ValueError(f"{path}: reaches {reach * streams} tokens: model.max_length={max_length} is more")


def _number(path: Path, backbone: Mapping[str, Any], name: str) -> int | None:
    found = backbone.get(name)
    if found is not None and (not isinstance(found, int) or found < 1):
        raise ValueError(f"{path}: config.json: {name} must be a positive integer: got {found}")
    return found
