"""Codes of clips, kept between runs: a machine encodes a clip once, not at every start.

    $WAVGATE_CACHE, or $XDG_CACHE_HOME/wavgate, or ~/.cache/wavgate    (WAVGATE_CACHE=off: nothing is kept)
      codes/2/<codec's fingerprint, 16 digits>-<Hz it listens at>/<ab>/<sha256 of the clip's file>

An entry is the sha256 of what follows, then the codes as little-endian int32. Invariant: it appears whole or
not at all, whoever else writes it; what does not have its own hash is no entry: the clip is encoded again.
"""

import hashlib
import os
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speech.codecs.base import Codec
from store.files import replace_atomically

CODE_CACHE_VERSION = "2"  # of the reading and resampling before a codec; another one finds no old codes
HASH_BYTES = 32  # bytes of a sha256

CodeArray = NDArray[np.int32]


def cache_root() -> Path | None:
    """Where this user's caches are; None: switched off."""
    setting = os.environ.get("WAVGATE_CACHE", "")
    if setting == "off":
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(setting).expanduser() if setting else base / "wavgate"


class CodeCache:
    """The codes that one codec gave, by the sha256 of the clip's file.

    Example:
        cache = CodeCache.for_codec(codec)
        codes = cache.get(digest)
        if codes is None:
            codes = np.asarray(codec.encode(wave), np.int32)
            cache.put(digest, codes)
    """

    def __init__(self, folder: Path | None, size: int) -> None:
        """``folder`` None: remembers nothing. ``size``: of the codec."""
        self._folder, self._size = folder, size

    @classmethod
    def for_codec(cls, codec: Codec) -> "CodeCache":
        """The cache of a codec."""
        root = cache_root()
        if root is None:
            return cls(None, codec.size)
        name = f"{codec.fingerprint[:16]}-{codec.input_sample_rate}"
        return cls(root / "codes" / CODE_CACHE_VERSION / name, codec.size)

    def get(self, digest: str) -> CodeArray | None:
        """The codes of a clip; None: not here, or not readable."""
        if self._folder is None:
            return None
        try:
            content = _locate_entry(self._folder, digest).read_bytes()
        except OSError:
            return None
        stored_hash, body = content[:HASH_BYTES], content[HASH_BYTES:]
        if hashlib.sha256(body).digest() != stored_hash or len(body) % 4:
            return None
        codes = np.frombuffer(body, "<i4").astype(np.int32)
        return codes if ((codes >= 0) & (codes < self._size)).all() else None

    def put(self, digest: str, codes: CodeArray) -> None:
        """Keep the codes of a clip. A folder that cannot be written is left alone from then on."""
        if self._folder is None:
            return
        try:
            _write_entry(_locate_entry(self._folder, digest), codes)
        except OSError as error:  # a full disk or a home that is read-only ends no run
            warnings.warn(f"{self._folder}: codes are not kept: {error.strerror}", stacklevel=2)
            self._folder = None


def _locate_entry(folder: Path, digest: str) -> Path:
    return folder / digest[:2] / digest


def _write_entry(file: Path, codes: CodeArray) -> None:
    body = codes.astype("<i4").tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(file) as unfinished:
        unfinished.write_bytes(hashlib.sha256(body).digest() + body)
