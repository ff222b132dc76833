"""The embedded family: whole words and codec codes in one vocabulary, VITA-Audio's delimited replies.

    prompt   <|im_start|> user <|begin_of_audio|> codes <|end_of_audio|> <|im_end|> <|im_start|> assistant
    reply    (word+ <|begin_of_audio|> code+ <|end_of_audio|>)+ <|im_end|>

Every id is read from the checkpoint's tokenizer. Role words, ``<|im_start|>``, fillers and the rows beyond
the tokenizer are PAD: a reply has no business with them.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import get_args

from conf.schema import ModelConfig
from speech.checkpoints.folder import read_json
from speech.checkpoints.qwen2 import read_decoder
from speech.families.base import EncodePastReply, Family, codes_to_ids, read_embedding_rows
from speech.features import EncodedPrompt
from speech.grammar.channels import ChannelMap
from speech.grammar.interleave import Interleave
from speech.turns import Role, Turn, TurnPart
from speech.vocabulary import Vocabulary

OPTIONS = ()  # settings of the model that it reads beside path and codec


def load(model: ModelConfig) -> Family:
    """Read tokenizer, config and wavgate.json. ValueError names the file and the rule."""
    path = model.path
    codec = _find_codec_file(path)
    vocabulary = Vocabulary.of_words(path / "tokenizer.json", names=get_args(Role))
    config = read_json(path / "config.json")
    if "auto_map" in config:
        raise ValueError(f"{path / 'config.json'}: auto_map must not be there: a folder's own code is not run")
    if config.get("model_type") != "qwen2":
        raise ValueError(f"{path / 'config.json'}: model_type must be qwen2: got {config.get('model_type')}")
    backbone = read_decoder(path / "config.json", config)
    rows = read_embedding_rows(path / "config.json", config.get("vocab_size"), vocabulary)
    start, stop, begin, end = (
        vocabulary.special_id(f"<|{name}|>") for name in "im_start im_end begin_of_audio end_of_audio".split()
    )
    roles = {role: vocabulary.special_id(role) for role in get_args(Role)}
    code_ids = vocabulary.numbered_ids("<|audio_{}|>")
    channels = ChannelMap.build(
        vocab=rows, text=vocabulary.ordinary, audio=code_ids, boundary=(begin, end), stop=(stop,)
    )

    def encode_part(part: TurnPart) -> list[int]:
        if isinstance(part, str):
            return vocabulary.encode(part)
        return [begin, *codes_to_ids(code_ids, part.codes or ()), end]

    def template(turns: Sequence[Turn], encode_past_reply: EncodePastReply) -> EncodedPrompt:
        ids: list[int] = []
        for turn in turns:
            parts = map(encode_part, turn.items)
            whole = encode_past_reply(turn) if turn.is_interleaved_reply else [*chain(*parts), stop]
            ids += [start, roles[turn.role], *whole]
        return EncodedPrompt((*ids, start, roles["assistant"]))

    return Family(
        name="tiny",
        path=path,
        vocabulary=vocabulary,
        channels=channels,
        interleave=Interleave("delimited", channels, (stop,), begin, end),
        code_ids=code_ids,
        template=template,
        backbone=backbone,
        codec_path=model.codec or codec,
    )


def _find_codec_file(path: Path) -> Path:
    own_config = read_json(path / "wavgate.json")
    if unknown := sorted(set(own_config) - {"family", "codec", "voice"}):
        raise ValueError(f"{path / 'wavgate.json'}: keys must be family, codec, voice: got {unknown[0]}")
    if own_config.get("family") != "tiny":
        raise ValueError(f"{path / 'wavgate.json'}: family must be tiny: got {own_config.get('family')}")
    codec = own_config.get("codec")
    if not isinstance(codec, str) or Path(codec).name != codec or not (path / codec).is_file():
        raise ValueError(f"{path / 'wavgate.json'}: codec must name a file of this folder: got {codec}")
    return path / codec
