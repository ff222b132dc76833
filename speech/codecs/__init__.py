"""Codecs by local path. A folder says by what it holds which kind it is; nothing is downloaded.

a file, or codec.safetensors in a folder    mel.py         the project's own
config.json of mimi, encodec or dac         residual.py    transformers' own, first book
"""

from pathlib import Path

from speech.checkpoint import read_json
from speech.codec import Codec

OWN = "codec.safetensors"


def load_codec(path: Path) -> Codec:
    """The codec of a folder, or of a mel codec's file. ValueError names the file and the rule.

    Each kind is imported where it is asked for: whoever has no codec loads none of their libraries.
    """
    file = path if path.is_file() else path / OWN
    if file.is_file():
        from speech.codecs.mel import MelCodec

        return MelCodec.load(file)
    config = path / "config.json"
    if not config.is_file():
        raise ValueError(f"{path}: a codec must be a folder with {OWN} or config.json")
    from speech.codecs.residual import KINDS, ResidualCodec

    kind = read_json(config).get("model_type")
    if kind in KINDS:
        return ResidualCodec(path)
    raise ValueError(f"{config}: a codec's model_type must be one of {', '.join(KINDS)}: got {kind}")
