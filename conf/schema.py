"""Every setting a user can make, with its range and its reason.

Hydra composes YAML; this schema checks it. Unknown keys, out-of-range values and contradictions are
refused before anything starts, each with the rule and the value. No secret is a value here: settings
hold the *name* of an environment variable. Under 80 leaves beside those of endpoints (``judge.api``,
``judge.second``, the two ``judge.*_by``) and of the recogniser (``judge.asr``); the judges' are in
conf/judging.py.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from conf.fields import Fraction, NonNegative, Positive, Seconds, Strict
from conf.judging import JudgeConfig


class RunConfig(Strict):
    """The run as a whole."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder name below ``root``."""
    root: Path = Path("runs")
    """Where run directories live. On a cluster: a file system that every node shares."""
    steps: Positive = 60
    """Optimiser steps."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides prompts, their order and every sampled reply."""
    resume: Path | None = None
    """A run directory to go on from: its latest valid checkpoint."""
    staleness: Annotated[int, Field(ge=0, le=1)] = 0
    """S: 0 generates and learns in turn (exactly on-policy); 1 generates the next batch meanwhile."""
    eval_every: Annotated[int, Field(ge=0)] = 20
    """Steps between held-out evaluations (greedy); before and after always. 0: only before and after."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 20
    """Steps between checkpoints; one at the end always. 0: only at the end."""
    keep_checkpoints: Positive = 2
    """How many checkpoints stay on disk."""


class ModelConfig(Strict):
    """The policy."""

    family: str = "tiny"
    """How prompts, replies and codes are laid out."""
    path: Path
    """A local Hugging Face folder with safetensors weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of engine and learner; master weights and optimiser stay float32."""
    max_length: Positive = 512
    """Longest prompt + reply in tokens."""


class DataConfig(Strict):
    """Manifests; their audio paths are relative to the manifest's folder and may not leave it."""

    train: Path
    """Prompts with reference replies."""
    validation: Path
    """Held-out prompts for evaluation during the run."""
    test: Path
    """Held-out prompts for the before/after table."""
    pairs: Path | None = None
    """Preferred and other replies, as ``wavgate pairs`` or WavAlign writes them; read by a DPO objective."""
    eval_prompts: Positive = 64
    """How many validation prompts an evaluation during the run takes, from the top of the file."""
    max_seconds: Seconds = 60.0
    """Longest audio that a row may hold."""


class RolloutConfig(Strict):
    """How replies are sampled."""

    engine: Literal["vllm", "hf"] = "vllm"
    """``hf`` is the slow reference (transformers' generate)."""
    workers: Positive = 1
    """Engine replicas."""
    prompts_per_step: Positive = 16
    """B: prompts in a step."""
    group_size: Positive = 4
    """G: replies per prompt."""
    temperature: Annotated[float, Field(gt=0.0, le=2.0, allow_inf_nan=False)] = 1.0
    """The learner's log-probs are taken at the same temperature."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Only 1: the log-probs of a nucleus need the kept set, which the learner does not have."""
    max_new_tokens: Positive = 160
    """Token budget of a reply; a reply that uses it up is flagged as truncated."""
    grammar: bool = False
    """Mask the logits so that replies cannot break the family's grammar; the learner masks alike."""
    max_num_seqs: Positive = 128
    """Replies an engine decodes together."""
    kv_cache_mb: Positive = 64
    """KV cache of one engine on CPU, in MiB (on GPU the engine takes ``cluster.gpu_memory``)."""
    deadline_s: Seconds = 300.0
    """A step's generation must finish within this; then the worker is replaced and the rest sampled again."""

    @model_validator(mode="after")
    def _scorable(self) -> Self:
        if self.top_p != 1.0:
            raise ValueError(
                f"top_p must be 1, the learner cannot score a truncated distribution: got {self.top_p}"
            )
        return self


class GateConfig(Strict):
    """Rollout statistics -> lambda (METHOD §3)."""

    lambda_max: Fraction = 0.8
    """Most that preference ever gets; 1 - lambda_max of anchoring always stays."""
    alpha: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Weight of history in the moving average; 0 switches smoothing off."""
    theta: float = 3.0
    """The best reward of a group that counts as acceptable, on the judge's scale."""
    k: Annotated[float, Field(gt=0.0)] = 5.0
    """Steepness of the direction gate."""
    denoise: bool = False
    """Subtract the judge's own repeat variance before the information gate."""


class AlgoConfig(Strict):
    """The objective: L = (1 - lambda) * SFT + lambda * PO (METHOD §2)."""

    name: str = "gated"
    """For people; the fields below decide."""
    mix: Literal["gate", "fixed"] = "gate"
    """Where lambda comes from."""
    fixed_lambda: Fraction = 0.5
    """Lambda when ``mix=fixed``; 0 is plain SFT."""
    gate: GateConfig = GateConfig()
    channels: Literal["text", "all"] = "text"
    """Which tokens carry the preference loss: what is said, or also how it sounds."""
    boundary: bool = False
    """Boundary tokens join the preference loss."""
    stop: bool = True
    """The stop token joins the preference loss."""
    aggregation: Literal["sequence_mean", "token_mean", "sum", "constant"] = "sequence_mean"
    """How token terms are added up: mean over a reply then over replies, mean over all tokens, sum over a
    reply, sum / max_new_tokens."""
    clip_low: NonNegative = 0.2
    """Ratio clip below 1. The ratio is to the policy at the start of the step: see ``epochs``."""
    clip_high: NonNegative = 0.2
    """Ratio clip above 1."""
    kl_text: NonNegative = 0.01
    """k3 penalty to the frozen start policy on TEXT, BOUNDARY and STOP positions."""
    kl_audio: NonNegative = 0.01
    """k3 penalty to the frozen start policy on AUDIO positions; independent of ``channels``."""
    importance_cap: Annotated[float, Field(gt=0.0)] = 2.0
    """Truncation of the importance weight from what sampled (older at ``run.staleness=1``) to the policy."""
    epochs: Positive = 1
    """Passes over a batch, one optimiser step each; above 1 the ratio leaves 1 and the clip works."""


class LearnerConfig(Strict):
    """The sharded optimiser."""

    ranks: Positive = 2
    """FSDP ranks."""
    lr: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 3e-4
    """Peak learning rate."""
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    """Linear warm-up, then constant."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled decay."""
    clip: Annotated[float, Field(gt=0.0)] = 1.0
    """Largest global gradient norm."""
    anchors_per_step: Positive = 64
    """Reference replies in a step's SFT term: those of the step's prompts first, then further rows."""
    tokens_per_microbatch: Positive = 4096
    """Token budget of one packed forward pass on one rank."""
    logprob_chunk: Positive = 512
    """Positions whose logits exist at the same time."""
    activation_checkpointing: bool = False
    """Recompute layer activations in the backward pass."""
    timeout_s: Seconds = 120.0
    """Longest wait for another rank."""


class ClusterConfig(Strict):
    """Where the actors run."""

    kind: Literal["local", "gpu"] = "local"
    """``local``: CPU processes of one machine."""
    address: str = "local"
    """``local`` starts a private Ray; ``auto`` joins the cluster of the job; or host:port."""
    nodes: Positive = 1
    """Machines that hold learner ranks and engines."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    """GPUs of each machine."""
    colocate: bool = False
    """Engine and learner rank share a GPU (weights by CUDA IPC) instead of having their own (NCCL)."""
    tensor_parallel: Positive = 1
    """GPUs of one engine."""
    gpu_memory: Annotated[float, Field(gt=0.0, le=0.95)] = 0.85
    """Share of a GPU that an engine may take."""
    weight_transfer: Literal["object_store", "ipc", "nccl"] = "object_store"
    """How weights travel from learner to engines."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """How often one rollout or judge worker is replaced before the run stops."""

    @model_validator(mode="after")
    def _transport_fits(self) -> Self:
        if self.kind == "local" and self.weight_transfer != "object_store":
            raise ValueError(
                f"weight_transfer must be object_store when kind=local: got {self.weight_transfer}"
            )
        if self.kind == "local" and self.gpus_per_node:
            raise ValueError(f"gpus_per_node must be 0 when kind=local: got {self.gpus_per_node}")
        if self.kind == "gpu" and self.gpus_per_node < 1:
            raise ValueError(f"gpus_per_node must be at least 1 when kind=gpu: got {self.gpus_per_node}")
        if self.weight_transfer == "ipc" and not self.colocate:
            raise ValueError("weight_transfer=ipc needs colocate=true: CUDA IPC only works on the same GPU")
        if self.weight_transfer == "nccl" and self.colocate:
            raise ValueError("weight_transfer=nccl needs colocate=false: NCCL wants a GPU for each side")
        return self


class LogConfig(Strict):
    """What is written."""

    tensorboard: bool = True
    """Write metrics as TensorBoard events too."""
    rollouts_every: Positive = 1
    """Steps between rollout records."""
    audio_every: Positive = 5
    """Steps between rollout records that keep their audio."""


class Config(Strict):
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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        prefers = self.algo.mix == "gate" or self.algo.fixed_lambda > 0
        if prefers and self.rollout.group_size < 2:
            raise ValueError(
                f"rollout.group_size must be at least 2 for the group advantage of algo={self.algo.name}:"
                f" got {self.rollout.group_size}"
            )
        if self.rollout.max_new_tokens >= self.model.max_length:
            raise ValueError(
                f"rollout.max_new_tokens must be below model.max_length={self.model.max_length} to leave room"
                f" for the prompt: got {self.rollout.max_new_tokens}"
            )
        if self.learner.tokens_per_microbatch < self.model.max_length:
            rule = (
                f"learner.tokens_per_microbatch must hold one row of model.max_length={self.model.max_length}"
            )
            raise ValueError(f"{rule}: got {self.learner.tokens_per_microbatch}")
        transfer = self.cluster.weight_transfer
        if self.rollout.engine == "hf" and transfer != "object_store":
            raise ValueError(f"rollout.engine=hf needs weight_transfer=object_store: got {transfer}")
        if self.algo.mix == "gate" and not self.judge.scale_lo <= self.algo.gate.theta <= self.judge.scale_hi:
            raise ValueError(
                "algo.gate.theta must lie on the judge's scale"
                f" [{self.judge.scale_lo}, {self.judge.scale_hi}]: got {self.algo.gate.theta}"
            )
        return self
