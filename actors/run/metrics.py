"""The figures of a step's judged replies, under the metric names of docs/design.md §4.

Invariant: a figure over no replies is left out, never invented.
"""

from collections import Counter
from collections.abc import Sequence
from math import fsum, sqrt

from actors.collect import JudgedBatch
from judge.types import MissingVerdict, ReplyJudgement, ScoredVerdict
from learner.decide import reward_of


def compute_reply_metrics(batch: JudgedBatch, step: int) -> dict[str, float]:
    """The reward/*, judge/*, rollout/* metrics of a step, and its staleness; none of one without replies."""
    if not batch.groups:
        return {}
    replies = [reply for reply, _ in batch.replies]
    judged = [judgement for _, judgement in batch.replies]
    rewards = [reward for reward in map(reward_of, judged) if reward is not None]
    tokens = sum(len(reply.ids) for reply in replies)
    latencies = [judgement.figures["latency_s"] for judgement in judged if "latency_s" in judgement.figures]
    named: dict[str, float | None] = {
        "reward/mean": mean_or_none(rewards),
        "reward/max": max(rewards, default=None),
        "reward/std": standard_deviation_or_none(rewards),
        "judge/missing": 1 - len(rewards) / len(judged),
        "judge/cached": mean_or_none([float(_is_cached(judgement)) for judgement in judged]),
        "judge/latency_s": mean_or_none(latencies),
        "rollout/tokens_per_s": tokens / batch.generate_s if batch.generate_s else None,
        "rollout/text_tokens": mean_or_none([float(reply.channels.count("T")) for reply in replies]),
        "rollout/audio_tokens": mean_or_none([float(reply.channels.count("A")) for reply in replies]),
        "rollout/truncated": mean_or_none([float(reply.finish == "length") for reply in replies]),
        "rollout/well_formed": mean_or_none([float(reply.well_formed) for reply in replies]),
        "rollout/heard_right": mean_or_none([j.figures["heard_right"] for j in judged if "heard_right" in j.figures]),
        "staleness": mean_or_none([float(step - 1 - reply.policy_version) for reply in replies]),
        "time/generate": batch.generate_s,
        "time/judge": batch.judge_s,
        "time/judge_overlapped": batch.overlap_s,
    }
    kinds = Counter(judgement.reward.kind for judgement in judged if isinstance(judgement.reward, MissingVerdict))
    named |= {f"judge/missing_{kind}": count / len(judged) for kind, count in kinds.items()}
    for axis in sorted({axis for judgement in judged for axis in judgement.axes}):
        verdicts = [judgement.axes[axis] for judgement in judged]
        named[f"reward/{axis}"] = mean_or_none(
            [verdict.value for verdict in verdicts if isinstance(verdict, ScoredVerdict)]
        )
    return {name: value for name, value in named.items() if value is not None}


def mean_or_none(values: Sequence[float]) -> float | None:
    """The mean; of nothing, None."""
    return fsum(values) / len(values) if values else None


def standard_deviation_or_none(values: Sequence[float]) -> float | None:
    """Population standard deviation; of nothing, None."""
    middle = mean_or_none(values)
    return None if middle is None else sqrt(fsum((value - middle) ** 2 for value in values) / len(values))


def _is_cached(judged: ReplyJudgement) -> bool:
    return isinstance(judged.reward, ScoredVerdict) and judged.reward.cached
