"""Finished replies judged outside a run: with and without an endpoint, resumed and never asked about twice."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.errors import RunError, UserError
from commands.judge import offline, replies
from commands.judge.ledger import LedgerEntry, VerdictLedger
from commands.judge.offline import OfflineJudges, score_local, score_replies
from commands.judge.verbs import score_manifest_replies
from conf.judging import JudgeConfig
from judge.rules.acoustic import DEFAULT_NORMS
from judge.types import MissingVerdict, ReplyJudgement, ScoredVerdict
from speech.sound import audio
from tests.helpers.finished_replies import Row, asked, hum, manifest, served, settings, table
from tests.helpers.judge_builders import RATE, Parrot, panel_hearing, spoken
from tests.helpers.judge_server import Body, JudgeServer, said

TEXT = "the answer is twelve"

# --- without an endpoint -------------------------------------------------------------------------------------


def judges(folder: Path, **changes: Any) -> OfflineJudges:
    config = JudgeConfig(**changes)
    return OfflineJudges(config=config, root=folder, norms=DEFAULT_NORMS, folder=folder, max_seconds=30.0)


def test_without_words_the_local_acoustic_axis_is_missing_and_nothing_is_the_floor(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", spoken(TEXT), RATE)
    answer = replies.ExpectedAnswer.model_validate({"match": "final", "value": "twelve"})
    item = replies.FinishedReply(id="a", question="?", audio="a.wav", answer=answer)
    panel = panel_hearing(Parrot(TEXT))
    known = score_local(panel, judges(tmp_path), item.model_copy(update={"text": TEXT}))
    judged = score_local(panel, judges(tmp_path), item)
    assert judged.axes["semantic"] == replace(known.axes["semantic"], cached=True)  # type: ignore[type-var]
    acoustic, reward = judged.axes["acoustic"], judged.reward
    assert (
        isinstance(acoustic, MissingVerdict)
        and isinstance(reward, MissingVerdict)
        and isinstance(known.reward, ScoredVerdict)
    )
    assert acoustic.kind == reward.kind == "nothing_to_check" and not acoustic.retryable
    alone = score_local(panel_hearing(Parrot(TEXT), acoustic=0.0), judges(tmp_path, acoustic=0.0), item)
    assert isinstance(alone.reward, ScoredVerdict) and alone.reward.value == 5.0, (
        "an axis without weight costs nothing"
    )
    silent = item.model_copy(update={"text": " "})
    floor = score_local(panel, judges(tmp_path), silent)
    assert isinstance(floor.reward, ScoredVerdict) and floor.reward.value == 1.0, "no words by its own account"


def test_a_given_transcript_is_used_and_stays_with_its_item(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", spoken(TEXT), RATE)
    listener = Parrot(TEXT)
    panel = panel_hearing(listener)
    item = replies.FinishedReply(id="a", question="?", audio="a.wav", text=TEXT)
    given = score_local(panel, judges(tmp_path), item.model_copy(update={"transcript": "eleven"}))
    assert given.transcript == "eleven" and listener.calls == 0
    assert score_local(panel, judges(tmp_path), item).transcript == TEXT and listener.calls == 1


def test_local_judges_work_in_processes_of_their_own(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", spoken(TEXT), RATE)
    texts = {"answer": {"match": "final", "value": "twelve"}, "text": TEXT, "audio": "a.wav"}
    path = manifest(tmp_path, 2, **texts)
    path.write_text(path.read_text().replace("twelve 1", TEXT))
    out = tmp_path / "out.parquet"
    assert score_manifest_replies(path, out, ["data=tiny", "judge.workers=1"]) == 0
    wrong, right = table(out)
    assert wrong["semantic_value"] == 1.0 and right["semantic_value"] == right["reward"] == 5.0
    assert right["semantic_judge"].startswith("verifiable") and right["acoustic_judge"].startswith("acoustic")
    assert right["holistic_value"] is None and right["missing"] is None and right["seconds"] > 0.5


def test_a_failure_of_one_keeps_the_others_and_leaves_nothing_running() -> None:
    cancelled, kept = [], []

    async def judge(item: replies.FinishedReply) -> ReplyJudgement:
        try:
            await asyncio.sleep({"a": 0.0, "b": 0.05}.get(item.id, 30))
        except asyncio.CancelledError:
            cancelled.append(item.id)
            raise
        kind: Any = "spend_cap" if item.id == "b" else "server"
        missing = MissingVerdict(judge="j", kind=kind, reason="spent 2 of 1")
        return ReplyJudgement(prompt_id="p", index=0, axes={"semantic": missing}, reward=missing, transcript=None)

    items = [replies.FinishedReply(id=name, question="?", audio="a.wav") for name in "abcde"]
    with pytest.raises(offline.EndpointStopped, match="spend_cap: spent 2 of 1"):
        asyncio.run(score_replies(items, judge, 3, lambda item, judged: kept.append(item.id)))
    assert kept == ["a"] and sorted(cancelled) == ["c", "d"]


# --- with an endpoint on loopback ----------------------------------------------------------------------------


def lasting(actual: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name != "latency_s"} for row in actual]


def test_scoring_that_was_stopped_goes_on_and_asks_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(tmp_path)
    add = VerdictLedger.append_entry

    def scenario(server: JudgeServer) -> None:
        item = settings(server, "judge.api.concurrency=1")
        whole, parts = tmp_path / "whole.parquet", tmp_path / "parts.parquet"
        assert score_manifest_replies(path, whole, item) == 0
        assert len(asked(server.bodies)) == 12
        server.bodies.clear()
        for stop in (2, 4):

            def interrupted(ledger: VerdictLedger, actual: LedgerEntry, stop: int = stop) -> None:
                add(ledger, actual)
                if len(ledger.entries) == stop:
                    raise KeyboardInterrupt

            monkeypatch.setattr(VerdictLedger, "append_entry", interrupted)
            with pytest.raises(KeyboardInterrupt):
                score_manifest_replies(path, parts, item)
            assert not parts.exists()
            assert f"{stop} of 6 verdicts are kept" in capsys.readouterr().err
            with (tmp_path / "parts.verdicts.jsonl").open("ab") as file:
                file.write(b'{"id": "r9", "rew')
        monkeypatch.setattr(VerdictLedger, "append_entry", add)
        assert score_manifest_replies(path, parts, item) == 0
        assert lasting(table(parts)) == lasting(table(whole))
        bodies = asked(server.bodies)
        assert len(bodies) == 12, "two axes of six replies, each once"
        assert len({json.dumps(body, sort_keys=True) for body in bodies}) == 12
        server.bodies.clear()
        before = parts.read_bytes()
        assert score_manifest_replies(path, parts, item) == 0
        assert server.bodies == [] and parts.read_bytes() == before, "nothing is left to ask, not even a probe"

    served(scenario)


def test_verdicts_of_another_judge_or_manifest_are_refused(tmp_path: Path) -> None:
    path = manifest(tmp_path, 2)
    out = tmp_path / "out.parquet"

    def scenario(server: JudgeServer) -> None:
        score_manifest_replies(path, out, settings(server))
        kept = (tmp_path / "out.verdicts.jsonl").read_bytes()
        score_manifest_replies(
            path,
            out,
            settings(server, "judge.api.concurrency=3", "judge.api.deadline_s=9", "judge.workers=1"),
        )
        with pytest.raises(UserError, match="holds verdicts on other judge settings: remove it"):
            score_manifest_replies(path, out, settings(server, "judge.api.repeats=2"))
        with pytest.raises(UserError, match="holds verdicts on other judge settings"):
            score_manifest_replies(path, out, settings(server, "judge.semantic=0.5"))
        (tmp_path / "out.verdicts.jsonl").write_bytes(kept[: kept.rstrip().rindex(b"\n") + 1])
        server.lacks = ["logprobs"]
        with pytest.raises(UserError, match="answered by logprobs, this one by schema"):
            score_manifest_replies(path, out, settings(server))
        hum(tmp_path / "0.wav", 321)
        with pytest.raises(UserError, match="holds verdicts on other replies"):
            score_manifest_replies(path, out, settings(server))

    served(scenario)


class Flaky(JudgeServer):
    """Answers 503 to questions that hold ``sick``."""

    sick = ""

    def _answer(self, body: Body) -> tuple[int, Body]:
        if self.sick and self.sick in said(body):
            return 503, {"error": {"message": "down"}}
        return super()._answer(body)


def test_what_failed_is_asked_again_and_what_was_answered_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("judge.endpoint.http.FIRST_WAIT", 0.02)  # what is tried again is tried soon
    path = manifest(tmp_path)
    out = tmp_path / "out.parquet"

    def scenario(server: JudgeServer) -> None:
        assert isinstance(server, Flaky)
        server.sick = "twelve 3"
        server.edit = lambda body, text: "no idea" if "twelve 4" in said(body) else text
        only = settings(server, "judge.acoustic=0", "judge.api.concurrency=1")
        assert score_manifest_replies(path, out, only) == 0
        kinds = {row["id"]: row["missing_kind"] for row in table(out) if row["reward"] is None}
        assert kinds["r4"] == "malformed" and kinds["r3"] == "server" and len(kinds) == 2
        shown = capsys.readouterr().out
        assert "6 replies, 4 with a reward" in shown and "malformed 1" in shown
        assert "1 of them because the judge failed" in shown
        server.sick = ""
        server.bodies.clear()
        assert score_manifest_replies(path, out, only) == 0
        assert [text for body in asked(server.bodies) for text in ("twelve 3",) if text in said(body)]
        assert len(asked(server.bodies)) == 1, "only what failed, not what was answered badly"
        assert [row["id"] for row in table(out) if row["reward"] is None] == ["r4"]

    served(scenario, Flaky())


def test_a_used_up_cap_stops_and_what_was_judged_is_kept(tmp_path: Path) -> None:
    path = manifest(tmp_path)
    out = tmp_path / "out.parquet"
    prices = ["judge.api.prompt_price=1000", "judge.api.completion_price=0", "judge.api.concurrency=1"]

    def scenario(server: JudgeServer) -> None:
        poor = settings(server, *prices, "judge.acoustic=0", "judge.api.spend_cap=0.25")  # 0.1 a call
        with pytest.raises(RunError, match=r"spend_cap: spent 0\.3 of .* 3 of 6 verdicts are kept; the same"):
            score_manifest_replies(path, out, poor)
        assert not out.exists()
        assert score_manifest_replies(path, out, [*poor[:-1], "judge.api.spend_cap=9"]) == 0
        assert len(asked(server.bodies)) == 6 and all(row["reward"] for row in table(out))

    served(scenario)


@pytest.mark.parametrize("to", ["out.csv", "none/out.parquet"])
def test_a_table_that_cannot_be_written_is_refused_before_anything_is_read(to: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must be a \.parquet file in a folder that exists"):
        score_manifest_replies(tmp_path / "none.jsonl", tmp_path / to, [])


# --- nothing was scored --------------------------------------------------------------------------------------


def test_a_judge_that_scored_nothing_fails_with_the_first_reason_and_keeps_the_table(tmp_path: Path) -> None:
    path, out = manifest(tmp_path), tmp_path / "out.parquet"

    def scenario(server: JudgeServer) -> None:
        server.edit = lambda body, text: "no idea" if "six plus six" in said(body) else text
        with pytest.raises(RunError, match=r"scored none of 6; the first is missing for malformed: .*'no idea'"):
            score_manifest_replies(path, out, settings(server, "judge.acoustic=0"))
        assert [row["missing_kind"] for row in table(out)] == ["malformed"] * 6

    served(scenario)


def test_one_score_is_enough(tmp_path: Path) -> None:
    path, out = manifest(tmp_path), tmp_path / "out.parquet"

    def scenario(server: JudgeServer) -> None:
        server.edit = lambda body, text: text if "six plus six" not in said(body) or "twelve 3" in said(body) else "?"
        assert score_manifest_replies(path, out, settings(server, "judge.acoustic=0")) == 0
        assert [row["id"] for row in table(out) if row["reward"] is not None] == ["r3"]

    served(scenario)


class Dying(JudgeServer):
    """Healthy until it is asked about a reply."""

    def _answer(self, body: Body) -> tuple[int, Body]:
        self.down = self.down or "six plus six" in said(body)
        return super()._answer(body)


def test_an_outage_ends_with_its_cause_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("judge.endpoint.http.FIRST_WAIT", 0.02)
    path, out = manifest(tmp_path), tmp_path / "out.parquet"

    def scenario(server: JudgeServer) -> None:
        with pytest.raises(RunError) as stopped:
            score_manifest_replies(path, out, settings(server, "judge.acoustic=0", "judge.api.outage_s=0.5"))
        message = str(stopped.value)
        assert message.count("breaker") == 1 and message.count("stayed down") == 1
        assert 'last: server: HTTP 503: {"error": {"message": "down"}}' in message
        assert "0 of 6 verdicts are kept; the same command goes on" in message

    served(scenario, Dying())
