"""The pairs of ``data.pairs``: which of them a run can train on, and a pair as its learner takes it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from actors.errors import UserError
from conf.schema import Config
from learner.types import PreferencePair, Rollout
from speech.data.pairs import PairRow, read_pairs
from speech.data.problems import ManifestError, Problem
from speech.dataset import PairExample, Response, RowLengths
from speech.families.base import Family


def load_usable_pairs(config: Config, family: Family) -> Sequence[PairRow]:
    """All pairs, checked before anything starts; none where the objective reads none.

    ManifestError lists all problems. UserError: there are fewer than a step draws.
    """
    path = config.data.pairs
    if path is None or config.algo.loss != "dpo":
        return ()
    rows = read_pairs(path, config.data.max_seconds)
    if any(row.prompt_ids is None for row in rows):  # then sound will be encoded: see that it can be read
        rows = read_pairs(path, config.data.max_seconds, deep=True)
    problems = list(_find_unusable_pairs(rows, path, family, config.model.max_length))
    if problems:
        raise ManifestError(problems)
    if len(rows) < config.rollout.prompts_per_step:
        raise UserError(
            f"rollout.prompts_per_step={config.rollout.prompts_per_step} needs as many pairs: {path} has {len(rows)}"
        )
    return rows


def example_to_pair(example: PairExample) -> PreferencePair:
    """An encoded row of a manifest as the learner takes it; this run did not sample it."""

    def reply(index: int, side: Response) -> Rollout:
        return Rollout(
            prompt_id=example.row_id,
            index=index,
            prompt_ids=example.prompt.ids,
            features=example.prompt.features,
            ids=side.ids,
            logps=None,
            channels=side.channels,
            sampled=side.sampled,
        )

    chosen, rejected = (reply(index, side) for index, side in enumerate((example.chosen, example.rejected)))
    return PreferencePair(chosen=chosen, rejected=rejected, weight=example.weight)


def _find_unusable_pairs(rows: Sequence[PairRow], path: Path, family: Family, max_length: int) -> Iterator[Problem]:
    lengths = RowLengths(family, path.parent)
    for line, row in enumerate(rows, start=1):
        try:
            prompt, *replies = lengths.count_pair_ids(row)
        except ValueError as error:
            yield Problem(path, line, "", str(error))
            continue
        for side, tokens in zip(("chosen", "rejected"), replies, strict=True):
            if prompt + tokens > max_length:
                rule = f"prompt + reply must fit model.max_length={max_length}"
                yield Problem(path, line, side, f"{rule}: got {prompt + tokens} tokens")
