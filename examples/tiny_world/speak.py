"""Speech by Debian's flite: one clip per word, voice and style, ready to be played one after another.

Invariant: a clip starts and ends with at least 20 ms of exact silence and lasts a multiple of 80 ms, so the
codec sees the same codes in a sentence as in the word alone.
"""

import io
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

Floats64 = npt.NDArray[np.float64]

SAMPLE_RATE = 16_000
GRID = 1280  # samples in 80 ms, one code
SILENCE = 320  # samples in 20 ms
PEAK = 0.3  # of a normal clip; a loud one is 9 dB above and still does not clip
LOUD_GAIN = 2.8
SLOW_STRETCH = 1.4
REPLY_VOICE = "rms"
USER_VOICES = ("slt", "awb")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """A voice speaking in a style; its name is the folder of its clips."""

    voice: str
    stretch: float = 1.0
    gain: float = 1.0

    @property
    def name(self) -> str:
        """``rms``, ``rms-slow``, ``rms-loud``."""
        if self.stretch != 1.0:
            return f"{self.voice}-slow"
        return f"{self.voice}-loud" if self.gain != 1.0 else self.voice


REPLY_MANNERS: dict[str | None, Manner] = {
    None: Manner(voice=REPLY_VOICE),
    "slow": Manner(voice=REPLY_VOICE, stretch=SLOW_STRETCH),
    "loud": Manner(voice=REPLY_VOICE, gain=LOUD_GAIN),
}
USER_MANNERS = tuple(Manner(voice=voice) for voice in USER_VOICES)


def render(word: str, manner: Manner) -> npt.NDArray[np.int16]:
    """Speak one word: trimmed, levelled, padded with silence onto the 80 ms grid."""
    wave = trimmed(_flite(word, manner))
    wave = wave * (PEAK * manner.gain / np.abs(wave).max())
    length = -(-(len(wave) + 2 * SILENCE) // GRID) * GRID
    padded = np.zeros(length)
    padded[SILENCE : SILENCE + len(wave)] = wave
    return np.round(padded * 32767).astype(np.int16)


def trimmed(wave: Floats64, threshold: float = 0.02, margin: int = 160) -> Floats64:
    """Cut the quiet ends off and fade what is left in and out over 5 ms."""
    audible = np.flatnonzero(np.abs(wave) > threshold * np.abs(wave).max())
    trimmed_wave = wave[max(0, audible[0] - margin) : audible[-1] + margin].copy()
    ramp = np.linspace(0, 1, 80)
    trimmed_wave[:80] *= ramp
    trimmed_wave[-80:] *= ramp[::-1]
    return trimmed_wave


def write_clip(path: Path, samples: npt.NDArray[np.int16]) -> None:
    """Write 16 kHz mono 16-bit FLAC."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16", format="FLAC")


def read_clips(root: Path, clips: list[str]) -> npt.NDArray[np.float32]:
    """The clips of one audio, played one after another."""
    waves = [soundfile.read(root / clip, dtype="float32")[0] for clip in clips]
    return np.concatenate(waves) if waves else np.zeros(0, np.float32)


def _flite(text: str, manner: Manner) -> Floats64:
    stretch = ["--setf", f"duration_stretch={manner.stretch}"]
    command = ["flite", "-voice", manner.voice, *stretch, "-t", text, "-o", "/dev/stdout"]
    try:
        spoken = subprocess.run(command, capture_output=True, check=True).stdout
    except FileNotFoundError as missing:
        raise RuntimeError("flite is not installed: apt-get install flite") from missing
    wave, rate = soundfile.read(io.BytesIO(spoken), dtype="float64")
    if rate != SAMPLE_RATE:
        raise RuntimeError(f"flite voice {manner.voice} speaks at {rate} Hz, must be {SAMPLE_RATE}")
    return np.asarray(wave)
