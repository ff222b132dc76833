"""The best and the worst of a prompt's judged replies as a pair, or why there is none. Pure.

Invariant: a missing verdict takes its reply out of the group and nothing else, and a group with too few is
dropped whole, as in a step of a run (learner/statistics.py). Equal rewards are told apart by index alone, so
the same verdicts give the same pair.
"""

from collections import Counter
from collections.abc import Callable

from pydantic import Field

from judge.types import MissingVerdict, ReplyJudgement, ScoredVerdict
from learner.decide import ReplyGroup
from learner.extremes import NoPair, NoPairReason, pick_best_and_worst
from rollout.types import Prompt, Reply
from speech.data.manifest import ManifestRow
from speech.data.pairs import AxisScore, PairProvenance, PairReply, PairRow
from store.journal import JournalEntry

DROP_DESCRIPTIONS: dict[NoPairReason, str] = {
    "verdicts": "with too few verdicts",
    "margin": "with best and worst too close",
    "same": "with the same tokens in best and worst",
}
UNASKED_MISSING_KINDS = {"spend_cap", "quota", "breaker"}  # missing verdicts that nobody was asked for


class PairOutcome(JournalEntry):
    """What became of a prompt: a pair, or why there is none."""

    pair: PairRow | None
    dropped: NoPairReason | None = None
    reason: str | None = None
    missing: dict[str, int] = Field(default_factory=dict)
    """Kind -> how many of its verdicts are missing."""
    tokens: int | None = None
    """Of all its replies; older journals do not tell."""
    again: bool = False
    """The judge failed and there is no pair for that: another try may give one."""


def decide_pair_outcome(
    row: ManifestRow,
    group: ReplyGroup,
    margin: float,
    provenance: PairProvenance,
    clips: Callable[[ManifestRow], tuple[tuple[str, ...], ...]],
    sound: Callable[[Reply], tuple[str, ...]],
) -> PairOutcome:
    """What became of a prompt. ``margin``: the least difference of a pair.

    ``clips``, ``sound`` keep the audio of a pair and say where it is.
    """
    judged = [judgement for _, judgement in group.replies]
    selection = pick_best_and_worst(group.rewards, margin)
    missing = Counter[str](
        judgement.reward.kind for judgement in judged if isinstance(judgement.reward, MissingVerdict)
    )
    tokens = sum(len(reply.ids) for reply, _ in group.replies)
    if not isinstance(selection, NoPair):
        best, worst = (group.replies[index] for index in selection)
        if best[0].ids != worst[0].ids:
            pair = _build_pair_row(row, group.prompt, best, worst, provenance, clips(row), sound)
            return PairOutcome(id=row.id, pair=pair, missing=dict(missing), tokens=tokens)
        selection = NoPair(why="same", reason=f"replies {selection[0]} and {selection[1]} have the same tokens")
    again = selection.why == "verdicts" and any(map(_is_verdict_retryable, judged))
    return PairOutcome(
        id=row.id,
        pair=None,
        dropped=selection.why,
        reason=selection.reason,
        missing=dict(missing),
        tokens=tokens,
        again=again,
    )


def _is_verdict_retryable(judged: ReplyJudgement) -> bool:
    reward = judged.reward
    return isinstance(reward, MissingVerdict) and (reward.retryable or reward.kind in UNASKED_MISSING_KINDS)


def _build_pair_row(
    row: ManifestRow,
    prompt: Prompt,
    best: tuple[Reply, ReplyJudgement],
    worst: tuple[Reply, ReplyJudgement],
    provenance: PairProvenance,
    audios: tuple[tuple[str, ...], ...],
    sound: Callable[[Reply], tuple[str, ...]],
) -> PairRow:
    chosen, rejected = (_build_pair_side(reply, judged, sound(reply)) for reply, judged in (best, worst))
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


def _build_pair_side(reply: Reply, judged: ReplyJudgement, audio: tuple[str, ...]) -> PairReply:
    assert isinstance(judged.reward, ScoredVerdict) and reply.finish != "abort"
    return PairReply(
        text=reply.text,
        audio=audio,
        index=reply.index,
        ids=reply.ids,
        channels=reply.channels,
        sampled="".join("01"[is_sampled] for is_sampled in reply.sampled),
        finish=reply.finish,
        transcript=judged.transcript,
        scores={
            axis: AxisScore(value=verdict.value, spread=verdict.spread, judge=verdict.judge)
            for axis, verdict in judged.axes.items()
            if isinstance(verdict, ScoredVerdict)
        },
        reward=judged.reward.value,
        judge=judged.reward.judge,
    )
