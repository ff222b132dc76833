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

EXPORT_STEP_KEY = "wavgate_step"  # in the metadata of exported weights
LAYER_PATTERN = re.compile(r"\blayers\.(\d+)\.")
SINGLE_WEIGHT_FILE, WEIGHT_INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
OWN_WEIGHT_PATTERN = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
ADAPTER = re.compile(r"adapter_config\.json|adapter_model\.(safetensors|bin)")
UNOWN_WEIGHT_PATTERN = re.compile(  # one model's weights under names that are not read
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
        content = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_reject_repeated_keys)
    except (ValueError, RecursionError) as error:  # the latter: nested too deep
        raise ValueError(f"{file}: must be JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: must be a JSON object: got {type(content).__name__}")
    return content


def _reject_repeated_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object that says each key once, of which JSON would keep the last."""
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"{name} must be there once")
        content[name] = value
    return content


def weight_files(path: Path) -> list[Path]:
    """The model's own safetensors files; a codec may lie beside them.

    ValueError: one is not there, or lies beside an index that does not name it; an adapter lies beside them.
    """
    shards = _read_weight_index(path)
    files = [path / SINGLE_WEIGHT_FILE] if shards is None else sorted({path / file for file in shards.values()})
    for file in (*files, path / "config.json"):
        if not file.is_file():
            raise ValueError(f"{path}: a checkpoint must hold {file.name} (other weight formats are not read)")
    for other in sorted(path.iterdir()):
        if ADAPTER.fullmatch(other.name):
            raise ValueError(f"{other}: must not lie here unread: merge the adapter into the weights")
        if OWN_WEIGHT_PATTERN.fullmatch(other.name) and other not in files:
            why = (
                f"{WEIGHT_INDEX_FILE} does not name it"
                if shards is not None
                else f"{SINGLE_WEIGHT_FILE} is what is read"
            )
            raise ValueError(f"{other}: must not lie here unread: {why}")
    return files


def is_stale_weight_file(name: str) -> bool:
    """Whether a file or folder beside the weights that were read holds a model's weights in another form, or
    what was left of training them.
    """
    return name != WEIGHT_INDEX_FILE and bool(UNOWN_WEIGHT_PATTERN.fullmatch(name) or OTHER_FOLDERS.fullmatch(name))


def _read_weight_index(path: Path) -> dict[str, str] | None:
    """Tensor name -> file, as the index says; None: there is none."""
    file = path / WEIGHT_INDEX_FILE
    if not file.is_file():
        return None
    shards = read_json(file).get("weight_map")
    if not isinstance(shards, dict) or not all(Path(str(name)).name == name for name in shards.values()):
        raise ValueError(f"{file}: weight_map must give each tensor a file of this folder")
    return shards


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Where a tensor lies and what it is. ``type``: as safetensors calls it, ``BF16``."""

    file: Path
    shape: tuple[int, ...]
    type: str


def read_tensor_headers(path: Path) -> dict[str, TensorHeader]:
    """Tensor name -> header. ValueError names a file that is not there, cut short or not as indexed."""
    header_by_name: dict[str, TensorHeader] = {}
    index = _read_weight_index(path)
    for file in weight_files(path):
        try:
            with safe_open(str(file), framework="numpy") as shard:
                for name in shard.keys():  # noqa: SIM118 - not a mapping
                    tensor = shard.get_slice(name)
                    if index is not None and index.get(name) != file.name:
                        rule = f"{name} must be in the file that {WEIGHT_INDEX_FILE} names"
                        raise ValueError(f"{file}: {rule}: it names {index.get(name, 'none')}")
                    header_by_name[name] = TensorHeader(file, tuple(tensor.get_shape()), tensor.get_dtype())
        except SafetensorError as error:
            raise ValueError(f"{file}: must be a whole safetensors file: {error}") from error
    if lacking := sorted(set(index or ()) - set(header_by_name)):
        rule = f"names {len(lacking)} tensors that its files do not hold"
        raise ValueError(f"{path / WEIGHT_INDEX_FILE}: {rule}: {', '.join(lacking[:3])}")
    return header_by_name


def read_export_step(path: Path) -> int:
    """The step at which a run exported these weights; 0: none did."""
    with safe_open(str(weight_files(path)[0]), framework="numpy") as stored:
        step = (stored.metadata() or {}).get(EXPORT_STEP_KEY, "0")
    return int(step) if step.isdecimal() else 0


def read_tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, from the headers. ValueError: as of ``read_tensor_headers``."""
    return {name: header.shape for name, header in read_tensor_headers(path).items()}


def count_stored_layers(path: Path, layers: str) -> int:
    """How many layers the stored tensors belong to: their names begin with ``layers`` and the layer's number."""
    return len(
        {name.removeprefix(layers).split(".")[0] for name in read_tensor_shapes(path) if name.startswith(layers)}
    )


def check_weights_fit_config(
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
    shape_by_name = {part: shape for name, shape in read_tensor_shapes(path).items() for part in parts(name)}
    declared = tuple(backbone.get(name) for name in ("vocab_size", "hidden_size"))
    tables = [(name, shape) for name, shape in shape_by_name.items() if name.endswith("embed_tokens.weight")]
    for name, shape in tables if None not in declared else []:
        if shape != declared:
            raise ValueError(f"{path}: {name} must have the shape {declared} of config.json: got {shape}")
    layers = {int(match[1]) for name in shape_by_name if (match := LAYER_PATTERN.search(name))}
    wanted, reach = (
        _read_positive_value(path, backbone, name) for name in ("num_hidden_layers", "max_position_embeddings")
    )
    if layers and wanted is not None and len(layers) < wanted:
        raise ValueError(f"{path}: config.json says {wanted} layers: the weights have {len(layers)}")
    if reach is not None and max_length > reach * streams:
        raise ValueError(f"{path}: reaches {reach * streams} tokens: model.max_length={max_length} is more")


def _read_positive_value(path: Path, backbone: Mapping[str, Any], name: str) -> int | None:
    value = backbone.get(name)
    if value is not None and (not isinstance(value, int) or value < 1):
        raise ValueError(f"{path}: config.json: {name} must be a positive integer: got {value}")
    return value
