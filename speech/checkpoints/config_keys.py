"""Which keys of a checkpoint's config.json may be there: those that are read, and those that change nothing.

Invariant: a key that nobody here reads and that is not known to be harmless is refused with its value, for it
may change the model, and engine and learner would then agree on another model than the folder holds. A key
whose value is null says nothing.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from sys import float_info
from typing import Any

from speech.checkpoints.folder import read_json

QUANTISED = "quantization_config"
HARMLESS_KEYS = frozenset(  # what transformers writes in any config.json and no forward pass of ours is changed by
    """
    architectures attn_implementation auto_map chunk_size_feed_forward dtype finetuning_task id2label
    initializer_factor initializer_range is_decoder label2id model_type output_attentions
    output_hidden_states prefix problem_type return_dict task_specific_params tf_legacy_loss
    tokenizer_class torch_dtype torchscript use_bfloat16 use_cache

    bad_words_ids begin_suppress_tokens bos_token_id decoder_start_token_id diversity_penalty do_sample
    early_stopping encoder_no_repeat_ngram_size eos_token_id eos_token_ids exponential_decay_length_penalty
    forced_bos_token_id forced_decoder_ids forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_scores pad_token_id remove_invalid_values
    repetition_penalty return_dict_in_generate sep_token_id suppress_tokens temperature top_k top_p typical_p

    attention_dropout activation_dropout classifier_dropout dropout hidden_dropout resid_pdrop
    """.split()
)
SWITCHED_OFF_KEYS: Mapping[str, Any] = {  # of any config.json; another value is another model
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
    QUANTISED: None,
}
UNREAD_WHISPER_KEYS = frozenset(  # of its decoder, its training or its generation: not read to encode
    """
    apply_spec_augment classifier_proj_size decoder_attention_heads decoder_ffn_dim decoder_layerdrop
    decoder_layers encoder_layerdrop init_std is_encoder_decoder mask_feature_length
    mask_feature_min_masks mask_feature_prob mask_time_length mask_time_min_masks mask_time_prob
    max_target_positions median_filter_width num_hidden_layers scale_embedding skip_language_detection
    tie_word_embeddings use_weighted_layer_sum vocab_size
    """.split()
)

LOG_MEL_SETTINGS: Mapping[str, Any] = {  # of a preprocessor_config.json: the log-mels that are computed here
    "sampling_rate": 16_000,
    "hop_length": 160,
    "n_fft": 400,
    "chunk_length": 30,
    "dither": 0.0,
    "padding_side": "right",
    "padding_value": 0.0,
    "n_samples": 480_000,
    "nb_max_frames": 3000,
    "do_normalize": False,
}
UNREAD_EXTRACTOR_KEYS = (  # of the same file: notes, and the filters that its other numbers give
    "feature_extractor_type feature_size mel_filters processor_class return_attention_mask"
).split()


def check_keys(file: Path, config: Mapping[str, Any], read: Collection[str], within: str = "") -> None:
    """ValueError: a key that is neither ``read`` nor harmless. ``within``: ``text_config.``, for the message.

    Names that begin with an underscore are transformers' own notes, and ``..._version`` a program's.
    """
    check_fixed(file, config, {name: value for name, value in SWITCHED_OFF_KEYS.items() if name not in read}, within)
    foreign = [
        name
        for name, value in config.items()
        if not (value is None or name in read or name in HARMLESS_KEYS or name in SWITCHED_OFF_KEYS)
        if not (name.startswith("_") or name.endswith("_version"))
    ]
    if foreign:
        first, remainder = foreign[0], f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        rule = f"{within}{first} is not read and may change the model, take it out if it does not"
        raise ValueError(f"{file}: {rule}: got {format_json_value(config[first])}{remainder}")


def check_fixed(file: Path, config: Mapping[str, Any], fixed: Mapping[str, Any], within: str = "") -> None:
    """ValueError: a key is there with another value than the one that is computed with."""
    for name, wanted in fixed.items():
        got = config.get(name)
        if got is None or (got == wanted and isinstance(got, bool) == isinstance(wanted, bool)):
            continue
        why = ", quantised weights cannot be trained" if name == QUANTISED else ""
        raise ValueError(
            f"{file}: {within}{name} must be {format_json_value(wanted)}{why}: got {format_json_value(got)}"
        )


def check_extractor(file: Path, bins: int) -> None:
    """ValueError: a preprocessor_config.json asks for other features than Whisper's log-mels of ``bins``."""
    config = read_json(file) if file.is_file() else {}
    check_keys(file, config, {*LOG_MEL_SETTINGS, *UNREAD_EXTRACTOR_KEYS})
    check_fixed(file, config, {**LOG_MEL_SETTINGS, "feature_size": bins})


def read_positive_int(
    file: Path, config: Mapping[str, Any], name: str, within: str = "", default: int | None = None
) -> int:
    """The positive integer of a key. ValueError: it is none, or not there and without ``default``."""
    value = config.get(name)
    value = default if value is None else value
    if type(value) is not int or not 1 <= value < 2**63:
        raise ValueError(f"{file}: {within}{name} must be a positive integer: got {format_json_value(value)}")
    return value


def require_positive_number(file: Path, name: str, value: object) -> float:
    """The value as a positive number. ValueError: it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= float_info.max:
        raise ValueError(f"{file}: {name} must be a positive number: got {format_json_value(value)}")
    return value


def format_json_value(value: object) -> str:
    """A value as JSON, cut to a part of a line."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
