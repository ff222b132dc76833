"""The objective's settings: a table component x channel -> weight, and how each component is computed.

One file of conf/algo per row of docs/method.md §4 sets them; docs/method.md has every formula. What contradicts
itself is refused here with the rule.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from conf.fields import Fraction, NonNegativeFloat, PositiveInt, StrictModel


class ChannelWeights(StrictModel):
    """One weight per channel; 0: the channel does not join."""

    text: NonNegativeFloat = 0.0
    """What is said."""
    audio: NonNegativeFloat = 0.0
    """How it sounds."""
    boundary: NonNegativeFloat = 0.0
    """Switches between the two."""
    stop: NonNegativeFloat = 0.0
    """The token that ends the turn."""

    @property
    def any(self) -> bool:
        """Whether some channel joins."""
        return bool(self.text or self.audio or self.boundary or self.stop)


def _equal_weights(weight: float) -> ChannelWeights:
    return ChannelWeights(text=weight, audio=weight, boundary=weight, stop=weight)


class GateConfig(StrictModel):
    """Rollout statistics -> lambda (docs/method.md §3)."""

    lambda_max: Fraction = 0.8
    """Most that preference ever gets; 1 - lambda_max of anchoring always stays."""
    alpha: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Weight of history in the moving average; 0 switches smoothing off."""
    theta: float | None = None
    """The best reward of a group that counts as acceptable, on the judge's scale; not set: its middle, 3 on
    1..5."""
    k: Annotated[float, Field(gt=0.0)] | None = None
    """Steepness of the direction gate, per point of the judge's scale; not set: 20 / its width, 5 on 1..5."""
    denoise: bool = False
    """Subtract the judge's own repeat variance before the information gate."""
    correct_missing: bool = False
    """Undo what missing verdicts take off a group's variance on average: n of G rewards hold
    (n - 1) G / (n (G - 1)) of it."""


RELEASED_SETTINGS: dict[str, Any] = {
    "aggregation": "sequence_mean",
    "sft_aggregation": "sequence_mean",
    "normalise": "std",
    "normalise_by": "reward",
    "importance": "off",
    "kl": {"text": 0.0, "audio": 0.0, "boundary": 0.0, "stop": 0.0},
    "entropy": {"text": 0.0, "audio": 0.0, "boundary": 0.0, "stop": 0.0},
    "clip_dual": None,
    "epochs": 1,
    "equal_groups": "keep",
    "routed": False,
}
"""What ``faithful`` stands for, beside the membership of BOUNDARY and STOP and the 1e-4 beside std."""


class AlgoConfig(StrictModel):
    """The objective: L = (1 - lambda) * SFT + lambda * PO (docs/method.md §2)."""

    name: str = "gated"
    """For people; the fields below decide."""
    faithful: bool = False
    """Loss and lambda as the paper's released code computes them: settings that have their default take the
    released value, others that contradict it are refused."""
    loss: Literal["grpo", "dpo", "online_dpo"] = "grpo"
    """The preference: group-relative on fresh replies, DPO on the pairs of ``data.pairs``, or DPO on best
    against worst of each fresh group."""
    dpo_beta: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 0.1
    """Inverse temperature of DPO's logistic loss."""
    margin: NonNegativeFloat | None = None
    """Least difference in reward of a DPO pair, in points of the judge's scale; not set: an eighth of its
    width, 0.5 on 1..5."""
    mix: Literal["gate", "fixed", "two_stage"] = "gate"
    """Where lambda comes from; two_stage: 0 for the first ``sft_steps`` steps, then ``fixed_lambda``."""
    fixed_lambda: Fraction = 0.5
    """Lambda when it is not the gate's; 0 is plain SFT."""
    sft_steps: PositiveInt | None = None
    """Length of the first stage of ``mix=two_stage``; not set: half of ``run.steps``."""
    gate: GateConfig = GateConfig()
    preference: ChannelWeights = ChannelWeights(text=1.0, stop=1.0)
    """Which tokens carry the preference loss, and how heavily each counts in its mean."""
    sft: ChannelWeights = _equal_weights(1.0)
    """Which tokens of a reference reply are anchored, and how heavily."""
    kl: ChannelWeights = _equal_weights(0.01)
    """Coefficients of the penalty for leaving the frozen start policy, whatever is preferred."""
    entropy: ChannelWeights = ChannelWeights()
    """Coefficients of an entropy bonus."""
    routed: bool = False
    """The advantage of what was said moves TEXT, that of how it sounded AUDIO, that of a well-formed reply
    BOUNDARY and STOP; each normalised apart."""
    normalise: Literal["std", "none", "leave_one_out"] = "std"
    """Advantage: (R - mean) / std, R - mean, or R - mean of the other replies."""
    normalise_by: Literal["reward", "axis"] = "reward"
    """Normalise the reward, or each judge axis before they are weighed together."""
    aggregation: Literal["sequence_mean", "token_mean", "sum", "constant"] = "sequence_mean"
    """How token terms are added up: mean over a reply then over replies, mean over all tokens, sum over a
    reply, sum / max_new_tokens."""
    sft_aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
    """The same for the reference replies."""
    clip_low: NonNegativeFloat = 0.2
    """Ratio clip below 1. The ratio is to the policy at the start of the step: see ``epochs``."""
    clip_high: NonNegativeFloat = 0.2
    """Ratio clip above 1."""
    clip_dual: Annotated[float, Field(gt=1.0, allow_inf_nan=False)] | None = None
    """Bound of ratio * advantage for negative advantages, as a multiple of the advantage; none: off."""
    importance: Literal["token", "sequence", "off"] = "token"
    """Truncated importance weight from what sampled to the policy: per token, over the preferred tokens of a
    reply together, or none."""
    importance_cap: Annotated[float, Field(gt=0.0)] = 2.0
    """Where it is truncated."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Of d = ref - logp: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1."""
    kl_in: Literal["loss", "reward"] = "loss"
    """The penalty is a loss of its own, or is taken off each reply's reward before advantages."""
    epochs: PositiveInt = 1
    """Passes over a batch, one optimiser step each; above 1 the ratio leaves 1 and the clip works."""
    equal_groups: Literal["keep", "drop", "refill"] = "keep"
    """Groups in which no reply was told from another: they stay and count, leave the loss, or leave it and
    further prompts are sampled in their place."""
    refill_rounds: PositiveInt = 3
    """Most further rounds of sampling in a step of ``equal_groups=refill``."""

    @model_validator(mode="before")
    @classmethod
    def _released_defaults(cls, given: Any) -> Any:
        """What ``faithful`` stands for, where nothing but the schema's own default was said."""
        if not isinstance(given, Mapping) or not given.get("faithful"):
            return given
        chosen = {name: value for name, value in given.items() if not _is_default(name, value)}
        return {**given, **RELEASED_SETTINGS, **chosen}

    @model_validator(mode="after")
    def _one_objective(self) -> Self:
        for holds, rule in self._rules():
            if not holds:
                raise ValueError(rule)
        return self

    def _rules(self) -> tuple[tuple[bool, str], ...]:
        """(whether it holds, what it says) of every rule between these settings."""
        released = self._released_rules() if self.faithful else ()
        return (*self._mixing_rules(), *self._penalty_rules(), *self._routing_rules(), *released)

    def _mixing_rules(self) -> tuple[tuple[bool, str], ...]:
        """What is learnt, and from which groups."""
        return (
            (
                not self.prefers or self.preference.any,
                "preference must weigh at least one channel when lambda can be above 0: got 0 everywhere",
            ),
            (
                self.sft.any or (self.prefers and self.mix != "two_stage"),
                "sft must weigh at least one channel when "
                + ("the first stage is" if self.prefers else "lambda is 0 and the run is")
                + " nothing but SFT: got 0 everywhere",
            ),
            (
                self.loss != "dpo" or self.mix != "gate",
                "mix must be fixed or two_stage with loss=dpo: the gate reads fresh replies, pairs have none",
            ),
            (
                self.loss == "grpo" or self.equal_groups == "keep",
                f"equal_groups must be keep with loss={self.loss}, whose margin drops equal replies already:"
                f" got {self.equal_groups}",
            ),
        )

    def _penalty_rules(self) -> tuple[tuple[bool, str], ...]:
        """How far the policy may leave the start policy."""
        grpo, penalised = self.loss == "grpo", self.kl_in == "reward"
        return (
            (
                grpo or not (self.kl.any or self.entropy.any),
                f"{'kl' if self.kl.any else 'entropy'} must be 0 on every channel with loss={self.loss},"
                " which holds the reference itself",
            ),
            (
                self.kl_estimator != "k1" or penalised or not self.kl.any,
                "kl_estimator must be k2 or k3 with kl_in=loss, for the gradient of k1 has mean zero: got k1",
            ),
            (
                not penalised or (grpo and not self.routed and self.normalise_by == "reward"),
                "kl_in must be loss unless one reward is normalised (loss=grpo, routed=false,"
                " normalise_by=reward): got reward",
            ),
            (
                not penalised or self.kl.any,
                "kl must be above 0 on some channel with kl_in=reward: got 0 everywhere",
            ),
        )

    def _routing_rules(self) -> tuple[tuple[bool, str], ...]:
        """An advantage for each channel."""
        return (
            (
                not self.routed or (self.preference.text > 0 and self.preference.audio > 0),
                "preference must weigh text and audio with routed=true, where each has its own advantage:"
                f" got {_format_setting(self.preference)}",
            ),
            (
                not self.routed or (self.loss == "grpo" and self.normalise_by == "reward"),
                "routed needs loss=grpo and normalise_by=reward: it normalises each axis apart by itself",
            ),
        )

    def _released_rules(self) -> tuple[tuple[bool, str], ...]:
        known = AlgoConfig.model_fields
        same = tuple(
            (
                getattr(self, name) == (_equal_weights(0.0) if known[name].annotation is ChannelWeights else value),
                f"{name} must be {_format_setting(value)}, as released, when faithful=true:"
                f" got {_format_setting(getattr(self, name))}",
            )
            for name, value in RELEASED_SETTINGS.items()
        )
        members = tuple(
            (
                joined.boundary == joined.audio and joined.stop == joined.text,
                f"{name} must weigh boundary as audio and stop as text when faithful=true:"
                f" got {_format_setting(joined)}",
            )
            for name, joined in (("preference", self.preference), ("sft", self.sft))
        )
        return (
            *same,
            *members,
            (self.loss != "online_dpo", "loss must be grpo or dpo when faithful=true: got online_dpo"),
            (not self.gate.denoise, "gate.denoise must be false when faithful=true: got true"),
        )

    @property
    def prefers(self) -> bool:
        """Whether lambda can be above 0."""
        return self.gate.lambda_max > 0 if self.mix == "gate" else self.fixed_lambda > 0

    @property
    def anchors(self) -> bool:
        """Whether any step learns from reference replies."""
        return self.sft.any and not (self.mix == "fixed" and self.fixed_lambda == 1.0)

    @property
    def samples(self) -> bool:
        """Whether any step learns from fresh replies."""
        return self.prefers and self.loss != "dpo"

    def samples_at(self, step: int) -> bool:
        """Whether this step, counted from 1, learns from fresh replies."""
        return self.samples and self.prefers_at(step)

    def prefers_at(self, step: int) -> bool:
        """Whether lambda can be above 0 at this step, counted from 1."""
        if self.mix == "two_stage":
            assert self.sft_steps is not None, "the config sets it"
            return self.prefers and step > self.sft_steps
        return self.prefers


def _is_default(name: str, value: object) -> bool:
    if name not in AlgoConfig.model_fields:
        return False
    default = AlgoConfig.model_fields[name].get_default()
    return bool(value == (default.model_dump() if isinstance(default, StrictModel) else default))


def _format_setting(value: object) -> str:
    weights = value.model_dump() if isinstance(value, ChannelWeights) else value
    if isinstance(weights, dict) and not any(weights.values()):
        return "0 on every channel"
    return "null" if weights is None else str(weights).lower() if isinstance(weights, bool) else str(weights)
