"""The panel's recogniser, with a memory.

Invariant: the same samples at the same rate give the same transcript, recognised once; a failure is raised
and never remembered.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from rollout.types import Speech

MAX_CACHED_TRANSCRIPTS = 4096  # transcripts


class SpeechRecogniser(Protocol):
    """What the panel needs of a recogniser."""

    def transcribe(self, wave: NDArray[np.float32], sample_rate: int) -> str:
        """The words heard. May raise anything: that is a missing verdict, not a score."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedTranscript:
    """A transcript and whether it was remembered rather than recognised now."""

    transcript: str
    cached: bool


class CachedRecogniser:
    """Remembers transcripts by content: identical waves are common (greedy replies, converged groups)."""

    def __init__(self, recogniser: SpeechRecogniser) -> None:
        self._recogniser = recogniser
        self._transcripts: LRUCache[str, str] = LRUCache(MAX_CACHED_TRANSCRIPTS)

    def recognise(self, speech: Speech) -> CachedTranscript:
        """Recognise once per distinct (samples, rate). A failure is raised and never remembered."""
        pcm = np.ascontiguousarray(speech.wave, np.float32)
        key = sha256(str(speech.sample_rate).encode() + b" " + pcm.tobytes()).hexdigest()
        if key in self._transcripts:
            return CachedTranscript(transcript=self._transcripts[key], cached=True)
        transcript = self._transcripts[key] = self._recogniser.transcribe(speech.wave, speech.sample_rate)
        return CachedTranscript(transcript=transcript, cached=False)
