"""Replies as the learner takes them, from the few fields that a test of the learner looks at."""

from dataclasses import replace
from typing import Any

from learner.types import NO_ADVANTAGE, Advantage, TrainingReply
from rollout.types import Prompt, Reply
from speech.dataset import Response
from speech.features import AudioFeatures

Ids = tuple[int, ...]


def sampled_reply(
    prompt: Prompt,
    index: int,
    ids: Ids,
    logps: tuple[float, ...],
    channels: str,
    sampled: tuple[bool, ...] | None = None,
    advantage: Advantage = NO_ADVANTAGE,
) -> TrainingReply:
    """As an engine sampled it under version 0. Without ``sampled`` no position was forced."""
    reply = Reply(
        prompt_id=prompt.id, index=index, ids=ids, logps=logps, channels=channels,
        sampled=(True,) * len(ids) if sampled is None else sampled, versions=(0,) * len(ids), finish="stop", text="",
        well_formed=True,
    )  # fmt: skip
    return TrainingReply(prompt=prompt, reply=reply, advantage=advantage)


def written_reply(
    prompt_id: str, prompt_ids: Ids, ids: Ids, channels: str, features: AudioFeatures | None = None
) -> TrainingReply:
    """An anchor, or one side of a manifest's pair; no position was forced."""
    response = Response(ids=ids, channels=channels, sampled=(True,) * len(ids))
    return TrainingReply(prompt=Prompt(id=prompt_id, ids=prompt_ids, features=features), reply=response)


def as_written(trained: TrainingReply) -> TrainingReply:
    """The same reply as if another run had sampled it."""
    reply = trained.reply
    response = Response(ids=reply.ids, channels=reply.channels, sampled=reply.sampled)
    return TrainingReply(prompt=trained.prompt, reply=response)


def change_reply(trained: TrainingReply, **changes: Any) -> TrainingReply:
    """The same with other ids, channels, log-probs, ..."""
    return replace(trained, reply=replace(trained.reply, **changes))
