"""Pairs: a sound file of either form is read, of a bad one every problem is listed with its place."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from commands.cli import main
from speech.data import manifest, pairs
from speech.data.manifest import AUDIO_MARKER, DialogueMessage, ManifestError
from speech.data.pairs import PairRow
from speech.data.wavalign import strip_written_messages
from speech.sound import audio

SECONDS = 1.0
Row = dict[str, Any]
SIDE: Row = {"text": "two", "audio": ["a.wav"], "ids": [5, 6, 3], "channels": "TBE", "sampled": "101"}
MADE: Row = {
    "model": "m", "family": "tiny", "layout": "l", "weights": {"semantic": 0.5, "acoustic": 0.5}, "samples": 8,
    "temperature": 1.0, "max_new_tokens": 160, "grammar": False, "seed": 0, "commit": None, "source": "s",
}  # fmt: skip
OURS: Row = {
    "id": "row-1",
    "messages": [{"role": "user", "content": AUDIO_MARKER}],
    "audios": [["a.wav", "b.wav"]],
    "question_text": "what is one plus one",
    "task_type": "arithmetic",
    "answer": {"match": "final", "value": "two"},
    "style": "slow",
    "chosen": SIDE | {"reward": 4.5, "scores": {"semantic": {"value": 5, "spread": 0.1, "judge": "j/1"}}},
    "rejected": SIDE | {"ids": [5, 7, 3], "text": "", "audio": [], "reward": 1.0},
    "margin": 3.5,
    "weight": 2,
    "prompt_ids": [1, 2],
    "provenance": MADE,
}
THEIRS: Row = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"Say it aloud.\n\n{AUDIO_MARKER}"},
    ],
    "audios": ["a.wav"],
    "sft_target_text": "It is two.",
    "sft_target_audio": "b.wav",
    "rejected_text": "No.",
    "rejected_audio": "a.wav",
    "task_type": "s2s",
    "question_text": "Say it aloud.",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with two clips, one that is too long, one that is none, and a way out."""
    root = tmp_path / "data"
    root.mkdir()
    tone = np.tile(np.float32([0, 0.1]), 800)
    for name, level in (("a.wav", 1), ("b.wav", 2), ("copy.wav", 2), ("copy.flac", 2)):
        audio.write(root / name, level * tone, 16_000)
    audio.write(root / "long.wav", np.tile(tone, 20), 16_000)
    (root / "text.wav").write_text("no sound")
    (root / "out").symlink_to(tmp_path)
    audio.write(tmp_path / "secret.wav", tone, 16_000)
    return root


def written(folder: Path, *rows: Row | str) -> Path:
    path = folder / "pairs.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def without(row: Row, *keys: str) -> Row:
    return {key: value for key, value in row.items() if key not in keys}


def side(row: Row, name: str, **changes: Any) -> Row:
    return row | {name: row[name] | changes}


PLAIN = OURS | {
    "chosen": {"text": "two words", "audio": ["a.wav"]},
    "rejected": {"text": "two words", "audio": ["b.wav"]},
    "prompt_ids": None,
    "provenance": None,
    "margin": None,
}


def test_our_own_pairs_come_back_as_they_were_written(folder: Path) -> None:
    first, second = pairs.read_pairs(written(folder, OURS, PLAIN | {"id": "row-2"}), SECONDS, deep=True)
    again = written(folder, first.model_dump_json(), second.model_dump_json())
    assert list(pairs.read_pairs(again, SECONDS)) == [first, second]
    assert (first.chosen.ids, first.chosen.sampled, first.weight, first.margin) == (
        (5, 6, 3),
        "101",
        2.0,
        3.5,
    )
    assert second.chosen.ids is None and second.weight == 2.0


def test_wavaligns_pairs_become_ours(folder: Path) -> None:
    scored = THEIRS | {
        "id": 7,
        "chosen_score": 9,
        "rejected_score": 4.5,
        "score_gap": None,
        "chosen_key": "out_3",
    }
    plain, known = pairs.read_pairs(written(folder, THEIRS, scored), SECONDS, deep=True)
    assert plain.messages == (
        DialogueMessage(role="system", content="Be brief."),
        DialogueMessage(role="user", content=f"Say it aloud.\n\n{AUDIO_MARKER}"),
    )
    assert plain.audios == (("a.wav",),)
    assert (plain.chosen.text, plain.chosen.audio) == ("It is two.", ("b.wav",))
    assert (plain.rejected.text, plain.rejected.audio) == ("No.", ("a.wav",))
    assert (plain.id, plain.margin, plain.weight, plain.prompt_ids) == ("line-1", None, 1.0, None)
    assert (known.id, known.margin, known.chosen.reward, known.rejected.reward) == ("7", 4.5, 9.0, 4.5)


def test_what_is_null_in_wavaligns_metadata_is_not_known(folder: Path) -> None:
    names = (
        "id",
        "chosen_score",
        "rejected_score",
        "score_gap",
        "task_type",
        "question_text",
        "source_dataset",
    )
    (row,) = pairs.read_pairs(written(folder, THEIRS | dict.fromkeys(names)), SECONDS)
    assert (row.id, row.task_type, row.question_text, row.margin) == ("line-1", None, None, None)


def test_an_answer_behind_the_last_question_is_no_part_of_wavaligns_prompt(folder: Path) -> None:
    answered = THEIRS | {"messages": [*THEIRS["messages"], {"role": "assistant", "content": "It is two."}]}
    assert [row.messages for row in pairs.read_pairs(written(folder, answered), SECONDS)] == [
        row.messages for row in pairs.read_pairs(written(folder, THEIRS), SECONDS)
    ]


def test_white_space_goes_around_a_written_turn_of_theirs_and_stands_beside_a_marker() -> None:
    given = ("\n Say it. \n", f" Say it.\n\n{AUDIO_MARKER}\n", f"\n{AUDIO_MARKER}")
    written_messages = strip_written_messages([DialogueMessage(role="user", content=content) for content in given])
    assert [message.content for message in written_messages] == ["Say it.", *given[1:]]


OUR_MISTAKES: list[tuple[Row | str, str, str]] = [
    ("{oops", "", "must be one JSON object"),
    ("", "", "the line is empty"),
    ('{"chosen": 1, "chosen": 2}', "chosen", "key must not appear twice"),
    (json.dumps(OURS).replace("arithmetic", r"\ud800"), "", "surrogates not allowed"),
    (OURS | {"chose": {}}, "chose", "unknown key, did you mean chosen?; the file is read as wavgate's pairs"),
    (OURS | {"rejected_text": "x"}, "rejected_text", "unknown key, did you mean rejected?; the file is read as wavg"),
    (without(OURS, "rejected"), "rejected", "key is missing; the file is read as wavgate's pairs (its first row"),
    (side(OURS, "chosen", idz=[1]), "chosen.idz", "unknown key, did you mean ids?"),
    (side(OURS, "chosen", scores={"semantic": {"valu": 1, "judge": "j"}}), "chosen.scores.semantic.valu", "value?"),
    (side(OURS, "chosen", scores={"semantic": {"value": float("nan"), "judge": "j"}}), "chosen.scores.semantic.value", "finite"),
    (OURS | {"provenance": MADE | {"modl": 1}}, "provenance.modl", "did you mean model?"),
    (OURS | {"answer": {"match": "fuzzy", "value": "x"}}, "answer.match", "got 'fuzzy'"),
    (OURS | {"id": "../x"}, "id", "got '../x'"),
    (side(OURS, "chosen", ids=[5, "6", 3]), "chosen.ids[1]", "must be a whole number"),
    (side(OURS, "chosen", ids=[5, True, 3]), "chosen.ids[1]", "must be a whole number"),
    (side(OURS, "chosen", ids=[5, -6, 3]), "chosen.ids[1]", "greater than or equal to 0"),
    (side(OURS, "chosen", ids=[5, 2**40, 3]), "chosen.ids[1]", "less than"),
    (side(OURS, "chosen", ids=[]), "chosen.ids", "must not be empty"),
    (side(OURS, "chosen", ids=[5, 6]), "chosen", "one entry per id"),
    (side(OURS, "chosen", sampled="11"), "chosen", "one entry per id"),
    (side(OURS, "chosen", sampled="12x"), "chosen.sampled", "must match"),
    (side(OURS, "chosen", channels="TXE"), "chosen.channels", "must match"),
    (side(OURS, "chosen", channels=None), "chosen", "must come together"),
    (side(PLAIN, "chosen", text=" "), "chosen", "must have text and audio"),
    (side(PLAIN, "rejected", audio=[]), "rejected", "must have text and audio"),
    (OURS | {"prompt_ids": None}, "prompt_ids", "must come with the ids of both replies"),
    (OURS | {"provenance": None}, "provenance", "it says what they mean"),
    (OURS | {"rejected": OURS["chosen"] | {"reward": 1.0}}, "rejected", "must not be the same reply"),
    (OURS | {"chosen": OURS["chosen"] | {"text": "x"}, "rejected": OURS["chosen"]}, "rejected", "same reply"),
    (PLAIN | {"rejected": PLAIN["chosen"]}, "rejected", "must not be the same reply"),
    (side(OURS, "chosen", reward=0.5), "chosen.reward", "must not be below that of rejected: got 0.5"),
    (OURS | {"margin": -1}, "margin", "greater than or equal to 0"),
    (OURS | {"weight": 0}, "weight", "greater than 0"),
    (OURS | {"weight": -1.0}, "weight", "greater than 0"),
    (OURS | {"weight": float("inf")}, "weight", "finite"),
    (OURS | {"weight": None}, "weight", "got None"),
    (OURS | {"messages": [{"role": "assistant", "content": AUDIO_MARKER}]}, "messages", "hold a user turn"),
    (OURS | {"messages": [{"role": "user", "content": f"hi {AUDIO_MARKER} {AUDIO_MARKER}"}]}, "audios", "got 1 for 2"),
    (OURS | {"audios": []}, "audios", "got 0 for 1"),
    (OURS | {"audios": [["a.wav", "../secret.wav"]]}, "audios[0][1]", "without '..'"),
    (OURS | {"audios": [["a.wav"] * 11]}, "audios[0]", "at most 1 s: got 1.1 s"),
    (side(OURS, "chosen", audio=["out/secret.wav"]), "chosen.audio[0]", "links included"),
    (side(OURS, "chosen", audio=["/etc/passwd"]), "chosen.audio[0]", "must be relative"),
    (side(OURS, "rejected", audio=["gone.wav"]), "rejected.audio[0]", "does not exist"),
    (side(OURS, "rejected", audio=["text.wav"]), "rejected.audio[0]", "cannot be read as audio"),
    (side(OURS, "rejected", audio=["gone\n\x1b[2Jpassed.wav"]), "rejected.audio[0]", r"gone\n\x1b[2Jpassed.wav"),
    (OURS | {"evil\nkey": 1}, "evil\nkey", "unknown key"),
]  # fmt: skip

THEIR_MISTAKES: list[tuple[Row | str, str, str]] = [
    (THEIRS | {"chosen": {}}, "chosen", "unknown key, did you mean chosen_key?; the file is read as WavAlign's pairs"),
    (THEIRS | {"sft_target_txt": "x"}, "sft_target_txt", "did you mean sft_target_text?"),
    (without(THEIRS, "sft_target_audio"), "sft_target_audio", "key is missing; the file is read as WavAlign's pairs"),
    (THEIRS | {"rejected_audio": None}, "rejected_audio", "got None"),
    (THEIRS | {"rejected_audio": ["a.wav"]}, "rejected_audio", "got ['a.wav']"),
    (THEIRS | {"rejected_text": ""}, "rejected_text", "must not be empty"),
    (THEIRS | {"rejected_text": " "}, "rejected_text", "must not be blank"),
    (THEIRS | {"rejected_text": "It is two.", "rejected_audio": "b.wav"}, "rejected_audio", "not be the same reply"),
    (THEIRS | {"chosen_score": 1, "rejected_score": 2}, "chosen_score", "must not be below rejected_score: got 1"),
    (THEIRS | {"chosen_score": float("nan")}, "chosen_score", "finite"),
    (THEIRS | {"score_gap": -1}, "score_gap", "greater than or equal to 0"),
    (THEIRS | {"id": ["a/b"]}, "id", "got ['a/b']"),
    (THEIRS | {"messages": []}, "messages", "must not be empty"),
    (THEIRS | {"messages": [{"role": "human", "content": "x"}]}, "messages[0].role", "got 'human'"),
    (THEIRS | {"messages": [{"role": "assistant", "content": "x"}], "audios": []}, "messages", "hold a user turn"),
    (THEIRS | {"messages": [{"role": "user", "content": AUDIO_MARKER * 2}]}, "audios", "got 1 for 2"),
    (THEIRS | {"audios": [["a.wav"]]}, "audios[0]", "got ['a.wav']"),
    (THEIRS | {"audios": ["/data/a.wav"]}, "audios[0]", "must be relative"),
    (THEIRS | {"audios": ["http://x.org/a.wav"]}, "audios[0]", "not a URL"),
    (THEIRS | {"sft_target_audio": "out/secret.wav"}, "sft_target_audio", "links included"),
    (THEIRS | {"rejected_audio": "long.wav"}, "rejected_audio", "at most 1 s"),
]  # fmt: skip
MISTAKES = [(OURS, *one) for one in OUR_MISTAKES] + [(THEIRS, *one) for one in THEIR_MISTAKES]


@pytest.mark.parametrize(("good", "row", "field", "message"), MISTAKES)
def test_each_mistake_is_named_with_its_place(
    folder: Path, good: Row, row: Row | str, field: str, message: str
) -> None:
    path = written(folder, good | {"id": "fine"}, row, good | {"id": "fine-too"})
    with pytest.raises(ManifestError) as caught:
        pairs.read_pairs(path, SECONDS)
    problems = caught.value.problems
    assert (2, field) in [(problem.line, problem.field) for problem in problems]
    assert {problem.line for problem in problems} == {2}
    text = " ".join(str(problem) for problem in problems if problem.field == field)
    assert message in text and "\n" not in text and "\x1b" not in text


@pytest.mark.parametrize(("good", "mistakes"), [(OURS, OUR_MISTAKES), (THEIRS, THEIR_MISTAKES)])
def test_all_problems_of_a_file_are_listed_at_once(
    folder: Path, good: Row, mistakes: list[tuple[Row | str, str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(folder, good | {"id": "fine"}, *(row for row, _, _ in mistakes))
    assert main(["data", "check", str(path), "--max-seconds", "1"]) == 2
    assert " problems in all, 20 shown:" in capsys.readouterr().err
    with pytest.raises(ManifestError) as caught:
        pairs.read_pairs(path, SECONDS, deep=True)
    assert {problem.line for problem in caught.value.problems} == set(range(2, len(mistakes) + 2))


@pytest.mark.parametrize("copy", ["b.wav", "copy.wav", "copy.flac", "./b.wav"])
@pytest.mark.parametrize("words", ["two words", " two  words "])
def test_replies_of_the_same_words_and_samples_are_the_same_whatever_their_names(
    folder: Path, copy: str, words: str
) -> None:
    ours = PLAIN | {"rejected": {"text": words, "audio": [copy]}, "chosen": PLAIN["rejected"]}
    theirs = THEIRS | {"sft_target_text": "two words", "rejected_text": words, "rejected_audio": copy}
    for row, field in ((ours, "rejected"), (theirs, "rejected_audio")):
        with pytest.raises(ManifestError, match=f":1:{field}: must not be the same reply") as caught:
            pairs.read_pairs(written(folder, row), SECONDS, deep=True)
        assert len(caught.value.problems) == 1
    other = theirs | {"rejected_text": "other words"}
    assert len(pairs.read_pairs(written(folder, other), SECONDS, deep=True)) == 1


def test_ids_of_a_source_are_made_fit_and_stay_apart(folder: Path) -> None:
    given = ["voiceassistant/000001", "voiceassistant-000001", "voiceassistant 000001", 7, "", None, -3]
    rows = pairs.read_pairs(written(folder, *(THEIRS | {"id": item} for item in given)), SECONDS)
    ids = [row.id for row in rows]
    assert len(set(ids)) == 7 and ids[1] == "voiceassistant-000001" and ids[3:6] == ["7", "line-5", "line-6"]
    assert ids[0].startswith("voiceassistant-000001-") and ids[0] == manifest.make_file_safe_id(given[0])  # type: ignore[arg-type]


def test_a_wrong_id_among_many_is_told_once(folder: Path) -> None:
    wrong = side(OURS, "chosen", ids=["x"] * 1000, channels="T" * 1000, sampled="1" * 1000)
    with pytest.raises(ManifestError) as caught:
        pairs.read_pairs(written(folder, OURS | {"id": "fine"}, wrong), SECONDS)
    assert [problem.field for problem in caught.value.problems] == ["chosen.ids[0]"]


def test_an_id_that_a_line_number_gave_is_unique_too(folder: Path) -> None:
    with pytest.raises(ManifestError, match="must be unique: line-2 is also on line 1"):
        pairs.read_pairs(written(folder, THEIRS | {"id": "line-2"}, THEIRS), SECONDS)


@pytest.mark.parametrize(
    ("rows", "form"),
    [
        ([OURS, THEIRS], "pairs"), ([THEIRS, OURS], "wavalign"), (["{", THEIRS], "wavalign"), ([{"id": "x"}], "prompts"),
        ([""], "prompts"), (["[]", {"rejected": 1}], "pairs"), ([{"rejected_audio": 1}], "wavalign"),
    ],
)  # fmt: skip
def test_the_first_object_decides_what_a_file_holds(folder: Path, rows: list[Row | str], form: str) -> None:
    assert pairs.detect_pairs_form(written(folder, *rows)) == form


def test_prompts_are_no_pairs_and_a_file_that_is_not_there_is_said_to_be_missing(folder: Path) -> None:
    with pytest.raises(ManifestError, match="must hold pairs: its first row must have chosen and rejected"):
        pairs.read_pairs(written(folder, {"id": "x"}), SECONDS)
    with pytest.raises(ManifestError, match="manifest does not exist"):
        pairs.read_pairs(folder / "none.jsonl", SECONDS)


def test_a_line_that_is_too_long_is_one_problem_beside_those_behind_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speech.data.problems.MAX_LINE", 5000)
    path = written(folder, OURS, "x" * 100_000, OURS, "x" * 5000, OURS | {"weight": 0})
    for read in (pairs.read_pairs, manifest.read_manifest):
        with pytest.raises(ManifestError) as caught:
            read(path, SECONDS)
        lines = str(caught.value).splitlines()
        assert f"{path}:2: a line has at most 5000 bytes" in lines
        assert f"{path}:4: a line has at most 5000 bytes" in lines and any(f"{path}:5:" in line for line in lines)
    with pytest.raises(ManifestError, match=f":3:id: must be unique: {OURS['id']} is also on line 1"):
        pairs.read_pairs(path, SECONDS)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from([*OURS, *THEIRS]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(AUDIO_MARKER),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*SIDE, "role"]), inner),
            max_leaves=6,
        ),
    )
)
def test_whatever_a_line_holds_it_is_a_row_or_problems(folder: Path, changes: Row) -> None:
    for good in (OURS, THEIRS):
        path = written(folder, good | {"id": "fine"}, good | changes)
        try:
            rows = pairs.read_pairs(path, SECONDS)
        except ManifestError as error:
            assert all(problem.line == 2 and problem.message for problem in error.problems)
        else:
            assert len(rows) == 2
            assert PairRow.model_validate_json(rows[1].model_dump_json()) == rows[1]


def test_data_check_says_what_the_pairs_are(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(written(folder, OURS))]) == 0
    out = capsys.readouterr().out
    assert "1 rows, no problem; arithmetic 1" in out and "3.5 to 3.5, known of 1" in out
    assert "read as wavgate's pairs" in out and "1 with their tokens, 0 as words and sound" in out
    assert main(["data", "check", str(written(folder, THEIRS | {"task_type": None}))]) == 0
    assert "of no type 1\nread as WavAlign's pairs" in capsys.readouterr().out


def test_pairs_that_are_close_are_counted_where_the_distance_is_known(folder: Path) -> None:
    rows = [OURS | {"id": f"r{i}", "margin": margin} for i, margin in enumerate((0.2, 0.5, 3, None))]
    assert pairs.count_below_margin(pairs.read_pairs(written(folder, *rows), SECONDS), 0.5) == 1
