"""A model family: everything the system must know about a model that is not in its weights.

A family is data and a prompt template; the rest of the code never sees a model's name. Each is one file of
this folder with ``load(model) -> Family``. Ids come from the checkpoint's tokenizer, never from constants.

A prompt or reply is one flat list of ids, step by step: a family with S parallel streams has S ids per step,
and the id of (step, stream) is at step * S + stream. Length limits count ids.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from speech.checkpoints.folder import read_tensor_shapes
from speech.checkpoints.tensor_names import UNCHANGED_NAMES, TensorNameMap
from speech.codecs import load_codec
from speech.codecs.base import Codec
from speech.features import AudioVectors, EncodedPrompt
from speech.grammar.channels import ChannelMap
from speech.grammar.interleave import Interleave
from speech.turns import ReplyChunk, Role, Turn
from speech.vocabulary import Vocabulary

AudioInput = Literal["codes", "vectors", "both"]


EncodePastReply = Callable[[Turn], tuple[int, ...]]
PromptTemplate = Callable[[Sequence[Turn], EncodePastReply], EncodedPrompt]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedReply:
    """A reply taken apart. A reply cut anywhere still parses; then ``well_formed`` is false."""

    text: str
    codes: tuple[int, ...]
    well_formed: bool


class AudioEncoder(Protocol):
    """A frozen encoder from waves to vectors in the model's embedding space. Weights load on first use."""

    sample_rate: int
    width: int  # of a vector

    def count_vectors(self, seconds: float) -> int:
        """Vectors that so many seconds of audio become."""
        ...

    def encode(self, wave: NDArray[np.float32]) -> AudioVectors:
        """Mono float32 in [-1, 1] -> [K, H]."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """What a model family provides. Owned by whoever encodes prompts or reads replies.

    Example:
        family = load_family(config.model)
        prompt = family.encode_prompt([Turn.from_parts("user", "what is one plus two")])
        reply = family.parse_reply(sampled_ids)  # words, codes, well_formed
    """

    name: str
    path: Path
    """The checkpoint folder."""
    vocabulary: Vocabulary
    channels: ChannelMap
    interleave: Interleave
    code_ids: tuple[int, ...]
    """Token id of each code."""
    template: PromptTemplate
    """The dialogue so far, up to where the assistant speaks. It is handed ``Family.encode_past_reply``."""
    own_ends: bool = False
    """The published code ends replies at ids of its own and reads no ``eos_token_id`` of the folder."""
    target_end: str = ""
    """What follows the words of a reference reply, as in the data that the model was trained on."""
    backbone: Mapping[str, Any]
    """transformers config of the language model."""
    engine_config: Mapping[str, Any] | None = None
    """The config.json that vLLM is given; None: the backbone."""
    tensor_names: TensorNameMap = UNCHANGED_NAMES
    module: Callable[[], Any] | None = None
    """The language model's class, where transformers has none for the backbone's model_type."""
    mtp_depth: int = 0
    """Layers behind the decoder that predict tokens further ahead and are learnt (the module's ``ahead``)."""
    audio_inputs: Mapping[Role, AudioInput] = field(default_factory=dict)
    """How spoken turns are given to the model; a role that is not there: as codes."""
    codec_path: Path | None
    """Where the codec lies; None: nowhere that is known."""
    code_rate: float | None = None
    """Codes per second that the model was trained with; None: whatever the codec has."""
    make_audio_encoder: Callable[[], AudioEncoder] | None = None
    audio_encoder_path: Path | None = None
    """Where an encoder lies that is no part of the checkpoint."""

    @property
    def streams(self) -> int:
        """Ids per step."""
        return self.channels.streams

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """What ends a reply."""
        return self.interleave.stop

    def audio_input_of(self, role: Role) -> AudioInput:
        """How a spoken turn of this role is given to the model."""
        return self.audio_inputs.get(role, "codes")

    def encode_prompt(self, turns: Sequence[Turn]) -> EncodedPrompt:
        """The dialogue so far, ending where the assistant starts to speak. ValueError: an unknown word."""
        if not turns:
            raise ValueError("a prompt needs at least one turn: got none")
        return self.template(turns, self.encode_past_reply)

    def encode_past_reply(self, turn: Turn) -> tuple[int, ...]:
        """Ids of an earlier reply of words and sound, as ``encode_target`` writes it, stop id included."""
        return self.encode_target(turn.to_chunks())

    def encode_target(self, chunks: Sequence[ReplyChunk]) -> tuple[int, ...]:
        """Ids of a reference reply in the family's grammar, stop id included.

        A pattern cuts words and codes anew and parallel streams cut neither, so then the words are encoded as
        one text.
        """
        if self.interleave.pattern or self.streams > 1:
            whole = tuple(chain(*(chunk.codes for chunk in chunks)))
            chunks = [ReplyChunk(text=" ".join(chunk.text for chunk in chunks), codes=whole)]
        last = len(chunks) - 1
        texts = [
            self.vocabulary.encode(" " * (i > 0) + chunk.text + self.target_end * (i == last))
            for i, chunk in enumerate(chunks)
        ]
        return tuple(self.interleave.merge_chunks(texts, [self.codes_to_ids(chunk.codes) for chunk in chunks]))

    def parse_reply(self, ids: Sequence[int]) -> ParsedReply:
        """Words and codes of a reply, whatever state it is in."""
        texts, codes = self.interleave.split_text_and_codes(ids)
        return ParsedReply(
            text=self.vocabulary.decode(texts),
            codes=tuple(self._code_of[token] for token in codes),
            well_formed=self.interleave.well_formed(ids),
        )

    def codes_to_ids(self, codes: Sequence[int]) -> list[int]:
        """Token ids of codes. ValueError: a code that the family does not have."""
        return codes_to_ids(self.code_ids, codes)

    def codec(self) -> Codec:
        """The codec, made on first use (rollout workers only; the learner never calls this).

        ValueError: none, unreadable, or of another size or rate than the model's codes.
        """
        return self._codec

    def audio_encoder(self) -> AudioEncoder:
        """The encoder of continuous audio, made on first use, as the codec is.

        ValueError: unreadable, or its vectors do not have the width of the model's embeddings.
        """
        return self._audio_encoder

    @cached_property
    def _codec(self) -> Codec:
        if self.codec_path is None:
            raise ValueError(f"model.codec must name a codec's local folder for {self.name}: got nothing")
        codec = load_codec(self.codec_path)
        if codec.size != len(self.code_ids):
            raise ValueError(
                f"{self.codec_path}: the codec must have as many codes as the tokenizer: "
                f"got {codec.size}, tokenizer {len(self.code_ids)}"
            )
        if self.code_rate not in (None, codec.frame_rate):
            rule = f"the codec must have {self.code_rate:g} codes per second, as {self.name} models do"
            raise ValueError(f"{self.codec_path}: {rule}: got {codec.frame_rate:g}")
        return codec

    @cached_property
    def _audio_encoder(self) -> AudioEncoder:
        assert self.make_audio_encoder is not None, f"{self.name} hears codes only"
        encoder, hidden = self.make_audio_encoder(), self.backbone["hidden_size"]
        if encoder.width != hidden:
            rule = f"the audio encoder's vectors must have the model's hidden_size {hidden}"
            raise ValueError(f"{self.path}: {rule}: got {encoder.width}")
        return encoder

    @cached_property
    def _code_of(self) -> dict[int, int]:
        return {token: code for code, token in enumerate(self.code_ids)}


def add_system_turn(turns: Sequence[Turn], words: str) -> Sequence[Turn]:
    """The turns behind a system turn of these words; as they are where one has it, or without words."""
    if not words or any(turn.role == "system" for turn in turns):
        return turns
    return [Turn.from_parts("system", words), *turns]


def codes_to_ids(code_ids: Sequence[int], codes: Sequence[int]) -> list[int]:
    """Token ids of codes. ValueError: a code out of range."""
    for code in codes:
        if not 0 <= code < len(code_ids):
            raise ValueError(f"code must lie in [0, {len(code_ids)}): got {code}")
    return [code_ids[code] for code in codes]


def read_embedding_rows(config_file: Path, rows: object, vocabulary: Vocabulary, name: str = "vocab_size") -> int:
    """Rows of the embedding as config.json says. ValueError: fewer than the tokenizer needs, or more than any
    tensor of the folder has. ``name``: what config.json calls them.
    """
    if not isinstance(rows, int) or rows <= vocabulary.largest:
        rule = f"{name} must exceed the tokenizer's largest id {vocabulary.largest}"
        raise ValueError(f"{config_file}: {rule}: got {rows}")
    most = max((shape[0] for shape in read_tensor_shapes(config_file.parent).values() if shape), default=0)
    if rows > most:  # before anything is made of this size
        raise ValueError(f"{config_file}: {name} must not exceed the weights' {most} rows: got {rows}")
    return rows
