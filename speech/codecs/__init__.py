"""Codecs by local path. A folder says by what it holds which kind it is; nothing is downloaded.

a file, or codec.safetensors in a folder    mel.py           the project's own
wavgate-codec.json                          composed.py      an encoder and an ONNX decoder
config.json of GLM-4-Voice's tokenizer      whisper_vq.py    with decoder.onnx beside it
config.json of mimi, encodec or dac         residual.py      transformers' own, first book
"""

from pathlib import Path

from speech.checkpoints.folder import read_json
from speech.codecs.base import Codec

MEL_CODEC_FILE = "codec.safetensors"


def load_codec(path: Path) -> Codec:
    """The codec of a folder, or of a mel codec's file. ValueError names the file and the rule.

    Each kind is imported where it is asked for: whoever has no codec loads none of their libraries.
    """
    file = path if path.is_file() else path / MEL_CODEC_FILE
    if file.is_file():
        from speech.codecs.mel import MelCodec

        return MelCodec.load(file)
    from speech.codecs import composed, residual

    if (path / composed.CODEC_DECLARATION).is_file():
        return composed.load_declared_codec(path)
    config = path / "config.json"
    if not config.is_file():
        raise ValueError(
            f"{path}: a codec must be a folder with {MEL_CODEC_FILE}, {composed.CODEC_DECLARATION} or config.json"
        )
    settings = read_json(config)
    if settings.get("quantize_vocab_size") is not None:
        return composed.load_tokenizer_codec(path)
    if settings.get("model_type") in residual.RESIDUAL_MODEL_TYPES:
        return residual.ResidualCodec(path)
    rule = (
        f"a codec's model_type must be one of {', '.join(residual.RESIDUAL_MODEL_TYPES)}, or whisper with a codebook"
    )
    raise ValueError(f"{config}: {rule}: got {settings.get('model_type')}")
