"""Words and sound in one turn, in every family: a manifest's rows are encoded, measured and told again alike."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.collect import row_to_judge_task
from conf.schema import ModelConfig
from speech.data import manifest
from speech.data.manifest import AUDIO_MARKER
from speech.dataset import RowEncoder, RowLengths
from speech.families import load_family
from speech.families.base import Family
from speech.sound import audio
from tests.helpers import micro_glm4_voice as glm4_voice
from tests.helpers import micro_kimi_audio as kimi_audio
from tests.helpers import micro_step_audio2 as step_audio2
from tests.helpers import micro_vita_audio as vita_audio
from tests.helpers.micro_world import clip

SECONDS = 10.0
REPLY = "the answer is two"
WRITE: dict[str, Callable[[Path], Path]] = {
    "vita_audio": vita_audio.write_checkpoint,
    "vita_audio plus": lambda path: vita_audio.write_checkpoint(path, "plus"),
    "glm4_voice": glm4_voice.write_checkpoint,
    "step_audio2": step_audio2.write_checkpoint,
    "kimi_audio": kimi_audio.write_checkpoint,
}


@pytest.fixture(scope="module", params=WRITE)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    root, name = tmp_path_factory.mktemp("turns"), request.param.partition(" ")[0]
    codec = step_audio2.write_codec if name == "step_audio2" else glm4_voice.write_codec
    path, codec_path = WRITE[request.param](root / "model"), codec(root / "codec")
    return load_family(ModelConfig(family=name, path=path, codec=codec_path, system=""))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, seconds in (("q", 0.7), ("p", 0.9), ("a", 1.5), ("b", 0.6)):
        audio.write(folder / f"{name}.wav", clip(seconds, ord(name)), 16_000)
    return folder


def row(data: Path, messages: list[tuple[str, str]], audios: list[list[str]]) -> manifest.ManifestRow:
    content = {
        "id": "r",
        "messages": [{"role": role, "content": said} for role, said in messages],
        "audios": audios,
        "question_text": "what",
        "task_type": "say",
        "sft_target_text": REPLY,
        "sft_target_audio": ["a.wav"],
    }
    (data / "rows.jsonl").write_text(json.dumps(content) + "\n")
    (read,) = manifest.read_manifest(data / "rows.jsonl", SECONDS, deep=True)
    return read


def held(ids: tuple[int, ...], part: tuple[int, ...]) -> bool:
    return any(ids[i : i + len(part)] == part for i in range(len(ids) - len(part) + 1))


def test_rows_of_mixed_turns_are_encoded_and_their_lengths_are_known_beforehand(family: Family, data: Path) -> None:
    asked = [
        ("system", f"the voice: {AUDIO_MARKER}\n"),
        ("user", f"what is\n\n{AUDIO_MARKER}"),
        ("assistant", f"{REPLY}\n{AUDIO_MARKER}"),
        ("user", f"{AUDIO_MARKER}two? {AUDIO_MARKER}\n"),
    ]
    mixed = row(data, asked, [["b.wav"], ["q.wav", "p.wav"], ["a.wav"], ["p.wav"], ["q.wav"]])
    example = RowEncoder(family, data, SECONDS).encode(mixed)
    assert RowLengths(family, data).count_ids(mixed) == (len(example.prompt.ids), len(example.target.ids))
    hears = {role for role in ("system", "user") if family.audio_input_of(role) != "codes"}
    features = example.prompt.features
    assert (features is None) == (not hears)
    if features is not None:
        ear = family.audio_encoder()
        pair = (0.7, 0.9) if family.audio_input_of("user") == "both" else (0.7 + 0.9,)  # clip by clip, or as one
        counts = [ear.count_vectors(seconds) for seconds in (0.6, *pair, 0.9, 0.7)]  # none of the reply
        assert features.vectors.shape[0] == sum(counts)


def test_an_earlier_reply_is_what_the_reference_reply_of_it_would_be(family: Family, data: Path) -> None:
    """Up to the ids that a prompt does not hold: the end, and in Kimi-Audio the end of the text."""
    manifest_row = row(
        data, [("user", "two"), ("assistant", f" {REPLY}\n{AUDIO_MARKER}"), ("user", "two")], [["a.wav"]]
    )
    example = RowEncoder(family, data, SECONDS).encode(manifest_row)
    reply = list(example.target.ids)[: -family.streams]
    if family.streams == 2:
        blank = family.interleave.blank
        assert blank is not None
        reply = [blank if token == family.interleave.end else token for token in reply]
    assert held(example.prompt.ids, tuple(reply))
    alone = row(data, [("user", "two")], [])
    before = RowEncoder(family, data, SECONDS).encode(alone).prompt.ids
    assert held(example.prompt.ids, (*before, *reply))


def test_a_mixed_turn_is_one_turn(family: Family, data: Path) -> None:
    """One start and one end, whatever it holds."""
    mixed = row(data, [("user", f"what is {AUDIO_MARKER} two")], [["q.wav"]])
    ids = RowEncoder(family, data, SECONDS).encode(mixed).prompt.ids
    words = RowEncoder(family, data, SECONDS).encode(row(data, [("user", "what is two")], [])).prompt.ids
    start = words[: 1 if family.streams == 1 else 2]
    assert ids[: len(start)] == start
    assert sum(token == start[-1] for token in ids) == sum(token == start[-1] for token in words)


def test_judges_hear_all_sound_of_the_last_turn(data: Path) -> None:
    asked = [("user", AUDIO_MARKER), ("assistant", "two"), ("user", f"is {AUDIO_MARKER} like {AUDIO_MARKER}?")]
    mixed = row(data, asked, [["b.wav"], ["q.wav", "p.wav"], ["a.wav"]])
    heard = row_to_judge_task(mixed, data / "rows.jsonl").user_audio
    assert [clip.name for clip in heard] == ["q.wav", "p.wav", "a.wav"]
    written = row(data, [*asked[:2], ("user", "two")], [["b.wav"]])
    assert row_to_judge_task(written, data / "rows.jsonl").user_audio == ()
