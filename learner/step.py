"""The learner: one batch in, one new policy version out.

    StepBatch ─ rows_of ─► rows ─ share ─► my micro-batches ─┬─► reference log-probs (KL positions only)
                                                             ├─► policy log-probs ─► loss ─► backward
                                                             └─► clip ─► AdamW, per epoch ─► version + 1

Every rank holds the same ``StepBatch`` and calls the same methods in the same order; what is collective
blocks until all ranks are there (with the group's timeout). Invariant: the update does not depend on the
number of ranks or on how the batch was cut, and k steps + save + load + n steps are k + n steps, bit for
bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conf.algorithm import AlgoConfig
from conf.schema import Config
from learner import export as exporting
from learner import metrics, ranks, state
from learner.batch import Microbatch, Plan, pack, scored_positions, share
from learner.diagnosis import Diagnosis
from learner.geometry import Survey, directions, shift_rows
from learner.grammar import grammar_from
from learner.loss import divergence, loss_terms
from learner.metrics import Scored
from learner.model import Policy, clip, frozen, reshard, sharded, synchronise_gradients
from learner.objectives import needs_reference, penalty_rows, rows_of, scales
from learner.reference import penalties, reference_logps
from learner.rows import Row, Sampled, scoring_rows
from learner.types import Rollout, StepBatch, StepResult
from rollout.engine import WeightManifest
from rollout.weights import DTYPES
from rollout.weights import pack as pack_weights
from speech.families import load_family


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Share:
    """This rank's part of a step. ``references[m]`` is read where ``micros[m].referenced_N``."""

    micros: list[Microbatch]
    references: list[Tensor]


class Learner:
    """One rank of the sharded learner.

    Example:
        connect(rank=rank, world=2, address="10.0.0.1:29500", timeout_s=120)
        learner = Learner(config, rank=rank, world=2)
        result = learner.step(batch)  # the same batch on every rank
        published = learner.weights()  # (manifest, buffer) on rank 0
    """

    def __init__(self, config: Config, rank: int, world: int) -> None:
        """Loads and shards the policy, and the start policy if something can ask for it. Collective.

        ValueError: the checkpoint cannot be used, or ``tokens_per_microbatch`` cannot hold a row.
        """
        if config.learner.tokens_per_microbatch < config.model.max_length:
            raise ValueError(
                f"learner.tokens_per_microbatch must hold one row of "
                f"model.max_length={config.model.max_length}: got {config.learner.tokens_per_microbatch}"
            )
        self._config, self._rank, self._world = config, rank, world
        self._mesh = ranks.mesh(world)
        self.family = load_family(config.model)
        self._sampled = Sampled(
            max_new_tokens=config.rollout.max_new_tokens,
            temperature=config.rollout.temperature,
            grammar=grammar_from(config, self.family),
        )
        self.policy = self._load(checkpointing=config.learner.activation_checkpointing)
        asked = needs_reference(config.algo) or config.log.diagnose_every > 0
        self._reference = frozen(self._load(checkpointing=False)) if asked else None
        learning = config.learner
        self._optimizer = torch.optim.AdamW(
            self.policy.parameters(),
            lr=learning.lr, betas=learning.betas, weight_decay=learning.weight_decay,
            fused=ranks.device().type == "cuda",  # the default there holds a second copy of the weights
        )  # fmt: skip
        state.prepare(self.policy, self._optimizer)
        self._version = 0
        self._updates = 0  # of the optimiser: more than one per version when epochs > 1

    @property
    def version(self) -> int:
        """Steps learnt so far; the policy version that ``weights`` publishes."""
        return self._version

    def step(self, batch: StepBatch) -> StepResult:
        """One optimiser step per epoch. Collective; metrics are equal on all ranks, log-probs are rank 0's.

        A batch that gives no position any weight changes nothing but the version. FloatingPointError: the
        gradient is not finite (nothing was updated by it). ValueError: a row that no micro-batch can hold.
        """
        rows = rows_of(batch, self._config.algo, self._sampled)
        plan = self._plan(rows)
        self._version += 1
        if not plan[0]:
            return StepResult(
                version=self._version,
                metrics={"tokens": 0.0, "grad_norm": 0.0},
                learner_logps=self._unscored(batch.replies),
            )
        mine = self._shared(rows, plan)
        first, found = self._epoch(mine, None, batch.weight)
        metrics.check_losses(found, rows, len(self.policy.depths))
        old = [scored.logps_N for scored in first]
        passes = [found]
        for _ in range(1, self._config.algo.epochs):
            passes.append(self._epoch(mine, old, batch.weight)[1])
        found["grad_norm"] = fmean(one["grad_norm"] for one in passes)
        if "clip_fraction" in found:  # of the passes that can clip: the first one's ratio is 1
            found["clip_fraction"] = fmean(one["clip_fraction"] for one in passes[1:] or passes)
        logps = self._collect(rows, plan, old, batch.replies)
        return StepResult(version=self._version, metrics=found, learner_logps=logps)

    @torch.no_grad()
    def score(self, rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
        """Log-prob of every id of every reply under the present policy, by rollout key; rank 0's.

        Collective. For ``parity``.
        """
        rows = scoring_rows(rollouts, self._sampled)
        plan = self._plan(rows)
        if not plan[0]:
            return self._unscored(rollouts)
        logps = [self.policy(micro)[0] for micro in self._packed(rows, plan)]
        reshard(self.policy)
        return self._collect(rows, plan, logps, rollouts)

    @torch.no_grad()
    def penalties(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """What ``kl_in=reward`` takes off each reply's reward, by rollout key: the sum of coefficient times
        KL estimate under the present policy. Collective, the same on every rank.
        """
        rows = penalty_rows(rollouts, self._config.algo, self._sampled)
        plan = self._plan(rows)
        micros = self._packed(rows, plan)
        references = reference_logps(self._reference, rows, plan, self._rank, micros)
        estimates = [
            divergence(reference - self.policy(micro)[0], self._config.algo.kl_estimator)
            for micro, reference in zip(micros, references, strict=True)
        ]
        reshard(self.policy)
        return penalties(rows, plan[self._rank], micros, estimates)

    def diagnose(self, batch: StepBatch) -> Diagnosis:
        """Gradients by part of the model and channel, and the shift from the start policy, before ``step``.

        Collective; changes nothing. Costs a backward pass each for TEXT, AUDIO and SFT, and two forward
        passes over rollouts and anchors. No shift where no start policy is held (``log.diagnose_every=0``).
        """
        survey = Survey(self.policy)
        for direction in directions(batch, self._config.algo, self._sampled):
            plan = self._plan(direction.rows)
            if plan[0]:
                self._backward(self._shared(direction.rows, plan), None, direction.weight, direction.algo)
                survey.take(direction.name)
        if self._reference is not None:
            for name, rows in shift_rows(batch, self._sampled).items():
                survey.compare(name, self._packed(rows, self._plan(rows)), self._reference)
        return survey.diagnosis(self._version)

    def weights(self, version: int | None = None) -> tuple[WeightManifest, NDArray[np.uint8]] | None:
        """All weights in the engine's type, tied ones under each name; on rank 0, None elsewhere.

        Collective.
        """
        dtype = DTYPES[self._config.model.dtype]
        kept = []
        for name, tensor in exporting.engine_tensors(self.policy, self.family):
            if self._rank == 0:
                kept.append((name, tensor.to(dtype)))
        return pack_weights(kept, self._version if version is None else version) if self._rank == 0 else None

    def export(self, directory: Path) -> None:
        """Hugging Face folder like the start checkpoint's. Collective."""
        exporting.export(self.policy, self.family, Path(directory), rank=self._rank, step=self._version)

    def save(self, directory: Path) -> None:
        """Everything that the next step depends on, as safetensors, into an empty folder. Collective."""
        state.save_state(
            Path(directory),
            self.policy,
            self._optimizer,
            rank=self._rank,
            version=self._version,
            updates=self._updates,
        )

    def load(self, directory: Path) -> None:
        """Go on from ``save``, with any number of ranks. Collective.

        ValueError: not a state of this model.
        """
        reshard(self.policy)
        self._version, self._updates = state.load_state(Path(directory), self.policy, self._optimizer, rank=self._rank)

    # -- one step, piece by piece

    def _epoch(self, mine: _Share, old: list[Tensor] | None, weight: float) -> tuple[list[Scored], dict[str, float]]:
        """Forward and backward over all micro-batches, then one update.

        ``old``: log-probs of the first epoch.
        """
        done = self._backward(mine, old, weight, self._config.algo)
        found = metrics.reduce(done, scales(weight))
        return done, {**found, **self._update()}

    def _backward(self, mine: _Share, old: list[Tensor] | None, weight: float, algo: AlgoConfig) -> list[Scored]:
        """Leave the step's gradient in the parameters."""
        done = []
        for m, (micro, reference) in enumerate(zip(mine.micros, mine.references, strict=True)):
            last = m == len(mine.micros) - 1
            synchronise_gradients(self.policy, last or ranks.device().type == "cuda")
            logps, entropies, ahead = self.policy(micro)
            before = logps.detach() if old is None else old[m]
            terms = loss_terms(logps, entropies, before, reference, micro, ahead, weight=weight, algo=algo)
            torch.autograd.backward(
                terms.total * self._world
            )  # FSDP averages over ranks; our weights are already global
            done.append(Scored(micro=micro, logps_N=logps.detach(), entropies_N=entropies.detach(), terms=terms))
        return done

    def _update(self) -> dict[str, float]:
        """Clip, step, forget the gradient."""
        learning = self._config.learner
        size = clip(self.policy, learning.clip)
        if not isfinite(size):
            self._optimizer.zero_grad()
            raise FloatingPointError(f"gradient norm must be finite: got {size} at version {self._version}")
        rate = learning.lr * min(1.0, (self._updates + 1) / max(1, learning.warmup_steps))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._updates += 1
        return {"grad_norm": size, "lr": rate}

    def _collect(
        self, rows: Sequence[Row], plan: Plan, logps: Sequence[Tensor], rollouts: Sequence[Rollout]
    ) -> dict[str, list[float]]:
        """Bring the rollouts' log-probs to rank 0, by key; nan where nobody needed one."""
        where = [scored_positions(rows, plan, rank) for rank in range(self._world)]
        parts = ranks.gathered(torch.cat(list(logps)), [len(w) for w in where])
        found = self._unscored(rollouts)
        if self._rank == 0:
            for positions, values in zip(where, parts, strict=True):
                for (i, j), value in zip(positions, values, strict=True):
                    key = rows[i].key
                    if key is not None:
                        found[key][j] = value
        return found

    # -- small things

    def _load(self, *, checkpointing: bool) -> Policy:
        grammar = self._sampled.grammar
        policy = Policy.load(
            self.family,
            chunk=self._config.learner.logprob_chunk,
            allowed_PV=None if grammar is None else grammar.tensor(),
            checkpointing=checkpointing,
        )
        return sharded(policy, self._mesh, dtype=self._config.model.dtype)

    def _plan(self, rows: Sequence[Row]) -> Plan:
        budget, streams = self._config.learner.tokens_per_microbatch, self.family.streams
        return share(rows, ranks=self._world, budget=budget, streams=streams)

    def _packed(self, rows: Sequence[Row], plan: Plan) -> list[Microbatch]:
        held, streams = plan[self._rank], self.family.streams
        return [pack([rows[i] for i in micro], streams).to(ranks.device()) for micro in held]

    def _shared(self, rows: Sequence[Row], plan: Plan) -> _Share:
        micros = self._packed(rows, plan)
        references = reference_logps(self._reference, rows, plan, self._rank, micros)
        return _Share(micros=micros, references=references)

    def _unscored(self, rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
        return {r.key: [nan] * len(r.ids) for r in rollouts} if self._rank == 0 else {}
