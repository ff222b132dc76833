"""Verdicts that were paid for once: an SQLite file that many processes share and that outlives them.

Invariant: ``get`` gives back what ``put`` was given under the same key, or nothing; the first verdict under a
key stays. Failures cannot be stored. Every row carries a checksum of its key and content, so that a damaged
file ends in a ValueError that names it and never in another score.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any, cast
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from judge.types import ScoredVerdict

SQLITE_APPLICATION_ID = 0x57474331  # "WGC1" in the file's header: it is ours
CACHE_SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 60.0  # how long one process waits for another's write, which takes well under a millisecond
MIN_CACHE_BYTES = 1 << 16  # bytes; below, the empty file would not fit
USE_UPDATE_INTERVAL_US = (
    60_000_000  # microseconds within which a second use is not written down: reading stays reading
)
TABLE_SCHEMA = """
CREATE TABLE verdicts (
    key TEXT PRIMARY KEY, verdict TEXT NOT NULL, checksum BLOB NOT NULL, used INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX by_use ON verdicts (used);
"""


def hash_pcm(wave: NDArray[np.float32], sample_rate: int) -> str:
    """SHA-256 over the rate in Hz and the samples as little-endian float32: equal for equal sound only."""
    samples = np.ascontiguousarray(wave, np.dtype("<f4"))
    return sha256(b"%d " % sample_rate + samples.tobytes()).hexdigest()


def make_verdict_key(
    *,
    model: str,
    rubric: str,
    sampling: Mapping[str, Any],
    audio: Sequence[str],
    texts: Sequence[str | None],
    repeat: int,
) -> str:
    """Name of one judge call, 64 hex digits: SHA-256 of everything the answer depends on, in canonical JSON.

    ``rubric``: name and version. ``sampling``: whatever else the request says (temperature, seed, mode), JSON
    values. ``audio``: ``hash_pcm`` of each clip in the request's order; ``texts`` likewise. ValueError: NaN.
    """
    parts = {
        "model": model,
        "rubric": rubric,
        "sampling": dict(sampling),
        "audio": list(audio),
        "texts": list(texts),
        "repeat": repeat,
    }
    return sha256(_canonical_json(parts).encode()).hexdigest()


class VerdictCache:
    """One file of verdicts, at most ``max_bytes`` large; the least recently used leave first.

    Uses within a minute of each other count as one. Beside the file SQLite keeps a log of a few MB, which
    needs a disk of this machine: one file per machine. Open it in the process that uses it; its threads may
    share it.
    ValueError, here and in every method: the file is damaged, foreign, of another version, full or locked.

    Example:
        cache = VerdictCache(run / "verdicts.sqlite", max_bytes=1 << 30)
        name = make_verdict_key(model="m", rubric="semantic/1", sampling={}, audio=[], texts=["hello"], repeat=0)
        verdict = cache.get(name)
    """

    def __init__(self, path: Path, max_bytes: int, *, clock: Callable[[], float] = time.time) -> None:
        if max_bytes < MIN_CACHE_BYTES:
            raise ValueError(f"verdict cache must be allowed at least {MIN_CACHE_BYTES} bytes: got {max_bytes}")
        if not path.parent.is_dir():
            raise ValueError(f"{path}: folder of the verdict cache does not exist")
        self._path, self._max_bytes, self._clock = path, max_bytes, clock
        self._lock = Lock()  # SQLite serialises statements, not transactions, of threads on one connection
        with self._name_file_in_errors():
            if not path.exists():
                _create_database(path)
            self._db = _open_database(path)
            try:
                self._check_file()
                self._db.execute("PRAGMA synchronous = NORMAL")  # a power cut costs the last verdicts only
                with self._transaction():
                    self._evict()
                self._truncate()
            except BaseException:
                self._db.close()
                raise

    def get(self, key: str) -> ScoredVerdict | None:
        """The verdict put under ``make_verdict_key``, marked as cached; None: there is none."""
        with self._lock, self._name_file_in_errors():
            query = "SELECT verdict, checksum, used FROM verdicts WHERE key = ?"
            row = self._db.execute(query, (key,)).fetchone()
            if row is None:
                return None
            text, checksum, last_use_us = row
            if not isinstance(text, str) or checksum != _hash_row(key, text):
                raise ValueError(f"{self._path}: verdict cache is damaged: delete it (entry {key})")
            now = self._now()
            if not isinstance(last_use_us, int) or abs(now - last_use_us) > USE_UPDATE_INTERVAL_US:
                self._db.execute("UPDATE verdicts SET used = ? WHERE key = ?", (now, key))
        stored = json.loads(text)
        return ScoredVerdict(
            value=stored["value"],
            judge=stored["judge"],
            spread=stored["spread"],
            why=stored["why"],
            cached=True,
        )

    def put(self, key: str, verdict: ScoredVerdict) -> None:
        """Store a verdict; one that is there already stays. TypeError: no score. ValueError: not finite."""
        if not isinstance(verdict, ScoredVerdict):
            raise TypeError(f"only a score may be cached: got {verdict!r}")
        text = _canonical_json(
            {"value": verdict.value, "judge": verdict.judge, "spread": verdict.spread, "why": verdict.why}
        )
        with self._lock, self._name_file_in_errors():
            with self._transaction():
                row = (key, text, _hash_row(key, text), self._now())
                self._db.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?)", row)
                self._evict()
            self._truncate()

    def close(self) -> None:
        """Let go of the file. The last process to do so removes SQLite's log."""
        with self._lock:
            self._db.close()

    def _now(self) -> int:
        return int(self._clock() * 1e6)

    def _pragma(self, name: str) -> int:
        return cast(int, self._db.execute(f"PRAGMA {name}").fetchone()[0])

    def _check_file(self) -> None:
        """Before the first write: a foreign file stays as it is."""
        if self._pragma("application_id") != SQLITE_APPLICATION_ID:
            raise ValueError(f"{self._path}: not a verdict cache: name another file")
        version = self._pragma("user_version")
        if version != CACHE_SCHEMA_VERSION:
            rule = f"verdict cache must have version {CACHE_SCHEMA_VERSION}"
            raise ValueError(f"{self._path}: {rule}: got {version}: delete it or name another file")

    def _evict(self) -> None:
        """Within a transaction: drop the least recently used eighth until what is left is small enough."""
        eighth = "(SELECT count(*) / 8 + 1 FROM verdicts)"
        oldest = f"SELECT key FROM verdicts ORDER BY used LIMIT {eighth}"
        while self._bytes(self._pragma("page_count") - self._pragma("freelist_count")) > self._max_bytes:
            if not self._db.execute(f"DELETE FROM verdicts WHERE key IN ({oldest})").rowcount:
                return

    def _truncate(self) -> None:
        """After it: give freed pages back, once the file has reached its cap."""
        if self._bytes(self._pragma("page_count")) > self._max_bytes:
            self._db.executescript("PRAGMA incremental_vacuum")  # ``execute`` frees one page and stops

    def _bytes(self, pages: int) -> int:
        return pages * self._pragma("page_size")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")  # a reader that turns writer could be refused at once
        try:
            yield
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    @contextmanager
    def _name_file_in_errors(self) -> Iterator[None]:
        """SQLite's complaints do not say about which file."""
        try:
            yield
        except sqlite3.Error as error:
            raise ValueError(f"{self._path}: verdict cache cannot be used: {error}") from error


def _open_database(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)


def _create_database(path: Path) -> None:
    """Finish the file under another name, then give it its own: nobody ever opens half of one."""
    new = path.with_name(f"{path.name}.{uuid4().hex}")
    db = _open_database(new)
    try:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA application_id = {SQLITE_APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {CACHE_SCHEMA_VERSION}")
        db.executescript(TABLE_SCHEMA)
        db.close()
        with suppress(FileExistsError):  # another process was faster; a rename would take its file's place
            path.hardlink_to(new)
    finally:
        db.close()
        new.unlink(missing_ok=True)


def _hash_row(key: str, text: str) -> bytes:
    return sha256(f"{key} {text}".encode()).digest()[:16]


def _canonical_json(value: Any) -> str:
    """One text per value: sorted, no spaces, ASCII; NaN and infinity are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
