import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.endpoint.cache import VerdictCache, hash_pcm, make_verdict_key
from judge.types import MissingVerdict, ScoredVerdict
from tests.helpers.processes import HANG_S

CALL: dict[str, Any] = {
    "model": "omni-1",
    "rubric": "holistic/2",
    "sampling": {"temperature": 0.5, "seed": 7},
    "audio": ["aa", "bb"],
    "texts": ["how many", None],
    "repeat": 0,
}
SMALL, LARGE = 1 << 16, 1 << 24
PROCESSES, SHARED, LONG = 4, 150, "x" * 500


def verdict(i: int, why: str = "") -> ScoredVerdict:
    return ScoredVerdict(value=1 + i % 5, judge=f"judge/{i}", spread=i / 7, why=why)


def stored(cache: VerdictCache, names: list[str]) -> list[str]:
    return [name for name in names if cache.get(name)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "verdicts.sqlite"


def test_a_key_is_the_hash_of_canonical_json() -> None:
    canonical = (
        '{"audio":["aa","bb"],"model":"omni-1","repeat":0,"rubric":"holistic/2",'
        '"sampling":{"seed":7,"temperature":0.5},"texts":["how many",null]}'
    )
    assert make_verdict_key(**CALL) == sha256(canonical.encode()).hexdigest()


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "omni-2"},
        {"rubric": "holistic/3"},
        {"sampling": {"temperature": 0.6, "seed": 7}},
        {"sampling": {"temperature": 0.5}},
        {"audio": ["bb", "aa"]},
        {"audio": ["aabb"]},
        {"audio": []},
        {"texts": [None, "how many"]},
        {"texts": ["how many", ""]},
        {"texts": ["how", "many"]},
        {"repeat": 1},
    ],
    ids=repr,
)
def test_whatever_an_answer_depends_on_changes_the_key(changed: dict[str, Any]) -> None:
    assert make_verdict_key(**{**CALL, **changed}) != make_verdict_key(**CALL)


def test_the_order_of_sampling_parameters_does_not_change_the_key() -> None:
    assert make_verdict_key(**{**CALL, "sampling": {"seed": 7, "temperature": 0.5}}) == make_verdict_key(**CALL)


def test_a_key_takes_any_text_but_no_nan() -> None:
    assert make_verdict_key(**{**CALL, "texts": ["\ud800 ünï\0"]}) != make_verdict_key(**CALL)
    with pytest.raises(ValueError, match="not JSON compliant"):
        make_verdict_key(**{**CALL, "sampling": {"temperature": float("nan")}})


def test_the_pcm_hash_is_of_the_samples_and_the_rate_whatever_their_layout_in_memory() -> None:
    wave = np.random.default_rng(0).uniform(-1, 1, 1000).astype(np.float32)
    same = [wave, wave.astype(">f4"), np.repeat(wave, 2)[::2], wave[::-1].copy()[::-1]]
    assert {hash_pcm(each, 16_000) for each in same} == {hash_pcm(wave, 16_000)}
    other = [wave[1:], -wave, wave * np.float32(1.0001), wave[::-1]]
    hashes = {hash_pcm(wave, 16_000), hash_pcm(wave, 24_000), *(hash_pcm(each, 16_000) for each in other)}
    assert len(hashes) == 6


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> VerdictCache:
    return VerdictCache(tmp_path_factory.mktemp("shared") / "verdicts.sqlite", LARGE)


FINITE = st.floats(allow_nan=False, allow_infinity=False)
SPREADS = st.floats(0.0, allow_nan=False, allow_infinity=False)


@given(FINITE, SPREADS, st.text(st.characters()), st.text(st.characters()), st.booleans())
def test_a_verdict_comes_back_exactly_and_says_that_it_is_cached(
    shared: VerdictCache, value: float, spread: float, judge: str, why: str, cached: bool
) -> None:
    name = uuid4().hex
    shared.put(name, ScoredVerdict(value=value, judge=judge, spread=spread, why=why, cached=cached))
    assert repr(shared.get(name)) == repr(ScoredVerdict(value=value, judge=judge, spread=spread, why=why, cached=True))


def test_what_was_not_put_is_not_there(path: Path) -> None:
    cache = VerdictCache(path, LARGE)
    cache.put("a", verdict(1))
    assert cache.get("b") is None


def test_the_first_verdict_under_a_key_stays(path: Path) -> None:
    cache = VerdictCache(path, LARGE)
    cache.put("a", verdict(1))
    cache.put("a", verdict(2))
    assert cache.get("a") == replace(verdict(1), cached=True)


def test_verdicts_are_there_after_a_restart(path: Path) -> None:
    first = VerdictCache(path, LARGE)
    first.put("a", verdict(3))
    first.close()
    assert VerdictCache(path, LARGE).get("a") == replace(verdict(3), cached=True)


@pytest.mark.parametrize(
    "failure", [MissingVerdict(judge="j", reason="r", kind="network"), None, 2.5, {"value": 2.5}], ids=repr
)
def test_nothing_but_a_score_is_stored(path: Path, failure: Any) -> None:
    cache = VerdictCache(path, LARGE)
    with pytest.raises(TypeError, match="only a score"):
        cache.put("a", failure)
    assert cache.get("a") is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_score_that_is_not_finite_is_stored(path: Path, value: float) -> None:
    cache = VerdictCache(path, LARGE)
    score = verdict(0)
    object.__setattr__(score, "value", value)  # Scored refuses it; so does the cache, whoever made it
    with pytest.raises(ValueError, match="not JSON compliant"):
        cache.put("a", score)
    assert cache.get("a") is None
    cache.put("a", verdict(1))  # no transaction was left open


def test_the_file_never_grows_beyond_its_cap_and_the_latest_stay(path: Path) -> None:
    clock = count()
    cache = VerdictCache(path, SMALL, clock=lambda: float(next(clock)))
    names = [f"{i:064}" for i in Random(0).sample(range(10**6), 400)]
    for i, name in enumerate(names):
        cache.put(name, verdict(i, LONG))
        cache._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert path.stat().st_size <= SMALL
    kept = stored(cache, names)
    assert kept == names[-len(kept) :] and len(kept) >= 40


def test_a_verdict_in_use_outlives_newer_ones(path: Path) -> None:
    clock = count(step=61)
    cache = VerdictCache(path, SMALL, clock=lambda: float(next(clock)))
    cache.put("asked again and again", verdict(0, LONG))
    for i in range(400):
        cache.put(str(i), verdict(i, LONG))
        assert cache.get("asked again and again")
    assert cache.get("0") is None


def test_a_lower_cap_makes_an_old_file_smaller(path: Path) -> None:
    cache = VerdictCache(path, LARGE)
    names = [f"{i:064}" for i in range(300)]
    for i, name in enumerate(names):
        cache.put(name, verdict(i, LONG))
    cache.close()
    before = path.stat().st_size
    cache = VerdictCache(path, SMALL)
    kept = stored(cache, names)
    cache.close()
    assert before > 2 * SMALL >= 2 * path.stat().st_size
    assert kept == names[-len(kept) :] and len(kept) >= 40


def test_a_verdict_larger_than_the_cap_does_not_break_the_cache(path: Path) -> None:
    cache = VerdictCache(path, SMALL)
    cache.put("huge", verdict(1, "x" * 4 * SMALL))
    assert cache.get("huge") is None
    cache.put("a", verdict(1))
    assert cache.get("a")


@pytest.mark.parametrize(
    ("name", "cap", "rule"),
    [
        ("v.sqlite", SMALL - 1, "at least 65536 bytes: got 65535"),
        ("no/v.sqlite", SMALL, "no/v.sqlite: folder .* does not exist"),
        (".", SMALL, "cannot be used: unable to open"),
    ],
)
def test_a_path_or_cap_that_cannot_work_is_named(tmp_path: Path, name: str, cap: int, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        VerdictCache(tmp_path / name, cap)


def foreign_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE verdicts (key TEXT)")


def later_version(path: Path) -> None:
    VerdictCache(path, SMALL).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 9")


def half(path: Path) -> None:
    cache = VerdictCache(path, LARGE)
    for i in range(300):
        cache.put(str(i), verdict(i, LONG))
    cache.close()
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda path: path.write_bytes(b""), "not a verdict cache"),
        (lambda path: path.write_bytes(b"Dear diary, " * 999), "not a database"),
        (foreign_database, "not a verdict cache"),
        (later_version, "must have version 1: got 9"),
        (half, "malformed"),
    ],
    ids=["empty", "text", "foreign", "later", "half"],
)
def test_a_file_that_is_no_cache_is_named_and_left_as_it_was(
    path: Path, make: Callable[[Path], Any], rule: str
) -> None:
    make(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rule) as refused:
        cache = VerdictCache(path, LARGE)
        for i in range(300):
            cache.get(str(i))
    assert str(refused.value).startswith(f"{path}: ")
    assert path.read_bytes() == before or make is half


def test_no_damage_makes_another_score(path: Path) -> None:
    names = [f"{i:064}" for i in range(40)]
    cache = VerdictCache(path, SMALL)
    for i, name in enumerate(names):
        cache.put(name, verdict(i, "because it is so"))
    cache.close()
    whole, random, refused, changed = path.read_bytes(), Random(1), 0, 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[random.randrange(len(whole))] ^= 1 << random.randrange(8)
        path.write_bytes(damaged)
        try:
            cache = VerdictCache(path, SMALL)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
            continue
        for i, name in enumerate(names):
            try:
                value = cache.get(name)
            except ValueError as error:
                assert str(error).startswith(f"{path}: ")
                changed += 1
            else:
                assert value in (None, replace(verdict(i, "because it is so"), cached=True))
        cache.close()
    assert refused > 0 and changed > 50


def work(path: Path, number: int, pipe: Connection) -> None:
    """Put the shared verdicts in an order of one's own, look each up, and a few that nobody else has."""
    cache = VerdictCache(path, LARGE)
    pipe.send("open")
    for i in Random(number).sample(range(SHARED), SHARED):
        cache.put(f"shared {i}", verdict(i, LONG))
        assert cache.get(f"shared {i}") == replace(verdict(i, LONG), cached=True)
        cache.put(f"own {number} {i}", verdict(i))
    pipe.send("done")
    cache.put("last", verdict(number))
    if number == 0:
        while True:  # until it is killed
            cache.put(uuid4().hex, verdict(number, LONG))
    cache.close()


def test_many_processes_share_a_file_and_one_that_is_killed_leaves_it_whole(path: Path) -> None:
    context = get_context("spawn")
    workers = []
    for number in range(PROCESSES):  # all find no file and make one
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(path, number, theirs))
        process.start()
        workers.append((process, ours))
    for _, pipe in workers:
        assert pipe.poll(60) and pipe.recv() == "open"
        assert pipe.poll(60) and pipe.recv() == "done"
    os.kill(workers[0][0].pid or 0, signal.SIGKILL)
    for process, _ in workers:
        process.join(HANG_S)
    assert [process.exitcode for process, _ in workers] == [-signal.SIGKILL, 0, 0, 0]
    cache = VerdictCache(path, LARGE)
    assert cache._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    for i in range(SHARED):
        assert cache.get(f"shared {i}") == replace(verdict(i, LONG), cached=True)
        assert all(cache.get(f"own {number} {i}") for number in range(PROCESSES))
    cache.close()
    assert os.listdir(path.parent) == [path.name]


def test_threads_may_share_a_cache(path: Path) -> None:
    cache, collected = VerdictCache(path, SMALL), []

    def put_and_get(number: int) -> None:
        for i in range(60):
            cache.put(f"{number} {i}", verdict(i))
            collected.append(cache.get(f"{number} {i}") == replace(verdict(i), cached=True))

    threads = [Thread(target=put_and_get, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert collected == [True] * 240
