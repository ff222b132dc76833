"""Manifests: a sound one is read, of a bad one every problem is listed; the cursor never loses its place."""

import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from speech.answers.expected import AnswerMatch
from speech.data import manifest
from speech.data.manifest import AUDIO_MARKER, DialogueMessage, ManifestError, RowCursor
from speech.sound import audio

SECONDS = 1.0
GOOD: dict[str, Any] = {
    "id": "row-1",
    "messages": [{"role": "user", "content": "<|audio|>"}],
    "audios": [["a.wav", "b.wav"]],
    "question_text": "what is one plus one",
    "task_type": "arithmetic",
    "answer": {"match": "final", "value": "two"},
    "style": None,
    "sft_target_text": "the answer is two",
    "sft_target_audio": ["a.wav"],
}


def answer(match: str, value: str) -> dict[str, Any]:
    return GOOD | {"answer": {"match": match, "value": value}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with two sound clips, three bad ones and a way out."""
    root = tmp_path / "data"
    root.mkdir()
    tone = np.tile(np.float32([0, 0.1]), 800)
    for name in ("a.wav", "b.wav"):
        audio.write(root / name, tone, 16_000)
    soundfile.write(root / "nan.wav", np.full(1600, np.nan, np.float32), 16_000, subtype="FLOAT")
    soundfile.write(root / "empty.wav", np.zeros(0, np.float32), 16_000)
    audio.write(root / "long.wav", np.tile(tone, 20), 16_000)
    zero = bytearray((root / "a.wav").read_bytes())
    zero[24:28] = bytes(4)
    (root / "zero.wav").write_bytes(zero)
    audio.write(root / "silent.wav", 0 * tone, 16_000)
    audio.write(root / "click.wav", tone[:1], 16_000)
    (root / "folder.wav").mkdir()
    os.mkfifo(root / "pipe.wav")
    (root / "out").symlink_to(tmp_path)
    audio.write(tmp_path / "secret.wav", tone, 16_000)
    return root


def written(folder: Path, *rows: dict[str, Any] | str) -> Path:
    path = folder / "rows.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_sound_manifest_is_read_in_order(folder: Path) -> None:
    spoken, written_turn = GOOD, GOOD | {"id": "row-2", "audios": [], "answer": None, "style": "slow"}
    written_turn["messages"] = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hello"},
    ]
    path = written(folder, spoken, written_turn)
    rows = manifest.read_manifest(path, SECONDS)
    assert manifest.check_manifest(path, SECONDS) == []
    assert [row.id for row in rows] == ["row-1", "row-2"]
    assert [row.model_dump(mode="json") for row in rows] == [spoken, written_turn]


FITTING = {
    "final": ["twelve", "?!"],
    "exact": ["my dog is happy"],
    "number": ["12", "-3.5", "1,200", "three quarters", "twenty-one", "2/3", "75 %"],
    "choice": ["B", "b", "B: Paris", "C) Rome", "D. Oslo"],
    "contains": ["the eiffel tower"],
    "regex": ["paris|london", r"\bfour(teen)?\b", "a{2,5}", r"[0-9]{4}", r"\{"],
    "math": ["2x + 3", "x = 1/2", "(a+b)^2", "two x plus three", "sqrt(2)"],
}


@pytest.mark.parametrize("match", FITTING)
def test_a_value_that_fits_its_match_is_read_as_it_stands(folder: Path, match: str) -> None:
    rows = [answer(match, value) | {"id": f"row-{i}"} for i, value in enumerate(FITTING[match])]
    read = manifest.read_manifest(written(folder, *rows), SECONDS)
    assert [row.answer.value for row in read if row.answer] == FITTING[match]


def test_a_folder_or_a_pipe_is_no_manifest_and_nobody_waits(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jsonl")
    for path in (folder / "pipe.jsonl", folder):
        with pytest.raises(ManifestError, match="manifest must be a file that can be read twice, no folder and no"):
            manifest.read_manifest(path, SECONDS)


def test_a_byte_order_mark_costs_no_row(folder: Path) -> None:
    path = written(folder, GOOD, GOOD | {"id": "row-2"})
    path.write_bytes(b"".join(b"\xef\xbb\xbf" + line for line in path.read_bytes().splitlines(keepends=True)))
    assert [row.id for row in manifest.read_manifest(path, SECONDS)] == ["row-1", "row-2"]


def test_every_match_has_an_example_here() -> None:
    assert set(FITTING) == set(get_args(AnswerMatch))


MISTAKES: list[tuple[dict[str, Any] | str, str, str]] = [
    ("{oops", "", "must be one JSON object: Expecting property name"),
    ("", "", "the line is empty"),
    ("[1]", "", "must be one JSON object: got a list"),
    ("[" * 100_000, "", "nested too deeply"),
    ('{"id": "x", "id": "y"}', "id", "key must not appear twice"),
    (GOOD | {"sft_target_txt": "x"}, "sft_target_txt", "unknown key, did you mean sft_target_text?"),
    (GOOD | {"zzz": "x"}, "zzz", "unknown key"),
    (GOOD | {"answer": {"match": "final", "vlue": "x"}}, "answer.vlue", "did you mean value?"),
    ({k: v for k, v in GOOD.items() if k != "task_type"}, "task_type", "key is missing"),
    (GOOD | {"style": "fast"}, "style", "got 'fast'"),
    (GOOD | {"id": "../x"}, "id", "got '../x'"),
    (GOOD | {"audios": [["gone.wav"]]}, "audios[0][0]", "does not exist"),
    (GOOD | {"audios": [["a.wav", "../secret.wav"]]}, "audios[0][1]", "without '..'"),
    (GOOD | {"audios": [["out/secret.wav"]]}, "audios[0][0]", "links included"),
    (GOOD | {"audios": [["/etc/passwd"]]}, "audios[0][0]", "must be relative"),
    (GOOD | {"audios": [["http://x.org/a.wav"]]}, "audios[0][0]", "not a URL"),
    (GOOD | {"audios": [["x" * 5000 + ".wav"]]}, "audios[0][0]", "File name too long"),
    (GOOD | {"audios": [["empty.wav"]]}, "audios[0][0]", "must not be empty"),
    (GOOD | {"audios": [["nan.wav"]]}, "audios[0][0]", "must be finite"),
    (GOOD | {"audios": [["zero.wav"]]}, "audios[0][0]", "at least 1 Hz"),
    (GOOD | {"audios": [["long.wav"]]}, "audios[0][0]", "at most 1 s"),
    (GOOD | {"audios": [["a.wav"] * 11]}, "audios[0]", "at most 1 s: got 1.1 s"),
    (GOOD | {"audios": [[]]}, "audios[0]", "at least one clip"),
    (GOOD | {"audios": []}, "audios", "one entry per <|audio|>: got 0 for 1"),
    (GOOD | {"audios": [["a.wav"], ["b.wav"]]}, "audios", "got 2 for 1"),
    (GOOD | {"messages": []}, "messages", "must not be empty"),
    (GOOD | {"messages": [{"role": "assistant", "content": "<|audio|>"}]}, "messages", "hold a user turn"),
    (GOOD | {"messages": [{"role": "user", "content": "<|audio|> hi <|audio|>"}]}, "audios", "got 1 for 2"),
    (GOOD | {"messages": [{"role": "user", "content": " \n"}]}, "messages[0].content", "must not be blank"),
    (GOOD | {"messages": [{"role": "user", "content": " "}], "audios": []}, "messages[0].content", "blank"),
    (GOOD | {"messages": [{"role": "usr", "content": "x"}], "audios": []}, "messages[0].role", "got 'usr'"),
    (GOOD | {"answer": {"match": "fuzzy", "value": "x"}}, "answer.match", "got 'fuzzy'"),
    (GOOD | {"answer": {"match": "final", "value": ""}}, "answer.value", "must not be empty"),
    (answer("number", "twelve-ish"), "answer.value", "must be one number, as 12"),
    (answer("number", "1 or 2"), "answer.value", "got '1 or 2'"),
    (answer("choice", "BC"), "answer.value", "must be the letter of an option"),
    (answer("math", "2x +"), "answer.value", "must be an expression"),
    (answer("math", "1/2x"), "answer.value", "in two ways"),
    (answer("regex", "(paris"), "answer.value", "must be a pattern: missing ), unterminated subpattern"),
    (answer("regex", "a" * 501), "answer.value", "at most 500 characters"),
    (answer("regex", "(?R)"), "answer.value", "must be a pattern: unknown extension"),
    (answer("regex", "((a{1000}){1000}){1000}"), "answer.value", "{ in counts such as"),
    (answer("regex", "((a{100}){100}){100}"), "answer.value", "counts that multiply to at most 1000"),
    (answer("regex", "(" * 60 + "a" + ")+" * 60), "answer.value", "8 groups in each other"),
    (answer("regex", "(?:paris){e<=2}"), "answer.value", "{ in counts such as"),
    (answer("regex", "paris|"), "answer.value", "finds nothing in an empty reply"),
    (GOOD | {"sft_target_text": ""}, "sft_target_text", "must not be empty"),
    (GOOD | {"sft_target_text": "  "}, "sft_target_text", "must not be blank"),
    (GOOD | {"sft_target_audio": []}, "sft_target_audio", "must not be empty"),
    (GOOD | {"sft_target_audio": ["gone.wav"]}, "sft_target_audio[0]", "does not exist"),
    (GOOD | {"sft_target_audio": ["silent.wav"]}, "sft_target_audio", "must not be silence: no sample of it"),
    (GOOD | {"sft_target_audio": ["click.wav"]}, "sft_target_audio", "at least 0.02 s: got 6.3e-05 s"),
    (GOOD | {"audios": [["silent.wav", "silent.wav"]]}, "audios[0]", "must not be silence"),
    (GOOD | {"audios": [["folder.wav"]]}, "audios[0][0]", "must be a file: got a folder"),
    (GOOD | {"audios": [["pipe.wav"]]}, "audios[0][0]", "must be a file: got a pipe or a device"),
    (GOOD | {"audios": {"a": 1}}, "audios", "must be a list: got {'a': 1}"),
    (GOOD | {"messages": ["hi"], "audios": []}, "messages[0]", "must be an object: got 'hi'"),
    (GOOD | {"question_text": 7}, "question_text", "must be text: got 7"),
    (GOOD | {"id": "a b"}, "id", "must be 1 to 128 letters, digits, . _ or -, the first a letter or a digit"),
    (
        GOOD | {"messages": [{"role": "user", "content": "<audio>hi<|audio|>"}]},
        "messages[0].content",
        "<|audio|> is",
    ),
    ("{", "", "it goes on behind the line, and must not"),
    ("[{}, {}]", "", "got a list, write each object on a line"),
    ('{"id": ' + "9" * 5000 + "}", "", "must be one JSON object: a number has thousands of digits"),
    ("x\0", "", "the file must be UTF-8: it is UTF-16 or UTF-32, or no text"),
]


@pytest.mark.parametrize(("row", "field", "message"), MISTAKES)
def test_each_mistake_is_named_with_its_place(
    folder: Path, row: dict[str, Any] | str, field: str, message: str
) -> None:
    path = written(folder, GOOD | {"id": "fine"}, row, GOOD | {"id": "fine-too"})
    problems = manifest.check_manifest(path, SECONDS)
    assert (2, field) in [(problem.line, problem.field) for problem in problems]
    assert {problem.line for problem in problems} == {2}
    text = next(str(problem) for problem in problems if problem.field == field)
    assert text.startswith(f"{path}:2:{field}") and message in text and "\n" not in text


def test_all_problems_of_a_file_are_listed_at_once(folder: Path) -> None:
    path = written(folder, *(row for row, _, _ in MISTAKES))
    with pytest.raises(ManifestError) as caught:
        manifest.read_manifest(path, SECONDS, deep=True)
    assert {problem.line for problem in caught.value.problems} == set(range(1, len(MISTAKES) + 1))
    shown, (total, *counted) = (lines := str(caught.value).splitlines())[:20], lines[20:]
    assert shown == [str(problem) for problem in caught.value.problems[:20]]
    assert total == f"{len(caught.value.problems)} problems in all, 20 shown:" and len(counted) <= 20


def test_a_typo_does_not_hide_missing_audio(folder: Path) -> None:
    row = GOOD | {"styl": "slow", "audios": [["gone.wav"]]}
    assert [problem.field for problem in manifest.check_manifest(written(folder, row), SECONDS)] == [
        "styl",
        "audios[0][0]",
    ]


def test_a_duplicate_id_names_the_first_line(folder: Path) -> None:
    (problem,) = manifest.check_manifest(written(folder, GOOD, GOOD), SECONDS)
    assert (problem.line, problem.field) == (2, "id") and "also on line 1" in problem.message


def test_a_file_that_is_missing_empty_or_not_text_is_refused(folder: Path) -> None:
    assert "does not exist" in str(manifest.check_manifest(folder / "no.jsonl", SECONDS)[0])
    (folder / "empty.jsonl").touch()
    assert "the line is empty" in str(manifest.check_manifest(folder / "empty.jsonl", SECONDS)[0])
    (folder / "latin.jsonl").write_bytes(b'{"id": "\xe4"}')
    assert "utf-8" in str(manifest.check_manifest(folder / "latin.jsonl", SECONDS)[0])


def test_only_the_deep_check_decodes(folder: Path) -> None:
    path = written(folder, GOOD | {"audios": [["nan.wav"]]})
    assert manifest.check_manifest(path, SECONDS, deep=False) == []
    assert len(manifest.check_manifest(path, SECONDS, deep=True)) == 1


def test_every_distinct_clip_is_opened_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: Counter[str] = Counter()
    info: Callable[[Path], audio.AudioHeader] = audio.read_audio_header

    def counting(path: Path) -> audio.AudioHeader:
        opened[path.name] += 1
        return info(path)

    monkeypatch.setattr(audio, "read_audio_header", counting)
    manifest.read_manifest(written(folder, *(GOOD | {"id": f"row-{i}"} for i in range(50))), SECONDS)
    assert opened == {"a.wav": 1, "b.wav": 1}


def test_a_row_cannot_be_changed(folder: Path) -> None:
    (row,) = manifest.read_manifest(written(folder, GOOD), SECONDS)
    with pytest.raises(ValueError, match="frozen"):
        row.id = "other"  # type: ignore[misc]


WHITE = [
    ("what is two", ("what is two",)),
    (" what\nis  two\n", (" what\nis  two\n",)),
    (AUDIO_MARKER, (AUDIO_MARKER,)),
    (f"say it\n\n{AUDIO_MARKER}", ("say it\n\n", AUDIO_MARKER)),
    (f"Your Voice: {AUDIO_MARKER}\n", ("Your Voice: ", AUDIO_MARKER, "\n")),
    (f"\n{AUDIO_MARKER} {AUDIO_MARKER}\n", (AUDIO_MARKER, AUDIO_MARKER)),
    (f"{AUDIO_MARKER}{AUDIO_MARKER}\n.", (AUDIO_MARKER, AUDIO_MARKER, "\n.")),
]


@pytest.mark.parametrize(("content", "parts"), WHITE)
def test_white_space_stands_as_it_is_beside_words_and_is_nothing_beside_markers_alone(
    content: str, parts: tuple[str, ...]
) -> None:
    assert DialogueMessage(role="user", content=content).parts == parts


@given(st.lists(st.one_of(st.just(AUDIO_MARKER), st.text("ab \n<|", max_size=4)), min_size=1, max_size=6))
def test_a_content_is_its_parts(pieces: list[str]) -> None:
    content = "".join(pieces)
    at_markers = manifest.split_at_markers(content)
    assert at_markers.count(AUDIO_MARKER) == content.count(AUDIO_MARKER)
    assert all(part == AUDIO_MARKER or AUDIO_MARKER not in part for part in at_markers)
    if set(at_markers) - {AUDIO_MARKER}:
        assert "".join(at_markers) == content
    else:
        assert not content.replace(AUDIO_MARKER, "").strip()


@given(st.integers(1, 30), st.integers(0, 5), st.lists(st.integers(0, 40), max_size=6))
def test_how_draws_are_cut_does_not_matter(count: int, seed: int, cuts: list[int]) -> None:
    cursor = RowCursor(count, seed)
    assert [i for n in cuts for i in cursor.draw_indices(n)] == RowCursor(count, seed).draw_indices(sum(cuts))


@given(st.integers(1, 30), st.integers(0, 5))
def test_every_epoch_holds_every_row_once(count: int, seed: int) -> None:
    drawn = RowCursor(count, seed).draw_indices(3 * count)
    for epoch in range(3):
        assert sorted(drawn[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(st.integers(1, 30), st.integers(0, 5), st.integers(0, 70), st.integers(0, 70))
def test_a_cursor_goes_on_exactly_where_it_was_saved(count: int, seed: int, before: int, after: int) -> None:
    cursor, resumed = RowCursor(count, seed), RowCursor(count, seed)
    cursor.draw_indices(before)
    resumed.load_state_dict(json.loads(json.dumps(cursor.state_dict())))
    assert resumed.draw_indices(after) == cursor.draw_indices(after)


def test_epochs_and_seeds_shuffle_differently() -> None:
    drawn = RowCursor(100, 0).draw_indices(200)
    assert drawn[:100] != drawn[100:]
    assert drawn[:100] != RowCursor(100, 1).draw_indices(100) != list(range(100))


def test_no_two_series_of_any_seeds_share_an_order() -> None:
    """As the prompts of one seed and the further reference replies of the seed before once did."""
    orders = [RowCursor(50, seed, series).draw_indices(50) for seed in range(4) for series in range(3)]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_a_cursor_does_not_touch_global_randomness() -> None:
    random.seed(0)
    np.random.seed(0)
    before = random.getstate(), np.random.get_state()[1].tolist()
    RowCursor(10, 0).draw_indices(25)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


@pytest.mark.parametrize("other", [RowCursor(11, 0), RowCursor(10, 1)])
def test_a_cursor_of_other_data_is_refused(other: RowCursor) -> None:
    with pytest.raises(ValueError, match="saved cursor must have the same"):
        other.load_state_dict(RowCursor(10, 0).state_dict())


def test_a_cursor_needs_rows() -> None:
    with pytest.raises(ValueError, match="at least one row: got 0"):
        RowCursor(0, 0)
