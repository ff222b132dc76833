"""The encoder of GLM-4-Voice (folder ``glm-4-voice-tokenizer``): 16 kHz in, 12.5 codes a second, 16384 codes.

    log-mel (100 Hz) -> two causal convolutions (50 Hz) -> the first ``quantize_position`` Whisper layers
    -> mean of four (12.5 Hz) -> nearest entry of the codebook

A frame attends to all before it and to its own block of ``quantize_causal_block_size`` (4 s). Clips are cut
every 30 s. Written after speech_tokenizer/ of github.com/THUDM/GLM-4-Voice, on transformers' Whisper layers:
code in the folder is never run. VITA-Audio and Kimi-Audio use the same weights.
Invariant: the constructor reads headers only; the weights are read with the first clip.
"""

from collections.abc import Mapping
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

from speech.checkpoints.config_keys import LOG_MEL_SETTINGS, UNREAD_WHISPER_KEYS, check_extractor, check_keys
from speech.checkpoints.folder import read_json, read_tensor_shapes, weight_files
from speech.codecs.base import check_wave
from speech.sound.audio import Wave

WHISPER_VQ_RATE = 16_000
SEGMENT_S = 30  # in one piece
ENCODER_PREFIX = "model.encoder."  # of a checkpoint that was saved with its decoder
POSITIVE_KEYS = (
    "d_model encoder_attention_heads encoder_ffn_dim max_source_positions num_mel_bins pooling_kernel_size "
    "pooling_position quantize_causal_block_size quantize_position quantize_vocab_size"
).split()
WHISPER_VQ_FIXED = {
    "activation_function": "gelu",
    "encoder_causal_attention": False,
    "encoder_causal_convolution": True,
    "pooling_type": "avg",
    "quantize_causal_encoder": False,
}
UNREAD_TRAINING_KEYS = (  # of its training, and of layers behind the quantiser
    "encoder_layers quantize_commit_coefficient quantize_ema_decay quantize_encoder_only quantize_loss_scale "
    "quantize_restart_interval"
).split()
MELS = "sampling_rate hop_length n_fft chunk_length dither".split()


class WhisperVQ:
    """Waves to codes.

    Example:
        encoder = WhisperVQ(Path("weights/glm-4-voice-tokenizer"))
        codes = encoder.encode(wave)  # at encoder.rate
    """

    rate = WHISPER_VQ_RATE

    def __init__(self, path: Path) -> None:
        """ValueError: not a whole folder of this kind."""
        from transformers import WhisperFeatureExtractor

        self._path, self._config = path, _read_checked_config(path / "config.json")
        self._prefix = _find_encoder_prefix(path, self._config)  # first: what the sizes promise is there
        bins = self._config["num_mel_bins"]
        # What this file leaves out is the extractor's default; the encoder's defaults are other values.
        extractor = {name: LOG_MEL_SETTINGS[name] for name in MELS}
        _check_fixed_values(path / "preprocessor_config.json", extractor | {"feature_size": bins}, extractor)
        check_extractor(path / "preprocessor_config.json", bins)
        self._features = WhisperFeatureExtractor(**extractor, feature_size=bins)
        self._stride = LOG_MEL_SETTINGS["hop_length"] * 2 * self._config["pooling_kernel_size"]
        self.frame_rate = WHISPER_VQ_RATE / self._stride
        self.size = int(self._config["quantize_vocab_size"])

    @property
    def files(self) -> list[Path]:
        """What it is made of."""
        names = ("config.json", "preprocessor_config.json")
        return [*weight_files(self._path), *(self._path / name for name in names)]

    def encode(self, wave: Wave) -> list[int]:
        """The codes of a wave at 16 kHz; a started code counts."""
        import torch

        check_wave(wave)
        if not len(wave):
            return []
        longest = SEGMENT_S * WHISPER_VQ_RATE
        segments = [wave[start : start + longest] for start in range(0, len(wave), longest)]
        features = self._features(
            segments,
            sampling_rate=WHISPER_VQ_RATE,
            return_attention_mask=True,
            return_tensors="pt",
            padding="longest",
            pad_to_multiple_of=self._stride,
        )
        device = self._model.codebook.weight.device
        with torch.inference_mode():
            codes_BT = self._model(features.input_features.to(device), features.attention_mask.bool().to(device))
        counts = [ceil(len(segment) / self._stride) for segment in segments]
        return [code for row, count in zip(codes_BT.tolist(), counts, strict=True) for code in row[:count]]

    @cached_property
    def _model(self) -> Any:
        import torch

        from speech.codecs.whisper_vq_model import WhisperVQEncoder
        from speech.encoders.weights import FrozenWeights

        with torch.device("meta"):
            model = WhisperVQEncoder(self._config)
        return FrozenWeights(self._path, self._prefix).load_into(model)


def _read_checked_config(file: Path) -> dict[str, Any]:
    """The config, with the numbers and the architecture that this file computes. ValueError: others."""
    config = read_json(file)
    check_keys(file, config, {*POSITIVE_KEYS, *WHISPER_VQ_FIXED, *UNREAD_TRAINING_KEYS, *UNREAD_WHISPER_KEYS})
    for name in POSITIVE_KEYS:
        if not isinstance(config.get(name), int) or isinstance(config[name], bool) or config[name] < 1:
            raise ValueError(f"{file}: {name} must be a positive whole number: got {config.get(name)}")
    _check_fixed_values(file, WHISPER_VQ_FIXED, {})
    if config["d_model"] % config["encoder_attention_heads"]:
        heads = config["encoder_attention_heads"]
        raise ValueError(f"{file}: d_model must be a multiple of {heads} heads: got {config['d_model']}")
    if config["pooling_position"] != config["quantize_position"]:
        rule = f"pooling_position must be quantize_position {config['quantize_position']}"
        raise ValueError(f"{file}: {rule}: got {config['pooling_position']}")
    steps = SEGMENT_S * WHISPER_VQ_RATE // 320
    if config["max_source_positions"] < steps:
        rule = f"max_source_positions must be at least {steps}, {SEGMENT_S} s"
        raise ValueError(f"{file}: {rule}: got {config['max_source_positions']}")
    return config


def _check_fixed_values(file: Path, values: Mapping[str, object], defaults: Mapping[str, object]) -> None:
    """ValueError: the file says another value than the one that is computed with."""
    settings = {**defaults, **read_json(file)}
    for name, wanted in values.items():
        if settings.get(name) != wanted:
            what = "codec rate mismatch: " if name == "sampling_rate" else ""
            raise ValueError(f"{file}: {what}{name} must be {wanted}: got {settings.get(name)}")


def _find_encoder_prefix(path: Path, config: dict[str, Any]) -> str:
    """Of the encoder's names in the checkpoint. ValueError: a tensor is not there or has another shape."""
    import torch

    from speech.codecs.whisper_vq_model import WhisperVQEncoder

    stored_shapes = read_tensor_shapes(path)
    prefix = ENCODER_PREFIX if f"{ENCODER_PREFIX}codebook.weight" in stored_shapes else ""
    last = f"{prefix}layers.{config['quantize_position'] - 1}.fc1.weight"
    if last not in stored_shapes:
        raise ValueError(f"{path}: {last} must be there: config.json says quantize_position")
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in WhisperVQEncoder(config).state_dict().items()}
    for name, shape in wanted.items():
        if stored_shapes.get(prefix + name) != shape:
            have = stored_shapes.get(prefix + name, "none")
            raise ValueError(f"{path}: {prefix + name} must be there with the shape {shape}: got {have}")
    return prefix
