"""The project's own codec: log-mel blocks, one codebook, Griffin-Lim.

Eight log-mel frames (80 ms) -> 2-D DCT -> nearest entry of one codebook; decoding looks up each code's
magnitudes, computed once, and rebuilds the phases. Level is part of a code: loud speech stays loud.
Invariant: for clips that start and end with 20 ms of silence and last a multiple of 80 ms,
``encode(a + b) == encode(a) + encode(b)``; ``len(decode(codes)) == 1280 * len(codes)``.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from scipy.fft import dctn, idctn

from speech.codecs.base import check_codes, check_wave
from speech.sound.mel import (
    MEL_BANDS,
    MEL_FLOOR,
    MEL_HOP,
    MEL_SAMPLE_RATE,
    FloatArray,
    compute_log_mel,
    invert_magnitudes,
    log_mel_to_magnitudes,
)

FRAMES_PER_CODE = 8  # frames in a code
CEPSTRA = 24  # mel-cepstral coefficients kept
TIME_COEFFICIENTS = 6  # coefficients kept along time
MEL_CODEC_FORMAT = "wavgate-mel-codec-2"


class MelCodec:
    """One codebook over blocks of eight log-mel frames.

    Example:
        codec = MelCodec.fit(waves, size=1024, seed=0)
        codec.save(path); codec = MelCodec.load(path)
        wave = codec.decode(codec.encode(wave))
    """

    def __init__(self, book: npt.NDArray[np.float32], iterations: int = 12) -> None:
        if book.ndim != 2 or book.shape[1] != TIME_COEFFICIENTS * CEPSTRA:
            raise ValueError(f"codebook must have {TIME_COEFFICIENTS * CEPSTRA} columns, got shape {book.shape}")
        self.input_sample_rate = self.sample_rate = MEL_SAMPLE_RATE
        self.frame_rate = MEL_SAMPLE_RATE / (MEL_HOP * FRAMES_PER_CODE)
        self.size = len(book)
        self._book = np.ascontiguousarray(book, np.float32)
        self._iterations = iterations
        self._blocks = log_mel_to_magnitudes(_codebook_to_log_mel(self._book)).reshape(self.size, FRAMES_PER_CODE, -1)

    def encode(self, wave: FloatArray) -> list[int]:
        """Nearest codebook entry of every 80 ms block."""
        check_wave(wave)
        return [] if not len(wave) else find_nearest_entries(extract_block_features(wave), self._book).tolist()

    def decode(self, codes: Sequence[int]) -> FloatArray:
        """Rebuild ``1280 * len(codes)`` samples."""
        chosen = check_codes(codes, self.size)
        if not len(chosen):
            return np.zeros(0, np.float32)
        linear = self._blocks[chosen].reshape(len(chosen) * FRAMES_PER_CODE, -1)
        return np.clip(invert_magnitudes(linear, self._iterations), -1, 1)

    def save(self, path: Path) -> None:
        """Write codebook and settings as safetensors."""
        path.write_bytes(self._serialize())

    @cached_property
    def fingerprint(self) -> str:
        """The hash of the file that ``save`` writes."""
        return hashlib.sha256(self._serialize()).hexdigest()

    def _serialize(self) -> bytes:
        settings = json.dumps({"iterations": self._iterations})
        return save({"codebook": self._book}, metadata={MEL_CODEC_FORMAT: settings})  # one key: same bytes

    @classmethod
    def load(cls, path: Path) -> "MelCodec":
        """Read what ``save`` wrote; anything else is refused."""
        try:
            with safe_open(path, framework="numpy") as stored:
                metadata = stored.metadata() or {}
                if MEL_CODEC_FORMAT not in metadata:
                    have = ", ".join(metadata) or "none"
                    raise ValueError(f"{path}: codec format must be {MEL_CODEC_FORMAT}, got {have}")
                return cls(stored.get_tensor("codebook"), int(json.loads(metadata[MEL_CODEC_FORMAT])["iterations"]))
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: not a readable safetensors file: {error}") from error

    @classmethod
    def fit(cls, waves: Sequence[FloatArray], size: int, seed: int, rounds: int = 30) -> "MelCodec":
        """K-means (k-means++ start, Lloyd rounds) over the blocks of the waves."""
        blocks = np.concatenate([extract_block_features(wave) for wave in waves])
        if len(blocks) < size:
            raise ValueError(f"fitting needs at least {size} blocks of speech, got {len(blocks)}")
        return cls(fit_k_means(blocks, size, np.random.default_rng(seed), rounds))


def extract_block_features(wave: FloatArray) -> npt.NDArray[np.float32]:
    """One row per 80 ms block: the low corner of its 2-D DCT."""
    mel = compute_log_mel(wave)
    missing = -len(mel) % FRAMES_PER_CODE
    mel = np.pad(mel, ((0, missing), (0, 0)), constant_values=np.log(MEL_FLOOR))
    corner = dctn(mel.reshape(-1, FRAMES_PER_CODE, MEL_BANDS), axes=(1, 2), norm="ortho")[
        :, :TIME_COEFFICIENTS, :CEPSTRA
    ]
    return np.asarray(corner.reshape(len(corner), -1), np.float32)


def _codebook_to_log_mel(book: npt.NDArray[np.float32]) -> FloatArray:
    full = np.zeros((len(book), FRAMES_PER_CODE, MEL_BANDS), np.float32)
    full[:, :TIME_COEFFICIENTS, :CEPSTRA] = book.reshape(-1, TIME_COEFFICIENTS, CEPSTRA)
    return np.asarray(idctn(full, axes=(1, 2), norm="ortho").reshape(-1, MEL_BANDS), np.float32)


def find_nearest_entries(rows: npt.NDArray[np.float32], book: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Index of the closest entry for every row, in float64 so that batch size cannot tip a tie."""
    wide = book.astype(np.float64)
    score = (wide * wide).sum(axis=1) - 2 * (rows.astype(np.float64) @ wide.T)
    return np.asarray(score.argmin(axis=1), np.int64)


def fit_k_means(
    rows: npt.NDArray[np.float32], size: int, random: np.random.Generator, rounds: int
) -> npt.NDArray[np.float32]:
    """Plain Lloyd from a k-means++ start; an entry that loses all rows stays where it was."""
    wide = rows.astype(np.float64)
    book = np.empty((size, wide.shape[1]))
    book[0] = wide[random.integers(len(wide))]
    distance = ((wide - book[0]) ** 2).sum(axis=1)
    for k in range(1, size):
        total = distance.sum()
        pick = random.choice(len(wide), p=distance / total) if total > 0 else random.integers(len(wide))
        book[k] = wide[pick]
        distance = np.minimum(distance, ((wide - book[k]) ** 2).sum(axis=1))
    for _ in range(rounds):
        owner = find_nearest_entries(wide, book)  # type: ignore[arg-type]
        count = np.bincount(owner, minlength=size)
        sums = np.zeros_like(book)
        np.add.at(sums, owner, wide)
        book[count > 0] = sums[count > 0] / count[count > 0, None]
    return book.astype(np.float32)
