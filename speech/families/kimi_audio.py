"""Kimi-Audio: two streams side by side, a text and an audio id at every step. docs/models/kimi_audio.md.

    a spoken turn   text   _           _      _ _ _ _ _  _    _    _
                    audio  user_start  begin  codes ...  end  ctd  over
    a written turn  text   _           what is two       _
                    audio  user_start  _ _ _ _ _ _       over
    a reply         text   words ....... text_eos _ _ _ _ _ _ _ _
                    audio  _ _ _ _ _ _ codes ................ over

_ is ``<|im_kimia_text_blank|>``; a prompt ends with assistant_start. Codes that are heard are fused with the
encoder's vectors. Special tokens have the ids behind the tokenizer's ranks, in the order of the published
tokenizer; codes begin where config.json says. Whatever is neither said, a code nor an end is PAD.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from conf.schema import ModelConfig
from speech.checkpoints.config_keys import check_fixed
from speech.checkpoints.folder import count_stored_layers, read_json
from speech.checkpoints.qwen2 import read_decoder
from speech.checkpoints.tensor_names import TensorNameMap
from speech.families.base import (
    AudioEncoder,
    EncodePastReply,
    Family,
    add_system_turn,
    codes_to_ids,
    read_embedding_rows,
)
from speech.features import AudioFeatures, AudioVectors, EncodedPrompt
from speech.grammar.channels import ChannelMap
from speech.grammar.interleave import Interleave
from speech.turns import AudioPart, Role, Turn
from speech.vocabulary import Vocabulary, check_companion_files

OPTIONS = ("system", "ear")
KIMI_ARCHITECTURE = "MoonshotKimiaForCausalLM"
KIMI_SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KIMI_RESERVED_IDS = 421  # ids behind the ranks; of these names, at these places
KIMI_SPECIAL_OFFSETS = {
    "<|im_msg_end|>": 2,
    "<|im_media_begin|>": 18,
    "<|im_media_end|>": 20,
    "<|im_kimia_text_blank|>": 23,
    "<|im_kimia_text_eos|>": 24,
    "<|im_kimia_user_msg_start|>": 27,
    "<|im_kimia_assistant_msg_start|>": 28,
    "<|im_kimia_speech_ctd_id|>": 33,
}
KIMI_CODE_RATE = 12.5
FORK_LAYER_KEY = "kimia_mimo_transformer_from_layer_index"
SIDE_LAYERS_KEY, AUDIO_DELAY_KEY = "kimia_mimo_layers", "kimia_mimo_audiodelaytokens"
KIMI_CONFIG_KEYS = (  # keys that Qwen2's config has not; the last line's are read by nobody's forward pass
    *(
        FORK_LAYER_KEY,
        SIDE_LAYERS_KEY,
        AUDIO_DELAY_KEY,
        "kimia_token_offset",
        "kimia_media_begin",
        "kimia_media_end",
        "num_base_tokens",
    ),
    *("kimia_text_blank", "kimia_text_eos", "kimia_adaptor_input_dim", "use_whisper_feature"),
    *(
        "kimia_audio_output_vocab",
        "kimia_text_output_vocab",
        "num_audio_special_tokens",
        "whisper_model_name",
    ),
)
WHISPER_FOLDER = "whisper-large-v3"  # the folder of the checkpoint that holds its encoder
KIMI_TENSOR_NAMES = TensorNameMap(((r"model\.vq_adaptor\..*", ()),))


def load(model: ModelConfig) -> Family:
    """Read tiktoken.model and config.json. ValueError names the file and the rule."""
    config_file = model.path / "config.json"
    config = read_json(config_file)
    if KIMI_ARCHITECTURE not in (config.get("architectures") or ()):
        raise ValueError(
            f"{config_file}: architectures must have {KIMI_ARCHITECTURE}: got {config.get('architectures')}"
        )
    check_fixed(config_file, config, {"tie_word_embeddings": False})
    decoder = read_decoder(config_file, config, others=KIMI_CONFIG_KEYS)
    fork, side, delay = _read_stream_settings(config_file, config, model.max_length // 2)
    vocabulary = _read_vocabulary(model.path / "tiktoken.model")
    code_ids = _read_code_ids(config_file, config, vocabulary)
    blank, text_end = (vocabulary.special_id(f"<|im_kimia_text_{name}|>") for name in ("blank", "eos"))
    stops = tuple(vocabulary.special_id(f"<|im_{name}_end|>") for name in ("msg", "media"))
    rows = code_ids[-1] + 1
    channels = ChannelMap.of_streams(
        [
            ChannelMap.build(vocab=rows, text=vocabulary.ordinary, audio=(), boundary=(), stop=(text_end,)),
            ChannelMap.build(vocab=rows, text=(), audio=code_ids, boundary=stops, stop=()),
        ]
    )
    uses_vectors = config.get("use_whisper_feature", True)
    if not isinstance(uses_vectors, bool):
        raise ValueError(f"{config_file}: use_whisper_feature must be true or false: got {uses_vectors}")
    whisper = model.ear or model.path / WHISPER_FOLDER
    return Family(
        name="kimi_audio",
        own_ends=True,
        path=model.path,
        vocabulary=vocabulary,
        channels=channels,
        interleave=Interleave("parallel", channels, stops, end=text_end, blank=blank, delay=delay),
        code_ids=code_ids,
        template=_Template(vocabulary, code_ids, model.system),
        backbone={**decoder, "model_type": "kimi_audio", FORK_LAYER_KEY: fork, SIDE_LAYERS_KEY: side},
        tensor_names=KIMI_TENSOR_NAMES,
        module=_import_model_class,
        audio_inputs={"system": "both", "user": "both", "assistant": "both"} if uses_vectors else {},
        codec_path=model.codec,
        code_rate=KIMI_CODE_RATE,
        make_audio_encoder=(lambda: _make_audio_encoder(model.path, whisper)) if uses_vectors else None,
        audio_encoder_path=whisper,
    )


def _read_stream_settings(file: Path, config: dict[str, Any], steps: int) -> tuple[int, int, int]:
    """(where the streams part, layers of the codes' own, delay of the codes), once weights and replies of
    ``steps`` can have them.
    """
    layers, side = (count_stored_layers(file.parent, f"model.{kind}layers.") for kind in ("", "mimo_"))
    fork, side_layers, delay = (
        config.get(FORK_LAYER_KEY, 21),
        config.get(SIDE_LAYERS_KEY, 6),
        config.get(AUDIO_DELAY_KEY, 6),
    )
    for name, value, least, most in (
        ("num_hidden_layers", config.get("num_hidden_layers"), layers, layers),
        (SIDE_LAYERS_KEY, side_layers, side, side),
        (FORK_LAYER_KEY, fork, 0, layers - 1),
        (AUDIO_DELAY_KEY, delay, 0, steps - 1),
    ):
        if not isinstance(value, int) or not least <= value <= most:
            rule = f"must be the weights' {most}" if least == most else f"must be an integer in [0, {most}]"
            raise ValueError(f"{file}: {name} {rule}: got {value}")
    return int(fork), int(side_layers), int(delay)


def _read_vocabulary(file: Path) -> Vocabulary:
    plain = Vocabulary.of_ranks(file, KIMI_SPLIT_PATTERN, {})
    base = len(plain.ordinary)
    if plain.largest != base - 1:
        raise ValueError(f"{file}: ranks must be 0 to {base - 1} without a gap: got {plain.largest}")
    specials = {name: base + place for name, place in KIMI_SPECIAL_OFFSETS.items()}
    check_companion_files(file, specials)
    return replace(plain, specials=specials)


def _read_code_ids(config_file: Path, config: dict[str, Any], vocabulary: Vocabulary) -> tuple[int, ...]:
    """Ids of the codes: from ``kimia_token_offset`` to the last row of the embedding."""
    rows, first = (
        read_embedding_rows(config_file, config.get("vocab_size"), vocabulary),
        config.get("kimia_token_offset"),
    )
    least = len(vocabulary.ordinary) + KIMI_RESERVED_IDS
    if not isinstance(first, int) or not least <= first < rows:
        rule = f"kimia_token_offset must lie in [{least}, vocab_size={rows}), behind the tokenizer's ids"
        raise ValueError(f"{config_file}: {rule}: got {first}")
    ids = {
        "kimia_media_begin": vocabulary.special_id("<|im_media_begin|>"),
        "kimia_media_end": vocabulary.special_id("<|im_media_end|>"),
        "kimia_text_blank": vocabulary.special_id("<|im_kimia_text_blank|>"),
        "kimia_text_eos": vocabulary.special_id("<|im_kimia_text_eos|>"),
        "num_base_tokens": len(vocabulary.ordinary),
    }
    for key, known in ids.items():
        if (declared := config.get(key)) not in (None, known):
            raise ValueError(f"{config_file}: {key} must be the tokenizer's {known}: got {declared}")
    return tuple(range(first, rows))


class _Template:
    """Turns as two aligned streams.

    There is no system role: a system turn is written as the user's, as published prompts write instructions.
    """

    def __init__(self, vocabulary: Vocabulary, code_ids: tuple[int, ...], system: str | None) -> None:
        self._vocabulary, self._code_ids, self._system = vocabulary, code_ids, system
        names = "text_blank text_eos user_msg_start assistant_msg_start speech_ctd_id".split()
        self._blank, self._eos, *starts, self._speak = (
            vocabulary.special_id(f"<|im_kimia_{name}|>") for name in names
        )
        self._starts: dict[Role, int] = dict(zip(("user", "assistant"), starts, strict=True))
        names = "media_begin media_end msg_end".split()
        self._begin, self._end, self._over = (vocabulary.special_id(f"<|im_{name}|>") for name in names)

    def __call__(self, turns: Sequence[Turn], encode_past_reply: EncodePastReply) -> EncodedPrompt:
        turns = add_system_turn(turns, self._system or "")
        roles: list[Role] = ["assistant" if turn.role == "assistant" else "user" for turn in turns]
        ids: list[int] = []  # text0 audio0 text1 audio1 ...
        steps: list[int] = []
        vectors_by_clip: list[AudioVectors] = []
        for turn, role, before, behind in zip(turns, roles, [None, *roles], [*roles[1:], None], strict=False):
            if role != before:
                ids += [self._blank, self._starts[role]]
            if turn.is_interleaved_reply:
                ids += [self._blank if token == self._eos else token for token in encode_past_reply(turn)[:-2]]
            for part in () if turn.is_interleaved_reply else turn.items:
                if isinstance(part, str):
                    ids += [stream_id for token in self._vocabulary.encode(part) for stream_id in (token, self._blank)]
                    continue
                codes = codes_to_ids(self._code_ids, part.codes or ())
                vectors = np.zeros((0, 0), np.float32) if part.vectors is None else part.vectors[: len(codes)]
                steps += range(len(ids) // 2 + 1, len(ids) // 2 + 1 + len(vectors))
                vectors_by_clip += [vectors] * bool(len(vectors))
                ids += [stream_id for token in (self._begin, *codes, self._end) for stream_id in (self._blank, token)]
            if role != behind:
                heard_last = not turn.is_interleaved_reply and isinstance(turn.items[-1], AudioPart)
                ids += [self._blank, self._speak] * heard_last + [self._blank, self._over]
        ids += [self._blank, self._starts["assistant"]]
        features = AudioFeatures(tuple(steps), np.concatenate(vectors_by_clip)) if vectors_by_clip else None
        return EncodedPrompt(tuple(ids), features)


def _import_model_class() -> Any:
    from speech.models.kimi_audio import KimiAudio

    return KimiAudio


def _make_audio_encoder(path: Path, whisper: Path) -> AudioEncoder:
    from speech.encoders.kimi_audio import KimiAudioEncoder

    return KimiAudioEncoder(path, whisper)
