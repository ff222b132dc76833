"""Learners of which one rank alone has rows with audio: `python -m tests.helpers.vector_prompt_ranks <folder> <rank> <world> <port>`.

In the folder are others that have a family's name and hold its ``model``; what rank 0 finds is written beside it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from conf.schema import Config, ModelConfig
from learner.ranks import join_process_group, leave_process_group
from learner.step import Learner
from learner.types import Advantage, StepBatch, TrainingReply
from rollout.types import Prompt
from speech.families import load_family
from speech.families.base import Family
from speech.features import EncodedPrompt
from speech.turns import AudioPart, ReplyChunk, Turn
from tests.helpers.learner_world import config, moments, spell_key
from tests.helpers.processes import HANG_S
from tests.helpers.training_replies import sampled_reply, written_reply


def settings(folder: Path) -> Config:
    model = ModelConfig(family=folder.name, path=folder / "model", max_length=128)
    actual = config(folder / "model", algo={"mix": "fixed", "fixed_lambda": 0.4})
    return actual.model_copy(update={"model": model})


def batch(family: Family, *, rollouts: bool = True) -> StepBatch:
    """The longest row is heard, all others are read: with two ranks the second has no audio."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(20, family.backbone["hidden_size"])).astype(np.float32)
    codes = tuple(range(20)) if family.audio_input_of("user") == "both" else ()
    spoken = family.encode_prompt([Turn.from_parts("user", AudioPart(codes=codes, vectors=vectors))])
    written = family.encode_prompt([Turn.from_parts("user", "what is two")])
    target = family.encode_target([ReplyChunk(text="the answer is two", codes=tuple(rng.integers(0, 32, 9).tolist()))])
    letters = family.channels.to_letters(target)

    def anchor(name: str, prompt: EncodedPrompt) -> TrainingReply:
        return written_reply(name, prompt.ids, target, letters, prompt.features)

    def rollout(name: str, prompt: EncodedPrompt) -> TrainingReply:
        return sampled_reply(
            Prompt(id=name, ids=prompt.ids, features=prompt.features),
            index=0,
            ids=target,
            logps=tuple(float(x) for x in rng.normal(-5, 0.5, len(target))),
            channels=letters,
            sampled=family.interleave.sampled_flags(target),
            advantage=Advantage.shared(1.0),
        )

    replies = (rollout("r", written),) if rollouts else ()
    return StepBatch(
        step=0,
        weight=0.4 if rollouts else 0.0,
        rollouts=replies,
        anchors=(anchor("heard", spoken), anchor("read", written)),
    )


def main(folder: Path, rank: int, world: int) -> None:
    """Everything that is collective, once; then the gradient of a supervised step, and an export."""
    actual: dict[str, Any] = {}
    learner = Learner(settings(folder), rank, world)
    family = load_family(settings(folder).model)
    learner.diagnose(batch(family))
    actual["mixed"] = learner.step(batch(family)).metrics
    actual["logps"] = {spell_key(key): logps for key, logps in learner.score(batch(family).rollouts).items()}
    learner.export(folder / f"exported_by_{world}")
    plain = Learner(settings(folder), rank, world)
    actual["sft"] = plain.step(batch(family, rollouts=False)).metrics
    gradient = moments(plain)
    if rank == 0:
        save_file({n: t.contiguous() for n, t in gradient.items()}, folder / f"gradient_by_{world}.safetensors")
        (folder / f"found_by_{world}.json").write_text(json.dumps(actual))


if __name__ == "__main__":
    torch.set_num_threads(1)
    families, rank_, world_, port = Path(sys.argv[1]), *map(int, sys.argv[2:])
    join_process_group(rank=rank_, world=world_, address=f"127.0.0.1:{port}", timeout_s=HANG_S)
    for place in sorted(families.iterdir()):
        main(place, rank_, world_)
    leave_process_group()
