"""What a data set's clips are, each looked at once: how long, how loud, and which sound.

Two clips are the same where their decoded samples are, whatever their names and containers; writers round in
two ways, so the last bits of a sample do not count. Invariant: a question or a reference reply without a
problem can be heard: it lasts as long as a sound does and is not silence.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from speech.sound import audio

MAX_KNOWN_CLIPS = 1 << 16  # what is remembered of clips is a name and a few numbers each
SoundHash = tuple[int, int]
"""Two hashes of a sketch, rounded on two grids: of the same sound one of them is the same, or both.

The sketch weighs every sample by a sign of chance and sums them up in ``SUMS``; a stretch of the clip counts
as much as any other, however quiet. Other sounds have other sums, about as far apart as a grid's steps.
"""
SUMS, STRETCHES = 32, 16
PEAK_GRID_STEP = 0.05  # step of the grids for the level's logarithm; for the sums, whose spread is 1, it is 1
MAX_ROUNDING_DIFFERENCE = 2.0**-13  # samples that are nearer are the same: 4 steps of 16 bits
SILENCE_PEAK = 1e-4  # of full scale: no sample beyond it, and nothing can be heard
MIN_CLIP_S = 0.02  # seconds; a click
SPOKEN_FIELDS = ("audios", "sft_target_audio")  # fields of questions and of reference replies


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """A clip. Where only its header was read, nobody knows the sound: ``sound`` is None."""

    seconds: float
    peak: float = 1.0  # farthest sample from the middle of all: a constant is no sound
    sound: SoundHash | None = None

    @classmethod
    def from_wave(cls, wave: audio.Wave, rate: int) -> "ClipInfo":
        """What decoded samples are."""
        peak = float(np.ptp(wave)) / 2
        features = _sketch(wave.astype(np.float64))
        first_hash, other = (
            _hash_bytes(f"{len(wave)} {rate}".encode() + np.floor(features + shift).astype(np.int32).tobytes())
            for shift in (0.0, 0.5)
        )
        return cls(len(wave) / rate, peak, (first_hash, other))


class ClipInspector:
    """Looks at every distinct clip once, as far as it remembers.

    Example:
        clips = ClipInspector(folder, max_seconds=60.0, deep=True)
        problems = list(clips.find_problems([("audios[0]", ["q.wav"])]))
        same = clips.are_same_sound(["a.wav"], ["b.flac"])
    """

    def __init__(self, root: Path, max_seconds: float, deep: bool) -> None:
        """``deep``: clips are decoded; else only their headers are read."""
        self._root, self._max_seconds, self._decodes = root, max_seconds, deep
        self._inspected: LRUCache[str, ClipInfo | str] = LRUCache(MAX_KNOWN_CLIPS)  # or what is wrong

    def remember(self, clip: str, info: ClipInfo) -> None:
        """A clip that was looked at already."""
        self._inspected[clip] = info

    def find_problems(self, fields: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, str]]:
        """Of fields as parsed, clips or one clip: looked at even when another field is wrong."""
        for field, given in fields:
            clips = [given] if isinstance(given, str) else given
            if not isinstance(clips, list) or not all(isinstance(clip, str) for clip in clips):
                continue  # the schema has said so
            if not clips and field.startswith("audios"):
                yield field, "must name at least one clip"
            looked = [self._inspect_once(clip) for clip in clips]
            wrong = [(i, message) for i, message in enumerate(looked) if isinstance(message, str)]
            yield from ((field if clips is not given else f"{field}[{i}]", message) for i, message in wrong)
            if not wrong:
                infos = [result for result in looked if isinstance(result, ClipInfo)]
                yield from ((field, rule) for rule in self._check_entry(infos, field.startswith(SPOKEN_FIELDS)))

    def hash_sound(self, clips: Iterable[Any]) -> SoundHash | None:
        """Of clips that are played one after another. None: nobody knows."""
        looked = [self._inspect_once(clip) if isinstance(clip, str) else None for clip in clips]
        sounds = [info.sound for info in looked if isinstance(info, ClipInfo) and info.sound is not None]
        if len(sounds) < len(looked) or not sounds:
            return None
        first_hash, other = (_hash_bytes(array("Q", grid).tobytes()) for grid in zip(*sounds, strict=True))
        return first_hash, other

    def are_same_sound(self, clips: Sequence[str], others: Sequence[str]) -> bool:
        """Whether both are known to be the same sound, sample by sample."""
        own_hash, other = self.hash_sound(clips), self.hash_sound(others)
        if own_hash is None or other is None or not (own_hash[0] == other[0] or own_hash[1] == other[1]):
            return False
        return all(self._have_close_samples(clip, twin) for clip, twin in zip(clips, others, strict=True))

    def _have_close_samples(self, clip: str, twin: str) -> bool:
        if clip == twin:
            return True
        paths = [audio.resolve_inside(self._root, name) for name in (clip, twin)]
        rates = [audio.read_audio_header(path).sample_rate for path in paths]
        wave, other = (audio.read(path, rate, self._max_seconds) for path, rate in zip(paths, rates, strict=True))
        return (
            rates[0] == rates[1]
            and wave.shape == other.shape
            and np.abs(wave - other).max() <= MAX_ROUNDING_DIFFERENCE
        )

    def _check_entry(self, clips: list[ClipInfo], spoken: bool) -> Iterator[str]:
        """Rules over clips that are one sound. ``spoken``: by somebody, it is no reply that a model made."""
        seconds = sum(clip.seconds for clip in clips)
        if seconds > self._max_seconds and len(clips) > 1:
            yield f"audio must last at most {self._max_seconds:g} s: got {seconds:.1f} s"
        elif not clips or not spoken:
            return
        elif seconds < MIN_CLIP_S:
            yield f"audio must last at least {MIN_CLIP_S:g} s: got {seconds:.2g} s"
        elif max(clip.peak for clip in clips) < SILENCE_PEAK:
            yield f"audio must not be silence: no sample of it is beyond {SILENCE_PEAK:g} of full scale"

    def _inspect_once(self, clip: str) -> ClipInfo | str:
        if clip not in self._inspected:
            try:
                self._inspected[clip] = self._inspect_clip(clip)
            except ValueError as error:
                self._inspected[clip] = str(error)
        return self._inspected[clip]

    def _inspect_clip(self, clip: str) -> ClipInfo:
        path = audio.resolve_inside(self._root, clip)
        header = audio.read_audio_header(path)
        audio.check_length(path, header, self._max_seconds)
        if not self._decodes:
            return ClipInfo(header.seconds)
        return ClipInfo.from_wave(audio.read(path, header.sample_rate, self._max_seconds), header.sample_rate)


def _hash_bytes(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _sketch(wave: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The sums and the level, in steps of the grids."""
    starts = np.unique(np.arange(STRETCHES) * len(wave) // STRETCHES)
    lengths = np.diff(np.append(starts, len(wave)))
    powers = np.add.reduceat(np.square(wave), starts)
    even = wave / np.repeat(np.maximum(np.sqrt(powers / lengths), MAX_ROUNDING_DIFFERENCE), lengths)
    signs = np.unpackbits(np.frombuffer(np.random.default_rng(0).bytes(len(wave) // 8 + 1), np.uint8))
    signed = np.pad(np.where(signs[: len(wave)], even, -even), (0, -len(wave) % SUMS))
    spread = np.sqrt(max(1e-9, np.square(even).sum() / SUMS))
    sums = signed.reshape(-1, SUMS).sum(axis=0) / spread
    level = np.log(np.sqrt(powers.sum() / len(wave)) + SILENCE_PEAK * MAX_ROUNDING_DIFFERENCE)
    return np.append(sums, level / PEAK_GRID_STEP)
