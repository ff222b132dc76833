"""Step-Audio 2 mini: Qwen2 in a nested config, spoken turns heard as vectors, groups of 1 text and 4 codes.

    prompt   <|BOT|>system \\n words <|EOT|> <|BOT|>human \\n
             <audio_start> <audio_patch> * vectors <audio_end> <|EOT|> <|BOT|>assistant \\n <tts_start>
    reply    (text code code code code)+ <tts_end> <|EOT|>

In a reply, ``<tts_pad>`` fills the text slots once the text is over and the last ``<audio_N>``, which is no
code, the code slots once the sound is over. Every id is read from the tokenizer. The folder's own code is
never run: backbone and encoder are this project's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conf.schema import ModelConfig
from speech.checkpoints.config_keys import HARMLESS_KEYS, check_fixed, check_keys, read_positive_int
from speech.checkpoints.folder import read_json
from speech.checkpoints.qwen2 import SLIDING_WINDOW_KEYS, has_tied_head, read_decoder
from speech.checkpoints.tensor_names import TensorNameMap
from speech.families.base import AudioEncoder, EncodePastReply, Family, add_system_turn, read_embedding_rows
from speech.features import AudioFeatures, EncodedPrompt
from speech.grammar.channels import ChannelMap
from speech.grammar.interleave import Interleave
from speech.turns import Turn
from speech.vocabulary import Vocabulary

OPTIONS = ("system",)
STEP_AUDIO_SYSTEM_PROMPT = "You are a helpful assistant."  # of the published examples
STEP_AUDIO_ROLES = {"user": "human"}  # other roles keep their names
STEP_AUDIO_PATTERN = ((1, 4),)
PIECE_VECTORS = 313  # vectors of 25 seconds: the encoder takes no more at once, and each piece has its own markers
DEFAULT_MAX_POSITIONS, DEFAULT_ROPE_THETA = 8192, 1e6  # what the published class takes where text_config does not say
TEXT_CONFIG_KEYS = ("num_attention_groups", "max_seq_len")  # keys that Qwen2's config has not
TOP_CONFIG_KEYS = (
    "text_config",
    "audio_encoder_config",
    *SLIDING_WINDOW_KEYS,
    "use_sliding_window",
    "tie_word_embeddings",
)


def load(model: ModelConfig) -> Family:
    """Read tokenizer and config. ValueError names the file and the rule."""
    path, file = model.path, model.path / "config.json"
    config = _read_config(file)
    backbone = _read_backbone(file, config)
    encoder_config = config["audio_encoder_config"]
    check_fixed(file, encoder_config, {"llm_dim": backbone["hidden_size"]}, "audio_encoder_config.")
    vocabulary = Vocabulary.of_pieces(path / "tokenizer.json")
    rows = read_embedding_rows(file, backbone["vocab_size"], vocabulary)
    begin, end, pad = (vocabulary.special_id(f"<tts_{name}>") for name in ("start", "end", "pad"))
    stop = vocabulary.special_id("<|EOT|>")
    *codes, silence = vocabulary.numbered_ids("<audio_{}>")
    channels = ChannelMap.build(vocab=rows, text=vocabulary.ordinary, audio=codes, boundary=(begin, end), stop=(stop,))
    prompter = _PromptWriter(vocabulary)
    codec = path / "token2wav"
    system = STEP_AUDIO_SYSTEM_PROMPT if model.system is None else model.system

    def make_audio_encoder() -> AudioEncoder:
        from speech.encoders.step_audio2 import StepAudio2Encoder

        return StepAudio2Encoder(path, encoder_config)

    def template(turns: Sequence[Turn], encode_past_reply: EncodePastReply) -> EncodedPrompt:
        return prompter.encode_prompt(add_system_turn(turns, system), encode_past_reply)

    return Family(
        name="step_audio2",
        own_ends=True,
        path=path,
        vocabulary=vocabulary,
        channels=channels,
        interleave=Interleave(
            "padded", channels, (stop,), end=end, pattern=STEP_AUDIO_PATTERN, text_pad=pad, audio_pad=silence
        ),
        code_ids=tuple(codes),
        template=template,
        backbone=backbone,
        tensor_names=TensorNameMap(((r"(encoder|adapter)\..*", ()),)),
        audio_inputs={"user": "vectors", "system": "vectors"},
        codec_path=model.codec or (codec if codec.is_dir() else None),
        code_rate=25.0,
        make_audio_encoder=make_audio_encoder,
    )


class _PromptWriter:
    """The published chat template."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        special = vocabulary.special_id
        self._turn, self._over, self._speak = special("<|BOT|>"), special("<|EOT|>"), special("<tts_start>")
        self._begin, self._end, self._place = (special(f"<audio_{name}>") for name in ("start", "end", "patch"))

    def encode_prompt(self, turns: Sequence[Turn], encode_past_reply: EncodePastReply) -> EncodedPrompt:
        """Every turn, then the start of a spoken answer."""
        ids: list[int] = []
        features: list[AudioFeatures] = []
        for turn in turns:
            opened = f"{STEP_AUDIO_ROLES.get(turn.role, turn.role)}\n"
            ids.append(self._turn)
            if turn.is_interleaved_reply:
                ids += [*self._vocabulary.encode(opened), self._speak, *encode_past_reply(turn)]
                continue
            for part in (opened + turn.words,) if turn.is_written else (opened, *turn.items):
                if isinstance(part, str):
                    ids += self._vocabulary.encode(part)
                elif part.vectors is not None:
                    places = self._build_audio_places(len(part.vectors))
                    steps = [len(ids) + step for step, token in enumerate(places) if token == self._place]
                    features += [AudioFeatures(tuple(steps), part.vectors)] * bool(steps)
                    ids += places
                else:
                    rule = "a spoken turn of the assistant must have its words beside its sound"
                    raise ValueError(f"{rule}: got {len(part.codes or ())} codes")
            ids.append(self._over)
        ids += [self._turn, *self._vocabulary.encode("assistant\n"), self._speak]
        return EncodedPrompt(tuple(ids), AudioFeatures.join_features(features))

    def _build_audio_places(self, count: int) -> list[int]:
        """The markers of each piece of a clip around as many places as it has vectors."""
        pieces = [min(PIECE_VECTORS, count - first) for first in range(0, max(count, 1), PIECE_VECTORS)]
        return [token for n in pieces for token in (self._begin, *[self._place] * n, self._end)]


def _read_config(file: Path) -> Mapping[str, Any]:
    config = read_json(file)
    if config.get("model_type") != "step_audio_2":
        raise ValueError(f"{file}: model_type must be step_audio_2: got {config.get('model_type')}")
    for part in ("text_config", "audio_encoder_config"):
        if not isinstance(config.get(part), dict):
            raise ValueError(f"{file}: must have an object {part}: got {config.get(part)}")
    return config


def _read_backbone(file: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen2 as the published configuration builds it from text_config. ValueError: what lies beside it says
    another thing.
    """
    text, within = config["text_config"], "text_config."
    beside = {name: value for name, value in config.items() if name in text and name not in HARMLESS_KEYS}
    check_fixed(file, beside, {name: text[name] for name in beside})
    check_keys(file, config, {*TOP_CONFIG_KEYS, *text})
    check_fixed(file, config, {"use_sliding_window": False})
    read_positive_int(file, text, "num_key_value_heads", within)
    backbone = read_decoder(
        file, text, within=within, others=TEXT_CONFIG_KEYS, reach=DEFAULT_MAX_POSITIONS, theta=DEFAULT_ROPE_THETA
    )
    check_fixed(file, text, {"num_attention_groups": backbone["num_key_value_heads"]}, within)
    return backbone | {"tie_word_embeddings": has_tied_head(file, text, within) or has_tied_head(file, config)}
