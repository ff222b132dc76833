"""Manifests of finished replies: read with what is known, and refused line by line when hostile."""

import json
from pathlib import Path

import pytest

from commands.judge import replies
from tests.helpers.finished_replies import Row, hum, manifest, refused


def read(path: Path) -> replies.ReplyManifest:
    return replies.read_reply_manifest(path, 30.0)


def test_a_sound_manifest_is_read_with_what_is_known(tmp_path: Path) -> None:
    hum(tmp_path / "a.wav", 200)
    full = {
        "text": "", "transcript": "four", "answer": {"match": "final", "value": "four"}, "style": "slow",
        "user_audio": ["a.wav", "a.wav"], "prompt_id": "p",
    }  # fmt: skip
    plain = {"id": "a", "question": "?", "audio": "a.wav"}
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(plain) + "\n" + json.dumps(plain | full | {"id": "b"}) + "\n")
    actual = read(path)
    a, b = actual.items
    assert (a.prompt, a.text, a.transcript, a.answer, a.user_audio) == ("a", None, None, None, ())
    assert (b.prompt, b.text, b.transcript, b.user_audio) == ("p", "", "four", ("a.wav", "a.wav"))
    task = replies.build_reply_task(b, tmp_path)
    assert (task.match, task.answer, task.style, task.question) == ("final", "four", "slow", "?")


BAD: dict[str, tuple[Row | str, str]] = {
    "not json": ("{", ":1: must be one JSON object"),
    "a list": ("[]", ":1: must be one JSON object: got a list"),
    "twice": ('{"id": "a", "id": "b", "question": "?", "audio": "a.wav"}', ":1:id: key must not appear twice"),
    "deep": ("[" * 100_000, ":1: must be one JSON object: nested too deeply"),
    "long": ('"' + "x" * (1 << 20) + '"', ":1: a line has at most 1048576 bytes"),
    "no question": ({"question": None}, ":1:question: "),
    "typo": ({"transcripts": "x"}, ":1:transcripts: unknown key, did you mean transcript?"),
    "empty id": ({"id": ""}, ":1:id: must not be empty"),
    "line break": ({"id": "a\nb"}, ":1:id: "),
    "style": ({"style": "fast"}, ":1:style: "),
    "match": ({"answer": {"match": "vaguely", "value": "x"}}, ":1:answer.match: "),
    "url": ({"audio": "http://x/a.wav"}, ":1:audio: audio path must be a local file, not a URL"),
    "absolute": ({"audio": "/etc/passwd"}, ":1:audio: audio path must be relative"),
    "out": ({"audio": "../a.wav"}, ":1:audio: audio path must be relative to its data folder, without '..'"),
    "link out": ({"audio": "link.wav"}, ":1:audio: audio path must stay in its data folder"),
    "absent": ({"audio": "none.wav"}, ":1:audio: "),
    "text file": ({"audio": "text.wav"}, ":1:audio: "),
    "cut": ({"audio": "cut.flac"}, ":1:audio: "),
    "user's": ({"user_audio": ["a.wav", "none.wav"]}, ":1:user_audio[1]: "),
    "wrong and absent": ({"style": 3, "audio": "none.wav"}, ":1:audio: "),
    "too long": ({"audio": "long.wav"}, ":1:audio: "),
    "long together": ({"user_audio": ["b.wav", "b.wav"]}, ":1:user_audio: must last at most 30 s: got 40.0 s"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_hostile_line_is_refused_by_file_line_and_field(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for file, seconds in ((tmp_path / "out.wav", 0.1), (folder / "a.wav", 0.1), (folder / "b.wav", 20), (folder / "long.wav", 31)):  # fmt: skip
        hum(file, 200, seconds)
    (folder / "link.wav").symlink_to(tmp_path / "out.wav")
    (folder / "text.wav").write_text("RIFF")
    hum(folder / "whole.flac", 200)
    whole = (folder / "whole.flac").read_bytes()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    bad, told_ = BAD[name]
    line = bad if isinstance(bad, str) else json.dumps({"id": "a", "question": "?", "audio": "a.wav"} | bad)
    path = folder / "m.jsonl"
    path.write_text(line + "\n")
    assert any(f"{path}{told_}" in item for item in refused(read, path)), refused(read, path)


def test_all_mistakes_of_a_manifest_are_listed(tmp_path: Path) -> None:
    path = manifest(tmp_path, 2)
    good = path.read_text().splitlines()
    path.write_text("\n".join([good[0], "", good[0], '{"id": 3}', good[1]]))
    message = refused(read, path)
    assert f"{path}:2: must be one JSON object: the line is empty" in message
    assert f"{path}:3:id: must be unique: 'r0' is also on line 1" in message
    assert f"{path}:4:question: key is missing" in message and f"{path}:4:audio: key is missing" in message
    assert refused(read, tmp_path / "none.jsonl") == [
        f"{tmp_path / 'none.jsonl'}: cannot be read: No such file or directory"
    ]


def test_another_sound_or_another_word_is_another_manifest(tmp_path: Path) -> None:
    path = manifest(tmp_path, 2)
    before = read(path).sha256
    assert read(path).sha256 == before
    hum(tmp_path / "1.wav", 999)
    changed = read(path).sha256
    path.write_text(path.read_text().replace("six plus", "five plus"))
    assert len({before, changed, read(path).sha256}) == 3
