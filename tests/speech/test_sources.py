"""Sources of others: what their rows mean, and that a hostile container is told, not followed."""

import gzip
import io
import json
import random
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from speech.data.clips import ClipInspector
from speech.data.sources import shards
from speech.data.sources.bound_turns import parse_history
from speech.data.sources.containers import list_source_files, read_records
from speech.data.sources.forms import DraftRow, SourceForm, detect_row_form, draft_row
from speech.data.sources.keep import ClipStore
from speech.data.sources.record import MAX_CLIP_BYTES, SourceRecord
from tests.helpers.foreign_sources import as_parquet, as_saved, as_table, as_tar, clip, member, rows, samples

LUKE = {"role": "system", "content": "You are Luke, the voice AI assistant. You can speak and listen."}
SPOKEN = ("user", "<|audio|>")


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def drafted(content: dict[str, Any]) -> tuple[SourceForm, DraftRow | None, list[tuple[str, str]]]:
    record = SourceRecord(file=Path("set.jsonl"), line=1, content=content)
    form = detect_row_form(record)
    assert form is not None
    return form, draft_row(record, form), record.problems


# The first is the row of WavAlign's README and examples/sample_rl_sft.jsonl (MM-Speech/WavAlign, 5b680c3), the
# older ones are the keys that its loader reads (dataset/vita_audio_rl_sft_dataset.py: _process_legacy_format);
# ms-swift's are those of docs/source_en/Customization/Custom-dataset.md with a spoken answer.
MEANT: dict[str, tuple[dict[str, Any], SourceForm, list[tuple[str, str]], list[list[Any]], str, list[Any], str]] = {
    "published": (
        {
            "messages": [
                LUKE,
                turn("user", "Please answer naturally and then speak your answer.\n\n<|audio|>"),
            ],
            "audios": ["audio/example_question.wav"],
            "sft_target_text": "Sure. Here is a short spoken answer.",
            "sft_target_audio": "audio/example_answer.wav",
            "task_type": "s2s",
            "question_text": "Please answer naturally and then speak your answer.",
        },
        "ours",
        [
            ("system", LUKE["content"]),
            ("user", "Please answer naturally and then speak your answer.\n\n<|audio|>"),
        ],
        [["audio/example_question.wav"]],
        "Sure. Here is a short spoken answer.",
        ["audio/example_answer.wav"],
        "Please answer naturally and then speak your answer.",
    ),
    "answered": (
        {
            "messages": [
                turn("user", "<|audio|>"),
                turn("assistant", "<|audio|>"),
                turn("user", "and <|audio|> now?"),
                turn("assistant", "said <|audio|>"),
            ],
            "audios": ["a", "b", "c", "d"],
            "sft_target_text": "x",
            "sft_target_audio": ["e", "f"],
        },
        "ours",
        [SPOKEN, ("assistant", "<|audio|>"), ("user", "and <|audio|> now?")],
        [["a"], ["b"], ["c"]],
        "x",
        ["e", "f"],
        "and\n\nnow?",
    ),
    "older": (
        {
            "question_text": "And in Rome?",
            "question_audio": "q.wav",
            "history": "[USER] What time is it in Paris? [ASSISTANT] It is noon. [USER] Sure? [ASSISTANT] Yes.",
            "answer_text": "Noon too.",
            "answer_audio_path": "a.wav",
        },
        "history",
        [
            ("user", "What time is it in Paris?"),
            ("assistant", "It is noon."),
            ("user", "Sure?"),
            ("assistant", "Yes."),
            ("user", "And in Rome?\n\n<|audio|>"),
        ],
        [["q.wav"]],
        "Noon too.",
        ["a.wav"],
        "And in Rome?",
    ),
    "older, history without marks": (
        {
            "question_text": "Why?",
            "history": "It rains.",
            "sft_target_text": "So.",
            "sft_target_audio": "a.wav",
        },
        "history",
        [("user", "It rains."), ("user", "Why?")],
        [],
        "So.",
        ["a.wav"],
        "Why?",
    ),
    "swift": (
        {
            "messages": [
                turn("system", "You are a helpful and harmless assistant."),
                turn("user", "<audio>What did the audio say?"),
                turn("assistant", "<audio>The weather is really nice today."),
            ],
            "audios": ["/xxx/x.mp3", "/xxx/y.mp3"],
        },
        "swift",
        [
            ("system", "You are a helpful and harmless assistant."),
            ("user", "<|audio|>What did the audio say?"),
        ],
        [["/xxx/x.mp3"]],
        "The weather is really nice today.",
        ["/xxx/y.mp3"],
        "What did the audio say?",
    ),
    "swift, spoken history": (
        {
            "messages": [
                turn("user", "\n<audio>\n"),
                turn("assistant", " <audio>It equals 2"),
                turn("user", " And adding <audio> to\n<audio>? "),
                turn("assistant", "It equals 3<audio>"),
            ],
            "audios": ["q1", "a1", "q2", "q3", "a2"],
        },
        "swift",
        [
            SPOKEN,
            ("assistant", " <|audio|>It equals 2"),
            ("user", " And adding <|audio|> to\n<|audio|>? "),
        ],
        [["q1"], ["a1"], ["q2"], ["q3"]],
        "It equals 3",
        ["a2"],
        "And adding\n\nto\n\n?",
    ),
    "swift, the system prompt beside the turns": (
        {
            "system": " Answer slowly. ",
            "messages": [turn("user", "<audio>What is it?"), turn("assistant", "<audio>Noon.")],
            "audios": ["q.wav", "a.wav"],
            "tools": [],
            "images": None,
        },
        "swift",
        [("system", "Answer slowly."), ("user", "<|audio|>What is it?")],
        [["q.wav"]],
        "Noon.",
        ["a.wav"],
        "What is it?",
    ),
    "ours, the same system prompt twice": (
        {
            "messages": [turn("system", "Be kind."), turn("user", "Hi")],
            "system": "Be kind.",
            "sft_target_text": "Hi.",
            "sft_target_audio": "a.wav",
        },
        "ours",
        [("system", "Be kind."), ("user", "Hi")],
        [],
        "Hi.",
        ["a.wav"],
        "Hi",
    ),
    "VITA-Audio": (
        {
            "messages": [
                turn("user", "<|audio|>"),
                turn("assistant", "It is ten.\n<|audio|>"),
                turn("user", "And now?\n<|audio|>"),
                turn("assistant", "It is noon.\n<|audio|>"),
            ],
            "audios": ["q1.wav", "a1.wav", "q2.wav", "a2.wav"],
        },
        "vita",
        [SPOKEN, ("assistant", "It is ten.\n<|audio|>"), ("user", "And now?\n<|audio|>")],
        [["q1.wav"], ["a1.wav"], ["q2.wav"]],
        "It is noon.",
        ["a2.wav"],
        "And now?",
    ),
    "swift, several turns": (
        {
            "messages": [
                turn("user", "What is 1 + 1?"),
                turn("assistant", "It equals 2"),
                turn("user", "<audio>"),
                turn("assistant", "It equals <audio> 3"),
            ],
            "audios": ["q.wav", "a.wav"],
            "question_text": "What about adding 1?",
            "rejected_response": None,
        },
        "swift",
        [("user", "What is 1 + 1?"), ("assistant", "It equals 2"), SPOKEN],
        [["q.wav"]],
        "It equals 3",
        ["a.wav"],
        "What about adding 1?",
    ),
}


@pytest.mark.parametrize("name", MEANT)
def test_a_row_means_what_its_makers_say(name: str) -> None:
    content, form, turns, audios, text, reply, question = MEANT[name]
    got, row, actual = drafted(content)
    assert (got, actual) == (form, []) and row is not None
    assert [(field["role"], field["content"]) for field in row.fields["messages"]] == turns
    assert [[said for _, said in entry] for entry in row.audios] == audios
    assert (row.fields["sft_target_text"], [said for _, said in row.reply]) == (text, reply)
    assert row.fields["question_text"] == question
    assert row.fields["task_type"] == ("s2s" if audios else "tts")


ASKED = [turn("user", "hi")]
SWIFT = [turn("user", "hi"), turn("assistant", "<audio>ho")]
OURS = {"messages": ASKED, "sft_target_text": "ho", "sft_target_audio": "a.wav"}
WRONG: list[tuple[dict[str, Any], str, str]] = [
    (OURS | {"audios": ["q.wav"]}, "audios", "one entry per <|audio|>: got 1 for 0"),
    (OURS | {"messages": [turn("user", "<|audio|>")], "audios": [None]}, "audios[0]", "must name a clip"),
    (OURS | {"messages": [turn("user", "<|audio|>")], "audios": [[]]}, "audios[0]", "must name a clip"),
    (OURS | {"messages": []}, "messages", "must not be empty"),
    (OURS | {"messages": "hi"}, "messages", "got 'hi'"),
    (OURS | {"messages": [turn("tool", "hi")]}, "messages[0].role", "got 'tool'"),
    (OURS | {"messages": [*ASKED, turn("user", " ")]}, "messages[1].content", "must not be blank"),
    (OURS | {"sft_target_text": None}, "sft_target_text", "key is missing"),
    (OURS | {"sft_target_audio": None}, "sft_target_audio", "must have sound"),
    (OURS | {"messages": [turn("user", "<|audio|>")], "audios": ["q"]}, "question_text", "no words"),
    ({"messages": SWIFT}, "audios", "one entry per <audio>: got 0 for 1"),
    ({"messages": ASKED}, "messages", "must end with the assistant's turn"),
    ({"messages": [*ASKED, turn("assistant", "ho")]}, "sft_target_audio", "must have sound"),
    ({"question_text": "hi", "history": ["a"]}, "history", "got ['a']"),
    (OURS | {"system": "x", "messages": [turn("system", "y"), *ASKED]}, "system", "of other words"),
    (OURS | {"id": 1.5}, "id", "must be text: got 1.5"),
    (OURS | {"system": "x", "system_prompt": "y"}, "system_prompt", "of other words"),
    (OURS | {"tools": ["search"]}, "tools", "is part of the prompt, and nothing is made of it"),
    ({"messages": SWIFT, "audios": ["a"], "images": ["i.png"]}, "images", "is part of the prompt"),
    (OURS | {"messages": [ASKED[0] | {"audio": "q.wav"}]}, "messages[0].audio", "is part of the prompt"),
    ({"messages": [turn("user", "<|audio|>")], "audios": ["q.wav"]}, "messages", "end with the assistant's"),
    ({"question_text": "hi", "answer_text": "ho"}, "sft_target_audio", "must have sound"),
]


@pytest.mark.parametrize(("content", "field", "message"), WRONG)
def test_a_row_that_cannot_be_used_says_why(content: dict[str, Any], field: str, message: str) -> None:
    _, row, actual = drafted(content)
    assert row is None
    assert [where for where, _ in actual] == [field] and message in actual[0][1]


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text("ab \n", min_size=1))))
def test_marked_history_comes_back_turn_by_turn(turns: list[tuple[str, str]]) -> None:
    said = [(role, words.strip()) for role, words in turns if words.strip()]
    said = said[next((i for i, (role, _) in enumerate(said) if role == "user"), len(said)) :]
    if {role for role, _ in said} == {"user", "assistant"}:
        text = " ".join(f"[{role.upper()}] {words}" for role, words in said)
        assert list(parse_history(text)) == [(role, (words,)) for role, words in said]


TAGGED = {"messages": [turn("user", "<audio>"), turn("assistant", "x<audio>")], "audios": ["q", "a"]}
MARKED = {"messages": [turn("user", "<|audio|>"), turn("assistant", "x<|audio|>")], "audios": ["q", "a"]}
NOTHING = {"sft_target_text": None, "sft_target_audio": None}


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (OURS, "ours"), (OURS | NOTHING, "ours"), (MARKED, "vita"), (MARKED | NOTHING, "ours"), (TAGGED, "swift"),
        (TAGGED | NOTHING, "swift"), ({"messages": SWIFT}, "swift"), ({"messages": ASKED}, "swift"),
        ({"question_text": "x", "messages": None}, "history"), ({"text": "x"}, None), ({}, None),
    ],
)  # fmt: skip
def test_each_row_is_read_as_what_it_is(content: dict[str, Any], form: str | None) -> None:
    assert detect_row_form(SourceRecord(file=Path("set.jsonl"), line=1, content=content)) == form


def keeper(to: Path, root: Path) -> ClipStore:
    return ClipStore(to, root, 1.0, ClipInspector(to, 1.0, deep=True))


def found_in(file: Path) -> list[str]:
    return [str(record.locate_problem(*problem)) for record in read_records([file]) for problem in record.problems]


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
JSON = member("a.json", b"{}")
HOSTILE: dict[str, tuple[list[tuple[tarfile.TarInfo, bytes]], str]] = {
    "symbolic link": ([JSON, member("a.wav", **LINK)], "a:wav: must be a plain file, not a link"),
    "hard link": (
        [JSON, member("a.wav", type=tarfile.LNKTYPE, linkname="a.json")],
        "a:wav: must be a plain file",
    ),
    "device": ([JSON, member("a.wav", type=tarfile.CHRTYPE)], "a:wav: must be a plain file"),
    "pipe": ([JSON, member("a.wav", type=tarfile.FIFOTYPE)], "a:wav: must be a plain file"),
    "absolute": ([member("/a.json", b"{}")], "/a:json: must not lead out of the archive"),
    "parent": ([member("b/../../a.json", b"{}")], "b/../../a:json: must not lead out of the archive"),
    "twice": ([JSON, member("a.wav", b"x"), member("a.WAV", b"y")], "a:wav: must not be there twice"),
    "row twice": ([JSON, JSON], "a:json: must not be there twice"),
    "no row": ([member("a.wav", b"x")], "a:json: the sample must hold this file"),
    "many files": (
        [JSON, *(member(f"a.{i}.txt") for i in range(1001))],
        "a:999.txt: a sample has at most 1000",
    ),
    "two questions": (
        [JSON, member("a.mp3", b"x"), member("a.wav", b"y")],
        "a:question_audio: must be named where there are several: got mp3, wav",
    ),
    "a key with a dot": (
        [member("a.v1.json", b"{}"), member("a.v1.wav", b"x")],
        "a:json: the sample must hold this file; a key ends at the first dot of a name: got v1.json",
    ),
    "no name": ([JSON, member("a.\x1b[2J\n.wav", **LINK)], r"a:\x1b[2j\n.wav: must be a plain file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_told_and_not_followed(name: str, tmp_path: Path) -> None:
    members, message = HOSTILE[name]
    file = as_tar(tmp_path / "set.tar", members)
    assert [line for line in found_in(file) if line.startswith(f"{file}:{message}")]
    assert list(tmp_path.iterdir()) == [file]


def claimed(name: str, size: int) -> bytes:
    """A header that says so, and nothing behind it."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def test_the_size_of_a_file_is_checked_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "set.tar").write_bytes(
        JSON[0].tobuf() + b"{}".ljust(512, b"\0") + claimed("a.wav", MAX_CLIP_BYTES + 1)
    )
    first = found_in(tmp_path / "set.tar")[0]
    assert first.endswith(f"a:wav: must have at most {MAX_CLIP_BYTES} bytes: got {MAX_CLIP_BYTES + 1}")


def test_files_of_a_sample_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_SAMPLE_BYTES", 2000)
    sizes = {"a.0.wav": 1000, "a.1.wav": 998, "a.json": 2, "a.2.wav": 1}
    path = as_tar(tmp_path / "set.tar", [member(name, b"{}".ljust(size)) for name, size in sizes.items()])
    assert found_in(path) == [f"{path}:a:2.wav: files of a sample must have at most 2000 bytes together"]


def pax(text: bytes) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(text)
    return info.tobuf() + text.ljust(-(-len(text) // 512) * 512, b"\0")


WHOLE = b"".join(
    (JSON[0].tobuf(), b"{}".ljust(512, b"\0"), member("b.json", b"{}")[0].tobuf(), b"{}".ljust(512, b"\0"))
)
DAMAGED: dict[str, tuple[bytes, list[str]]] = {
    "compressed": (gzip.compress(WHOLE), [": cannot be read as an uncompressed tar: it is compressed (gzip)"]),
    "not one": (b"hello" * 1000, [": cannot be read as an uncompressed tar"]),
    "empty": (b"", [": cannot be read as an uncompressed tar"]),
    "header": (
        WHOLE[:1024] + b"x" * 512,
        [":a: the archive cannot be read any further: a header is damaged"],
    ),
    "cut in a header": (WHOLE[:1100], [":a: the archive cannot be read any further"]),
    "cut in a file": (WHOLE[:513], [":a: the archive cannot be read any further: unexpected end of data"]),
    "huge size": (pax(b"30 size=99999999999999999999\n\n") + WHOLE, ["a:json: must have at most"]),
    "cut between two files": (
        b"".join((JSON[0].tobuf(), b"{}".ljust(512, b"\0"))),
        [":a: the archive cannot be read any further: it ends without the zeros that end an archive"],
    ),
    "negative size": (pax(b"11 size=-9\n") + WHOLE, ["tar: a header with a size below zero"]),
    "headers in headers": (pax(b"9 a=bcde\n") * 3000 + WHOLE, ["a file has at most 100 headers"]),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_archive_is_told_where_it_ends(name: str, tmp_path: Path) -> None:
    content, message = DAMAGED[name]
    (tmp_path / "set.tar").write_bytes(content)
    rows_found = found_in(tmp_path / "set.tar")
    assert all(any(item in line for line in rows_found) for item in message), rows_found


def test_a_header_that_claims_more_than_a_clip_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    (tmp_path / "set.tar").write_bytes(WHOLE + info.tobuf(tarfile.GNU_FORMAT))
    assert "a part of the archive must have at most" in found_in(tmp_path / "set.tar")[-1]


def test_a_sample_names_its_own_clips_alone(tmp_path: Path) -> None:
    secret = tmp_path / clip(tmp_path, "secret.wav", 300)
    row = {"messages": [turn("user", "<|audio|>")], "audios": ["secret.wav"], "sft_target_text": "x"}
    file = as_tar(tmp_path / "set.tar", [member("a.json", json.dumps(row).encode())])
    (record,) = read_records([file])
    for name in ("secret.wav", str(secret), "b.wav"):
        with pytest.raises(ValueError, match="must name a clip of its sample"):
            keeper(tmp_path / "to", tmp_path).store_clip(name, record.members)


def test_clips_of_a_sample_that_its_row_does_not_name_are_found_by_their_names(tmp_path: Path) -> None:
    row = {"messages": [turn("user", "<|audio|>")], "sft_target_text": "x"}
    members = [("d/a.json", json.dumps(row).encode()), ("d/a.FLAC", b"q"), ("d/a.target.wav", b"r")]
    (record,) = read_records([as_tar(tmp_path / "set.tar", [member(*item) for item in members])])
    assert record.key == "d/a" and record.content is not None and record.members is not None
    assert record.members[record.content["audios"][0]] == record.members["d/a.flac"] == b"q"
    assert record.members[record.content["sft_target_audio"]] == b"r"


@pytest.mark.parametrize(
    "state",
    [
        {"_data_files": []},
        {"_data_files": [{"filename": "../out.arrow"}]},
        {"_data_files": [{"filename": "/etc/passwd"}]},
        {"_data_files": ["data-00000-of-00002.arrow"]},
        {"_data_files": [{"filename": "gone.arrow"}]},
        {"_data_files": [{"filename": "link.arrow"}]},
        {
            "_data_files": [{"filename": "data-00000-of-00002.arrow"}],
            "_indices_data_files": [{"filename": "i.arrow"}],
        },
        {"_data_files": [{"filename": name} for name in ("data-00000-of-00002.arrow",) * 2]},
        {"_data_files": [{"filename": "data-00000-of-00002.arrow"}]},
        {"_data_files": [{"filename": f"data-0000{i}-of-00002.arrow", "skip": i} for i in range(2)]},
        {},
        [],
    ],
)
def test_a_saved_set_reads_its_own_files_alone(state: Any, tmp_path: Path) -> None:
    saved = as_saved(tmp_path / "set", tmp_path, rows(tmp_path, 2))
    (tmp_path / "out.arrow").write_bytes(b"")
    (saved / "link.arrow").symlink_to(tmp_path / "out.arrow")
    (saved / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=f"^{saved}/"):
        list_source_files([saved])


@pytest.mark.parametrize("kind", ["parquet", "arrow", "tar"])
def test_bytes_that_were_changed_end_in_rows_or_in_problems(kind: str, tmp_path: Path) -> None:
    given = rows(tmp_path, 4)
    if kind == "arrow":
        file = list_source_files([as_saved(tmp_path / "set", tmp_path, given)])[0]
    elif kind == "tar":
        file = as_tar(tmp_path / "set.tar", samples(tmp_path, given))
    else:
        file = as_parquet(tmp_path / "set.parquet", tmp_path, given)
    whole, refused_count = file.read_bytes(), 0
    dice = random.Random(0)
    for _ in range(150):
        content = bytearray(whole[: dice.randrange(len(whole))] if dice.random() < 0.2 else whole)
        for _ in range(dice.choice([1, 3, 30])):
            at = dice.randrange(min(len(content), 3000)) if content else 0
            content[at : at + 1] = bytes([dice.randrange(256)])
        file.write_bytes(content)
        refused_count += bool(found_in(file))
    assert refused_count > 10


def test_a_table_that_is_cut_gives_the_rows_before_and_says_so(tmp_path: Path) -> None:
    file = list_source_files([as_saved(tmp_path / "set", tmp_path, rows(tmp_path, 8))])[0]
    file.write_bytes(file.read_bytes()[:-3000])
    *before, last = read_records([file])
    assert [record.line for record in before] == [1, 2] and not any(record.problems for record in before)
    assert (last.line, last.content, last.problems[0][1][:28]) == (3, None, "cannot be read any further: ")


@pytest.mark.parametrize("counts", [(2, 4), (4, 2), (3, 3)])
def test_two_tables_in_one_file_are_no_table_of_half_their_rows(counts: tuple[int, int], tmp_path: Path) -> None:
    given = rows(tmp_path, 4)
    files = [as_parquet(tmp_path / f"{i}.parquet", tmp_path, given[:n]) for i, n in enumerate(counts)]
    both = tmp_path / "both.parquet"
    both.write_bytes(b"".join(file.read_bytes() for file in files))
    assert "must be one file: another precedes it" in found_in(both)[0]
    assert not found_in(files[0]) and not found_in(files[1])
    stream = list_source_files([as_saved(tmp_path / "set", tmp_path, given)])[0]
    stream.write_bytes(stream.read_bytes() * 2)
    assert "something follows the end of its stream" in found_in(stream)[-1]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    table = as_table(tmp_path, rows(tmp_path, 1))
    twice = pyarrow.Table.from_arrays([*table.columns, table["id"]], names=[*table.column_names, "id"])
    parquet.write_table(twice, tmp_path / "set.parquet")
    assert "a column must not be there twice: id" in found_in(tmp_path / "set.parquet")[0]


UNUSABLE: list[tuple[Any, str]] = [
    ("none.wav", "does not exist"),
    ("../secret.wav", "without '..'"),
    ("https://x.org/a.wav", "not a URL"),
    ("text.wav", "must be a wav, flac, ogg, opus or mp3 file: begins with b'hello'"),
    (b"RIFF" + bytes(100), "cannot be read as audio"),
    (b"", "it is empty"),
    (b"\0\0\0\x1cftypM4A ", "it is MPEG-4 (m4a, mp4): ffmpeg -i IN OUT.wav"),
    (b"\xff\xf1\x60\x40", "it is AAC"),
    (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    (
        {"bytes": None, "path": None},
        "must have bytes or a path and nothing else, as Audio(decode=False) gives: got nothing",
    ),
    ({"array": [0.1], "sampling_rate": 16_000}, "got array (list), sampling_rate (int)"),
    ({"array": [0.1], "sampling_rate": 16_000, "path": "long.wav"}, "got array (list), path (str)"),
    ({"path": "long.wav", "offset": 0.5, "duration": None}, "got offset (float), path (str)"),
    ({"bytes": "UklGRg==", "path": "long.wav"}, "got bytes (str), path (str)"),
    (7, "must be a name or a file's bytes: got int"),
    ("long.wav", "must last at most 1 s"),
    ("nan.wav", "samples must be finite: got NaN"),
]


@pytest.mark.parametrize(("given", "message"), UNUSABLE)
def test_a_clip_that_cannot_be_used_says_why_and_leaves_nothing(given: Any, message: str, tmp_path: Path) -> None:
    data, to = tmp_path / "data", tmp_path / "to"
    clip(data, "long.wav", 200, rate=16_000)
    short = (data / "long.wav").read_bytes()
    (data / "long.wav").write_bytes(short[:40] + (16_000 * 4).to_bytes(4, "little") + bytes(16_000 * 4))
    clip(tmp_path, "secret.wav", 200)
    (data / "text.wav").write_bytes(b"hello")
    soundfile.write(data / "nan.wav", np.full(160, np.nan, np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(ValueError) as caught:
        keeper(to, data).store_clip(given, None)
    assert message in str(caught.value) and str(tmp_path) not in str(caught.value)
    assert [path for path in to.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus"])
def test_a_clip_is_named_by_what_it_is(suffix: str, tmp_path: Path) -> None:
    rate = 48_000 if suffix == ".opus" else 16_000
    content = (tmp_path / clip(tmp_path, f"a{suffix}", 200, rate)).read_bytes()
    name = keeper(tmp_path / "to", tmp_path).store_clip({"bytes": content, "path": "a.txt"}, None)
    assert name.endswith(suffix) and (tmp_path / "to" / name).read_bytes() == content


def test_a_data_file_that_a_saved_set_does_not_name_is_refused_and_a_cache_is_not(tmp_path: Path) -> None:
    saved = as_saved(tmp_path / "set", tmp_path, rows(tmp_path, 2))
    shutil.copy(saved / "data-00000-of-00002.arrow", saved / "cache-1f2e.arrow")
    assert len(list_source_files([saved])) == 2
    shutil.copy(saved / "data-00000-of-00002.arrow", saved / "more.arrow")
    with pytest.raises(ValueError, match=r"more\.arrow: must not lie here unread"):
        list_source_files([saved])


def test_a_stream_that_was_cut_between_two_batches_says_so(tmp_path: Path) -> None:
    file = list_source_files([as_saved(tmp_path / "set", tmp_path, rows(tmp_path, 8))])[0]
    whole = file.read_bytes()
    assert found_in(file) == []
    file.write_bytes(whole[:-8])
    assert found_in(file) == [
        f"{file}:5: cannot be read any further: it ends without the mark that ends a stream: it was cut"
    ]


def test_names_of_a_shard_are_the_same_in_every_normal_form_and_bytes_that_are_no_letters_stay_apart(
    tmp_path: Path,
) -> None:
    row = {"messages": [turn("user", "<|audio|>")], "audios": ["caf\u00e9.wav"], "sft_target_text": "x"}
    names = [("cafe\u0301.json", json.dumps(row).encode()), ("cafe\u0301.wav", b"q")]
    (record,) = read_records([as_tar(tmp_path / "mac.tar", [member(*given) for given in names])])
    assert record.problems == [] and record.members is not None and record.members["caf\u00e9.wav"] == b"q"
    with tarfile.open(tmp_path / "old.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for name in ("\u00e9.json", "\u00e8.json"):
            archive.addfile(*[member(name, b"{}")[0], io.BytesIO(b"{}")])
    assert [record.key for record in read_records([tmp_path / "old.tar"])] == ["\\xe9", "\\xe8"]
