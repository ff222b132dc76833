"""What a step does when verdicts are missing: it goes on, or it says that the judges are out."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors import evaluate
from actors.answer_pool import AnswerLate, SpeechLost
from actors.collect import JudgedBatch, check_outage, sample_and_judge
from actors.context import RunContext
from actors.errors import JudgeOutage
from actors.judge_pool import build_missing_verdict
from actors.run.metrics import compute_reply_metrics
from conf.load import load_config
from judge.types import JudgeTask, MissingVerdict, ReplyJudgement, ScoredVerdict
from learner.decide import ReplyGroup
from rollout.types import Prompt, Reply, Sampling
from tests.judge.test_judge_limits import now, virtually


def judged(reward: float | None) -> ReplyJudgement:
    verdict = (
        MissingVerdict(judge="j", reason="HTTP 503", kind="server")
        if reward is None
        else ScoredVerdict(value=reward, judge="j")
    )
    return ReplyJudgement(prompt_id="p", index=0, axes={}, reward=verdict, transcript=None)


def test_as_many_missing_verdicts_as_allowed_are_no_outage() -> None:
    check_outage([judged(3.0), judged(None)], most=0.5)


def test_more_missing_verdicts_than_allowed_stop_the_run_with_their_reason() -> None:
    with pytest.raises(JudgeOutage, match=r"2 of 3 verdicts are missing.*HTTP 503"):
        check_outage([judged(3.0), judged(None), judged(None)], most=0.5)


def test_an_evaluation_on_an_outage_writes_no_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[object] = []
    settings = SimpleNamespace(
        data=SimpleNamespace(test="t", validation="v"), judge=SimpleNamespace(max_missing=0.5), rollout=None
    )
    job = SimpleNamespace(config=settings, test=(), validation=())
    run = SimpleNamespace(path=tmp_path, append=lambda *line: written.append(line))
    monitor = SimpleNamespace(begin_phase=lambda *_, **__: None, tick=None, say=written.append)

    async def nothing(*_: object) -> list[object]:
        return []

    async def all_missing(*_: object, **__: object) -> JudgedBatch:
        reply = Reply(
            prompt_id="p",
            index=0,
            ids=(),
            logps=(),
            channels="",
            sampled=(),
            versions=(),
            finish="stop",
            text="",
            well_formed=True,
        )
        group = ReplyGroup(prompt=Prompt(id="p", ids=()), replies=((reply, judged(None)),))
        return JudgedBatch(groups=(group,), generate_s=0.0, judge_s=0.0)

    monkeypatch.setattr(evaluate, "encode_rows", nothing)
    monkeypatch.setattr(evaluate, "judge_greedy_replies", all_missing)
    held_out = evaluate.HeldOutEvaluator(RunContext(job, run, SimpleNamespace(rollout=None, judges=None), monitor))  # type: ignore[arg-type]
    with pytest.raises(JudgeOutage, match="1 of 1 verdicts"):
        asyncio.run(held_out.evaluate("test", "before", 0))
    assert written == []


def reply_to(prompt: Prompt, index: int) -> Reply:
    return Reply(
        prompt_id=prompt.id, index=index, ids=(index,), logps=(0.0,), channels="T", sampled=(True,), versions=(0,),
        finish="stop", text="", well_formed=True,
    )  # fmt: skip


class Sampled:
    """Replies of all prompts, turn and turn about, so that groups are whole at different times."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.asked: list[list[str]] = []
        self._pause_s = pause_s

    async def generate(
        self, prompts: list[Prompt], sampling: Sampling, deadline: float
    ) -> AsyncIterator[tuple[Reply, list[str]]]:
        self.asked.append([prompt.id for prompt in prompts])
        for index in range(sampling.group_size):
            for prompt in prompts:
                await asyncio.sleep(self._pause_s)
                yield reply_to(prompt, index), [f"{prompt.id}/{index}"]


class Together:
    """Judges that hold the replies of a group against each other; ``lost``: how often speech was gone."""

    def __init__(self, *, together: bool = True, lost: int = 0, seconds: float = 0.0) -> None:
        self.together, self.lost, self.seconds = together, lost, seconds
        self.groups: list[list[str]] = []

    async def compare(
        self, replies: list[Reply], speeches: list[list[str]], task: JudgeTask, audio: list[Path | None]
    ) -> list[ReplyJudgement]:
        assert len(replies) == len(speeches) == len(audio)
        self.groups.append([speech[0] for speech in speeches])
        await asyncio.sleep(self.seconds)
        if self.lost:
            self.lost -= 1
            raise SpeechLost("gone")
        return [judged_as(reply) for reply in replies]

    async def score(self, reply: Reply, speech: list[str], task: JudgeTask, audio: Path | None) -> ReplyJudgement:
        self.groups.append(speech)
        await asyncio.sleep(self.seconds)
        return judged_as(reply)


def judged_as(reply: Reply) -> ReplyJudgement:
    verdict = ScoredVerdict(value=1.0 + reply.index, judge="j")
    return ReplyJudgement(
        prompt_id=reply.prompt_id, index=reply.index, axes={}, reward=verdict, transcript=None, figures={}
    )


def gathered(
    rollout: Sampled,
    judges: Together,
    group_size: int = 3,
    run: Callable[[Coroutine[Any, Any, JudgedBatch]], JudgedBatch] = asyncio.run,
) -> JudgedBatch:
    prompts = [Prompt(id=name, ids=()) for name in "ab"]
    tasks = {name: JudgeTask(task_type="t", question="", match=None, answer=None, style=None) for name in ("a", "b")}
    sampling = Sampling(group_size=group_size, temperature=1.0, max_new_tokens=1, seed=0)
    return run(
        sample_and_judge(rollout, judges, prompts, tasks, sampling, deadline=9)  # type: ignore[arg-type]
    )


def test_a_group_is_judged_once_it_is_whole_and_again_when_its_speech_was_lost() -> None:
    rollout, judges = Sampled(), Together(lost=1)
    batch = gathered(rollout, judges)
    assert judges.groups == [["a/0", "a/1", "a/2"], ["b/0", "b/1", "b/2"], ["a/0", "a/1", "a/2"]]
    assert rollout.asked == [["a", "b"], ["a"]]
    assert [(r.prompt_id, r.index) for r, _ in batch.replies] == [(p, i) for p in "ab" for i in range(3)]


def test_a_reply_that_is_alone_is_scored_by_itself_also_by_judges_that_compare() -> None:
    judges = Together()
    gathered(Sampled(), judges, group_size=1)
    assert judges.groups == [["a/0"], ["b/0"]]


def test_the_overlap_is_the_time_in_which_judging_was_hidden_behind_generation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("actors.collect.time.perf_counter", now)
    hidden = gathered(Sampled(pause_s=5.0), Together(together=False, seconds=2.0), run=virtually)
    assert (hidden.generate_s, hidden.judge_s) == (6 * 5.0, 2.0), "six replies, each judged in two seconds"
    assert hidden.overlap_s == 5 * 2.0, "all but the last are judged while others are sampled"
    shown = gathered(Sampled(), Together(seconds=5.0), run=virtually)
    assert (shown.generate_s, shown.judge_s, shown.overlap_s) == (0.0, 5.0, 0.0)
    assert compute_reply_metrics(hidden, 1)["time/judge_overlapped"] == hidden.overlap_s


def test_the_share_of_each_kind_of_missing_verdict_is_a_metric() -> None:
    group = ReplyGroup(
        prompt=Prompt(id="p", ids=()),
        replies=tuple((reply_to(Prompt(id="p", ids=()), i), judged(None if i else 3.0)) for i in range(4)),
    )
    named = compute_reply_metrics(JudgedBatch(groups=(group,), generate_s=1.0, judge_s=0.0), 1)
    assert named["judge/missing_server"] == named["judge/missing"] == 0.75
    assert not [name for name in named if name.startswith("judge/missing_") and name != "judge/missing_server"]


def test_a_late_verdict_is_missing_on_every_axis_that_counts() -> None:
    prompt = Prompt(id="p", ids=())
    axes = load_config(
        ["judge=openai", "judge.api.base_url=http://127.0.0.1:9/v1", "judge.api.model=m", "judge.holistic=1"]
    )
    late = build_missing_verdict(reply_to(prompt, 0), axes.judge.axes, AnswerLate("deadline"))
    score = ScoredVerdict(value=4.0, judge="j")
    there = ReplyJudgement(
        prompt_id="p", index=1, axes=dict.fromkeys(axes.judge.axes, score), reward=score, transcript=""
    )
    group = ReplyGroup(prompt=prompt, replies=((reply_to(prompt, 0), late), (reply_to(prompt, 1), there)))
    named = compute_reply_metrics(JudgedBatch(groups=(group,), generate_s=1.0, judge_s=0.0), 1)
    assert named["reward/holistic"] == named["reward/semantic"] == 4.0 and named["judge/missing"] == 0.5


def test_a_used_up_cap_or_account_stops_the_step_however_few_verdicts_it_cost() -> None:
    for kind in ("spend_cap", "quota"):
        last = ReplyJudgement(
            prompt_id="p",
            index=0,
            axes={},
            reward=MissingVerdict(judge="j", reason="spent 5 of 5", kind=kind),  # type: ignore[arg-type]
            transcript=None,
        )
        with pytest.raises(JudgeOutage, match="can be asked no more: spent 5 of 5"):
            check_outage([*[judged(3.0)] * 99, last], most=1.0)
