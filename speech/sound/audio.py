"""Audio files in and out: soundfile and soxr behind limits that hold before and while reading.

Invariant: a wave that leaves here is mono float32, finite, not empty, at the rate asked for and no longer
than the limit given; no sample of its file is beyond +-LOUDEST. A header is checked before anything is
decoded, and is not believed while decoding: blocks are counted. Paths of a data set go through ``resolve_inside`` and
cannot leave its folder.
"""

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from speech.sound.containers import check_whole_recording
from speech.sound.headers import open_sound_file
from store.kinds import LONGEST_BEGINNING, name_foreign_kind

Wave = NDArray[np.float32]

WRITE_FORMATS = {  # suffix -> what ``write`` makes of it
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
}
READABLE_SUFFIXES = (*WRITE_FORMATS, ".mp3")
READABLE_CONTAINERS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")  # whatever the suffix says
MAX_CHANNELS = 8
MAX_SAMPLE_RATE = 384_000
CANCELLED_POWER_SHARE = 0.1  # share of the power that channels which have nothing in common leave in their mean
MAX_SAMPLE_VALUE = 100.0  # full scale is 1; float files go beyond it by some dB, not by 40
UNKNOWN_LENGTH = 2**63 - 1  # frames: of FLAC from a pipe; in older libsndfile, of Ogg that does not end with a page
AUDIO_BLOCK_FRAMES = 65_536  # frames decoded or encoded at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioHeader:
    """What a file's header says."""

    frames: int
    channels: int
    sample_rate: int

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.frames / self.sample_rate


def resolve_inside(root: Path, relative: str) -> Path:
    """``root / relative``. ValueError: it leaves ``root`` (absolute, ``..``, a link out), or is a URL."""
    if "://" in relative:
        raise ValueError(f"audio path must be a local file, not a URL: got {relative!r}")
    if not relative or "\0" in relative or Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise ValueError(f"audio path must be relative to its data folder, without '..': got {relative!r}")
    path = root / relative
    try:
        stays = _resolve_links(path).is_relative_to(_resolve_links(root))
    except (OSError, RuntimeError) as error:  # a loop of links
        why = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"audio path cannot be followed: {why}: {relative!r}") from error
    if not stays:
        raise ValueError(f"audio path must stay in its data folder, links included: got {relative!r}")
    return path


def _resolve_links(path: Path) -> Path:
    """Where its links lead. OSError, RuntimeError: in a circle; from 3.13 on only ``strict`` tells."""
    try:
        return path.resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError):
        return path.resolve()


def check_regular_file(path: Path) -> None:
    """ValueError: not a file that can be opened without waiting for somebody. OSError: cannot be asked."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{path}: audio file does not exist") from error
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise ValueError(f"{path}: audio must be a file: got {what}")


def read_audio_header(path: Path) -> AudioHeader:
    """The header of an audio file, with every rule that it can break by itself checked. Decodes nothing."""
    if path.suffix.lower() not in READABLE_SUFFIXES:
        raise ValueError(f"{path}: audio must be one of {' '.join(READABLE_SUFFIXES)}")
    try:
        check_regular_file(path)
        with open_sound_file(path) as header:
            form, coding = header.format, header.subtype
            audio_header = AudioHeader(frames=header.frames, channels=header.channels, sample_rate=header.samplerate)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: cannot be read as audio: {_explain_libsndfile_error(path, error)}") from error
    except OSError as error:  # a name too long, a folder that may not be entered
        raise ValueError(f"{path}: cannot be opened: {error.strerror}") from error
    if form not in READABLE_CONTAINERS:  # libsndfile reads two dozen, and goes by the content
        raise ValueError(f"{path}: audio must be WAV, FLAC, Ogg or MP3: got {form}")
    if form != "MP3" and coding.startswith("MPEG"):  # its frames are counted in an MP3 alone
        raise ValueError(f"{path}: audio must not be {coding} in another container: got {form}")
    if audio_header.frames == UNKNOWN_LENGTH:
        raise ValueError(f"{path}: audio must say how long it is: it was cut, or written to a pipe")
    if not 1 <= audio_header.sample_rate <= MAX_SAMPLE_RATE:
        raise ValueError(f"{path}: sample rate must lie in [1, {MAX_SAMPLE_RATE}] Hz: got {audio_header.sample_rate}")
    if not 1 <= audio_header.channels <= MAX_CHANNELS:
        raise ValueError(f"{path}: audio must have 1 to {MAX_CHANNELS} channels: got {audio_header.channels}")
    if audio_header.frames < 1:
        raise ValueError(f"{path}: audio must not be empty: got {audio_header.frames} frames")
    return audio_header


def check_length(path: Path, header: AudioHeader, max_seconds: float) -> None:
    """ValueError when the header announces more than ``max_seconds``."""
    if header.seconds > max_seconds:
        raise ValueError(f"{path}: audio must last at most {max_seconds:g} s: its header says {header.seconds:.1f} s")


def read(path: Path, sample_rate: int, max_seconds: float) -> Wave:
    """Mono float32 at ``sample_rate``; channels are averaged. ValueError: what this module's rules refuse."""
    header = read_audio_header(path)
    check_length(path, header, max_seconds)
    wave, apart = _decode_to_mono(path, header)
    check_whole_recording(path, len(wave))
    if header.channels**2 * float(np.var(wave)) < CANCELLED_POWER_SHARE * apart:
        rule = "channels must not cancel each other: their mean is all but silent"
        raise ValueError(f"{path}: {rule}; keep one (ffmpeg -i IN -af 'pan=mono|c0=c0' OUT)")
    if header.sample_rate != sample_rate:
        wave = resample(wave, header.sample_rate, sample_rate)
    assert np.isfinite(wave).all(), "bounded samples have a finite mean and stay finite when resampled"
    return wave


def read_clips(paths: Sequence[Path], sample_rate: int, max_seconds: float) -> Wave:
    """Clips played one after another; ``max_seconds`` holds for the sum, checked before any is decoded."""
    if not paths:
        raise ValueError("audio needs at least one clip: got none")
    seconds = sum(read_audio_header(path).seconds for path in paths)
    if seconds > max_seconds:
        rule = f"clips must last at most {max_seconds:g} s together"
        raise ValueError(f"{paths[0]} and what follows: {rule}: got {seconds:.1f} s")
    return np.concatenate([read(path, sample_rate, max_seconds) for path in paths])


def resample(wave: Wave, source: int, target: int) -> Wave:
    """Band-limited conversion from ``source`` to ``target`` Hz (soxr, high quality); never empty."""
    converted = np.asarray(soxr.resample(wave, source, target, quality="HQ"), np.float32)
    return converted if len(converted) else wave[:1]


def write(path: Path, wave: Wave, sample_rate: int) -> None:
    """Write a mono wave as its suffix says: wav, flac (16 bit), ogg (Vorbis), opus. Beyond +-1 is clipped."""
    if path.suffix.lower() not in WRITE_FORMATS:
        raise ValueError(f"{path}: audio is written as one of {' '.join(WRITE_FORMATS)}")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: folder does not exist")
    if wave.ndim != 1 or not len(wave):
        raise ValueError(f"{path}: a mono wave with at least one sample is needed: got shape {wave.shape}")
    if not np.isfinite(wave).all():
        raise ValueError(f"{path}: samples must be finite: got NaN or infinity")
    container, coding = WRITE_FORMATS[path.suffix.lower()]
    try:
        with soundfile.SoundFile(str(path), "w", sample_rate, 1, coding, format=container) as file:
            for start in range(0, len(wave), AUDIO_BLOCK_FRAMES):  # Vorbis overflows its stack on one large write
                file.write(wave[start : start + AUDIO_BLOCK_FRAMES])
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: cannot write {coding} at {sample_rate} Hz: {error.error_string}") from error


def _explain_libsndfile_error(path: Path, error: soundfile.LibsndfileError) -> str:
    with path.open("rb") as file:
        if kind := name_foreign_kind(file.read(LONGEST_BEGINNING)):
            return f"it is {kind}"
    if "SF_INFO" in error.error_string:  # what libsndfile says to a WAV of 0 Hz, or with two chunks of data
        return "the header must name channels, a sample rate of at least 1 Hz and one chunk of data"
    if "possibly a pipe" in error.error_string:  # what it says to an MP3 in which it finds no frame
        return "nothing in it is a sound that can be decoded"
    return str(error.error_string)


def _check_samples(path: Path, block: NDArray[np.float32], place: str) -> None:
    if not np.isfinite(block).all():
        raise ValueError(f"{path}: samples must be finite: got NaN or infinity {place}")
    if (peak := np.abs(block).max()) > MAX_SAMPLE_VALUE:
        rule = f"samples must lie in [-{MAX_SAMPLE_VALUE:g}, {MAX_SAMPLE_VALUE:g}], where full scale is 1"
        raise ValueError(f"{path}: {rule}: got {peak:g} {place}")


def _decode_to_mono(path: Path, header: AudioHeader) -> tuple[Wave, float]:
    """(the mean of the channels, never more of it than the header announced; the sum of their variances)."""
    blocks: list[Wave] = []
    total, sums, squares = 0, np.zeros(header.channels), np.zeros(header.channels)
    try:
        with open_sound_file(path) as file:
            while total < header.frames:
                block = file.read(min(AUDIO_BLOCK_FRAMES, header.frames - total), dtype="float32", always_2d=True)
                if not len(block):
                    break
                _check_samples(path, block, f"near {total / header.sample_rate:.2f} s")
                blocks.append(block.mean(axis=1, dtype=np.float32))
                total += len(block)
                if header.channels > 1:
                    sums += block.sum(axis=0, dtype=np.float64)
                    squares += np.square(block, dtype=np.float64).sum(axis=0)
    except soundfile.LibsndfileError as error:
        place = f"behind {total / header.sample_rate:.2f} s"
        raise ValueError(f"{path}: audio is damaged {place}: {error.error_string}") from error
    if total < header.frames and path.suffix.lower() != ".mp3":  # an mp3 header only estimates
        raise ValueError(f"{path}: audio is cut short: {total} of {header.frames} frames")
    if not total:
        raise ValueError(f"{path}: audio must not be empty: nothing could be decoded")
    return np.concatenate(blocks), float((squares / total - (sums / total) ** 2).sum())
