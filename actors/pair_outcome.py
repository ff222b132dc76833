"""The best and the worst of a prompt's judged replies as a pair, or why there is none. Pure.

Invariant: a missing verdict takes its reply out of the group and nothing else, and a group with too few is
dropped whole, as in a step of a run (learner/statistics.py). Equal rewards are told apart by index alone, so
the same verdicts give the same pair.
"""

from collections import Counter
from collections.abc import Callable

from pydantic import Field

from actors.decide import Group
from conf.schema import Config
from judge.types import Judged, Missing, Scored
from learner.extremes import Dropped, Why, best_and_worst
from rollout.types import Prompt, Reply
from speech.journal import Named
from speech.manifest import Row
from speech.pairs import AxisScore, PairRow, Provenance, Side

WHY: dict[Why, str] = {
    "verdicts": "with too few verdicts",
    "margin": "with best and worst too close",
    "same": "with the same tokens in best and worst",
}
UNASKED = {"spend_cap", "quota", "breaker"}  # missing verdicts that nobody was asked for


class Outcome(Named):
    """What became of a prompt: a pair, or why there is none."""

    pair: PairRow | None
    dropped: Why | None = None
    reason: str | None = None
    missing: dict[str, int] = Field(default_factory=dict)
    """Kind -> how many of its verdicts are missing."""
    tokens: int | None = None
    """Of all its replies; older journals do not tell."""
    again: bool = False
    """The judge failed and there is no pair for that: another try may give one."""


def outcome_of(
    row: Row,
    group: Group,
    config: Config,
    provenance: Provenance,
    clips: Callable[[Row], tuple[tuple[str, ...], ...]],
    sound: Callable[[Reply], tuple[str, ...]],
) -> Outcome:
    """What became of a prompt. ``clips``, ``sound`` keep the audio of a pair and say where it is."""
    judged = [one for _, one in group.replies]
    found = best_and_worst(group.rewards, config.margin)
    missing = Counter[str](one.reward.kind for one in judged if isinstance(one.reward, Missing))
    tokens = sum(len(reply.ids) for reply, _ in group.replies)
    if not isinstance(found, Dropped):
        best, worst = (group.replies[index] for index in found)
        if best[0].ids != worst[0].ids:
            pair = _pair(row, group.prompt, best, worst, provenance, clips(row), sound)
            return Outcome(id=row.id, pair=pair, missing=dict(missing), tokens=tokens)
        found = Dropped(why="same", reason=f"replies {found[0]} and {found[1]} have the same tokens")
    again = found.why == "verdicts" and any(map(_may_come, judged))
    return Outcome(
        id=row.id,
        pair=None,
        dropped=found.why,
        reason=found.reason,
        missing=dict(missing),
        tokens=tokens,
        again=again,
    )


def _may_come(judged: Judged) -> bool:
    reward = judged.reward
    return isinstance(reward, Missing) and (reward.retryable or reward.kind in UNASKED)


def _pair(
    row: Row,
    prompt: Prompt,
    best: tuple[Reply, Judged],
    worst: tuple[Reply, Judged],
    provenance: Provenance,
    audios: tuple[tuple[str, ...], ...],
    sound: Callable[[Reply], tuple[str, ...]],
) -> PairRow:
    chosen, rejected = (_side(reply, judged, sound(reply)) for reply, judged in (best, worst))
    assert chosen.reward is not None and rejected.reward is not None
    return PairRow(
        id=row.id,
        messages=row.messages,
        audios=audios,
        question_text=row.question_text,
        task_type=row.task_type,
        answer=row.answer,
        style=row.style,
        chosen=chosen,
        rejected=rejected,
        margin=chosen.reward - rejected.reward,
        prompt_ids=prompt.ids,
        provenance=provenance,
    )


def _side(reply: Reply, judged: Judged, audio: tuple[str, ...]) -> Side:
    assert isinstance(judged.reward, Scored) and reply.finish != "abort"
    return Side(
        text=reply.text,
        audio=audio,
        index=reply.index,
        ids=reply.ids,
        channels=reply.channels,
        sampled="".join("01"[one] for one in reply.sampled),
        finish=reply.finish,
        transcript=judged.transcript,
        scores={
            axis: AxisScore(value=verdict.value, spread=verdict.spread, judge=verdict.judge)
            for axis, verdict in judged.axes.items()
            if isinstance(verdict, Scored)
        },
        reward=judged.reward.value,
        judge=judged.reward.judge,
    )
