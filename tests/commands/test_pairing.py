"""`wavgate pairs`: who is best and worst, what is written, and that a stopped command ends as one that was not."""

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.collect import JudgedBatch
from actors.errors import UserError
from commands.cli import main
from commands.pairs.files import PairFiles
from commands.pairs.outcome import PairOutcome
from commands.pairs.sampling import PairSampler
from commands.pairs.verb import load_pair_settings, make_preference_pairs, prepare_pair_job
from conf.load import ConfigError
from judge.types import MissingVerdict, ReplyJudgement, ScoredVerdict, Verdict
from learner.decide import ReplyGroup
from learner.extremes import NoPair, pick_best_and_worst
from learner.statistics import minimum_valid_rewards
from rollout.request import example_to_prompt
from rollout.sampling import STEP_OUTSIDE_TRAINING, build_step_sampling
from rollout.types import Prompt, Reply
from rollout.worker import build_rollout_worker
from speech.data.manifest import ManifestRow, read_manifest
from speech.data.pairs import read_pairs
from speech.sound import audio
from store.journal import Journal

WORLD = Path(__file__).parents[2] / "examples" / "tiny_world"
SMALL = ["judge.workers=1", "rollout.prompts_per_step=2", "rollout.engine=torch"]

# --- best and worst -------------------------------------------------------------------------------------------

Rewards = list[float | None]


@given(st.lists(st.none() | st.sampled_from([1.0, 1.5, 2.0, 3.7, 5.0]), min_size=2, max_size=9), st.floats(0, 4))
def test_best_and_worst_are_those_of_the_valid_rewards_and_the_first_of_equals(
    rewards: Rewards, margin: float
) -> None:
    best_and_worst = pick_best_and_worst(rewards, margin)
    valid = [reward for reward in rewards if reward is not None]
    if len(valid) < minimum_valid_rewards(len(rewards)):
        assert isinstance(best_and_worst, NoPair) and best_and_worst.why == "verdicts"
    elif isinstance(best_and_worst, NoPair):
        assert best_and_worst.why == "margin" and max(valid) - min(valid) <= margin
    else:
        assert best_and_worst == (rewards.index(max(valid)), rewards.index(min(valid)))
        assert max(valid) - min(valid) >= margin - 1e-6 and best_and_worst[0] != best_and_worst[1]


@pytest.mark.parametrize(
    ("rewards", "margin", "actual"),
    [
        ([3.0, 3.5], 0.5, (1, 0)),
        ([4.1, 3.6], 0.5, (0, 1)),  # 0.49999999999999956 apart
        ([4.1, 3.61], 0.5, None),
        ([2.0, None, 5.0, 5.0, 2.0, None], 0.5, (2, 0)),
        ([3.0, 3.0, 3.0], 0.0, None),
        ([3.0, None], 0.0, None),
    ],
)
def test_a_margin_is_met_or_not(rewards: Rewards, margin: float, actual: tuple[int, int] | None) -> None:
    got = pick_best_and_worst(rewards, margin)
    assert (None if isinstance(got, NoPair) else got) == actual


# --- a command whose model and judge are made up ---------------------------------------------------------------


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Six rows of the tiny world in a folder of their own, two of them with the same clips."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    lines = (WORLD / "data" / "train.jsonl").read_text().splitlines()[:6]
    rows = [json.loads(line) for line in lines]
    rows[5] = rows[4] | {"id": "twin"}
    for row in rows:
        for clip in {*(clip for clips in row["audios"] for clip in clips), *row["sft_target_audio"]}:
            (folder / clip).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(WORLD / "data" / clip, folder / clip)
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "m.jsonl"


BROKEN = MissingVerdict(judge="j", kind="server", reason="503", retryable=True)
UNCLEAR = MissingVerdict(judge="j", kind="malformed", reason="no score")


def scored(value: float) -> ScoredVerdict:
    return ScoredVerdict(value=value, judge="j/1", spread=0.25)


class World:
    """Replies with sound to each prompt and the verdicts that are asked for; ``asked``: prompts, in order."""

    def __init__(self, verdicts: Callable[[str], Sequence[Verdict]] | None = None) -> None:
        self.verdicts = verdicts or (lambda name: [scored(1.0 + i + len(name) % 2) for i in range(3)])
        self.asked: list[str] = []
        self.same_tokens = False

    def of(self, files: PairFiles) -> Callable[[Sequence[ManifestRow]], Any]:
        async def collect(rows: Sequence[ManifestRow]) -> JudgedBatch:
            self.asked += [row.id for row in rows]
            groups = tuple(self._group(files, row.id) for row in rows)
            return JudgedBatch(groups=groups, generate_s=1.0, judge_s=0.0)

        return collect

    def _group(self, files: PairFiles, name: str) -> ReplyGroup:
        replies = []
        for index, verdict in enumerate(self.verdicts(name)):
            ids = (40, 4, 50 + index * (not self.same_tokens), 5, 3)
            reply = Reply(
                prompt_id=name, index=index, ids=ids, logps=(-1.0,) * 5, channels="TBABE", sampled=(True,) * 4 + (False,),
                versions=(0,) * 5, finish="stop", text=f"word {index}", well_formed=True,
            )  # fmt: skip
            if index:  # the first has no sound
                path = files.sampling_path(reply)
                path.parent.mkdir(parents=True, exist_ok=True)
                audio.write(path, np.tile(np.float32([0, index / 10]), 800), 16_000)
            axes = {"semantic": verdict, "acoustic": BROKEN}
            judged = ReplyJudgement(prompt_id=name, index=index, axes=axes, reward=verdict, transcript="x", figures={})
            replies.append((reply, judged))
        return ReplyGroup(prompt=Prompt(id=name, ids=(2, 7)), replies=tuple(replies))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Instead of actors."""
    made = World()

    def run(self: PairSampler, todo: Sequence[ManifestRow], probed: object) -> None:
        asyncio.run(self.sample_prompts(todo, made.of(self._files), lambda number, metrics: None))

    monkeypatch.setattr(PairSampler, "run", run)
    return made


def command(prompts: Path, to: Path, *more: str) -> int:
    return main(["pairs", "--to", str(to), "--manifest", str(prompts), "--samples", "3", *SMALL, *more])


def test_a_row_holds_what_was_sampled_and_what_was_found(prompts: Path, world: World, tmp_path: Path) -> None:
    assert command(prompts, tmp_path / "out.jsonl") == 0
    rows = read_pairs(tmp_path / "out.jsonl", 60.0, deep=True)
    given = read_manifest(prompts, 60.0)
    assert [row.id for row in rows] == [row.id for row in given]
    item, source = rows[0], given[0]
    assert (item.messages, item.question_text, item.answer, item.style) == (
        source.messages, source.question_text, source.answer, source.style
    )  # fmt: skip
    assert (item.chosen.index, item.rejected.index, item.margin, item.weight) == (2, 0, 2.0, 1.0)
    assert (item.chosen.ids, item.chosen.channels, item.chosen.sampled) == ((40, 4, 52, 5, 3), "TBABE", "11110")
    assert item.prompt_ids == (2, 7) and item.chosen.text == "word 2" and item.chosen.transcript == "x"
    assert (item.rejected.audio, item.chosen.audio) == ((), (f"out.files/replies/{item.id}_2.ogg",))
    assert list(item.chosen.scores) == ["semantic"] and item.chosen.scores["semantic"].spread == 0.25
    made = item.provenance
    assert made is not None and made.samples == 3 and made.family == "tiny" and len(made.model) == 16
    assert made.weights == {"semantic": 0.5, "acoustic": 0.5} and made.temperature == 1.0 and made.source
    for clip, copy in zip(source.audios[0], item.audios[0], strict=True):
        assert (prompts.parent / clip).read_bytes() == (tmp_path / copy).read_bytes()
    assert rows[4].audios == rows[5].audios, "clips of the same content are kept once"
    kept = {path.name for path in (tmp_path / "out.files" / "replies").iterdir()}
    assert kept == {f"{row.id}_2.ogg" for row in rows} and not (tmp_path / "out.files" / "sampling").exists()


def test_pairs_can_be_moved_with_their_folder(prompts: Path, world: World, tmp_path: Path) -> None:
    command(prompts, tmp_path / "out.jsonl")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("out.jsonl", "out.files"):
        shutil.move(tmp_path / name, elsewhere / name)
    shutil.rmtree(prompts.parent)
    assert main(["data", "check", str(elsewhere / "out.jsonl")]) == 0


def test_a_command_that_was_stopped_ends_with_the_same_bytes_and_asks_nothing_twice(
    prompts: Path,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, parts = tmp_path / "a" / "out.jsonl", tmp_path / "b" / "out.jsonl"
    whole.parent.mkdir()
    parts.parent.mkdir()
    command(prompts, whole)
    everything, world.asked = world.asked, []
    add = Journal.append_entry
    for stop in (1, 4):

        def interrupted(journal: Journal[Any, Any], actual: Any, stop: int = stop) -> None:
            add(journal, actual)
            if len(journal.entries) == stop:
                raise KeyboardInterrupt

        monkeypatch.setattr(Journal, "append_entry", interrupted)
        assert command(prompts, parts) == 130
        assert f"pairs: {stop} of 6 prompts are kept; the same command goes on" in capsys.readouterr().err
        assert not parts.exists()
        with (parts.parent / "out.journal.jsonl").open("ab") as journal:
            journal.write(b'{"id": "x", "pai')
    monkeypatch.setattr(Journal, "append_entry", add)
    assert command(prompts, parts) == 0
    assert parts.read_bytes() == whole.read_bytes()
    names = sorted(path.relative_to(whole.parent) for path in whole.parent.rglob("*"))
    assert sorted(path.relative_to(parts.parent) for path in parts.parent.rglob("*")) == names
    twice = [name for name, times in Counter(world.asked).items() if times > 1]
    assert twice == [everything[1], everything[4]], "what was in hand when it stopped"
    assert set(world.asked) == set(everything)
    world.asked.clear()
    assert command(prompts, parts) == 0 and world.asked == [] and parts.read_bytes() == whole.read_bytes()


def test_what_gives_no_pair_is_counted_and_a_failed_judge_is_asked_again(
    prompts: Path, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [row.id for row in read_manifest(prompts, 60.0)]
    fates: dict[str, list[Verdict]] = {
        names[0]: [scored(3.0), scored(3.2), scored(3.4)],
        names[1]: [scored(3.0), UNCLEAR, UNCLEAR],
        names[2]: [scored(5.0), BROKEN, UNCLEAR],
        names[3]: [scored(5.0), BROKEN, scored(1.0)],
    }
    world.verdicts = lambda name: fates.get(name, [scored(1.0), scored(2.0), scored(2.0)])
    out = tmp_path / "out.jsonl"
    assert command(prompts, out, "judge.max_missing=1") == 0
    shown = capsys.readouterr().out
    assert f"{out}: 3 pairs of 6 prompts, 3 replies each, by 0.5 semantic + 0.5 acoustic" in shown
    assert "no pair: 1 with best and worst too close, 2 with too few verdicts" in shown
    assert "verdicts missing: malformed 3, server 2" in shown and "1 prompts are open" in shown
    content = json.loads((tmp_path / "out.files" / "summary.json").read_text())
    assert content["dropped"] == {"margin": 1, "verdicts": 2} and content["again"] == 1 and content["pairs"] == 3
    assert [row.id for row in read_pairs(out, 60.0)] == names[3:]
    world.asked.clear()
    fates[names[2]] = [scored(5.0), scored(1.0), UNCLEAR]
    assert command(prompts, out, "judge.max_missing=1") == 0
    assert world.asked == [names[2]]
    assert [row.id for row in read_pairs(out, 60.0)] == names[2:]


def test_the_same_tokens_are_no_pair_and_without_any_pair_nothing_is_written(
    prompts: Path, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world.same_tokens = True
    assert command(prompts, tmp_path / "out.jsonl") == 1
    shown = capsys.readouterr()
    assert "stopped: no prompt gave a pair: nothing is written" in shown.err
    assert "no pair: 6 with the same tokens in best and worst" in shown.out
    assert not (tmp_path / "out.jsonl").exists()


def test_an_outage_stops_and_keeps_what_was_judged(
    prompts: Path, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    down = {row.id for row in read_manifest(prompts, 60.0)[3:]}
    world.verdicts = lambda name: [BROKEN] * 3 if name in down else [scored(1.0), scored(2.0), scored(5.0)]
    assert command(prompts, tmp_path / "out.jsonl", "rollout.prompts_per_step=1") == 1
    err = capsys.readouterr().err
    assert "3 of 3 verdicts are missing" in err and "4 of 6 prompts are kept; the same command goes on" in err
    assert not (tmp_path / "out.jsonl").exists()
    world.asked.clear()
    down.clear()
    assert command(prompts, tmp_path / "out.jsonl", "rollout.prompts_per_step=1") == 0
    assert len(world.asked) == 3 and len(read_pairs(tmp_path / "out.jsonl", 60.0)) == 6


def test_a_journal_is_gone_on_with_by_the_same_command_only(
    prompts: Path, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    command(prompts, out)
    before = out.read_bytes()
    assert command(prompts, out, "judge.deadline_s=9", "cluster.restarts=1") == 0, "changes nothing that is written"
    for other in (
        "run.seed=1", "rollout.temperature=0.7", "judge.semantic=0.7", "rollout.grammar=true", "algo.margin=0.4",
    ):  # fmt: skip
        assert command(prompts, out, other) == 2
        assert "was begun with other settings: remove it, or choose another --to" in capsys.readouterr().err
    first = next(iter(sorted(prompts.parent.glob("bank/*/*.flac"))))
    first.write_bytes((WORLD / "data" / "bank" / "rms" / "twelve.flac").read_bytes())
    assert command(prompts, out) == 2
    assert "was begun with other prompts" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_what_is_not_ours_is_not_written_over(prompts: Path, world: World, tmp_path: Path) -> None:
    mine = prompts.with_name("mine.jsonl")
    mine.write_text("mine")
    with pytest.raises(UserError, match=r"mine\.jsonl exists, and no mine\.journal\.jsonl that it belongs to"):
        make_preference_pairs(mine, 3, prompts, None, SMALL)
    (tmp_path / "x.files").mkdir()
    with pytest.raises(UserError, match=r"x\.files exists"):
        make_preference_pairs(tmp_path / "x.jsonl", 3, prompts, None, SMALL)
    for to in ("out.json", "none/out.jsonl"):
        with pytest.raises(UserError, match=r"must be a \.jsonl file in a folder that exists"):
            make_preference_pairs(tmp_path / to, 3, prompts, None, SMALL)
    (tmp_path / "y.journal.jsonl").write_text("mine\n")
    with pytest.raises(UserError, match="not a line that `wavgate pairs` wrote"):
        make_preference_pairs(tmp_path / "y.jsonl", 3, prompts, None, SMALL)
    assert (mine.read_text(), world.asked) == ("mine", [])


def test_a_mistake_leaves_nothing_behind(prompts: Path, world: World, tmp_path: Path) -> None:
    for more in (["judge.semantic=-1"], ["model.path=/nowhere"], ["--samples", "1"], ["resume=x"]):
        assert command(prompts, tmp_path / "out.jsonl", *more) == 2
    assert command(tmp_path / "none.jsonl", tmp_path / "out.jsonl") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["prompts"]


# --- settings -------------------------------------------------------------------------------------------------


def test_samples_and_utility_are_the_papers_unless_something_is_said() -> None:
    plain = load_pair_settings(None, [])
    assert plain.rollout.group_size == 8
    assert (plain.judge.semantic, plain.judge.acoustic, plain.judge.holistic) == (0.5, 0.5, 0.0)
    assert load_pair_settings(4, ["judge.workers=1"]).rollout.group_size == 4
    own = load_pair_settings(None, ["judge.semantic=0.7", "rollout.group_size=3"])
    assert (own.judge.semantic, own.judge.acoustic, own.rollout.group_size) == (0.7, 0.4, 3)
    with pytest.raises(UserError, match=r"--samples and rollout\.group_size are the same"):
        load_pair_settings(4, ["rollout.group_size=3"])
    with pytest.raises(UserError, match=r"--samples: a pair needs at least 2 replies: got 1"):
        load_pair_settings(1, [])
    for item in ("algo=gated", "algo=sft"):  # the first is refused as a run would be, the second for a pair
        with pytest.raises((UserError, ConfigError), match=r"rollout\.group_size: .* at least 2"):
            load_pair_settings(None, [item, "rollout.group_size=1"])


def test_no_step_of_a_run_samples_with_this_seed() -> None:
    config = load_pair_settings(None, ["run.seed=3"])
    steps = (STEP_OUTSIDE_TRAINING, 1, config.run.steps)
    seeds = [build_step_sampling(config.rollout, config.run.seed, step).seed for step in steps]
    assert seeds[0] == 3_000_000 and seeds[0] not in seeds[1:]


# --- for real -------------------------------------------------------------------------------------------------


def test_on_ray_the_rows_are_what_the_model_says_and_are_trained_on_as_they_are(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    asked = ["rollout.max_new_tokens=60", "rollout.prompts_per_step=6"]
    assert command(prompts, out, *asked) == 0
    work = prepare_pair_job(3, prompts, None, [*SMALL, *asked])
    rows = read_pairs(out, 60.0, deep=True)
    assert rows and work.provenance == rows[0].provenance

    async def replies() -> dict[tuple[str, int], Reply]:
        worker = build_rollout_worker(work.config, Path.cwd())
        examples = worker.encode(prompts, work.rows)
        given = [example_to_prompt(example) for example in examples]
        sampling = build_step_sampling(work.config.rollout, work.config.run.seed, STEP_OUTSIDE_TRAINING)
        actual = {(reply.prompt_id, reply.index): reply async for reply, _ in worker.generate(given, sampling)}
        for row, pair in zip(rows, worker.encode_pairs(out, rows), strict=True):
            assert (pair.prompt.ids, pair.chosen.ids) == (row.prompt_ids, row.chosen.ids)
            assert next(item.ids for item in given if item.id == row.id) == pair.prompt.ids
            for side, kept in ((pair.chosen, row.chosen), (pair.rejected, row.rejected)):
                reply = actual[row.id, kept.index or 0]
                assert (side.ids, side.channels, side.sampled) == (reply.ids, reply.channels, reply.sampled)
        worker.close()
        return actual

    actual = asyncio.run(replies())
    for row in rows:
        for kept in (row.chosen, row.rejected):
            assert kept.text == actual[row.id, kept.index or 0].text
        assert row.margin is not None and row.margin >= 0.5 and row.chosen.reward is not None
        assert row.chosen.scores.keys() == {"semantic", "acoustic"}
    journal = (tmp_path / "out.journal.jsonl").read_text().splitlines()
    assert len(journal) == 7 and all(PairOutcome.model_validate_json(line) for line in journal[1:])
