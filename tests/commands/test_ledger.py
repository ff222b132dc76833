"""The ledger of verdicts: what it keeps through a torn line, what it refuses, and the table made of it."""

from pathlib import Path

import pytest

from commands.judge.ledger import LedgerEntry, LedgerHeader, VerdictLedger, build_table_rows, make_ledger_entry
from commands.judge.replies import FinishedReply
from judge.types import MissingVerdict, ReplyJudgement, ScoredVerdict

SCORED = ScoredVerdict(value=3.5, judge="j", spread=0.25, why="ünï")
BROKEN = MissingVerdict(judge="j", kind="server", reason="503", retryable=True)
HEADER = LedgerHeader(manifest="m", judge="j", mode=None)


def line(name: str, verdict: ScoredVerdict | MissingVerdict) -> LedgerEntry:
    figures = {"seconds": 1.5, "latency_s": 0.1}
    judged = ReplyJudgement(
        prompt_id="p", index=0, axes={"semantic": verdict}, reward=verdict, transcript="x", figures=figures
    )
    return make_ledger_entry(FinishedReply(id=name, question="?", audio="a.wav"), judged)


def test_a_torn_last_line_is_cut_and_a_failure_is_open_again(tmp_path: Path) -> None:
    path = tmp_path / "x.verdicts.jsonl"
    items = [FinishedReply(id=name, question="?", audio="a.wav") for name in "abc"]
    with VerdictLedger(path) as ledger:
        ledger.start_or_resume(HEADER)
        for name, verdict in (("a", SCORED), ("b", BROKEN)):
            ledger.append_entry(line(name, verdict))
        assert [item.id for item in ledger.open_items(items)] == ["b", "c"]
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        with VerdictLedger(path) as ledger:
            assert ledger.entries == {"a": line("a", SCORED)}
        assert path.read_bytes() == whole[:last]
    path.write_bytes(whole)
    with VerdictLedger(path) as ledger:
        ledger.start_or_resume(HEADER)
        ledger.append_entry(line("b", SCORED))
    with VerdictLedger(path) as ledger:
        assert [item.id for item in ledger.open_items(items)] == ["c"]
        assert ledger.entries["b"].reward == SCORED


@pytest.mark.parametrize("bad", [b"{}\n", b"\0\0\n", b'{"id": "a"}\n', b"x" * (1 << 22)])
def test_a_line_that_is_not_ours_is_refused_and_left_alone(bad: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for before, number in ((b"", 1), (HEADER.model_dump_json().encode() + b"\n", 2)):
        path.write_bytes(before + bad + b"\n")
        with pytest.raises(ValueError, match=f"{path}:{number}: not a line that"):
            VerdictLedger(path)
        assert path.read_bytes() == before + bad + b"\n"


def test_a_score_that_is_not_finite_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    actual = line("a", SCORED).model_dump_json().replace("3.5", "NaN")
    path.write_text(HEADER.model_dump_json() + "\n" + actual + "\n")
    with pytest.raises(ValueError, match=":2: not a line"):
        VerdictLedger(path)


def test_a_ledger_serves_one_process_and_leaves_no_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with VerdictLedger(path), pytest.raises(ValueError, match="another process is writing it"):
        VerdictLedger(path)
    assert not path.exists()
    with pytest.raises(ValueError, match="cannot be written: No such file"):
        VerdictLedger(tmp_path / "none" / "x.jsonl")


def test_a_missing_reward_is_a_reason_and_a_kind_in_the_table() -> None:
    items = [FinishedReply(id=name, question="?", audio="a.wav") for name in "ab"]
    scored, missing = build_table_rows(items, {"a": line("a", SCORED), "b": line("b", BROKEN)})
    assert (scored["reward"], scored["missing"], scored["semantic_spread"]) == (3.5, None, 0.25)
    assert (missing["reward"], missing["missing"], missing["missing_kind"]) == (None, "503", "server")
    assert missing["semantic_value"] is None and missing["semantic_missing"] == "server: 503"
    assert scored["acoustic_value"] is scored["acoustic_missing"] is None
