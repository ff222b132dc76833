"""Conversion: every container gives the same manifest, nothing is lost without a reason, a kill changes nothing."""

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commands.cli import main
from speech.data import convert as conversion
from speech.data import manifest
from speech.data.convert import convert_source
from speech.data.sources.folder import ConversionProgress
from tests.helpers.foreign_sources import as_lines, as_parquet, as_saved, as_tar, clip, member, rows, samples

SECONDS = 1.0
CONTAINERS: dict[str, Callable[[Path, list[dict[str, Any]]], Path]] = {
    "jsonl": lambda folder, given: as_lines(folder / "set.jsonl", given),
    "parquet": lambda folder, given: as_parquet(folder / "set.parquet", folder, given),
    "saved": lambda folder, given: as_saved(folder / "set", folder, given),
    "tar": lambda folder, given: as_tar(folder / "set.tar", samples(folder, given)),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    return root


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a conversion but what it notes of itself."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "convert.json"
    }


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_sound_manifest(container: str, folder: Path, tmp_path: Path) -> None:
    given = rows(folder, 5)
    plain, other = tmp_path / "plain", tmp_path / "other"
    convert_source([as_lines(folder / "plain.jsonl", given)], plain, SECONDS)
    progress = convert_source([CONTAINERS[container](folder, given)], other, SECONDS)
    assert contents(other) == contents(plain)
    files = {"KEY.txt": 5} if container == "tar" else {}
    assert (progress.rows, progress.done, progress.unread) == (5, 5, {"speaker": 5} | files)
    assert manifest.check_manifest(other / "manifest.jsonl", SECONDS) == []


def test_clips_are_kept_byte_for_byte_and_once(folder: Path, tmp_path: Path) -> None:
    given = rows(folder, 2)
    given[1]["audios"] = given[0]["audios"]
    convert_source([as_lines(folder / "set.jsonl", given)], tmp_path / "to", SECONDS)
    kept = {path.read_bytes() for path in (tmp_path / "to" / "audio").rglob("*.*")}
    assert len(list((tmp_path / "to" / "audio").rglob("*.*"))) == 4
    assert kept == {(folder / name).read_bytes() for name in ("q/0-0.wav", "q/0-1.wav", "a/0.flac", "a/1.flac")}


def test_a_turn_of_words_and_sound_stays_one_with_its_clips(folder: Path, tmp_path: Path) -> None:
    (given,) = rows(folder, 1)
    given["messages"][2]["content"] = "it is ten\n<|audio|>"
    given["audios"].insert(1, given["sft_target_audio"])
    swift = {
        "messages": [
            *({**turn, "content": turn["content"].replace("<|audio|>", "<audio>")} for turn in given["messages"]),
            {"role": "assistant", "content": "<audio>it is 0"},
        ],
        "audios": [*given["audios"], given["sft_target_audio"]],
        "tools": "[]",  # ms-swift's own rows: a list as JSON
    }
    for name, content in (("ours", given), ("swift", swift)):
        convert_source([as_lines(folder / f"{name}.jsonl", [content])], tmp_path / name, SECONDS)
        (row,) = manifest.read_manifest(tmp_path / name / "manifest.jsonl", SECONDS)
        assert [message.content for message in row.messages[1:]] == [turn["content"] for turn in given["messages"][1:]]
        assert [(tmp_path / name / clip).read_bytes() for (clip,) in row.audios] == [
            (folder / clip).read_bytes() for clip in given["audios"]
        ]
        assert row.sft_target_text == "it is 0"


@pytest.mark.parametrize("value", [False, 0, "false"])
@pytest.mark.parametrize("mark", ["label", "kto_tag", "loss", "weight"])
def test_a_reply_that_is_marked_as_no_example_is_no_reference(
    folder: Path, tmp_path: Path, mark: str, value: object
) -> None:
    turns = [{"role": "user", "content": "<audio>"}, {"role": "assistant", "content": "<audio>it is 0"}]
    (given,) = rows(folder, 1)
    row = {"messages": turns, "audios": [given["audios"][-1], given["sft_target_audio"]]}
    (row if mark in ("label", "kto_tag") else turns[1])[mark] = value  # type: ignore[index]
    progress = convert_source([as_lines(folder / "swift.jsonl", [row])], tmp_path / "to", SECONDS)
    assert progress.rows == 0 and any("must not be false" in reason for reason in progress.reasons)


def test_our_own_manifest_with_word_clips_and_answers_comes_out_as_it_went_in(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "examples" / "tiny_world" / "data" / "test.jsonl"
    convert_source([source], tmp_path / "to", 60.0, limit=3)
    before, after = (
        [row.model_dump(exclude={"audios", "sft_target_audio"}) for row in manifest.read_manifest(path, 60.0)[:3]]
        for path in (source, tmp_path / "to" / "manifest.jsonl")
    )
    assert after == before and len(after) == 3


class Killed(Exception):
    pass


@pytest.mark.parametrize("container", ["jsonl", "tar"])
def test_a_conversion_that_is_killed_anywhere_ends_with_the_same_bytes(
    container: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "SAVE_INTERVAL_ROWS", 3)
    given = rows(folder, 7)
    given[2]["sft_target_text"] = " "
    given[5]["id"] = given[0]["id"]
    source = CONTAINERS[container](folder, given)
    whole = convert_source([source], tmp_path / "whole", SECONDS)
    assert (whole.rows, whole.dropped) == (5, 2)
    for kill in range(1, 8):
        to = tmp_path / f"killed-{kill}"

        def tell(progress: ConversionProgress, kill: int = kill) -> None:
            if progress.done == kill:
                raise Killed

        with pytest.raises(Killed):
            convert_source([source], to, SECONDS, tell=tell)
        assert not (to / "manifest.jsonl").exists()
        for left in (to / ".convert.json.17", to / "audio" / ".unfinished.17.wav"):
            left.touch()
        done: list[int] = []
        convert_source([source], to, SECONDS, tell=lambda progress, done=done: done.append(progress.done))  # type: ignore[misc]
        assert done[0] == kill - kill % 3 + 1, "what was noted is not read again"
        assert contents(to) == contents(tmp_path / "whole")
        assert (to / "convert.json").read_bytes() == (tmp_path / "whole" / "convert.json").read_bytes()


def test_a_finished_conversion_is_told_again_and_not_done_again(folder: Path, tmp_path: Path) -> None:
    source = as_lines(folder / "set.jsonl", rows(folder, 3))
    first = convert_source([source], tmp_path / "to", SECONDS)
    before = contents(tmp_path / "to")
    collected: list[ConversionProgress] = []
    assert convert_source([source], tmp_path / "to", SECONDS, tell=collected.append) == first
    assert not collected and contents(tmp_path / "to") == before


def test_a_kill_between_the_last_note_and_the_manifest_is_made_good(folder: Path, tmp_path: Path) -> None:
    source, to = as_lines(folder / "set.jsonl", rows(folder, 3)), tmp_path / "to"
    convert_source([source], to, SECONDS)
    before = contents(to)
    (to / "manifest.jsonl").rename(to / ".manifest.unfinished")
    convert_source([source], to, SECONDS)
    assert contents(to) == before


def test_a_folder_that_somebody_else_writes_is_left_alone(folder: Path, tmp_path: Path) -> None:
    source, to = as_lines(folder / "set.jsonl", rows(folder, 1)), tmp_path / "to"
    to.mkdir()
    lock = os.open(to, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="another process is writing it"):
        convert_source([source], to, SECONDS)
    os.close(lock)
    assert list(to.iterdir()) == []


def test_what_is_dropped_is_counted_by_rule_and_listed_by_place(folder: Path, tmp_path: Path) -> None:
    given = rows(folder, 6)
    given[1]["audios"] = ["q/none.wav", "../secret.wav"]
    given[2]["sft_target_audio"] = None
    given[3]["messages"] = given[3]["messages"][:3]
    given[5]["audios"] = given[5]["audios"][:1]
    source = as_lines(folder / "set.jsonl", given)
    progress = convert_source([source], tmp_path / "to", SECONDS)
    assert (progress.rows, progress.dropped) == (2, 4)
    assert progress.reasons == {
        "audios: audio file does not exist": 1,
        "audios: audio path must be relative to its data folder, without '..'": 1,
        "audios: must have one entry per <|audio|>": 2,
        "sft_target_audio: the reference reply must have sound": 1,
    }
    lines = (tmp_path / "to" / "problems.txt").read_text().splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        f"{source}:2:audios[0]",
        f"{source}:2:audios[1]",
        f"{source}:3:sft_target_audio",
        f"{source}:4:audios",
        f"{source}:6:audios",
    ]


def test_a_line_that_is_too_long_is_dropped_and_the_rest_is_converted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speech.data.problems.MAX_LINE", 5000)
    given = rows(folder, 6)
    given[3]["speaker"] = "x" * 20_000
    source = as_lines(folder / "set.jsonl", given)
    progress = convert_source([source], tmp_path / "to", SECONDS)
    assert (progress.done, progress.rows, progress.dropped) == (6, 5, 1)
    assert (tmp_path / "to" / "problems.txt").read_text() == f"{source}:4: a line has at most 5000 bytes\n"


def test_absolute_names_are_taken_below_the_folder_of_the_audio_alone(folder: Path, tmp_path: Path) -> None:
    sounds = tmp_path / "sounds"
    given = rows(sounds, 2)
    for row in given:
        row["audios"] = [str(sounds / name) for name in row["audios"]]
    given[1]["sft_target_audio"] = str(folder / clip(folder, "elsewhere.wav", 300))
    progress = convert_source([as_lines(folder / "set.jsonl", given)], tmp_path / "to", SECONDS, audio=sounds)
    assert (progress.rows, list(progress.reasons)) == (
        1,
        ["sft_target_audio: audio path must lie in the folder of the audio (--audio FOLDER)"],
    )


def test_ids_are_those_of_the_source_where_they_can_be_part_of_a_file_name(folder: Path, tmp_path: Path) -> None:
    given = rows(folder, 5)
    for row, own in zip(given, ["ok-1", 17, None, "a b", "a/b"], strict=True):
        row["id"] = own
    convert_source([as_lines(folder / "set.jsonl", given)], tmp_path / "to", SECONDS)
    ids = [row.id for row in manifest.read_manifest(tmp_path / "to" / "manifest.jsonl", SECONDS)]
    assert ids[:3] == ["ok-1", "17", "row-3"]
    assert [item.rpartition("-")[0] for item in ids[3:]] == ["a-b", "a-b"] and len(set(ids)) == 5


@pytest.mark.parametrize("container", ["tar", "jsonl"])
def test_ids_that_begin_anew_in_each_file_cost_no_row(
    container: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "SAVE_INTERVAL_ROWS", 2)
    given = [row | {"id": f"{i % 3:06}"} for i, row in enumerate(rows(folder, 9))]
    sources = []
    for i in range(3):
        source = CONTAINERS[container](folder, given[3 * i : 3 * i + 3])
        sources.append(source.rename(source.with_name(f"{i}-{source.name}")))
    whole = convert_source(sources, tmp_path / "whole", SECONDS)
    own = ["000000", "000001", "000002"]
    ids = [row.id for row in manifest.read_manifest(tmp_path / "whole" / "manifest.jsonl", SECONDS)]
    assert ids == own + [f"{i}-set-{item}" for i in (1, 2) for item in own]
    assert (whole.rows, whole.renamed) == (9, 6)
    for kill in range(1, 10):

        def tell(progress: ConversionProgress, kill: int = kill) -> None:
            if progress.done == kill:
                raise Killed

        with pytest.raises(Killed):
            convert_source(sources, tmp_path / f"to-{kill}", SECONDS, tell=tell)
        assert convert_source(sources, tmp_path / f"to-{kill}", SECONDS) == whole
        assert contents(tmp_path / f"to-{kill}") == contents(tmp_path / "whole")


def test_an_id_twice_in_a_later_file_costs_its_second_row(folder: Path, tmp_path: Path) -> None:
    given = [row | {"id": "same"} for row in rows(folder, 3)]
    sources = [as_lines(folder / "a.jsonl", given[:1]), as_lines(folder / "b.jsonl", given[1:])]
    progress = convert_source(sources, tmp_path / "to", SECONDS)
    assert (progress.rows, progress.renamed, progress.reasons) == (2, 1, {"id: must be unique": 1})


def test_rows_of_several_forms_are_read_each_as_what_it_is(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, other = rows(folder, 2)
    words = {"role": "assistant", "content": "it is 1\n<|audio|>"}
    vita = {
        "messages": [*other["messages"], words],
        "audios": [*other["audios"], other["sft_target_audio"]],
        "question_text": "what is 1",
    }
    source, to = as_lines(folder / "set.jsonl", [{"text": "x"}, vita, ours]), tmp_path / "to"
    assert main(["data", "convert", str(source), "--to", str(to)]) == 0
    assert [row.sft_target_text for row in manifest.read_manifest(to / "manifest.jsonl", SECONDS)] == [
        "it is 1",
        "it is 0",
    ]
    out = capsys.readouterr().out
    assert "VITA-Audio's rows (the last assistant turn is the reference reply): 1\n" in out
    assert "(WavAlign's, or wavgate's own): 1\n" in out and "dropped 1" in out


def test_what_nothing_is_made_of_is_counted_in_turns_too(folder: Path, tmp_path: Path) -> None:
    given = rows(folder, 2)
    given[0]["messages"][0] = {**given[0]["messages"][0], "weight": 0, "name": None}
    progress = convert_source([as_lines(folder / "set.jsonl", given)], tmp_path / "to", SECONDS)
    assert (progress.rows, progress.unread) == (2, {"messages.weight": 1, "speaker": 2})


def test_a_source_that_is_named_twice_is_refused(folder: Path, tmp_path: Path) -> None:
    source = as_lines(folder / "set.jsonl", rows(folder, 1))
    (folder / "link.jsonl").symlink_to(source)
    with pytest.raises(ValueError, match=r"link.jsonl: must be named once: it is the same file as .*set.jsonl"):
        convert_source([source, folder / "link.jsonl"], tmp_path / "to", SECONDS)


MISTAKES: dict[str, tuple[list[str], str]] = {
    "missing": (["none.jsonl"], "none.jsonl: does not exist"),
    "pipe": (["pipe.jsonl"], "pipe.jsonl: must be a file, which can be read twice: got a pipe or a device"),
    "kind": (["set.csv"], "must be .jsonl, .parquet, .tar or a folder that save_to_disk wrote: got .csv"),
    "kinds": (["set.jsonl", "set.tar"], "sources must be of one kind: got .tar beside .jsonl"),
    "folder": (["."], "a folder must be one that save_to_disk wrote, with state.json"),
    "splits": (["dict"], "holds several data sets, name one of its folders: test, train"),
    "keys": (
        ["other.jsonl"],
        "other.jsonl:1: must have messages, or question_text and answer_text: got text",
    ),
    "empty": (["empty.jsonl"], "empty.jsonl:1: must be one JSON object: the line is empty"),
    "no row": (
        ["bad.jsonl"],
        "none of 1 rows can be used, for the most part: sft_target_audio: the reference",
    ),
    "limit": (["set.jsonl", "--limit", "0"], "--limit must be at least 1: got 0"),
    "audio": (["set.jsonl", "--audio", "none"], "--audio none: must be a folder"),
    "to": (
        ["set.jsonl", "--to", "full"],
        "--to full: must be new, empty, or begun by `wavgate data convert`",
    ),
    "other": (["set.jsonl", "--to", "begun"], "--to begun: was begun with another value of files"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    given = rows(folder, 1)
    as_lines(folder / "set.jsonl", given)
    as_lines(folder / "bad.jsonl", [given[0] | {"sft_target_audio": None}])
    as_lines(folder / "other.jsonl", [{"text": "x"}])
    for empty in (
        "empty.jsonl",
        "set.csv",
        "set.tar",
        "full/file",
        "dict/train/state.json",
        "dict/test/state.json",
    ):
        (folder / empty).parent.mkdir(parents=True, exist_ok=True)
        (folder / empty).touch()
    (folder / "dict" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    convert_source([Path("bad.jsonl")], Path("begun"), 60.0)
    os.mkfifo(folder / "pipe.jsonl")
    arguments, message = MISTAKES[name]
    to = [] if "--to" in arguments else ["--to", "to"]
    assert main(["data", "convert", *arguments, *to]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not Path("to/manifest.jsonl").exists()


def test_the_command_reports_what_became_of_a_source(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = rows(folder, 4)
    given[1]["sft_target_text"] = " "
    source, to = as_lines(folder / "set.jsonl", [row | {"\x1b[2J": 1} for row in given]), tmp_path / "to"
    assert main(["data", "convert", str(source), "--to", str(to), "--limit", "3"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{to}/manifest.jsonl: 2 rows of 3",
        "read as rows with sft_target_text and sft_target_audio (WavAlign's, or wavgate's own)",
        f"dropped 1, each problem in {to}/problems.txt:",
        "        1  sft_target_text: must not be blank",
        r"not read: \x1b[2J (3), speaker (3)",
    ]
    assert json.loads((to / "convert.json").read_text())["finished"] is True


PROMPT_PARTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a sound beside the words": lambda row: row.update(audio="q/0-0.wav"),
    "a sound of the older form": lambda row: row.update(question_audio="q/0-0.wav"),
    "turns before": lambda row: row.update(history=[["hello", "hi"]]),
    "an instruction": lambda row: row.update(instruction="answer as a pirate"),
    "a system message": lambda row: row.update(system_message="you are rude"),
    "Kimi-Audio's kind of a turn": lambda row: row["messages"][1].update(message_type="audio"),
    "a sound of a turn": lambda row: row["messages"][1].update(audio_path="q/0-0.wav"),
    "LLaMA-Omni's marker": lambda row: row["messages"][1].update(content="<speech>\n<|audio|>"),
    "Qwen2-Audio's marker": lambda row: row["messages"][1].update(content="<|AUDIO|>\n<|audio|>"),
    "a picture's marker": lambda row: row["messages"][1].update(content="<image><|audio|>"),
}


@pytest.mark.parametrize("part", PROMPT_PARTS)
def test_a_part_of_the_prompt_that_nothing_is_made_of_costs_its_row(part: str, folder: Path, tmp_path: Path) -> None:
    given = rows(folder, 2)
    PROMPT_PARTS[part](given[0])
    progress = convert_source([as_lines(folder / "set.jsonl", given)], tmp_path / "to", SECONDS)
    assert (progress.rows, progress.done) == (1, 2) and any("must" in reason for reason in progress.reasons)


@pytest.mark.parametrize("key", ["history_text", "sft_target_text", "sft_target_audio"])
def test_an_older_row_that_says_a_thing_twice_and_otherwise_is_refused(key: str, folder: Path, tmp_path: Path) -> None:
    (given,) = rows(folder, 1)
    said = {"history_text": "x", "sft_target_text": given["sft_target_text"], "sft_target_audio": "a/0.flac"}
    row = said | {
        "question_text": "why",
        "question_audio": "q/0-0.wav",
        "history": said["history_text"],
        "answer_text": said["sft_target_text"],
        "answer_audio_path": said["sft_target_audio"],
    }
    alike, other = (
        convert_source([as_lines(folder / f"{name}.jsonl", [content])], tmp_path / name, SECONDS)
        for name, content in (("alike", row), ("other", row | {key: "q/0-1.wav"}))
    )
    assert alike.rows == 1
    assert other.rows == 0 and any(reason.startswith(f"{key}: must say the same as") for reason in other.reasons)


def test_a_reply_in_two_turns_of_which_one_is_silent_is_no_reference(folder: Path, tmp_path: Path) -> None:
    (given,) = rows(folder, 1)
    turns = [("user", "<audio>what"), ("assistant", "<audio>ten"), ("assistant", "and more")]
    row = {
        "messages": [{"role": role, "content": content} for role, content in turns],
        "audios": [given["audios"][0], given["sft_target_audio"]],
    }
    progress = convert_source([as_lines(folder / "set.jsonl", [row])], tmp_path / "to", SECONDS)
    assert progress.rows == 0 and list(progress.reasons) == [
        "messages: must have sound, as the other turns of the reference reply have"
    ]


def test_files_of_a_sample_that_its_row_does_not_use_are_told(folder: Path, tmp_path: Path) -> None:
    given = samples(folder, rows(folder, 1))
    key = given[0][0].name.removesuffix(".json")
    given.append(member(f"{key}.seg1.wav", given[1][1]))
    progress = convert_source([as_tar(folder / "set.tar", given)], tmp_path / "to", SECONDS)
    assert progress.rows == 1 and {"KEY.seg1.wav", "KEY.txt"} <= progress.unread.keys()


def test_problems_of_one_row_are_bounded_and_counted(folder: Path, tmp_path: Path) -> None:
    given = rows(folder, 2)
    given[0]["audios"][0] = [82] * 5000
    given[0]["audios"][1] = "UklGR" * 5000
    convert_source([as_lines(folder / "set.jsonl", given)], tmp_path / "to", SECONDS)
    lines = (tmp_path / "to" / "problems.txt").read_text().splitlines()
    assert len(lines) == 101 and lines[-1].endswith("5001 problems in all, 100 listed")


@pytest.mark.parametrize("begin", ["[", "\ufeff\n [\n"])
def test_one_array_is_no_file_of_lines(begin: str, folder: Path, tmp_path: Path) -> None:
    lines = ",\n".join(json.dumps(row) for row in rows(folder, 3))
    (folder / "set.jsonl").write_text(f"{begin}{lines}\n]")
    with pytest.raises(ValueError, match="an object on each line, it is one array"):
        convert_source([folder / "set.jsonl"], tmp_path / "to", SECONDS)
