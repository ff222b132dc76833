"""Rows -> packed micro-batches: as many on every rank, no padding inside, nothing scored without a weight.

    rows --trim--> segments --share--> ranks --fill--> micro-batches (token budget) --pack--> flat tensors

A row is cut after its last position with a weight (the model is causal: later tokens need no forward), and
a row without any such position is left out. Ranks that run out of rows get empty micro-batches, because
FSDP ranks must call forward and backward equally often. The two rows of a pair are never parted. Pure and
deterministic: every rank computes the whole plan from the same rows, so everyone knows who holds what.

A row's ids are flat, S per step (``speech.families.base``); the model reads whole steps, and an id is scored
by the step before its own.

Shape letters: T steps of a micro-batch, S streams, N scored positions, K steps with features, P pairs; C loss
components, R response positions of a row; H hidden size, V vocabulary, G grammar states, D MTP heads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from learner.rows import REFERENCE_COMPONENTS, LossComponent, TrainingRow
from speech.grammar.channels import Channel

NO_FEATURE_VECTORS = np.zeros((0, 0), np.float32)
MicrobatchPlan = tuple[tuple[tuple[int, ...], ...], ...]  # [rank][micro-batch] -> indices of rows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Microbatch:
    """One packed forward pass.

    Segments lie one after the other; N counts positions whose *next* token is scored.
    """

    lengths: tuple[int, ...]  # of the segments, in steps; sums to T
    ids_TS: Tensor  # int64
    positions_T: Tensor  # int64, from 0 in each segment
    features_KH: Tensor  # float32, continuous audio of the prompts; [0, 0] without
    at_K: Tensor  # int64, the steps that have it
    keep_N: Tensor  # int64 index into T
    stream_N: Tensor  # int64, whose head scores it
    targets_N: Tensor  # int64, the token that follows
    weights_CN: Tensor  # float32, by ``LossComponent``; DPO's are negative in a rejected reply
    behaviour_N: Tensor  # float32 log-probs of the engine; 0 in anchors
    advantages_N: Tensor  # float32
    row_N: Tensor  # int64, which of the segments
    pair_N: Tensor  # int64, which of the pairs; 0 where it is in none
    pairs_P: Tensor  # float32 weight of each pair; a single 0 where there is none
    temperature_N: Tensor  # float32
    grammar_states_N: Tensor  # int64, grammar state; 0: every token allowed
    channels_N: Tensor  # int64
    rollout_N: Tensor  # bool: belongs to a rollout (not to an anchor)

    @property
    def streams(self) -> int:
        """S."""
        return int(self.ids_TS.shape[1])

    @property
    def referenced_N(self) -> Tensor:
        """Positions that need a reference log-prob."""
        needed: Tensor = (self.weights_CN[list(REFERENCE_COMPONENTS)] != 0).any(0)
        return needed

    @property
    def audio_N(self) -> Tensor:
        """Positions of the AUDIO channel."""
        return self.channels_N == Channel.AUDIO

    def to(self, device: torch.device) -> "Microbatch":
        """The same on another device."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "lengths"}
        return replace(self, **moved)


def count_needed_ids(row: TrainingRow, streams: int) -> int:
    """Ids that a forward pass over this row needs: whole steps, up to the one before the last scored one.

    0: not needed.
    """
    scored = np.flatnonzero(row.needed_R)
    return 0 if len(scored) == 0 else (row.start + int(scored[-1])) // streams * streams


def plan_microbatches(rows: Sequence[TrainingRow], *, ranks: int, budget: int, streams: int) -> MicrobatchPlan:
    """Spread the needed rows over ranks and micro-batches of at most ``budget`` tokens.

    Longest first to the rank with the least so far; within a rank first fit in the same order.
    ValueError: a row, or the two rows of a pair, longer than the budget.
    """
    lengths = [count_needed_ids(row, streams) for row in rows]
    units = _group_inseparable_rows(rows, lengths)
    sizes = [sum(lengths[i] for i in unit) for unit in units]
    order = sorted(range(len(units)), key=lambda u: (-sizes[u], units[u]))
    if order and sizes[order[0]] > budget:
        largest = order[0]
        raise ValueError(
            f"learner.tokens_per_microbatch must hold every row: {rows[units[largest][0]].name} has "
            f"{sizes[largest]}, budget {budget}"
        )
    units_by_rank: list[list[int]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for u in order:
        lightest = load.index(min(load))
        units_by_rank[lightest].append(u)
        load[lightest] += sizes[u]
    bins = [_fill_first_fit(rank_units, sizes, budget) for rank_units in units_by_rank]
    micro_count = max(len(b) for b in bins)
    return tuple(
        tuple(tuple(i for u in micro for i in units[u]) for micro in b) + ((),) * (micro_count - len(b)) for b in bins
    )


def _group_inseparable_rows(rows: Sequence[TrainingRow], lengths: Sequence[int]) -> list[tuple[int, ...]]:
    """Indices of needed rows that must share a micro-batch."""
    units: list[tuple[int, ...]] = []
    place: dict[int, int] = {}  # pair -> its unit
    for i, row in enumerate(rows):
        if not lengths[i]:
            continue
        if row.pair in place:
            units[place[row.pair]] += (i,)
            continue
        if row.pair is not None:
            place[row.pair] = len(units)
        units.append((i,))
    return units


def pack_microbatch(rows: Sequence[TrainingRow], streams: int) -> Microbatch:
    """One micro-batch of these rows, trimmed, in this order. Rows without a scored position vanish.

    Without any row: a single step and no scored position, so that a rank without work still takes part.
    """
    cut = _PackedSegments.from_rows(rows, streams)
    shares = {row.pair: row.pair_weight for row in cut.rows if row.pair is not None}
    pairs: dict[int | None, int] = {pair: place for place, pair in enumerate(shares)}
    ids = [np.array(row.ids[: n * streams]) for row, n in zip(cut.rows, cut.lengths, strict=False)]
    features = [(begin, row.features) for begin, row in zip(cut.begins, cut.rows, strict=False) if row.features]
    return Microbatch(
        lengths=cut.lengths,
        ids_TS=_arrays_to_tensor(ids or [np.zeros(streams)], torch.int64).view(-1, streams),
        positions_T=_arrays_to_tensor([np.arange(length) for length in cut.lengths], torch.int64),
        features_KH=torch.from_numpy(
            np.concatenate([f.vectors for _, f in features if f.steps] or [NO_FEATURE_VECTORS])
        ),
        at_K=_arrays_to_tensor([begin + np.array(f.steps) for begin, f in features if f.steps], torch.int64),
        keep_N=_arrays_to_tensor([begin + at // streams - 1 for begin, at in cut.places], torch.int64),
        stream_N=_arrays_to_tensor([at % streams for _, at in cut.places], torch.int64),
        targets_N=cut.gather_scored(lambda row: np.array(row.ids[row.start :]), torch.int64),
        weights_CN=torch.stack([cut.gather_weights(component) for component in LossComponent]),
        behaviour_N=cut.gather_scored(lambda row: row.behaviour_R, torch.float32),
        advantages_N=cut.gather_scored(lambda row: row.advantages_R, torch.float32),
        row_N=cut.repeat_per_row(range(len(cut.rows)), torch.int64),
        pair_N=cut.repeat_per_row([pairs.get(row.pair, 0) for row in cut.rows], torch.int64),
        pairs_P=torch.tensor(list(shares.values()) or [0.0], dtype=torch.float32),
        temperature_N=cut.repeat_per_row([row.temperature for row in cut.rows], torch.float32),
        grammar_states_N=cut.gather_scored(lambda row: row.grammar_states_R, torch.int64),
        channels_N=cut.gather_scored(lambda row: row.channels_R, torch.int64),
        rollout_N=cut.repeat_per_row([row.key is not None for row in cut.rows], torch.bool),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _PackedSegments:
    """The needed rows of a micro-batch, their lengths in steps, and their scored response positions."""

    rows: list[TrainingRow]
    lengths: tuple[int, ...]  # of at least one segment
    scored: list[np.ndarray]

    @classmethod
    def from_rows(cls, rows: Sequence[TrainingRow], streams: int) -> "_PackedSegments":
        needed = [row for row in rows if row.needed_R.any()]
        lengths = tuple(count_needed_ids(row, streams) // streams for row in needed) or (1,)
        return cls(needed, lengths, [np.flatnonzero(row.needed_R) for row in needed])

    @property
    def begins(self) -> np.ndarray:
        """First step of each segment."""
        return np.cumsum([0, *self.lengths])

    @property
    def places(self) -> list[tuple[int, np.ndarray]]:
        """(first step of the segment, scored places in its ids) of each row."""
        rows = zip(self.begins, self.rows, self.scored, strict=False)
        return [(int(begin), row.start + scored) for begin, row, scored in rows]

    def gather_scored(self, of: Callable[[TrainingRow], np.ndarray], dtype: torch.dtype) -> Tensor:
        """A value per response position, where it is scored."""
        return _arrays_to_tensor([of(row)[j] for row, j in zip(self.rows, self.scored, strict=True)], dtype)

    def gather_weights(self, component: LossComponent) -> Tensor:
        """A component's weights, where anything is scored."""
        return self.gather_scored(lambda row: row.weights_CR[component], torch.float32)

    def repeat_per_row(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        """A value per row, at each of its scored positions."""
        return _arrays_to_tensor([np.full(len(j), v) for v, j in zip(values, self.scored, strict=True)], dtype)


def _arrays_to_tensor(values: list[np.ndarray], dtype: torch.dtype) -> Tensor:
    joined = np.concatenate(values) if values else np.zeros(0)
    return torch.from_numpy(np.ascontiguousarray(joined)).to(dtype)


def pack_reference_microbatch(rows: Sequence[TrainingRow], streams: int) -> Microbatch:
    """What the frozen reference must score: some positions of these rows, in the order of
    ``Microbatch.referenced_N``.
    """
    return pack_microbatch([row.restrict_to(REFERENCE_COMPONENTS) for row in rows], streams)


def list_scored_positions(rows: Sequence[TrainingRow], plan: MicrobatchPlan, rank: int) -> list[tuple[int, int]]:
    """(row, response position) of every log-prob that ``rank`` computes, in the order in which it computes
    them.
    """
    return [(i, int(j)) for micro in plan[rank] for i in micro for j in np.flatnonzero(rows[i].needed_R)]


def _fill_first_fit(units: Sequence[int], sizes: Sequence[int], budget: int) -> list[list[int]]:
    bins: list[list[int]] = []
    loads: list[int] = []
    for i in units:
        fitting = next((b for b, load in enumerate(loads) if load + sizes[i] <= budget), None)
        if fitting is None:
            bins.append([i])
            loads.append(sizes[i])
        else:
            bins[fitting].append(i)
            loads[fitting] += sizes[i]
    return bins
