"""The questions that a run will ask, about a hum: what an endpoint is tried with before anything starts.

Invariant: a trial is built by what builds the run's own questions: the same form (score, comparison,
ranking), the same number of recordings, the same settings.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from judge.llm.answers import AnswerMode, AnswerSampling
from judge.llm.caller import JudgeQuestion
from judge.llm.pairwise import Candidate, Contest, build_pair_question
from judge.llm.ranking import build_ranking_question
from judge.llm.reply_judge import build_score_question
from judge.llm.rubric import SEMANTIC_RUBRIC, Rubric
from judge.types import JudgeTask
from rollout.types import Speech

TRIAL_TASK = JudgeTask(task_type="probe", question="What is two plus two?", match=None, answer=None, style=None)
TRIAL_TRANSCRIPT = "two plus two is four"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPlan:
    """What will be asked.

    ``compare``: how the ``group_size`` replies to a prompt are held against each other; ``user_audio``:
    whether there are prompts that were spoken.
    """

    rubrics: Collection[Rubric]
    sampling: AnswerSampling
    compare: Literal["none", "pairwise", "ranking"] = "none"
    group_size: int = 1
    user_audio: bool = True

    @property
    def compares(self) -> bool:
        """Whether replies are held against each other; one that is alone is scored by itself."""
        return self.compare != "none" and self.group_size > 1

    @property
    def hardest(self) -> Rubric:
        """The rubric with the most recordings."""
        return max(self.rubrics, key=lambda rubric: (rubric.hears_reply + rubric.hears_user, rubric.name))

    @property
    def user(self) -> Speech | None:
        """What stands for the user's recording."""
        return synthesise_hum() if self.user_audio else None


def build_score_trial(plan: TrialPlan, mode: AnswerMode, *, forced: bool = False) -> JudgeQuestion:
    """One reply, scored: held-out replies and canaries are, whatever is done with groups."""
    hardest, how = plan.hardest, plan.sampling
    return build_score_question(
        hardest, TRIAL_TASK, TRIAL_TRANSCRIPT, synthesise_hum(), plan.user, mode=mode, forced=forced, sampling=how
    )


def build_pair_trial(plan: TrialPlan, mode: AnswerMode, *, forced: bool = False) -> JudgeQuestion:
    """Two replies against each other."""
    return build_pair_question(_build_contest(plan, 2), (0, 1), mode=mode, forced=forced, sampling=plan.sampling)


def build_ranking_trial(plan: TrialPlan, mode: AnswerMode) -> JudgeQuestion:
    """A whole group ranked."""
    return build_ranking_question(_build_contest(plan, plan.group_size), mode=mode, sampling=plan.sampling)


def build_largest_trial(plan: TrialPlan) -> JudgeQuestion:
    """The question with the most recordings, in the way of answering that any model knows."""
    if plan.compares:
        return build_ranking_trial(plan, "tagged") if plan.compare == "ranking" else build_pair_trial(plan, "tagged")
    return build_score_trial(plan, "tagged")


def build_smallest_body(sampling: AnswerSampling) -> dict[str, object]:
    """A question that any endpoint which is up answers, one way or another: a few words, no audio."""
    question = build_score_trial(TrialPlan(rubrics=[SEMANTIC_RUBRIC], sampling=sampling), "tagged")
    return question.settings | {"messages": question.messages}


def synthesise_hum() -> Speech:
    """A second of a gliding hum at 16 kHz, always the same: small, and not silence."""
    time = np.arange(16_000) / 16_000
    phase = 2 * np.pi * (140 * time + 20 * time**2)
    wave = sum(np.sin(k * phase) / k for k in range(1, 9)) * np.hanning(16_000) * 0.2
    return Speech(wave=np.asarray(wave, np.float32), sample_rate=16_000)


def _build_contest(plan: TrialPlan, count: int) -> Contest:
    candidates = [Candidate(transcript=TRIAL_TRANSCRIPT, speech=synthesise_hum())] * count
    return Contest(rubric=plan.hardest, task=TRIAL_TASK, candidates=candidates, user_audio=plan.user)
