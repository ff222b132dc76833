"""Packing of parallel streams and of continuous audio: every id is scored by the step before its own."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.batch import count_needed_ids, list_scored_positions, pack_microbatch, plan_microbatches
from learner.rows import SamplingSetup, TrainingRow, build_training_row, build_weight_table
from rollout.types import Prompt
from speech.features import AudioFeatures
from tests.helpers.training_replies import sampled_reply

SAMPLED = SamplingSetup(max_new_tokens=50, temperature=1.0)


@st.composite
def rows(draw: st.DrawFn, streams: int) -> list[TrainingRow]:
    """Up to five replies of whole prompts; a reply may end inside a step; some prompts have features."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    collected = []
    for index in range(draw(st.integers(0, 5))):
        steps, n = int(rng.integers(1, 5)), int(rng.integers(1, 9))
        prompt_ids = tuple(rng.integers(1, 99, steps * streams).tolist())
        ids = tuple(rng.integers(1, 99, n).tolist())
        prompt = Prompt(id="p", ids=prompt_ids, features=_features(rng, steps) if rng.random() < 0.5 else None)
        reply = sampled_reply(prompt, index, ids, (-1.0,) * n, "T" * n)
        collected.append(build_training_row(reply, build_weight_table(po=(rng.random(n) < 0.5) * 1.0), SAMPLED))
    return collected


def _features(rng: np.random.Generator, steps: int) -> AudioFeatures:
    at = np.flatnonzero(rng.random(steps) < 0.5)
    return AudioFeatures(tuple(at.tolist()), rng.random((len(at), 3)).astype(np.float32))


@settings(deadline=None)
@given(data=st.data(), streams=st.sampled_from([1, 2, 3]), ranks=st.integers(1, 3))
def test_every_scored_id_is_predicted_by_the_step_before_it_in_its_own_stream(
    data: st.DataObject, streams: int, ranks: int
) -> None:
    made = data.draw(rows(streams))
    plan = plan_microbatches(made, ranks=ranks, budget=40, streams=streams)
    seen = []
    for rank, micros in enumerate(plan):
        at = iter(list_scored_positions(made, plan, rank))
        for held in micros:
            micro = pack_microbatch([made[i] for i in held], streams)
            assert micro.ids_TS.shape == (sum(micro.lengths), streams) and micro.streams == streams
            for n, keep in enumerate(micro.keep_N.tolist()):
                i, j = next(at)
                seen.append((i, j))
                step, stream = divmod(made[i].start + j, streams)
                before = made[i].ids[(step - 1) * streams : step * streams]
                assert micro.ids_TS[keep].tolist() == list(before)
                assert micro.positions_T[keep] == step - 1
                assert micro.stream_N[n] == stream
                assert micro.targets_N[n] == made[i].ids[made[i].start + j]
    assert sorted(seen) == [(i, int(j)) for i, row in enumerate(made) for j in np.flatnonzero(row.needed_R)]


@settings(deadline=None)
@given(data=st.data(), streams=st.sampled_from([1, 2]))
def test_features_stand_at_their_own_prompts_steps(data: st.DataObject, streams: int) -> None:
    made = data.draw(rows(streams))
    micro = pack_microbatch(made, streams)
    packed = [row for row in made if count_needed_ids(row, streams)]
    begins = np.cumsum([0, *micro.lengths])
    wanted = [
        (int(begin) + step, vector.tolist())
        for begin, row in zip(begins, packed, strict=False)
        if row.features is not None
        for step, vector in zip(row.features.steps, row.features.vectors, strict=True)
    ]
    assert list(zip(micro.at_K.tolist(), micro.features_KH.tolist(), strict=True)) == wanted
    assert micro.features_KH.dtype == torch.float32


def test_a_row_is_cut_to_whole_steps() -> None:
    reply = sampled_reply(Prompt(id="p", ids=(1, 2, 3, 4)), 0, (5, 6, 7, 8, 9, 10), (-1.0,) * 6, "TATATA")
    row = build_training_row(reply, build_weight_table(po=np.array([0, 0, 1.0, 0, 0, 0])), SAMPLED)
    assert count_needed_ids(row, 2) == 6  # two steps of the prompt and the first of the reply predict id 7
    micro = pack_microbatch([row], 2)
    assert micro.ids_TS.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert (micro.keep_N.tolist(), micro.stream_N.tolist(), micro.targets_N.tolist()) == ([2], [0], [7])
    assert count_needed_ids(replace(row, weights_CR=build_weight_table(po=np.array([0, 0, 0, 1.0, 0, 0]))), 2) == 6


def test_a_rank_without_work_has_one_step_of_every_stream() -> None:
    micro = pack_microbatch([], 2)
    assert micro.ids_TS.shape == (1, 2) and micro.lengths == (1,) and len(micro.keep_N) == 0
    assert micro.features_KH.shape[0] == 0 == len(micro.at_K)
