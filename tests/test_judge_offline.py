"""Finished replies judged offline: hostile manifests and ratings, resumable scoring, two passes of a judge."""

import asyncio
import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.errors import RunError, UserError
from actors.judging import calibrate, score
from judge import calibration, offline, ratings, replies
from judge.ledger import Entry, Header, Ledger, entry, rows
from judge.offline import Judges, score_all, score_local
from judge.types import Judged, Missing, Scale, Scored
from speech import audio
from speech.manifest import ManifestError
from tests.judge_server import MODEL, Body, JudgeServer, recordings, said
from tests.judging import RATE, WORLD, Parrot, panel_hearing, spoken

Row = dict[str, Any]
SCALE = Scale(1.0, 5.0)
TEXT = "the answer is twelve"


def hum(path: Path, hertz: float, seconds: float = 0.4) -> None:
    time = np.arange(int(RATE * seconds)) / RATE
    audio.write(path, np.asarray(0.2 * np.sin(2 * np.pi * hertz * time), np.float32), RATE)


def manifest(folder: Path, count: int = 6, **more: Any) -> Path:
    """Replies of different sound to prompts of two each; the transcript is given: no recogniser is needed."""
    lines = []
    for i in range(count):
        hum(folder / f"{i}.wav", 150 + 40 * i)
        row = {
            "id": f"r{i}",
            "prompt_id": f"p{i // 2}",
            "question": "What is six plus six?",
            "audio": f"{i}.wav",
        }
        lines.append(json.dumps(row | {"transcript": f"twelve {i}"} | more))
    path = folder / "replies.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def refused(read: Callable[[Path], Any], path: Path) -> list[str]:
    with pytest.raises(ManifestError) as error:
        read(path)
    return str(error.value).splitlines()


def read(path: Path) -> replies.Replies:
    return replies.read(path, 30.0)


def test_a_sound_manifest_is_read_with_what_is_known(tmp_path: Path) -> None:
    hum(tmp_path / "a.wav", 200)
    full = {
        "text": "", "transcript": "four", "answer": {"match": "final", "value": "four"}, "style": "slow",
        "user_audio": ["a.wav", "a.wav"], "prompt_id": "p",
    }  # fmt: skip
    plain = {"id": "a", "question": "?", "audio": "a.wav"}
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(plain) + "\n" + json.dumps(plain | full | {"id": "b"}) + "\n")
    found = read(path)
    a, b = found.items
    assert (a.prompt, a.text, a.transcript, a.answer, a.user_audio) == ("a", None, None, None, ())
    assert (b.prompt, b.text, b.transcript, b.user_audio) == ("p", "", "four", ("a.wav", "a.wav"))
    task = replies.task_of(b, tmp_path)
    assert (task.match, task.answer, task.style, task.question) == ("final", "four", "slow", "?")


BAD: dict[str, tuple[Row | str, str]] = {
    "not json": ("{", ":1: must be one JSON object"),
    "a list": ("[]", ":1: must be one JSON object: got list"),
    "twice": ('{"id": "a", "id": "b", "question": "?", "audio": "a.wav"}', ":1:id: key must not appear twice"),
    "deep": ("[" * 100_000, ":1: must be one JSON object: nested too deeply"),
    "long": ('"' + "x" * (1 << 20) + '"', ":1: a line has at most 1048576 bytes"),
    "no question": ({"question": None}, ":1:question: "),
    "typo": ({"transcripts": "x"}, ":1:transcripts: unknown key, did you mean transcript?"),
    "empty id": ({"id": ""}, ":1:id: must not be empty"),
    "line break": ({"id": "a\nb"}, ":1:id: "),
    "style": ({"style": "fast"}, ":1:style: "),
    "match": ({"answer": {"match": "vaguely", "value": "x"}}, ":1:answer.match: "),
    "url": ({"audio": "http://x/a.wav"}, ":1:audio: audio path must be a local file, not a URL"),
    "absolute": ({"audio": "/etc/passwd"}, ":1:audio: audio path must be relative"),
    "out": ({"audio": "../a.wav"}, ":1:audio: audio path must be relative to its data folder, without '..'"),
    "link out": ({"audio": "link.wav"}, ":1:audio: audio path must stay in its data folder"),
    "absent": ({"audio": "none.wav"}, ":1:audio: "),
    "text file": ({"audio": "text.wav"}, ":1:audio: "),
    "cut": ({"audio": "cut.flac"}, ":1:audio: "),
    "user's": ({"user_audio": ["a.wav", "none.wav"]}, ":1:user_audio[1]: "),
    "wrong and absent": ({"style": 3, "audio": "none.wav"}, ":1:audio: "),
    "too long": ({"audio": "long.wav"}, ":1:audio: "),
    "long together": ({"user_audio": ["b.wav", "b.wav"]}, ":1:user_audio: must last at most 30 s: got 40.0 s"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_hostile_line_is_refused_by_file_line_and_field(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for file, seconds in ((tmp_path / "out.wav", 0.1), (folder / "a.wav", 0.1), (folder / "b.wav", 20), (folder / "long.wav", 31)):  # fmt: skip
        hum(file, 200, seconds)
    (folder / "link.wav").symlink_to(tmp_path / "out.wav")
    (folder / "text.wav").write_text("RIFF")
    hum(folder / "whole.flac", 200)
    whole = (folder / "whole.flac").read_bytes()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    bad, told_ = BAD[name]
    line = bad if isinstance(bad, str) else json.dumps({"id": "a", "question": "?", "audio": "a.wav"} | bad)
    path = folder / "m.jsonl"
    path.write_text(line + "\n")
    assert any(f"{path}{told_}" in one for one in refused(read, path)), refused(read, path)


def test_all_mistakes_of_a_manifest_are_listed(tmp_path: Path) -> None:
    path = manifest(tmp_path, 2)
    good = path.read_text().splitlines()
    path.write_text("\n".join([good[0], "", good[0], '{"id": 3}', good[1]]))
    found = refused(read, path)
    assert f"{path}:2: must be one JSON object: the line is empty" in found
    assert f"{path}:3:id: must be unique: 'r0' is also on line 1" in found
    assert f"{path}:4:question: key is missing" in found and f"{path}:4:audio: key is missing" in found
    assert refused(read, tmp_path / "none.jsonl") == [
        f"{tmp_path / 'none.jsonl'}: cannot be read: No such file or directory"
    ]


def test_another_sound_or_another_word_is_another_manifest(tmp_path: Path) -> None:
    path = manifest(tmp_path, 2)
    before = read(path).sha256
    assert read(path).sha256 == before
    hum(tmp_path / "1.wav", 999)
    changed = read(path).sha256
    path.write_text(path.read_text().replace("six plus", "five plus"))
    assert len({before, changed, read(path).sha256}) == 3


# --- without an endpoint -------------------------------------------------------------------------------------


def judges(folder: Path, **changes: Any) -> Judges:
    from conf.judging import JudgeConfig

    config = JudgeConfig(**changes)
    return Judges(config=config, root=folder, model=WORLD / "base", folder=folder, max_seconds=30.0)


def test_without_words_the_local_acoustic_axis_is_missing_and_nothing_is_the_floor(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", spoken(TEXT), RATE)
    answer = replies.Answer.model_validate({"match": "final", "value": "twelve"})
    item = replies.Item(id="a", question="?", audio="a.wav", answer=answer)
    panel = panel_hearing(Parrot(TEXT))
    known = score_local(panel, judges(tmp_path), item.model_copy(update={"text": TEXT}))
    judged = score_local(panel, judges(tmp_path), item)
    assert judged.axes["semantic"] == replace(known.axes["semantic"], cached=True)  # type: ignore[type-var]
    acoustic, reward = judged.axes["acoustic"], judged.reward
    assert isinstance(acoustic, Missing) and isinstance(reward, Missing) and isinstance(known.reward, Scored)
    assert acoustic.kind == reward.kind == "nothing_to_check" and not acoustic.retryable
    assert {"wer", "text_right"} <= known.figures.keys() and not {"wer", "text_right"} & judged.figures.keys()
    alone = score_local(panel_hearing(Parrot(TEXT), acoustic=0.0), judges(tmp_path, acoustic=0.0), item)
    assert isinstance(alone.reward, Scored) and alone.reward.value == 5.0, (
        "an axis without weight costs nothing"
    )
    silent = item.model_copy(update={"text": " "})
    floor = score_local(panel, judges(tmp_path), silent)
    assert isinstance(floor.reward, Scored) and floor.reward.value == 1.0, "no words by its own account"


def test_a_given_transcript_is_used_and_stays_with_its_item(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", spoken(TEXT), RATE)
    listener = Parrot(TEXT)
    panel = panel_hearing(listener)
    item = replies.Item(id="a", question="?", audio="a.wav", text=TEXT)
    given = score_local(panel, judges(tmp_path), item.model_copy(update={"transcript": "eleven"}))
    assert given.transcript == "eleven" and listener.calls == 0
    assert score_local(panel, judges(tmp_path), item).transcript == TEXT and listener.calls == 1


def test_local_judges_work_in_processes_of_their_own(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", spoken(TEXT), RATE)
    texts = {"answer": {"match": "final", "value": "twelve"}, "text": TEXT, "audio": "a.wav"}
    path = manifest(tmp_path, 2, **texts)
    path.write_text(path.read_text().replace("twelve 1", TEXT))
    out = tmp_path / "out.parquet"
    assert score(path, out, ["judge.workers=1"]) == 0
    wrong, right = table(out)
    assert wrong["semantic_value"] == 1.0 and right["semantic_value"] == right["reward"] == 5.0
    assert right["semantic_judge"].startswith("verifiable") and right["acoustic_judge"].startswith("acoustic")
    assert right["holistic_value"] is None and right["missing"] is None and right["seconds"] > 0.5


def test_a_failure_of_one_keeps_the_others_and_leaves_nothing_running() -> None:
    cancelled, kept = [], []

    async def judge(item: replies.Item) -> Judged:
        try:
            await asyncio.sleep({"a": 0.0, "b": 0.05}.get(item.id, 30))
        except asyncio.CancelledError:
            cancelled.append(item.id)
            raise
        kind: Any = "spend_cap" if item.id == "b" else "server"
        found = Missing(judge="j", kind=kind, reason="spent 2 of 1")
        return Judged(prompt_id="p", index=0, axes={"semantic": found}, reward=found, transcript=None)

    items = [replies.Item(id=name, question="?", audio="a.wav") for name in "abcde"]
    with pytest.raises(offline.Stopped, match="spend_cap: spent 2 of 1"):
        asyncio.run(score_all(items, judge, 3, lambda item, judged: kept.append(item.id)))
    assert kept == ["a"] and sorted(cancelled) == ["c", "d"]


# --- the ledger ----------------------------------------------------------------------------------------------

SCORED = Scored(value=3.5, judge="j", spread=0.25, why="ünï")
BROKEN = Missing(judge="j", kind="server", reason="503", retryable=True)
HEADER = Header(manifest="m", judge="j", mode=None)


def line(name: str, verdict: Scored | Missing) -> Entry:
    figures = {"seconds": 1.5, "latency_s": 0.1}
    judged = Judged(
        prompt_id="p", index=0, axes={"semantic": verdict}, reward=verdict, transcript="x", figures=figures
    )
    return entry(replies.Item(id=name, question="?", audio="a.wav"), judged)


def test_a_torn_last_line_is_cut_and_a_failure_is_open_again(tmp_path: Path) -> None:
    path = tmp_path / "x.verdicts.jsonl"
    items = [replies.Item(id=name, question="?", audio="a.wav") for name in "abc"]
    with Ledger(path) as ledger:
        ledger.belongs_to(HEADER)
        for name, verdict in (("a", SCORED), ("b", BROKEN)):
            ledger.add(line(name, verdict))
        assert [item.id for item in ledger.open_items(items)] == ["b", "c"]
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        with Ledger(path) as ledger:
            assert ledger.entries == {"a": line("a", SCORED)}
        assert path.read_bytes() == whole[:last]
    path.write_bytes(whole)
    with Ledger(path) as ledger:
        ledger.belongs_to(HEADER)
        ledger.add(line("b", SCORED))
    with Ledger(path) as ledger:
        assert [item.id for item in ledger.open_items(items)] == ["c"]
        assert ledger.entries["b"].reward == SCORED


@pytest.mark.parametrize("bad", [b"{}\n", b"\0\0\n", b'{"id": "a"}\n', b"x" * (1 << 22)])
def test_a_line_that_is_not_ours_is_refused_and_left_alone(bad: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for before, number in ((b"", 1), (HEADER.model_dump_json().encode() + b"\n", 2)):
        path.write_bytes(before + bad + b"\n")
        with pytest.raises(ValueError, match=f"{path}:{number}: not a line that"):
            Ledger(path)
        assert path.read_bytes() == before + bad + b"\n"


def test_a_score_that_is_not_finite_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    found = line("a", SCORED).model_dump_json().replace("3.5", "NaN")
    path.write_text(HEADER.model_dump_json() + "\n" + found + "\n")
    with pytest.raises(ValueError, match=":2: not a line"):
        Ledger(path)


def test_a_ledger_serves_one_process_and_leaves_no_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with Ledger(path), pytest.raises(ValueError, match="another process is writing it"):
        Ledger(path)
    assert not path.exists()
    with pytest.raises(ValueError, match="cannot be written: No such file"):
        Ledger(tmp_path / "none" / "x.jsonl")


def test_a_missing_reward_is_a_reason_and_a_kind_in_the_table() -> None:
    items = [replies.Item(id=name, question="?", audio="a.wav") for name in "ab"]
    scored, missing = rows(items, {"a": line("a", SCORED), "b": line("b", BROKEN)})
    assert (scored["reward"], scored["missing"], scored["semantic_spread"]) == (3.5, None, 0.25)
    assert (missing["reward"], missing["missing"], missing["missing_kind"]) == (None, "503", "server")
    assert missing["semantic_value"] is None and missing["semantic_missing"] == "server: 503"
    assert scored["acoustic_value"] is scored["acoustic_missing"] is None


# --- with an endpoint on loopback ----------------------------------------------------------------------------


def table(path: Path) -> list[Row]:
    import pyarrow.parquet

    found: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    return found


def settings(server: JudgeServer, *more: str) -> list[str]:
    where = [f"judge.api.base_url={server.base_url}", f"judge.api.model={MODEL}", "judge.api.deadline_s=5"]
    return ["judge=openai", *where, *more]


def served(scenario: Callable[[JudgeServer], Any], server: JudgeServer | None = None) -> None:
    """The commands have an event loop of their own, so they run in a thread beside the server's."""

    async def whole() -> None:
        async with server or JudgeServer() as running:
            await asyncio.to_thread(scenario, running)

    asyncio.run(asyncio.wait_for(whole(), 120))


def asked(bodies: list[Body]) -> list[Body]:
    """All but the probe's questions: those about its second of hum."""
    return [b for b in bodies if "six plus six" in said(b) or [len(w) for w, _ in recordings(b)] == [6400]]


def lasting(found: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name != "latency_s"} for row in found]


def test_scoring_that_was_stopped_goes_on_and_asks_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(tmp_path)
    add = Ledger.add

    def scenario(server: JudgeServer) -> None:
        one = settings(server, "judge.api.concurrency=1")
        whole, parts = tmp_path / "whole.parquet", tmp_path / "parts.parquet"
        assert score(path, whole, one) == 0
        assert len(asked(server.bodies)) == 12
        server.bodies.clear()
        for stop in (2, 4):

            def interrupted(ledger: Ledger, found: Entry, stop: int = stop) -> None:
                add(ledger, found)
                if len(ledger.entries) == stop:
                    raise KeyboardInterrupt

            monkeypatch.setattr(Ledger, "add", interrupted)
            with pytest.raises(KeyboardInterrupt):
                score(path, parts, one)
            assert not parts.exists()
            assert f"{stop} of 6 verdicts are kept" in capsys.readouterr().err
            with (tmp_path / "parts.verdicts.jsonl").open("ab") as file:
                file.write(b'{"id": "r9", "rew')
        monkeypatch.setattr(Ledger, "add", add)
        assert score(path, parts, one) == 0
        assert lasting(table(parts)) == lasting(table(whole))
        bodies = asked(server.bodies)
        assert len(bodies) == 12, "two axes of six replies, each once"
        assert len({json.dumps(body, sort_keys=True) for body in bodies}) == 12
        server.bodies.clear()
        before = parts.read_bytes()
        assert score(path, parts, one) == 0
        assert server.bodies == [] and parts.read_bytes() == before, (
            "nothing is left to ask, not even a probe"
        )

    served(scenario)


def test_verdicts_of_another_judge_or_manifest_are_refused(tmp_path: Path) -> None:
    path = manifest(tmp_path, 2)
    out = tmp_path / "out.parquet"

    def scenario(server: JudgeServer) -> None:
        score(path, out, settings(server))
        kept = (tmp_path / "out.verdicts.jsonl").read_bytes()
        score(
            path,
            out,
            settings(server, "judge.api.concurrency=3", "judge.api.deadline_s=9", "judge.workers=1"),
        )
        with pytest.raises(UserError, match="holds verdicts on other judge settings: remove it"):
            score(path, out, settings(server, "judge.api.repeats=2"))
        with pytest.raises(UserError, match="holds verdicts on other judge settings"):
            score(path, out, settings(server, "judge.semantic=0.5"))
        (tmp_path / "out.verdicts.jsonl").write_bytes(kept[: kept.rstrip().rindex(b"\n") + 1])
        server.lacks = ["logprobs"]
        with pytest.raises(UserError, match="answered by logprobs, this one by schema"):
            score(path, out, settings(server))
        hum(tmp_path / "0.wav", 321)
        with pytest.raises(UserError, match="holds verdicts on other replies"):
            score(path, out, settings(server))

    served(scenario)


class Flaky(JudgeServer):
    """Answers 503 to questions that hold ``sick``."""

    sick = ""

    def _answer(self, body: Body) -> tuple[int, Body]:
        if self.sick and self.sick in said(body):
            return 503, {"error": {"message": "down"}}
        return super()._answer(body)


def test_what_failed_is_asked_again_and_what_was_answered_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(tmp_path)
    out = tmp_path / "out.parquet"

    def scenario(server: JudgeServer) -> None:
        assert isinstance(server, Flaky)
        server.sick = "twelve 3"
        server.edit = lambda body, text: "no idea" if "twelve 4" in said(body) else text
        only = settings(server, "judge.acoustic=0", "judge.api.deadline_s=0.5", "judge.api.concurrency=1")
        assert score(path, out, only) == 0
        kinds = {row["id"]: row["missing_kind"] for row in table(out) if row["reward"] is None}
        assert kinds["r4"] == "malformed" and kinds["r3"] in ("server", "deadline") and len(kinds) == 2
        shown = capsys.readouterr().out
        assert "6 replies, 4 with a reward" in shown and "malformed 1" in shown
        assert "1 of them because the judge failed" in shown
        server.sick = ""
        server.bodies.clear()
        assert score(path, out, only) == 0
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
            score(path, out, poor)
        assert not out.exists()
        assert score(path, out, [*poor[:-1], "judge.api.spend_cap=9"]) == 0
        assert len(asked(server.bodies)) == 6 and all(row["reward"] for row in table(out))

    served(scenario)


@pytest.mark.parametrize("to", ["out.csv", "none/out.parquet"])
def test_a_table_that_cannot_be_written_is_refused_before_anything_is_read(to: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must be a \.parquet file in a folder that exists"):
        score(tmp_path / "none.jsonl", tmp_path / to, [])


# --- people's ratings ----------------------------------------------------------------------------------------


def rated(folder: Path, people: Callable[[int], list[float]], count: int = 8, **more: str) -> Path:
    """Replies as in ``manifest``, each with its raters."""
    manifest(folder, count)
    path = folder / "ratings.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "prompt_id", "question", "audio", "human", "transcript", *more])
        for i in range(count):
            for human in people(i):
                table.writerow([f"r{i}", f"p{i // 2}", "What is six plus six?", f"{i}.wav", human, f"twelve {i}", *more.values()])  # fmt: skip
    return path


def readings(path: Path, judged: tuple[str, ...] = ("semantic", "acoustic")) -> ratings.Ratings:
    return ratings.read(path, SCALE, judged, 30.0)


def test_several_lines_of_a_reply_are_several_raters_of_every_judged_axis(tmp_path: Path) -> None:
    found = readings(rated(tmp_path, lambda i: [1.0 + i % 5, 3.5], count=2))
    assert found.of == {axis: {"r0": (1.0, 3.5), "r1": (2.0, 3.5)} for axis in ("semantic", "acoustic")}
    assert [item.id for item in found.replies.items] == ["r0", "r1"] and not found.left_out
    named = readings(rated(tmp_path, lambda i: [2.0], axis="acoustic"))
    assert list(named.of) == ["acoustic"]
    whole = readings(
        rated(tmp_path, lambda i: [2.0, 3.0], count=3, axis="acoustic"), ("semantic", "acoustic")
    )
    assert whole.of["acoustic"]["r2"] == (2.0, 3.0)
    assert (
        "has no rating of an axis that is judged (semantic)"
        in refused(
            lambda path: readings(path, ("semantic",)), rated(tmp_path, lambda i: [2.0], axis="holistic")
        )[0]
    )


HEAD = "id,prompt_id,question,audio,human"
BAD_CSV = {
    "no column": ("id,prompt_id,question,audio", ["r,p,?,a.wav"], ":1:human: column is missing"),
    "typo": (HEAD + ",transcripts", [], ":1:'transcripts': unknown column, did you mean transcript?"),
    "twice": (HEAD + ",human", [], ":1:human: column must not appear twice"),
    "few": (HEAD, ["r,p,?,a.wav"], ":2: must have 5 cells: got 4"),
    "word": (HEAD, ["r,p,?,a.wav,good"], ":2:human: must be a number from 1 to 5: got 'good'"),
    "nan": (HEAD, ["r,p,?,a.wav,nan"], ":2:human: must be a number"),
    "off": (HEAD, ["r,p,?,a.wav,6"], ":2:human: must be a number from 1 to 5: got '6'"),
    "empty": (HEAD, ["r,p,?,a.wav,"], ":2:human: must be a number"),
    "no id": (HEAD, [",p,?,a.wav,3"], ":2:id: key is missing"),
    "no audio": (HEAD, ["r,p,?,none.wav,3"], ":2:audio: "),
    "out": (HEAD, ["r,p,?,../a.wav,3"], ":2:audio: audio path must be relative"),
    "axis": (HEAD + ",axis", ["r,p,?,a.wav,3,both"], ":2:axis: must be one of semantic, acoustic, holistic: got 'both'"),
    "changed": (HEAD, ["r,p,?,a.wav,3", "r,p2,?,a.wav,3"], ":3:prompt_id: must be as on line 2, which has the same id: 'p'"),
    "clips": (HEAD + ",user_audio", ["r,p,?,a.wav,3,a.wav; b.wav"], ":2:user_audio[1]: "),
    "answer": (HEAD + ",answer", ["r,p,?,a.wav,3,four"], ":2:answer.match: key is missing"),
    "quote": (HEAD, ['r,p,?,a.wav,"3"x'], ":2: must be CSV: "),
    "after a break": (HEAD, ['r,p,"a\nb",a.wav,3', "r2,p,?,a.wav,9"], ":4:human: "),
    "nothing": ("", [], ": has no rating of an axis that is judged"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CSV)
def test_bad_ratings_are_refused_by_file_line_and_column(name: str, tmp_path: Path) -> None:
    hum(tmp_path / "a.wav", 200)
    head, lines, told_ = BAD_CSV[name]
    path = tmp_path / "r.csv"
    path.write_text("\n".join([head, *lines]) + "\n")
    assert any(f"{path}{told_}" in one for one in refused(readings, path)), refused(readings, path)


def test_ratings_that_are_not_text_or_too_large_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_bytes(HEAD.encode() + b"\n\xff")
    assert refused(readings, path) == [f"{path}: must be UTF-8: invalid start byte"]
    path.write_bytes(b"a" * ((1 << 26) + 1))
    assert refused(readings, path) == [f"{path}: must have at most {1 << 26} bytes"]
    path.write_bytes(b"\xef\xbb\xbf" + HEAD.encode() + b"\nr,p,?,a.wav,3\n")
    hum(tmp_path / "a.wav", 200)
    assert readings(path).of["semantic"] == {"r": (3.0,)}, "a mark of byte order is none of the data"


def opinion(text: str) -> float:
    """Of a reply by the digit in its transcript: people think the same of it, on half the range."""
    return 1.0 + 0.5 * int(text.rpartition("twelve ")[2][0])


def test_calibrate_measures_both_passes_and_writes_a_map_that_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rated(tmp_path, lambda i: [1 + 0.25 * i, 1.2 + 0.25 * i], axis="semantic")
    to = tmp_path / "calibration.json"
    turn: list[int] = []

    def unsteady(body: Body) -> float:
        if "six plus six" not in said(body):
            return 3.0
        turn.append(1)
        return opinion(said(body)) + (0.2 if len(turn) > 8 else 0.0)  # the second pass is kinder

    def scenario(server: JudgeServer) -> None:
        cache = f"judge.api.cache={tmp_path / 'cache.sqlite'}"
        only = settings(server, "judge.acoustic=0", cache)
        assert calibrate(path, to, None, only) == 0
        assert len(asked(server.bodies)) == 16, "two passes over eight replies, the second past the cache"
        shown = capsys.readouterr().out
        name = f"openai({MODEL} semantic/1 logprobs)"
        assert f"semantic: {name}, 8 replies to 4 prompts" in shown
        assert "Pearson                   1.00  [1.00, 1.00]" in shown
        assert "Spearman within a prompt  1.00  [1.00, 1.00]  mean of 4 prompts" in shown
        assert "mean absolute error       0.80" in shown and "bias (judge - people)     +0.77" in shown
        assert "repeat variance           0.0200 of one reading" in shown
        assert "test-retest               Pearson 1.00, mean difference 0.20, 8 replies" in shown
        assert "people among themselves   mean difference 0.20" in shown
        assert "affine, 0.500 * score +0.600: mean absolute error 0.80 -> 0.00" in shown
        found = calibration.load(to).of(name)
        assert isinstance(found.curve, calibration.Affine) and (found.items, found.prompts) == (8, 4)
        assert found.curve.slope == pytest.approx(0.5) and found.curve.intercept == pytest.approx(0.6)
        server.bodies.clear()
        calibrate(path, to, "isotonic", only)
        assert len(asked(server.bodies)) == 8, "the first pass is remembered, the second never"
        assert calibration.load(to).of(name).curve.kind == "isotonic"

    served(scenario, JudgeServer(unsteady))


def test_a_map_that_does_not_help_is_not_written_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "c.json"

    def scenario(server: JudgeServer) -> None:
        path = rated(tmp_path, lambda i: [1 + 0.5 * i], axis="semantic")
        server.edit = lambda body, text: "no idea" if "twelve 5" in said(body) else text
        assert calibrate(path, to, None, settings(server, "judge.acoustic=0")) == 0
        shown = capsys.readouterr().out
        assert (
            "map                       none: affine would not help: mean absolute error 0.00 -> 0.00" in shown
        )
        assert (
            "missing                   1 left out (malformed 1)" in shown
            and "7 replies to 4 prompts" in shown
        )
        assert "written: nothing, no map helps" in shown and not to.exists()

    served(scenario, JudgeServer(lambda body: opinion(said(body)) if "six" in said(body) else 3.0))


def test_calibrate_writes_over_nothing_but_a_calibration(tmp_path: Path) -> None:
    path = rated(tmp_path, lambda i: [3.0])
    to = tmp_path / "notes.json"
    to.write_text("{}")
    with pytest.raises(UserError, match=r"notes\.json: not a calibration"):
        calibrate(path, to, None, [])
    with pytest.raises(UserError, match="its folder must exist"):
        calibrate(path, tmp_path / "none" / "c.json", None, [])


def test_a_local_judge_is_measured_in_one_pass_and_gets_no_map(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rated(tmp_path, lambda i: [5.0 - 4 * (i % 2)], count=4, axis="semantic", match="final", answer="0")
    assert calibrate(path, tmp_path / "c.json", None, ["judge.workers=1", "judge.acoustic=0"]) == 0
    shown = capsys.readouterr().out
    assert "semantic: verifiable/1, 4 replies to 2 prompts" in shown
    assert "test-retest               - (a local rule gives the same score again)" in shown
    assert "none: only an API judge's scores are mapped" in shown
