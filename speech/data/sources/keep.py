"""Clips of a source as files of a manifest: checked, kept byte for byte, named by their content.

Invariant: a file below ``audio/`` is whole and was decoded once without a problem, whatever happened to the
process that wrote it; the same content is there once.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unicodedata import normalize

from speech.data.clips import ClipInfo, ClipInspector
from speech.data.sources.record import MAX_CLIP_BYTES
from speech.sound import audio
from store.kinds import LONGEST_BEGINNING, name_foreign_kind

AUDIO_SIGNATURES = (  # what a file begins with -> its suffix; the name that a source gives it is not believed
    (b"RIFF", ".wav"),
    (b"RF64", ".wav"),
    (b"fLaC", ".flac"),
    (b"OggS", ".ogg"),
    (b"ID3", ".mp3"),
)


class ClipStore:
    """Puts clips below ``folder``/audio.

    Example:
        store = ClipStore(folder, root, max_seconds=60.0, clips=clips)
        name = store.store_clip("q/17.wav", members=None)     # audio/3f/3fa0....wav
    """

    def __init__(self, folder: Path, root: Path, max_seconds: float, clips: ClipInspector) -> None:
        """``root``: where names of files start, and what they cannot leave. ``clips``: hears of each."""
        self._folder, self._root, self._max_seconds = folder, root.absolute(), max_seconds
        self._clips = clips
        self._unfinished = folder / "audio" / f".unfinished.{os.getpid()}"

    def store_clip(self, clip: Any, members: Mapping[str, bytes] | None) -> str:
        """The clip's name, relative to ``folder``. ValueError: no clip, or not one that a row may have.

        OSError: it cannot be written.
        """
        content = self._read_content(clip, members)
        suffix = _detect_suffix(content)
        digest = hashlib.sha256(content).hexdigest()
        name = f"audio/{digest[:2]}/{digest}{suffix}"
        if not (self._folder / name).is_file():
            self._clips.remember(name, self._write_checked(self._folder / name, content))
        return name

    def _write_checked(self, path: Path, content: bytes) -> ClipInfo:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._unfinished.with_suffix(path.suffix)
        try:
            unfinished.write_bytes(content)
            header = audio.read_audio_header(unfinished)
            audio.check_length(unfinished, header, self._max_seconds)
            wave = audio.read(unfinished, header.sample_rate, self._max_seconds)
            unfinished.replace(path)
            return ClipInfo.from_wave(wave, header.sample_rate)
        except ValueError as error:  # told of the file's own name, which is none of the source's
            raise ValueError(str(error).removeprefix(f"{unfinished}: ")) from error
        finally:
            unfinished.unlink(missing_ok=True)

    def _read_content(self, clip: Any, members: Mapping[str, bytes] | None) -> bytes:
        if isinstance(clip, dict):
            clip = _read_struct(clip)
        if isinstance(clip, bytes):
            if len(clip) > MAX_CLIP_BYTES:
                raise ValueError(f"clip must have at most {MAX_CLIP_BYTES} bytes: got {len(clip)}")
            return clip
        if not isinstance(clip, str):
            raise ValueError(f"clip must be a name or a file's bytes: got {type(clip).__name__}")
        if members is None:
            return self._read_file(clip)
        if (name := normalize("NFC", clip)) not in members:
            raise ValueError(f"must name a clip of its sample: got {clip!r}")
        return members[name]

    def _read_file(self, name: str) -> bytes:
        given = Path(name)
        if given.is_absolute():
            roots = [root for root in (self._root, self._root.resolve()) if given.is_relative_to(root)]
            if not roots:
                raise ValueError(f"audio path must lie in the folder of the audio (--audio FOLDER): got {name!r}")
            name = str(given.relative_to(roots[0]))
        path = audio.resolve_inside(self._root, name)
        try:
            _check_regular_file(path, name)
            if path.stat().st_size > MAX_CLIP_BYTES:
                raise ValueError(f"clip must have at most {MAX_CLIP_BYTES} bytes: got {path.stat().st_size}")
            return path.read_bytes()
        except OSError as error:
            raise ValueError(f"audio file cannot be opened: {name!r}: {error.strerror}") from error


def _read_struct(clip: Mapping[Any, Any]) -> bytes | str:
    """Of Hugging Face's Audio. What stands beside its two keys would be another sound: samples, or a part."""
    filled = {str(key): value for key, value in clip.items() if value is not None}
    content, path = filled.get("bytes"), filled.get("path")
    if filled.keys() <= {"bytes", "path"} and isinstance(content, bytes):
        return content
    if filled.keys() == {"path"} and isinstance(path, str):
        return path
    rule = "clip must have bytes or a path and nothing else, as Audio(decode=False) gives"
    kinds = ", ".join(f"{key} ({type(value).__name__})" for key, value in sorted(filled.items()))
    raise ValueError(f"{rule}: got {kinds or 'nothing'}")


def _check_regular_file(path: Path, name: str) -> None:
    try:
        audio.check_regular_file(path)
    except ValueError as error:
        raise ValueError(f"{str(error).removeprefix(f'{path}: ')}: {name!r}") from error


def _detect_suffix(content: bytes) -> str:
    for beginning, suffix in AUDIO_SIGNATURES:
        if content.startswith(beginning):
            return ".opus" if suffix == ".ogg" and b"OpusHead" in content[:64] else suffix
    if len(content) > 1 and content[0] == 0xFF and content[1] & 0xE0 == 0xE0 and content[1] & 6:  # MPEG, not AAC
        return ".mp3"
    what = name_foreign_kind(content[:LONGEST_BEGINNING])
    got = f"it is {what}" if what else f"begins with {content[:8]!r}" if content else "it is empty"
    raise ValueError(f"clip must be a wav, flac, ogg, opus or mp3 file: {got}")
