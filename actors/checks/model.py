"""What would make a model's folder fail later, in the engine or in every number that it gives: found first.

Invariant: every command that runs a model asks this, in the process that the user looks at.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conf.schema import Config
from speech.checkpoints.copies import check_copies
from speech.checkpoints.finite import check_tensors_finite
from speech.checkpoints.folder import SINGLE_WEIGHT_FILE, WEIGHT_INDEX_FILE, read_json, weight_files
from speech.families.base import Family

CPU_HEAD_WIDTHS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # what vLLM's attention on CPU is built for
GPU_HEAD_MULTIPLE, GPU_MAX_HEAD_WIDTH = 8, 256  # on GPU: multiples, up to


def check_attention_heads(config: Config, family: Family) -> None:
    """ValueError: vLLM has no attention for heads of this width."""
    if config.rollout.engine != "vllm":
        return
    backbone = family.backbone
    width = backbone.get("head_dim") or backbone["hidden_size"] // backbone["num_attention_heads"]
    if config.cluster.kind == "gpu":
        fits, rule = (
            width % GPU_HEAD_MULTIPLE == 0 and width <= GPU_MAX_HEAD_WIDTH,
            f"a multiple of {GPU_HEAD_MULTIPLE} up to {GPU_MAX_HEAD_WIDTH}",
        )
    else:
        fits, rule = width in CPU_HEAD_WIDTHS, f"one of {', '.join(map(str, CPU_HEAD_WIDTHS))}"
    if not fits:
        wanted = f"hidden_size / num_attention_heads must be {rule} for vLLM (or rollout.engine=torch)"
        raise ValueError(f"{family.path / 'config.json'}: {wanted}: got {width}")


def check_ends(family: Family) -> None:
    """ValueError: a file of the folder names an id that ends a reply in transformers and vLLM, and not here.

    Both stop at every id that generation_config.json or config.json lists, and at the tokenizer's own eos_token;
    here the family's stop ids do.
    """
    if family.own_ends:
        return
    ends = set(family.stop_ids)
    for name in ("generation_config.json", "config.json"):
        file = family.path / name
        config = read_json(file) if file.is_file() else {}
        for key in ("eos_token_id", "eos_token_ids"):
            others = [end for end in _listed(config.get(key)) if type(end) is not int or end not in ends]
            if others:
                rule = f"must be of the ids that end a reply of {family.name}, {sorted(ends)}"
                raise ValueError(f"{file}: {key} {rule}: got {', '.join(map(str, others))}")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = family.path / name
        token = read_json(file).get("eos_token") if file.is_file() else None
        spelt = token.get("content") if isinstance(token, dict) else token
        if spelt is not None and family.vocabulary.specials.get(str(spelt)) not in ends:
            rule = f"must be of the tokens that end a reply of {family.name}, {sorted(ends)}"
            raise ValueError(f"{file}: eos_token {rule}: got {spelt}")


def _listed(ids: Any) -> list[Any]:
    if ids is None:
        return []
    return list(ids) if isinstance(ids, list) else [ids]


def check_weights_finite(family: Family) -> None:
    """ValueError: a weight of the model, its codec or its audio encoder is a NaN or an infinity, or the model
    lies there twice with other weights.

    Reads every weight file once: about as long as the disk takes.
    """
    for file in _list_weight_files(family):
        check_tensors_finite(file)
    check_copies(family.path)


def _list_weight_files(family: Family) -> Iterator[Path]:
    yield from weight_files(family.path)
    for place in (family.codec_path, family.audio_encoder_path if family.audio_inputs else None):
        if place is None or place == family.path:
            continue
        if place.is_file():
            yield place
        elif (place / SINGLE_WEIGHT_FILE).is_file() or (place / WEIGHT_INDEX_FILE).is_file():
            yield from weight_files(place)
        else:
            yield from sorted(place.rglob("*.safetensors"))
