"""A study: which methods with which seeds, as a YAML file says it.

    name: tiny                                     # of the page
    common: [run.steps=60]                         # settings of every run
    seeds: [0, 1, 2]
    baseline: gated                                # what the others are held against
    methods:                                       # name -> what is different
      base: untrained                              # what every run begins with
      sft: [algo=sft]
      gated: [algo=gated]
      dpo_text: [algo=dpo_text, data.pairs=@pairs]
    prepare:                                       # what @pairs stands for: wavgate pairs --to FILE ...
      pairs: {verb: pairs, each: seed, arguments: [rollout.group_size=8]}
    arms:                                          # some methods again, under other settings
      noise: {overrides: [judge.noise=0.5], methods: [gated]}
    bootstrap: {draws: 4000, seed: 0}
    notes: ["gated without noise is the floor"]    # said on the page

commands/study/cells.py makes the runs of it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, StringConstraints, ValidationError, model_validator

from conf.fields import Fraction, PositiveInt, StrictModel
from conf.messages import ConfigError, format_value

BASE_METHOD = "base"  # what every run begins with
MAIN_ARM = "main"  # the arm of the methods themselves
UNTRAINED: Literal["untrained"] = "untrained"

StudyName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
OverrideText = Annotated[str, StringConstraints(min_length=1)]
Seed = Annotated[int, Field(ge=0, strict=True)]
Overrides = tuple[OverrideText, ...]


class StudyError(ConfigError):
    """Every problem of one study, a line each: file: field: rule."""

    def __init__(self, file: Path, problems: Sequence[str]) -> None:
        self.problems = [f"{file}: {problem}" for problem in dict.fromkeys(problems)]
        ValueError.__init__(self, "\n".join(self.problems))


class PrepareConfig(StrictModel):
    """A command that makes a file which cells need."""

    verb: Literal["pairs"] = "pairs"
    """Of wavgate; it gets ``--to FILE``, the arguments, the common settings and ``run.seed``."""
    each: Literal["study", "seed"] = "study"
    """One file for all cells (made with the first seed), or one for each seed."""
    arguments: Overrides = ()
    """More settings and flags of the command."""
    minutes: PositiveInt | None = None
    """When it takes longer it is stopped and has failed; the next start goes on with it."""


class ArmConfig(StrictModel):
    """Some methods once more, under other settings."""

    overrides: Annotated[Overrides, Field(min_length=1)]
    """What is different from the main arm."""
    methods: Annotated[tuple[StudyName, ...], Field(min_length=1)]
    """Which methods; the baseline among them, or nothing can be held against it."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None
    """Which seeds; those of the study where it does not say."""


class BootstrapConfig(StrictModel):
    """How intervals are drawn."""

    draws: Annotated[int, Field(ge=100, le=100_000)] = 4000
    """How often prompts and seeds are drawn again."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the draws."""
    level: Annotated[Fraction, Field(gt=0.5, lt=1.0)] = 0.95
    """Share of the draws inside an interval."""


class StudyConfig(StrictModel):
    """A whole study."""

    name: str = Field(min_length=1)
    """For people."""
    common: Overrides = ()
    """Settings of every run."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    """One run of every method with each."""
    baseline: StudyName = "gated"
    """The method that the others are held against."""
    methods: Annotated[dict[StudyName, Literal["untrained"] | Overrides], Field(min_length=1)]
    """Name -> settings; ``base: untrained`` is what every run begins with."""
    prepare: dict[StudyName, PrepareConfig] = Field(default_factory=dict)
    """Name -> command; ``setting=@NAME`` stands for the file that it makes."""
    arms: dict[StudyName, ArmConfig] = Field(default_factory=dict)
    """Name -> methods under other settings."""
    bootstrap: BootstrapConfig = BootstrapConfig()
    notes: tuple[Annotated[str, StringConstraints(min_length=1)], ...] = ()
    """Reading aids of this study, shown on its page as they are."""
    minutes: PositiveInt | None = None
    """A cell that takes longer is stopped (it keeps its checkpoint) and counts as failed."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        trained = [name for name, overrides in self.methods.items() if overrides != UNTRAINED]
        for name, overrides in self.methods.items():
            if (overrides == UNTRAINED) != (name == BASE_METHOD):
                raise ValueError(
                    f"methods.{name}: {BASE_METHOD} alone must be untrained (got {format_value(overrides)})"
                )
        for field, seeds in (
            ("seeds", self.seeds),
            *((f"arms.{a}.seeds", arm.seeds) for a, arm in self.arms.items()),
        ):
            if seeds is not None and len(set(seeds)) < len(seeds):
                raise ValueError(f"{field}: must differ from each other (got {format_value(list(seeds))})")
        if self.baseline not in trained:
            raise ValueError(f"baseline: must be one of {', '.join(trained)} (got {self.baseline})")
        for name, arm in self.arms.items():
            if name == MAIN_ARM:
                raise ValueError(f"arms.{MAIN_ARM}: is what the study itself is called: choose another name")
            for method in arm.methods:
                if method not in trained:
                    raise ValueError(f"arms.{name}.methods: must be of {', '.join(trained)} (got {method})")
        return self


def read_study(file: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """A study file, with more common settings. StudyError: everything that is wrong with it."""
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise StudyError(file, ["must be a file, no folder and no pipe"])
    try:
        raw = yaml.load(file.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(file, [f"must be a readable file: {getattr(error, 'strerror', None) or error}"]) from None
    except yaml.YAMLError as error:
        raise StudyError(file, [f"must be YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(raw, dict):
        raise StudyError(file, [f"must be a mapping with name, seeds and methods (got {format_value(raw)})"])
    try:
        study = StudyConfig.model_validate(raw)
    except ValidationError as error:
        raise StudyError(file, list(_format_problems(error))) from None
    return study.model_copy(update={"common": (*study.common, *overrides)})


def _format_problems(error: ValidationError) -> Iterator[str]:
    for detail in error.errors(include_url=False):
        key = ".".join(str(part) for part in detail["loc"] if not str(part).startswith(("tuple", "literal")))
        if detail["type"] == "value_error":
            yield str(detail["ctx"]["error"])
        elif detail["type"] == "extra_forbidden":
            known = f"; there are {', '.join(StudyConfig.model_fields)}" if "." not in key else ""
            yield f"{key}: unknown field{known}"
        elif detail["type"] == "missing":
            yield f"{key}: must be set"
        elif detail["type"] != "literal_error" or detail["loc"][0] != "methods":  # the list's own error tells more
            rule = re.sub(r"^(Input|String|Value|Tuple|Dictionary) should", "must", detail["msg"])
            rule = rule.replace("a valid tuple", "a list").replace("a valid dictionary", "a mapping")
            yield f"{key}: {rule} (got {format_value(detail['input'])})"


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a name that stands twice is an error: the second would replace the first unseen."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: Mapping[Any, Any] = super().construct_mapping(node, deep)
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {twice[0]} stands twice")
        return dict(mapping)
