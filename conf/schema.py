"""Every setting a user can make, with its range and its reason.

Hydra composes YAML; this schema checks it. Unknown keys, out-of-range values and contradictions are
refused before anything starts, each with the rule and the value. No secret is a value here: settings
hold the *name* of an environment variable. The defaults are those of a model that is in use; what the
embedded one wants instead is in conf/model/tiny.yaml. The judges' settings are in conf/judging.py, the
objective's in conf/algorithm.py, the learner's in conf/learning.py; docs/design.md says how many there are.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from conf.algorithm import AlgoConfig
from conf.endpoints import SecondConfig
from conf.fields import PositiveInt, PositiveSeconds, StrictModel
from conf.judging import JudgeConfig
from conf.learning import LearnerConfig


class RunConfig(StrictModel):
    """The run as a whole."""

    name: str = Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder name below ``root``."""
    root: Path = Path("runs")
    """Where run directories live. On a cluster: a file system that every node shares."""
    steps: PositiveInt = 400
    """Optimiser steps."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides prompts, their order and every sampled reply."""
    resume: Path | None = None
    """A run directory to go on from: its latest valid checkpoint."""
    staleness: Annotated[int, Field(ge=0, le=1)] = 0
    """S: 0 generates and learns in turn (exactly on-policy); 1 generates the next batch meanwhile. A
    checkpoint holds that batch, so an interrupt first lets it end."""
    eval_every: Annotated[int, Field(ge=0)] = 50
    """Steps between held-out evaluations (greedy); before and after always. 0: only before and after."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 50
    """Steps between checkpoints; one at the end always. 0: only at the end."""
    keep_checkpoints: PositiveInt = 2
    """How many checkpoints stay on disk."""


class ModelConfig(StrictModel):
    """The policy."""

    family: str = "tiny"
    """How prompts, replies and codes are laid out."""
    path: Path
    """A local Hugging Face folder with safetensors weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of engine and learner; master weights and optimiser stay float32."""
    max_length: PositiveInt = 2048
    """Longest prompt + reply in tokens."""
    codec: Path | None = None
    """Local folder of the speech codec; none: the one that the checkpoint's own folder holds or names."""
    ear: Path | None = None
    """Local folder of the audio encoder, for a family whose checkpoint does not hold it."""
    system: str | None = None
    """System turn of rows that have none. Not set: the family's published one; "": none at all."""
    ratios: tuple[PositiveInt, ...] | None = None
    """Text and audio counts of a reply's chunks, by turns (VITA-Audio); not set: the family's own."""
    mtp: Literal["frozen", "trained"] = "frozen"
    """Multi-token prediction layers, in a family that has them: learnt from the reference replies or not."""


class DataConfig(StrictModel):
    """Manifests; their audio paths are relative to the manifest's folder and may not leave it."""

    train: Path
    """Prompts with reference replies."""
    validation: Path
    """Held-out prompts for evaluation during the run."""
    test: Path
    """Held-out prompts for the before/after table."""
    pairs: Path | None = None
    """Pairs of a better and a worse reply, for ``algo.loss=dpo``: of `wavgate pairs`, or WavAlign's JSONL."""
    eval_prompts: PositiveInt = 64
    """How many validation prompts an evaluation during the run takes, from the top of the file."""
    max_seconds: PositiveSeconds = 60.0
    """Longest audio that a row may hold."""


class RolloutConfig(StrictModel):
    """How replies are sampled."""

    engine: Literal["vllm", "hf", "torch"] = "vllm"
    """``torch`` is for families with parallel streams; ``hf`` the slow reference (a plain loop)."""
    workers: PositiveInt = 1
    """Engine replicas."""
    prompts_per_step: PositiveInt = 16
    """B: prompts in a step."""
    group_size: PositiveInt = 4
    """G: replies per prompt."""
    temperature: Annotated[float, Field(gt=0.0, le=2.0, allow_inf_nan=False)] = 1.0
    """The learner's log-probs are taken at the same temperature."""
    max_new_tokens: PositiveInt = 768
    """Token budget of a reply; a reply that uses it up is flagged as truncated. Each family's preset has one
    for 30 s of speech, in its own codes per second and streams."""
    grammar: bool = False
    """Mask the logits so that replies cannot break the family's grammar; the learner masks alike."""
    max_num_seqs: PositiveInt = 128
    """Replies an engine decodes together."""
    kv_cache_mb: PositiveInt = 64
    """KV cache of one engine on CPU, in MiB (on GPU the engine takes ``cluster.gpu_memory``)."""
    deadline_s: PositiveSeconds = 900.0
    """A step's generation must finish within this; then the worker is replaced and the rest sampled again."""


class ClusterConfig(StrictModel):
    """Where the actors run."""

    kind: Literal["local", "gpu"] = "local"
    """``local``: CPU processes of one machine."""
    address: str = "local"
    """``local`` starts a private Ray; ``auto`` joins the cluster of the job; or host:port."""
    nodes: PositiveInt = 1
    """Machines that hold learner ranks and engines."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    """GPUs of each machine."""
    colocate: bool = False
    """Engine and learner rank share a GPU (weights by CUDA IPC) instead of having their own (NCCL)."""
    tensor_parallel: PositiveInt = 1
    """GPUs of one engine."""
    gpu_memory: Annotated[float, Field(gt=0.0, le=0.95)] = 0.85
    """Share of a GPU that an engine may take."""
    weight_transfer: Literal["object_store", "ipc", "nccl"] = "object_store"
    """How weights travel from learner to engines."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """How often one rollout worker, judge worker or process of a judge's endpoint is replaced before the run stops."""

    @model_validator(mode="after")
    def _transport_fits(self) -> Self:
        if self.kind == "local" and self.weight_transfer != "object_store":
            raise ValueError(f"weight_transfer must be object_store when kind=local: got {self.weight_transfer}")
        if self.kind == "local" and self.gpus_per_node:
            raise ValueError(f"gpus_per_node must be 0 when kind=local: got {self.gpus_per_node}")
        if not re.fullmatch(r"local|auto|[^:/\s]+:\d{1,5}", self.address):
            raise ValueError(f"address must be local, auto or host:port of a Ray head: got {self.address}")
        if self.nodes > 1 and (self.kind == "local" or self.address == "local"):
            what = "kind=local: a run on CPU is one machine's" if self.kind == "local" else "address=local"
            raise ValueError(f"nodes must be 1 when {what}: got {self.nodes}")
        if self.kind == "gpu" and self.gpus_per_node < 1:
            raise ValueError(f"gpus_per_node must be at least 1 when kind=gpu: got {self.gpus_per_node}")
        if self.weight_transfer == "ipc" and not self.colocate:
            raise ValueError("weight_transfer=ipc needs colocate=true: CUDA IPC only works on the same GPU")
        if self.weight_transfer == "nccl" and self.colocate:
            raise ValueError("weight_transfer=nccl needs colocate=false: NCCL wants a GPU for each side")
        return self


class LogConfig(StrictModel):
    """What is written."""

    tensorboard: bool = True
    """Write metrics as TensorBoard events too."""
    rollouts_every: PositiveInt = 1
    """Steps between rollout records."""
    audio_every: PositiveInt = 5
    """Steps between rollout records that keep their audio; those of the first and the last step do."""
    diagnose_every: Annotated[int, Field(ge=0)] = 20
    """Steps between diagnoses (gradients by layer and channel, shift from the start policy); also at step 1.
    Each takes about two steps' learning time, one gradient in the host's memory, and the frozen start policy,
    which is loaded for this where the objective does not need it. 0: never, and nothing is loaded."""


class Config(StrictModel):
    """A whole run."""

    run: RunConfig
    model: ModelConfig
    data: DataConfig
    rollout: RolloutConfig = RolloutConfig()
    judge: JudgeConfig = JudgeConfig()
    algo: AlgoConfig = AlgoConfig()
    learner: LearnerConfig = LearnerConfig()
    cluster: ClusterConfig = ClusterConfig()
    log: LogConfig = LogConfig()

    @property
    def margin(self) -> float:
        """``algo.margin``, or an eighth of the judge's scale."""
        return (self.judge.scale_hi - self.judge.scale_lo) / 8 if self.algo.margin is None else self.algo.margin

    @model_validator(mode="after")
    def _stage_has_an_end(self) -> Self:
        if self.algo.mix == "two_stage" and self.algo.sft_steps is None:
            algo = self.algo.model_copy(update={"sft_steps": max(1, self.run.steps // 2)})
            object.__setattr__(self, "algo", algo)  # frozen, and the one default that rests on a section
        return self

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        if self.rollout.max_new_tokens >= self.model.max_length:
            raise ValueError(
                f"rollout.max_new_tokens must be below model.max_length={self.model.max_length} to leave room"
                f" for the prompt: got {self.rollout.max_new_tokens}"
            )
        transfer = self.cluster.weight_transfer
        if self.rollout.engine != "vllm" and transfer != "object_store":
            raise ValueError(
                f"rollout.engine={self.rollout.engine} needs weight_transfer=object_store: got {transfer}"
            )
        return self

    @model_validator(mode="after")
    def _objective_fits(self) -> Self:
        algo, judge = self.algo, self.judge
        if algo.samples and self.rollout.group_size < 2:
            raise ValueError(
                f"rollout.group_size must be at least 2 for the group advantage of algo={algo.name}:"
                f" got {self.rollout.group_size}"
            )
        rows = 2 if algo.loss != "grpo" and algo.prefers else 1
        if self.learner.tokens_per_microbatch < rows * self.model.max_length:
            what = "one row" if rows == 1 else "both replies of a pair, each"
            rule = f"learner.tokens_per_microbatch must hold {what} of model.max_length={self.model.max_length}"
            raise ValueError(f"{rule}: got {self.learner.tokens_per_microbatch}")
        if algo.loss == "dpo" and self.data.pairs is None:
            raise ValueError(
                "data.pairs must name a manifest of pairs (`wavgate pairs` makes one) when algo.loss=dpo: got nothing"
            )
        if algo.mix == "two_stage" and (algo.sft_steps or 0) >= self.run.steps:
            raise ValueError(
                f"algo.sft_steps must be below run.steps={self.run.steps}, or the second stage never begins:"
                f" got {algo.sft_steps}"
            )
        theta = algo.gate.theta  # not set: on the scale
        if algo.mix == "gate" and theta is not None and not judge.scale_lo <= theta <= judge.scale_hi:
            raise ValueError(
                f"algo.gate.theta must lie on the judge's scale [{judge.scale_lo}, {judge.scale_hi}]: got {theta}"
            )
        if self.model.mtp == "trained" and not algo.anchors:
            raise ValueError(
                "model.mtp must be frozen where nothing is learnt from reference replies (algo.sft 0 on every"
                " channel, or lambda always 1): got trained"
            )
        if algo.gate.denoise and judge.asked_once is not None:
            raise ValueError(
                f"judge.{judge.asked_once} must be at least 2 when algo.gate.denoise=true, for one reading"
                " does not show a judge's noise: got 1"
            )
        return self

    @model_validator(mode="after")
    def _judge_serves_the_objective(self) -> Self:
        algo, judge = self.algo, self.judge
        if algo.routed and not (judge.semantic > 0 and judge.acoustic > 0 and judge.holistic == 0):
            raise ValueError(
                "algo.routed needs two axes, judge.semantic and judge.acoustic above 0 and judge.holistic 0:"
                f" got {judge.semantic:g}, {judge.acoustic:g} and {judge.holistic:g}"
            )
        cap = judge.api.spend_cap if judge.api_axes else None
        if algo.equal_groups == "refill" and cap is not None:
            raise ValueError(
                f"algo.equal_groups=refill asks the judge without bound, judge.api.spend_cap must be off: got {cap:g}"
            )
        if algo.faithful and (judge.scale_lo, judge.scale_hi) != (1.0, 5.0):
            raise ValueError(
                "judge.scale_lo must be 1 and judge.scale_hi 5 when algo.faithful=true:"
                f" got {judge.scale_lo:g} and {judge.scale_hi:g}"
            )
        return self

    def without_second_opinion(self, **api: Any) -> Self:
        """The same where nobody would look at a second judge's opinion. ``api``: changes to ``judge.api``."""
        changes = {"second": SecondConfig(), "api": self.judge.api.model_copy(update=api)}
        return self.model_copy(update={"judge": self.judge.model_copy(update=changes)})
