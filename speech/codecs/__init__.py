"""Codecs by local path. A folder says by what it holds which kind it is; nothing is downloaded.

a file, or codec.safetensors        mel        the project's own
"""

from pathlib import Path

from speech.codec import Codec

OWN = "codec.safetensors"


def load_codec(path: Path) -> Codec:
    """The codec of a folder, or of a mel codec's file. ValueError names the file and the rule."""
    file = path if path.is_file() else path / OWN
    if file.is_file():
        from speech.codecs import mel

        return mel.MelCodec.load(file)
    raise ValueError(f"{path}: a codec must be a folder that holds {OWN}")
