"""The gate: how much of this step's update is preference, how much is anchoring.

    information_g = clip(V_g / V_max, 0, 1)                   V_max = ((hi - lo) / 2)^2 on the judge's scale
                    denoise: V_g - (n - 1)/n sigma_J^2, the part of the judge's noise that n rewards show
                    correct_missing: times n (G - 1) / ((n - 1) G) for n rewards of G replies
    direction_g   = sigmoid(k * (best_g - theta))             by default theta = middle, k = 20 / (hi - lo)
    lambda_t      = (1 - alpha) * mean_g(lambda_max * direction_g * information_g) + alpha * lambda_{t-1}

One gate per run. It sees every group of a step before any loss is computed, so lambda is one number on
every rank. Its whole state is the last lambda (``state_dict``): resume is exact. docs/method.md §3; WavAlign
(arXiv 2604.14932) §3.4. ``FixedLambda`` is the same interface with a constant lambda.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, fsum
from typing import Protocol

from conf.algorithm import AlgoConfig, GateConfig
from judge.types import Scale
from learner.statistics import GroupStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReading:
    """What the gate saw and decided at one step. All but ``weight`` are None in a step without groups."""

    weight: float  # lambda_t, in [0, lambda_max]
    raw: float | None = None  # before smoothing; mean over groups
    direction: float | None = None  # mean over groups, in (0, 1)
    information: float | None = None  # mean over groups, in [0, 1]
    noise_variance: float | None = None  # judge's own variance, mean over groups

    def metrics(self) -> dict[str, float]:
        """Under the names of docs/design.md §4; what was not measured is left out."""
        named = {
            "lambda": self.weight,
            "lambda_raw": self.raw,
            "gate/direction": self.direction,
            "gate/information": self.information,
            "gate/noise_variance": self.noise_variance,
        }
        return {name: value for name, value in named.items() if value is not None}


class LambdaSource(Protocol):
    """Where lambda comes from."""

    def update(self, groups: Sequence[GroupStatistics]) -> GateReading:
        """Fold one step's kept groups into lambda."""
        ...

    def state_dict(self) -> dict[str, float | None]:
        """Everything that the next lambda depends on."""
        ...

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        """Take the state of another instance."""
        ...


class Gate:
    """Smooths the mix of preference and anchoring from rollout statistics.

    Example:
        gate = Gate(config.algo.gate, scale)
        groups = [compute_group_statistics(rewards, group_size) for rewards in step]
        reading = gate.update([group for group in groups if group is not None])
        loss = (1 - reading.weight) * anchor + reading.weight * preference
    """

    def __init__(self, config: GateConfig, scale: Scale) -> None:
        self._config = config
        self._largest_variance = ((scale.hi - scale.lo) / 2) ** 2  # half the replies at each end of the scale
        self._theta = scale.at(0.5) if config.theta is None else config.theta
        self._k = 20 / (scale.hi - scale.lo) if config.k is None else config.k
        self._previous: float | None = None

    def update(self, groups: Sequence[GroupStatistics]) -> GateReading:
        """Fold one step's groups into lambda. No groups: lambda stays, nothing is learned from silence.

        Before the first group was ever seen there is no lambda to keep; the step is then pure anchoring (0).
        """
        if not groups:
            return GateReading(weight=0.0 if self._previous is None else self._previous)
        raw = _mean([self._config.lambda_max * self._direction(group) * self._information(group) for group in groups])
        alpha = self._config.alpha
        self._previous = raw if self._previous is None else (1 - alpha) * raw + alpha * self._previous
        return GateReading(
            weight=self._previous,
            raw=raw,
            direction=_mean([self._direction(group) for group in groups]),
            information=_mean([self._information(group) for group in groups]),
            noise_variance=_mean([group.noise_variance for group in groups]),
        )

    def state_dict(self) -> dict[str, float | None]:
        """The last lambda; None before the first group."""
        return {"lambda": self._previous}

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        """Take the last lambda of another gate. KeyError: not a gate's state."""
        self._previous = state["lambda"]

    def _direction(self, group: GroupStatistics) -> float:
        return _sigmoid(self._k * (group.best - self._theta))

    def _information(self, group: GroupStatistics) -> float:
        n, size = group.count, group.size
        noise = (n - 1) / n * group.noise_variance if self._config.denoise else 0.0
        survivor_share = (n - 1) * size / (n * (size - 1)) if self._config.correct_missing else 1.0
        return min(max((group.variance - noise) / survivor_share / self._largest_variance, 0.0), 1.0)


class FixedLambda:
    """Lambda is a constant.

    Still reads the groups, so that a fixed run logs what the gate would have seen.
    """

    def __init__(self, weight: float, gate: Gate) -> None:
        self._weight = weight
        self._gate = gate

    def update(self, groups: Sequence[GroupStatistics]) -> GateReading:
        """The same lambda every step, whatever the groups."""
        reading = self._gate.update(groups)
        return GateReading(
            weight=self._weight,
            raw=reading.raw,
            direction=reading.direction,
            information=reading.information,
            noise_variance=reading.noise_variance,
        )

    def state_dict(self) -> dict[str, float | None]:
        """Nothing: the next lambda depends on no history."""
        return {}

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        """Nothing to take."""


def build_lambda_source(config: AlgoConfig, scale: Scale) -> LambdaSource:
    """What ``algo.mix`` names. ``two_stage`` is fixed here: ``decide_step`` sets its first stage to 0."""
    gate = Gate(config.gate, scale)
    return gate if config.mix == "gate" else FixedLambda(config.fixed_lambda, gate)


def _mean(values: list[float]) -> float:
    return fsum(values) / len(values)


def _sigmoid(x: float) -> float:
    """Without overflow for any float."""
    return 1.0 / (1.0 + exp(-x)) if x >= 0 else exp(x) / (1.0 + exp(x))
