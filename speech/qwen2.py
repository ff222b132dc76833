"""A Qwen2 decoder's part of a config.json, as transformers' class and vLLM's both compute it.

    sizes, norm, rotations ── in every spelling that transformers writes ──► one spelling, nothing left out

Invariant: what comes out is the whole model: every value that a forward pass depends on is in it, so that no
default of a library decides; what the two classes do not both compute is refused with its key and value.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from speech.config_keys import check_fixed, check_keys, positive, shown, whole

SIZES = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads".split()
NEUTRAL: Mapping[str, Any] = {  # what some decoders multiply or add; this value leaves it out
    "attention_bias": True,  # of queries, keys and values: Qwen2 always has them
    "attn_logit_softcapping": None,
    "embedding_multiplier": 1.0,
    "final_logit_softcapping": None,
    "hidden_act": "silu",
    "hidden_activation": "silu",
    "is_causal": True,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "mlp_bias": False,
    "qk_norm": False,
    "qkv_bias": True,
    "residual_multiplier": 1.0,
    "use_mrope": False,
    "use_qk_norm": False,
    "use_sliding_window": False,
}
FURTHEST = 2**31 - 1  # position
FULL = "full_attention"
ORIGINAL = "original_max_position_embeddings"
UNUSED = "sliding_window max_window_layers".split()  # while use_sliding_window is false
ROTATIONS: Mapping[str, tuple[str, ...]] = {  # type -> its own numbers; those in brackets may be left out
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
    "yarn": (
        *("factor", ORIGINAL, "[beta_fast]", "[beta_slow]", "[attention_factor]", "[mscale]"),
        *("[mscale_all_dim]", "[truncate]"),
    ),
}
READ = frozenset(
    [
        *(*SIZES, *NEUTRAL, *UNUSED, ORIGINAL, "num_key_value_heads", "max_position_embeddings", "head_dim"),
        *("rms_norm_eps", "layer_types", "rope_theta", "rope_parameters", "rope_scaling"),
        *("partial_rotary_factor", "tie_word_embeddings"),
    ]
)


def read_decoder(
    file: Path,
    told: Mapping[str, Any],
    *,
    within: str = "",
    others: Collection[str] = (),
    reach: int = 32_768,
    theta: float = 1e4,
) -> dict[str, Any]:
    """What transformers' Qwen2Config is built from, and vLLM's config.json.

    ``told``: the object of ``file`` at ``within`` (``text_config.``). ``others``: keys that the family reads
    or knows to be harmless. ``reach``, ``theta``: what the family's class takes where nothing is said.
    ValueError: a key that is not known, or a value that is not computed.
    """
    check_keys(file, told, {*READ, *others}, within)
    sizes = {name: whole(file, told, name, within) for name in SIZES}
    heads = sizes["num_attention_heads"]
    groups = whole(file, told, "num_key_value_heads", within, default=heads)
    positions = whole(file, told, "max_position_embeddings", within, default=reach)
    for name, by, parts in (
        ("hidden_size", "num_attention_heads", heads),
        ("num_attention_heads", "num_key_value_heads", groups),
    ):
        if sizes[name] % parts:
            rule = f"{within}{name} must be a multiple of {by} {parts}"
            raise ValueError(f"{file}: {rule}: got {sizes[name]}")
    check_fixed(file, told, {**NEUTRAL, "head_dim": sizes["hidden_size"] // heads}, within)
    kinds = told.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != FULL for kind in kinds)):
        raise ValueError(f"{file}: {within}layer_types must all be {FULL}: got {shown(kinds)}")
    rotations = _rotations(file, told, within, positions, theta)
    if rotations["rope_type"] == "yarn":  # the positions that the engine's table has
        if rotations["factor"] > FURTHEST / rotations[ORIGINAL]:
            rule = f"factor must give at most {FURTHEST} positions with {ORIGINAL} {rotations[ORIGINAL]}"
            raise ValueError(f"{file}: {within}{rule}: got {shown(rotations['factor'])}")
        positions = int(rotations[ORIGINAL] * rotations["factor"])
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        **sizes,
        "num_key_value_heads": groups,
        "max_position_embeddings": positions,
        "hidden_act": "silu",
        "rms_norm_eps": positive(file, f"{within}rms_norm_eps", told.get("rms_norm_eps", 1e-6)),
        "rope_parameters": rotations,
        "tie_word_embeddings": tied(file, told, within),
        "use_sliding_window": False,
        "attention_dropout": 0.0,
    }


def tied(file: Path, told: Mapping[str, Any], within: str = "") -> bool:
    """Whether the head is the embedding. ValueError: neither true nor false."""
    found = told.get("tie_word_embeddings")
    if not isinstance(found, bool | None):
        raise ValueError(f"{file}: {within}tie_word_embeddings must be true or false: got {shown(found)}")
    return bool(found)


def _rotations(file: Path, told: Mapping[str, Any], within: str, positions: int, theta: float) -> dict[str, Any]:
    """``rope_parameters`` in full, whatever the spelling; the numbers may lie beside or inside it."""
    where, values = _said(file, told, within)
    kind = values.pop("rope_type", "default")
    if not isinstance(kind, str) or kind not in ROTATIONS:
        rule = f"must be one of {', '.join(ROTATIONS)}, which engine and learner both compute"
        raise ValueError(f"{file}: {where}rope_type {rule}: got {shown(kind)}")
    check_fixed(file, values, {"partial_rotary_factor": 1}, where)
    if kind in ("llama3", "yarn"):
        values.setdefault(ORIGINAL, positions)
    elif values.get(ORIGINAL) == positions:  # as no scaling would have it
        del values[ORIGINAL]
    found: dict[str, Any] = {"rope_type": kind, "rope_theta": theta}
    needed = {name for name in ROTATIONS[kind] if name == name.strip("[]")}
    known = {"rope_theta", *(name.strip("[]") for name in ROTATIONS[kind])}
    for name in sorted(needed | set(values) - {"partial_rotary_factor"}):
        value = values.get(name)
        if name not in known:
            raise ValueError(f"{file}: {where}{name} is no number of rope_type {kind}: got {shown(value)}")
        is_switch = name == "truncate" and isinstance(value, bool)
        found[name] = value if is_switch else positive(file, f"{where}{name}", value)
    return found


def _said(file: Path, told: Mapping[str, Any], within: str) -> tuple[str, dict[str, Any]]:
    """(where, name -> value) of what a config says of its rotations. ValueError: two values of one name."""
    places = [name for name in ("rope_parameters", "rope_scaling") if told.get(name) is not None]
    for name in places:
        if not isinstance(told[name], dict):
            raise ValueError(f"{file}: {within}{name} must be an object or null: got {shown(told[name])}")
    where = f"{within}{places[0]}." if places else within
    beside = [(name, told.get(name)) for name in ("rope_theta", "partial_rotary_factor", ORIGINAL)]
    inside = [(name, value) for place in places for name, value in told[place].items()]
    values: dict[str, Any] = {}
    for spelt, value in (*beside, *inside):
        name = "rope_type" if spelt == "type" else spelt
        if value is not None and values.setdefault(name, value) != value:
            rule = f"{where}{spelt} must be the same wherever it stands"
            raise ValueError(f"{file}: {rule}: got {shown(values[name])} and {shown(value)}")
    return where, values
