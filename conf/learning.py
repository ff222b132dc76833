"""The settings of the learner: its optimiser, its ranks, and what of a batch is in memory at a time."""

from typing import Annotated

from pydantic import Field

from conf.fields import Beta, NonNegativeFloat, PositiveInt, PositiveSeconds, StrictModel


class LearnerConfig(StrictModel):
    """The sharded optimiser."""

    ranks: PositiveInt = 2
    """FSDP ranks."""
    lr: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1e-6
    """Peak learning rate: the paper's for models of some billion parameters; ``model=tiny`` has 3e-4."""
    warmup_steps: Annotated[int, Field(ge=0)] = 10
    """Linear warm-up, then constant."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled decay."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW's weights of history: of the gradient, and of its square."""
    clip: Annotated[float, Field(gt=0.0)] = 1.0
    """Largest global gradient norm."""
    anchors_per_step: PositiveInt = 64
    """Reference replies in a step's SFT term: those of the step's prompts first, then further rows."""
    tokens_per_microbatch: PositiveInt = 8192
    """Token budget of one packed forward pass on one rank."""
    logprob_chunk: PositiveInt = 512
    """Positions whose logits exist at the same time."""
    activation_checkpointing: bool = True
    """Recompute layer activations in the backward pass: a third more work, a fraction of the memory."""
    timeout_s: PositiveSeconds = 600.0
    """Longest wait of a rank for another one, in each exchange between them. A whole call of all ranks (a
    step, a diagnosis, a checkpoint) has ten times as long; then the run ends and can be resumed."""
