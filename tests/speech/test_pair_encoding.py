"""A pair is trained on as it was sampled where it has its tokens, and only by a model they were made for."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.checks.pairs import example_to_pair
from actors.checks.prepare import prepare_job
from actors.errors import UserError
from conf.schema import ModelConfig
from learner.types import NO_ADVANTAGE
from rollout.worker import RolloutWorker
from speech.checkpoints.layout import fingerprint_layout
from speech.data.manifest import AUDIO_MARKER, DialogueMessage, ManifestError
from speech.data.pairs import PairProvenance, PairReply, PairRow
from speech.dataset import Response, RowEncoder, RowLengths
from speech.families import load_family
from speech.families.base import Family
from speech.sound import audio
from speech.turns import AudioPart, ReplyChunk, Turn

WORLD = Path(__file__).parents[2] / "examples" / "tiny_world"


@pytest.fixture(scope="module")
def family(micro_checkpoint: Path) -> Family:
    return load_family(ModelConfig(family="tiny", path=micro_checkpoint))


@pytest.fixture
def folder(tmp_path: Path, family: Family) -> Path:
    """Three tones of half a second."""
    rate = family.codec().sample_rate
    for pitch in (1, 2, 3):
        wave = 0.3 * np.sin(np.arange(rate // 2) * pitch / 20)
        audio.write(tmp_path / f"{pitch}.wav", wave.astype(np.float32), rate)
    return tmp_path


def heard(family: Family, **changes: Any) -> PairRow:
    """Words and sound alone."""
    row = PairRow(
        id="r1",
        messages=(DialogueMessage(role="user", content="say it"), DialogueMessage(role="user", content=AUDIO_MARKER)),
        audios=(("1.wav", "2.wav"),),
        chosen=PairReply(text="nine ten", audio=("2.wav", "3.wav")),
        rejected=PairReply(text="nine ten", audio=("3.wav",)),
        weight=0.5,
    )
    return row.model_copy(update=changes)


def sampled(family: Family, **changes: Any) -> PairRow:
    """With its tokens: a reply cut short, one id of the other forced."""
    whole = family.encode_target([ReplyChunk(text="nine", codes=(1, 2))])
    cut = whole[:-3]
    made = PairProvenance(
        model="m", family="tiny", layout=fingerprint_layout(family), weights={}, samples=2, temperature=1.0,
        max_new_tokens=9, grammar=True, seed=0, commit=None, source="s",
    )  # fmt: skip
    letters = family.channels.to_letters
    row = heard(family).model_copy(
        update={
            "chosen": PairReply(text="nine", ids=whole, channels=letters(whole), sampled="1" * (len(whole) - 1) + "0"),
            "rejected": PairReply(text="nine", ids=cut, channels=letters(cut), sampled="1" * len(cut)),
            "prompt_ids": (2, 7, 4),
            "provenance": made,
        }
    )
    return row.model_copy(update=changes)


def test_tokens_are_used_as_they_stand_and_no_sound_is_read(family: Family, tmp_path: Path) -> None:
    row = sampled(family)
    (pair,) = RolloutWorker(None, family).encode_pairs(tmp_path / "none.jsonl", [row])  # type: ignore[arg-type]
    assert (pair.row_id, pair.prompt.ids, pair.weight) == ("r1", (2, 7, 4), 0.5)
    assert (pair.chosen.ids, pair.chosen.channels) == (row.chosen.ids, "TBAABE")
    assert pair.chosen.sampled == (True,) * 5 + (False,)
    assert (pair.rejected.ids, pair.rejected.channels) == (row.rejected.ids, "TBA")
    assert RowLengths(family, tmp_path).count_pair_ids(row) == (3, 6, 3)


def test_the_learner_is_told_that_this_run_did_not_sample_a_pair(family: Family, tmp_path: Path) -> None:
    example = RowEncoder(family, tmp_path, 60.0).encode_pair(sampled(family))
    pair = example_to_pair(example)
    assert pair.weight == 0.5
    for trained, side in ((pair.chosen, example.chosen), (pair.rejected, example.rejected)):
        assert trained.key is None and trained.advantage == NO_ADVANTAGE
        assert (trained.prompt.id, trained.prompt.ids, trained.reply) == ("r1", example.prompt.ids, side)


def test_words_and_sound_are_encoded_word_by_word_where_there_is_a_clip_each(family: Family, folder: Path) -> None:
    pair = RowEncoder(family, folder, 60.0).encode_pair(heard(family))
    one, two, three = (
        family.codec().encode(audio.read(folder / f"{i}.wav", family.codec().input_sample_rate, 60.0))
        for i in (1, 2, 3)
    )
    chunks = [ReplyChunk(text="nine", codes=tuple(two)), ReplyChunk(text="ten", codes=tuple(three))]
    assert pair.chosen == response(family, chunks)
    assert pair.rejected == response(family, [ReplyChunk(text="nine ten", codes=tuple(three))])
    spoken = Turn.from_parts("user", AudioPart(codes=tuple(one + two)))
    assert pair.prompt == family.encode_prompt([Turn.from_parts("user", "say it"), spoken])
    assert len(pair.prompt.ids) == RowLengths(family, folder).count_pair_ids(heard(family))[0]
    assert RowLengths(family, folder).count_pair_ids(heard(family))[1:] == (
        len(pair.chosen.ids),
        len(pair.rejected.ids),
    )


def response(family: Family, chunks: list[ReplyChunk]) -> Response:
    ids = family.encode_target(chunks)
    return Response(ids=ids, channels=family.channels.to_letters(ids), sampled=(True,) * len(ids))


def test_words_and_sound_do_not_ask_for_whom_they_were_made(family: Family, folder: Path) -> None:
    made = sampled(family).provenance
    assert made is not None
    elsewhere = made.model_copy(update={"layout": "0" * 16})
    encoder = RowEncoder(family, folder, 60.0)
    assert encoder.encode_pair(heard(family, provenance=elsewhere)) == encoder.encode_pair(heard(family))
    with pytest.raises(ValueError, match=rf"row r1: its ids were made for tiny of layout {'0' * 16}, the model is"):
        encoder.encode_pair(sampled(family, provenance=elsewhere))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_ids": (2, 10**6)}, "id must lie in"),
        ({"chosen": PairReply(text="", ids=(10**6,), channels="T", sampled="1")}, "id must lie in"),
        (
            {"rejected": PairReply(text="", ids=(3,), channels="T", sampled="1")},
            "channels must be those of the ids",
        ),
    ],
)
def test_tokens_that_the_model_does_not_have_are_refused_by_row(
    changes: dict[str, Any], message: str, family: Family, folder: Path
) -> None:
    with pytest.raises(ValueError, match=f"row r1: {message}"):
        RowEncoder(family, folder, 60.0).encode_pair(sampled(family, **changes))


def test_a_layout_is_tokenizer_and_codec_and_not_weights(micro_checkpoint: Path, tmp_path: Path) -> None:
    def changed(name: str, old: bytes, new: bytes) -> str:
        copy = tmp_path / name
        shutil.copytree(micro_checkpoint, copy)
        content = (copy / name).read_bytes()
        assert old in content
        (copy / name).write_bytes(content.replace(old, new, 1))
        return fingerprint_layout(load_family(ModelConfig(family="tiny", path=copy)))

    ours = fingerprint_layout(load_family(ModelConfig(family="tiny", path=micro_checkpoint)))
    assert changed("config.json", b'"intermediate_size": 128', b'"intermediate_size": 129') == ours
    assert changed("tokenizer.json", b'"twenty"', b'"thirty"') != ours
    assert changed("codec.safetensors", b"12", b"13") != ours


# --- before a run ---------------------------------------------------------------------------------------------

PLAIN = ["learner.ranks=1", "judge.workers=1", "rollout.prompts_per_step=1"]
SETTINGS = [*PLAIN, "algo=dpo_text"]


def pairs_file(folder: Path, *rows: dict[str, Any]) -> Path:
    for clip, word in (("q.flac", "answer"), ("a.flac", "twelve"), ("b.flac", "eleven")):
        shutil.copy(WORLD / "data" / "bank" / "rms" / f"{word}.flac", folder / clip)
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


THEIRS: dict[str, Any] = {
    "messages": [{"role": "user", "content": AUDIO_MARKER}],
    "audios": ["q.flac"],
    "sft_target_text": "twelve",
    "sft_target_audio": "a.flac",
    "rejected_text": "eleven",
    "rejected_audio": "b.flac",
    "score_gap": 0.25,
}


def test_a_run_knows_its_pairs_before_it_starts(tmp_path: Path) -> None:
    path = pairs_file(tmp_path, THEIRS, THEIRS | {"score_gap": 2})
    job = prepare_job([*SETTINGS, "algo=dpo_text", f"data.pairs={path}"])
    assert [row.id for row in job.pairs] == ["line-1", "line-2"]
    assert job.notes[-1] == "data.pairs: 1 of 2 are less than algo.margin apart, and used"
    assert prepare_job(PLAIN).pairs == prepare_job([*PLAIN, f"data.pairs={path}"]).pairs == (), "DPO alone reads them"
    with pytest.raises(UserError, match=r"rollout\.prompts_per_step=3 needs as many pairs: .* has 2"):
        prepare_job([*SETTINGS, "algo=dpo_text", "rollout.prompts_per_step=3", f"data.pairs={path}"])


def test_pairs_that_the_model_cannot_use_are_named_by_line(tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": AUDIO_MARKER * 60}], "audios": ["a.flac"] * 60}
    other = json.loads(
        sampled(load_family(ModelConfig(family="tiny", path=WORLD / "base"))).model_dump_json(exclude={"audios"})
    )
    path = pairs_file(tmp_path, THEIRS, THEIRS | {"sft_target_text": "xylophone"}, THEIRS | long)
    with pytest.raises(ManifestError) as caught:
        prepare_job([*SETTINGS, "algo=dpo_text", f"data.pairs={path}"])
    message = str(caught.value)
    assert "pairs.jsonl:2: word is not in the model's vocabulary: xylophone" in message
    assert "pairs.jsonl:3:chosen: prompt + reply must fit model.max_length=512: got" in message
    other["messages"] = [{"role": "user", "content": "say it"}]
    other["provenance"]["layout"] = "f" * 16
    with pytest.raises(ManifestError, match=r"pairs\.jsonl:1: its ids were made for tiny of layout ffff"):
        prepare_job([*SETTINGS, "algo=dpo_text", f"data.pairs={pairs_file(tmp_path, other)}"])
