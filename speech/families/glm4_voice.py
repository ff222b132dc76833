"""GLM-4-Voice: a ChatGLM backbone, words and codes in one vocabulary, counted replies.

    prompt   [gMASK] <sop> <|system|> \\n system <|user|> \\n turn <|assistant|> streaming_transcription \\n
    turn     words and sound as given, sound as <|begin_of_audio|> codes <|end_of_audio|>
    reply    13 words, 26 codes, 13 words, 26 codes, ... words, codes to the end, <|user|>

Words come from ``tokenizer.model`` (tiktoken), special tokens and codes from the tokens added to it. The
checkpoint's own code is never run: the learner has transformers' Glm, engines vLLM's ChatGLM, and a config
that those two cannot follow is refused. Sources: docs/models/glm4_voice.md.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from conf.schema import ModelConfig
from speech.checkpoints.config_keys import (
    check_fixed,
    check_keys,
    format_json_value,
    read_positive_int,
    require_positive_number,
)
from speech.checkpoints.folder import read_json
from speech.checkpoints.tensor_names import TensorNameMap
from speech.families.base import (
    EncodePastReply,
    Family,
    PromptTemplate,
    add_system_turn,
    codes_to_ids,
    read_embedding_rows,
)
from speech.features import EncodedPrompt
from speech.grammar.channels import ChannelMap
from speech.grammar.interleave import Interleave
from speech.turns import AudioPart, Turn
from speech.vocabulary import Vocabulary

GLM_SPLIT_PATTERN = (  # how text is cut before byte pairs are merged
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GLM_STOP_TOKENS = ("<|user|>", "<|endoftext|>", "<|observation|>")  # what the model says at the end comes first
OPTIONS = ("system",)
GLM_CHUNK_PATTERN = ((13, 26),)
GLM_CODE_RATE = 12.5
GLM_SYSTEM_PROMPT = (
    "User will provide you with a {} instruction. Do it step by step. First, think about the instruction and "
    "respond in a interleaved manner, with 13 text token followed by 26 audio tokens."
)
SPOKEN_SYSTEM_PROMPT, WRITTEN_SYSTEM_PROMPT = (
    GLM_SYSTEM_PROMPT.format("speech") + " ",
    GLM_SYSTEM_PROMPT.format("text"),
)  # the space is the published one's
STREAMING_MODE = "streaming_transcription"
GLM_FIXED_SETTINGS: Mapping[str, Any] = {  # the one variant that transformers' Glm and vLLM's ChatGLM both compute
    "model_type": "chatglm",
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "add_bias_linear": False,
    "original_rope": True,
    "tie_word_embeddings": False,
    "fp32_residual_connection": False,
    "prefix_projection": False,
    "quantization_bit": 0,
}
GLM_UNREAD_KEYS = (  # precision and scheduling of the published code, none of its results
    "apply_query_key_layer_scaling attention_softmax_in_fp32 bias_dropout_fusion max_sequence_length".split()
)
GLM_REPEATED_KEYS = (("num_hidden_layers", "num_layers"), ("vocab_size", "padded_vocab_size"))  # must say the same
GLM_SIZE_KEYS = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "kv_channels", "num_attention_heads"),
    *("multi_query_group_num", "seq_length", "padded_vocab_size"),
)
GLM_DEFAULTS: Mapping[str, Any] = {  # what may be left out of config.json, as its class reads that
    "multi_query_attention": False,
    "multi_query_group_num": 1,
    "add_qkv_bias": False,
    "layernorm_epsilon": 1e-5,
    "rope_ratio": 1,
}
GLM_REQUIRED_TOKENS = (
    "[gMASK]",
    "<sop>",
    "<|system|>",
    "<|assistant|>",
    *GLM_STOP_TOKENS,
    "<|begin_of_audio|>",
    "<|end_of_audio|>",
)
GLM_LAYER_PATTERN, GLM_LAYER_TEMPLATE = r"transformer\.encoder\.layers\.(\d+)\.", r"model.layers.\1."
GLM_TENSOR_NAMES = TensorNameMap(
    (
        (r"transformer\.embedding\.word_embeddings\.weight", ("model.embed_tokens.weight",)),
        (r"transformer\.output_layer\.weight", ("lm_head.weight",)),
        (r"transformer\.encoder\.final_layernorm\.weight", ("model.norm.weight",)),
        (
            GLM_LAYER_PATTERN + r"(input|post_attention)_layernorm\.weight",
            (GLM_LAYER_TEMPLATE + r"\2_layernorm.weight",),
        ),
        (
            GLM_LAYER_PATTERN + r"self_attention\.query_key_value\.(weight|bias)",
            tuple(GLM_LAYER_TEMPLATE + rf"self_attn.{letter}_proj.\2" for letter in "qkv"),
        ),
        (GLM_LAYER_PATTERN + r"self_attention\.dense\.weight", (GLM_LAYER_TEMPLATE + "self_attn.o_proj.weight",)),
        (GLM_LAYER_PATTERN + r"mlp\.dense_h_to_4h\.weight", (GLM_LAYER_TEMPLATE + "mlp.gate_up_proj.weight",)),
        (GLM_LAYER_PATTERN + r"mlp\.dense_4h_to_h\.weight", (GLM_LAYER_TEMPLATE + "mlp.down_proj.weight",)),
        (r"transformer\.rotary_pos_emb\.inv_freq", ()),  # the config determines it
    )
)


def load(model: ModelConfig) -> Family:
    """Read config and tokenizer. ValueError names the file and the rule."""
    path, file = model.path, model.path / "config.json"
    given = {name: value for name, value in read_json(file).items() if value is not None}
    config = _check_config(file, {**GLM_DEFAULTS, **given})
    vocabulary = Vocabulary.of_ranks(path / "tokenizer.model", GLM_SPLIT_PATTERN, _read_required_tokens(path))
    rows = read_embedding_rows(file, config["padded_vocab_size"], vocabulary, "padded_vocab_size")
    code_ids = vocabulary.numbered_ids("<|audio_{}|>")
    stops = tuple(vocabulary.special_id(name) for name in GLM_STOP_TOKENS)
    channels = ChannelMap.build(
        vocab=rows,
        text=vocabulary.ordinary,
        audio=code_ids,
        boundary=(vocabulary.special_id("<|begin_of_audio|>"), vocabulary.special_id("<|end_of_audio|>")),
        stop=stops,
    )
    return Family(
        name="glm4_voice",
        path=path,
        vocabulary=vocabulary,
        channels=channels,
        interleave=Interleave("counted", channels, stops, pattern=GLM_CHUNK_PATTERN),
        code_ids=code_ids,
        template=_build_template(vocabulary, code_ids, model.system),
        backbone=_build_glm_backbone(config),
        engine_config=config,
        tensor_names=GLM_TENSOR_NAMES,
        codec_path=model.codec,
        code_rate=GLM_CODE_RATE,
    )


def _build_template(vocabulary: Vocabulary, code_ids: Sequence[int], system: str | None) -> PromptTemplate:
    """What the released demo sends. A past reply stands as it was said: behind the mode, no boundaries."""
    begin, end = vocabulary.special_id("<|begin_of_audio|>"), vocabulary.special_id("<|end_of_audio|>")
    roles = {role: vocabulary.special_id(f"<|{role}|>") for role in ("system", "user", "assistant")}
    prefix = [vocabulary.special_id("[gMASK]"), vocabulary.special_id("<sop>")]
    opening = [roles["assistant"], *vocabulary.encode(STREAMING_MODE + "\n")]

    def encode_heard_turn(turn: Turn) -> list[int]:
        ids, before = [roles[turn.role]], "\n"  # one string with the words behind it
        for part in turn.parts:
            ids += vocabulary.encode(before + part if isinstance(part, str) else before)
            if isinstance(part, AudioPart):
                ids += [begin, *codes_to_ids(code_ids, part.codes or ()), end]
            before = ""
        return ids

    def encode_reply_turn(turn: Turn, encode_past_reply: EncodePastReply) -> list[int]:
        if turn.is_interleaved_reply:
            return [*opening, *encode_past_reply(turn)[:-1]]  # the next role ends it
        if turn.is_written:
            return [roles["assistant"], *vocabulary.encode(f"{STREAMING_MODE}\n{turn.words.rstrip()}")]
        return [*opening, *codes_to_ids(code_ids, turn.codes)]

    def template(turns: Sequence[Turn], encode_past_reply: EncodePastReply) -> EncodedPrompt:
        first = next((turn for turn in turns if turn.role == "user"), turns[0])
        default = WRITTEN_SYSTEM_PROMPT if first.is_written else SPOKEN_SYSTEM_PROMPT
        turns = add_system_turn(turns, default if system is None else system)
        turn_ids = [
            encode_reply_turn(turn, encode_past_reply) if turn.role == "assistant" else encode_heard_turn(turn)
            for turn in turns
        ]
        return EncodedPrompt((*prefix, *chain(*turn_ids), *opening))

    return template


def _read_required_tokens(path: Path) -> dict[str, int]:
    """Added tokens -> ids. ValueError: the file does not have them, or in another form."""
    file = path / "tokenizer_config.json"
    added = read_json(file).get("added_tokens_decoder")
    try:
        id_by_token = {str(token["content"]): int(number) for number, token in (added or {}).items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        id_by_token = {}
    if lacking := [name for name in (*GLM_REQUIRED_TOKENS, "<|audio_0|>") if name not in id_by_token]:
        raise ValueError(f"{file}: added_tokens_decoder must give an id to {lacking[0]}: it does not")
    return id_by_token


def _check_config(file: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What counts of config.json, as vLLM's class reads it. ValueError: it needs the folder's own code."""
    for name, wanted in GLM_FIXED_SETTINGS.items():
        if (got := config.get(name, wanted)) != wanted:
            rule = f"{name} must be {json.dumps(wanted)} (the checkpoint's own code, for all else, is not run)"
            raise ValueError(f"{file}: {rule}: got {json.dumps(got)[:60]}")
    check_keys(
        file,
        config,
        {
            *GLM_FIXED_SETTINGS,
            *GLM_SIZE_KEYS,
            *GLM_DEFAULTS,
            *GLM_UNREAD_KEYS,
            *(name for name, _ in GLM_REPEATED_KEYS),
        },
    )
    for name in GLM_SIZE_KEYS:
        read_positive_int(file, config, name)
    for name in ("layernorm_epsilon", "rope_ratio"):
        require_positive_number(file, name, config[name])
    for name, other in GLM_REPEATED_KEYS:
        check_fixed(file, config, {name: config[other]})
    for name in ("multi_query_attention", "add_qkv_bias"):
        if not isinstance(config[name], bool):
            raise ValueError(f"{file}: {name} must be true or false: got {format_json_value(config[name])}")
    per_head = config["hidden_size"] / config["num_attention_heads"]
    if config["kv_channels"] != per_head:
        rule = f"kv_channels must be hidden_size / num_attention_heads = {per_head:g}"
        raise ValueError(f"{file}: {rule}: got {config['kv_channels']}")
    read = {name: config[name] for name in (*GLM_SIZE_KEYS, *GLM_DEFAULTS)}
    return {**GLM_FIXED_SETTINGS, **read, "architectures": ["ChatGLMForConditionalGeneration"]}


def _build_glm_backbone(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same as transformers' Glm reads it."""
    heads = config["num_attention_heads"]
    return {
        "model_type": "glm",
        "vocab_size": config["padded_vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["ffn_hidden_size"],
        "num_hidden_layers": config["num_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": config["multi_query_group_num"] if config["multi_query_attention"] else heads,
        "head_dim": config["kv_channels"],
        "max_position_embeddings": config["seq_length"],
        "rms_norm_eps": config["layernorm_epsilon"],
        "attention_bias": config["add_qkv_bias"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4 * config["rope_ratio"],
            "partial_rotary_factor": 0.5,
        },
        "tie_word_embeddings": False,
        "pad_token_id": None,  # an embedding row like any other: its gradient is not dropped
    }
