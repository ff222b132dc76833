"""A Qwen2 decoder's part of a config.json, as transformers' class and vLLM's both compute it.

    sizes, norm, rotations ── in every spelling that transformers writes ──► one spelling, nothing left out

Invariant: what comes out is the whole model: every value that a forward pass depends on is in it, so that no
default of a library decides; what the two classes do not both compute is refused with its key and value.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from speech.checkpoints.config_keys import (
    check_fixed,
    check_keys,
    format_json_value,
    read_positive_int,
    require_positive_number,
)

QWEN2_SIZE_KEYS = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads".split()
QWEN2_NEUTRAL_SETTINGS: Mapping[str, Any] = {  # what some decoders multiply or add; this value leaves it out
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
FULL_ATTENTION = "full_attention"
ORIGINAL_POSITIONS_KEY = "original_max_position_embeddings"
SLIDING_WINDOW_KEYS = "sliding_window max_window_layers".split()  # while use_sliding_window is false
ROPE_TYPES: Mapping[str, tuple[str, ...]] = {  # type -> its own numbers; those in brackets may be left out
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL_POSITIONS_KEY),
    "yarn": (
        *("factor", ORIGINAL_POSITIONS_KEY, "[beta_fast]", "[beta_slow]", "[attention_factor]", "[mscale]"),
        *("[mscale_all_dim]", "[truncate]"),
    ),
}
QWEN2_CONFIG_KEYS = frozenset(
    [
        *(
            *QWEN2_SIZE_KEYS,
            *QWEN2_NEUTRAL_SETTINGS,
            *SLIDING_WINDOW_KEYS,
            ORIGINAL_POSITIONS_KEY,
            "num_key_value_heads",
            "max_position_embeddings",
            "head_dim",
        ),
        *("rms_norm_eps", "layer_types", "rope_theta", "rope_parameters", "rope_scaling"),
        *("partial_rotary_factor", "tie_word_embeddings"),
    ]
)


def read_decoder(
    file: Path,
    config: Mapping[str, Any],
    *,
    within: str = "",
    others: Collection[str] = (),
    reach: int = 32_768,
    theta: float = 1e4,
) -> dict[str, Any]:
    """What transformers' Qwen2Config is built from, and vLLM's config.json.

    ``config``: the object of ``file`` at ``within`` (``text_config.``). ``others``: keys that the family reads
    or knows to be harmless. ``reach``, ``theta``: what the family's class takes where nothing is said.
    ValueError: a key that is not known, or a value that is not computed.
    """
    check_keys(file, config, {*QWEN2_CONFIG_KEYS, *others}, within)
    sizes = {name: read_positive_int(file, config, name, within) for name in QWEN2_SIZE_KEYS}
    heads = sizes["num_attention_heads"]
    groups = read_positive_int(file, config, "num_key_value_heads", within, default=heads)
    positions = read_positive_int(file, config, "max_position_embeddings", within, default=reach)
    for name, by, parts in (
        ("hidden_size", "num_attention_heads", heads),
        ("num_attention_heads", "num_key_value_heads", groups),
    ):
        if sizes[name] % parts:
            rule = f"{within}{name} must be a multiple of {by} {parts}"
            raise ValueError(f"{file}: {rule}: got {sizes[name]}")
    check_fixed(file, config, {**QWEN2_NEUTRAL_SETTINGS, "head_dim": sizes["hidden_size"] // heads}, within)
    kinds = config.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != FULL_ATTENTION for kind in kinds)):
        raise ValueError(f"{file}: {within}layer_types must all be {FULL_ATTENTION}: got {format_json_value(kinds)}")
    rotations = _read_rope_parameters(file, config, within, positions, theta)
    if rotations["rope_type"] == "yarn":  # the positions that the engine's table has
        if rotations["factor"] > FURTHEST / rotations[ORIGINAL_POSITIONS_KEY]:
            original = f"{ORIGINAL_POSITIONS_KEY} {rotations[ORIGINAL_POSITIONS_KEY]}"
            rule = f"factor must give at most {FURTHEST} positions with {original}"
            raise ValueError(f"{file}: {within}{rule}: got {format_json_value(rotations['factor'])}")
        positions = int(rotations[ORIGINAL_POSITIONS_KEY] * rotations["factor"])
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        **sizes,
        "num_key_value_heads": groups,
        "max_position_embeddings": positions,
        "hidden_act": "silu",
        "rms_norm_eps": require_positive_number(file, f"{within}rms_norm_eps", config.get("rms_norm_eps", 1e-6)),
        "rope_parameters": rotations,
        "tie_word_embeddings": has_tied_head(file, config, within),
        "use_sliding_window": False,
        "attention_dropout": 0.0,
    }


def has_tied_head(file: Path, config: Mapping[str, Any], within: str = "") -> bool:
    """Whether the head is the embedding. ValueError: neither true nor false."""
    value = config.get("tie_word_embeddings")
    if not isinstance(value, bool | None):
        raise ValueError(f"{file}: {within}tie_word_embeddings must be true or false: got {format_json_value(value)}")
    return bool(value)


def _read_rope_parameters(
    file: Path, config: Mapping[str, Any], within: str, positions: int, theta: float
) -> dict[str, Any]:
    """``rope_parameters`` in full, whatever the spelling; the numbers may lie beside or inside it."""
    prefix, values = _collect_rope_settings(file, config, within)
    kind = values.pop("rope_type", "default")
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        rule = f"must be one of {', '.join(ROPE_TYPES)}, which engine and learner both compute"
        raise ValueError(f"{file}: {prefix}rope_type {rule}: got {format_json_value(kind)}")
    check_fixed(file, values, {"partial_rotary_factor": 1}, prefix)
    if kind in ("llama3", "yarn"):
        values.setdefault(ORIGINAL_POSITIONS_KEY, positions)
    elif values.get(ORIGINAL_POSITIONS_KEY) == positions:  # as no scaling would have it
        del values[ORIGINAL_POSITIONS_KEY]
    parameters: dict[str, Any] = {"rope_type": kind, "rope_theta": theta}
    needed = {name for name in ROPE_TYPES[kind] if name == name.strip("[]")}
    known = {"rope_theta", *(name.strip("[]") for name in ROPE_TYPES[kind])}
    for name in sorted(needed | set(values) - {"partial_rotary_factor"}):
        value = values.get(name)
        if name not in known:
            raise ValueError(
                f"{file}: {prefix}{name} is no number of rope_type {kind}: got {format_json_value(value)}"
            )
        is_switch = name == "truncate" and isinstance(value, bool)
        parameters[name] = value if is_switch else require_positive_number(file, f"{prefix}{name}", value)
    return parameters


def _collect_rope_settings(file: Path, config: Mapping[str, Any], within: str) -> tuple[str, dict[str, Any]]:
    """(where, name -> value) of what a config says of its rotations. ValueError: two values of one name."""
    places = [name for name in ("rope_parameters", "rope_scaling") if config.get(name) is not None]
    for name in places:
        if not isinstance(config[name], dict):
            raise ValueError(
                f"{file}: {within}{name} must be an object or null: got {format_json_value(config[name])}"
            )
    prefix = f"{within}{places[0]}." if places else within
    beside = [(name, config.get(name)) for name in ("rope_theta", "partial_rotary_factor", ORIGINAL_POSITIONS_KEY)]
    inside = [(name, value) for place in places for name, value in config[place].items()]
    values: dict[str, Any] = {}
    for spelt, value in (*beside, *inside):
        name = "rope_type" if spelt == "type" else spelt
        if value is not None and values.setdefault(name, value) != value:
            rule = f"{prefix}{spelt} must be the same wherever it stands"
            raise ValueError(f"{file}: {rule}: got {format_json_value(values[name])} and {format_json_value(value)}")
    return prefix, values
