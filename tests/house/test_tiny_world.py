"""The tiny world: disjoint sets, right answers, and shipped data that is what the programs write."""

import json
import shutil
from itertools import chain, combinations
from pathlib import Path
from random import Random
from typing import Any

import pytest

from examples.tiny_world.build import DATA, build_bank, write_language, write_manifests
from examples.tiny_world.language import bigram_arpa, dictionary_of
from examples.tiny_world.pretrain import drill, held_out_sentences, read_rows
from examples.tiny_world.words import NUMBERS, REPLY_WORDS, VOCABULARY

Rows = dict[str, list[dict[str, Any]]]

SPLITS = ("train", "validation", "test")
KEYS = {
    "id", "messages", "audios", "question_text", "task_type", "answer", "style", "sft_target_text",
    "sft_target_audio",
}  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> Rows:
    return {name: read_rows(name) for name in SPLITS}


def numbers_in(row: dict[str, Any]) -> tuple[int, ...]:
    return tuple(NUMBERS.index(word) for word in row["question_text"].split() if word in NUMBERS)


def asked(row: dict[str, Any]) -> tuple[object, ...]:
    """What must stay unseen whatever the phrasing and style: a sum, an unordered pair to compare, a sentence."""
    if row["task_type"] == "repeat":
        return ("repeat", row["answer"]["value"])
    if row["task_type"] == "comparison":
        return ("compare", *sorted(numbers_in(row)))
    return ("plus", *numbers_in(row))


def is_fact(row: dict[str, Any]) -> bool:
    """Rows whose fact has to be trained on: only the fact in this style is held out."""
    return row["task_type"] in ("next", "opposite") or "minus" in row["question_text"].split()


def test_the_sets_are_large_enough_and_hold_every_task(rows: Rows) -> None:
    assert len(rows["train"]) >= 2000
    assert len(rows["validation"]) >= 90
    assert len(rows["test"]) >= 180
    for task in ("arithmetic", "comparison", "next", "opposite", "repeat"):
        assert sum(row["task_type"] == task for row in rows["test"]) >= 25


def test_rows_have_the_documented_keys_and_one_marker_per_audio(rows: Rows) -> None:
    for row in (row for name in SPLITS for row in rows[name]):
        assert set(row) == KEYS
        assert row["messages"][0]["content"].count("<|audio|>") == len(row["audios"])
        assert {*row["question_text"].split(), *row["sft_target_text"].split()} <= set(VOCABULARY)


def test_no_question_is_asked_twice_in_or_across_sets(rows: Rows) -> None:
    texts = {name: [row["question_text"] for row in rows[name]] for name in SPLITS}
    for name in SPLITS:
        assert len(set(texts[name])) == len(texts[name])
    for one, other in combinations(SPLITS, 2):
        assert not set(texts[one]) & set(texts[other])


def test_held_out_sums_pairs_and_sentences_are_in_no_other_set(rows: Rows) -> None:
    keys = {name: {asked(row) for row in rows[name] if not is_fact(row)} for name in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not keys[one] & keys[other]


def test_held_out_facts_are_new_in_their_style_and_known_in_another(rows: Rows) -> None:
    def facts(name: str) -> set[tuple[tuple[object, ...], str | None]]:
        return {(fact(row), row["style"]) for row in rows[name] if is_fact(row)}

    def fact(row: dict[str, Any]) -> tuple[object, ...]:
        return ("minus", *numbers_in(row)) if row["task_type"] == "arithmetic" else (row["sft_target_text"],)

    known = {text for text, _ in facts("train")}
    for name in ("validation", "test"):
        assert not facts(name) & facts("train")
        assert {text for text, _ in facts(name)} <= known


def test_the_mirror_image_of_every_held_out_sum_is_trained_on(rows: Rows) -> None:
    def sums(name: str) -> set[tuple[int, ...]]:
        return {numbers_in(row) for row in rows[name] if "plus" in row["question_text"].split()}

    for name in ("validation", "test"):
        assert {(b, a) for a, b in sums(name)} <= sums("train")


def test_drills_never_say_a_held_out_sentence(rows: Rows) -> None:
    held = held_out_sentences()
    assert {row["answer"]["value"] for row in rows["test"] if row["task_type"] == "repeat"} <= held
    drills = [drill(Random(seed), frozenset({"the"})) for seed in range(200)]
    assert all(row["sft_target_text"] != "the" for row in drills)


def test_answers_agree_with_a_naive_calculation(rows: Rows) -> None:
    for row in (row for name in SPLITS for row in rows[name]):
        question, value = row["question_text"].split(), row["answer"]["value"]
        if row["task_type"] == "arithmetic":
            a, b = numbers_in(row)
            assert value == NUMBERS[a + b if "plus" in question else a - b]
        elif row["task_type"] == "comparison":
            assert value == NUMBERS[max(numbers_in(row)) if "bigger" in question else min(numbers_in(row))]
        elif row["task_type"] == "repeat":
            assert row["question_text"].endswith(f"after me {value}")
        assert row["sft_target_text"].endswith(value)


def test_style_is_asked_for_in_words_and_given_in_the_target(rows: Rows) -> None:
    for row in (row for name in SPLITS for row in rows[name]):
        adverb = {"slow": "slowly", "loud": "loudly", None: None}[row["style"]]
        assert set(row["question_text"].split()) & {"slowly", "loudly"} == {adverb} - {None}
        folder = f"bank/rms-{row['style']}/" if row["style"] else "bank/rms/"
        assert row["sft_target_audio"] == [f"{folder}{word}.flac" for word in row["sft_target_text"].split()]


def test_every_clip_a_manifest_names_is_shipped(rows: Rows) -> None:
    every = (row for name in SPLITS for row in rows[name])
    clips = {clip for row in every for clip in (*row["sft_target_audio"], *chain(*row["audios"]))}
    assert not [clip for clip in clips if not (DATA / clip).is_file()]


def test_about_a_tenth_of_training_questions_are_written(rows: Rows) -> None:
    assert 0.05 < sum(not row["audios"] for row in rows["train"]) / len(rows["train"]) < 0.15
    assert all(row["audios"] for name in ("validation", "test") for row in rows[name])


def test_the_shipped_data_fits_its_budget() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) <= 12_000_000


def test_manifests_and_language_rebuild_to_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("pocketsphinx")
    write_manifests(tmp_path)
    write_language(tmp_path)
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl", "asr.arpa", "asr.dict"):
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes(), name


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed: apt-get install flite")
def test_clips_render_again_to_the_same_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    import soundfile

    from examples.tiny_world import build

    monkeypatch.setattr(build, "REPLY_WORDS", ["twelve", "the"])
    monkeypatch.setattr(build, "VOCABULARY", ["what", "slowly"])
    build_bank(tmp_path)
    clips = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.flac")]
    assert len(clips) == 10
    for clip in clips:
        samples = soundfile.read(tmp_path / clip, dtype="int16")[0]
        assert np.array_equal(samples, soundfile.read(DATA / clip, dtype="int16")[0])
        assert len(samples) % 1280 == 0
        assert not samples[:320].any() and not samples[-320:].any()


def test_a_missing_flite_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="flite is not installed"):
        build_bank(tmp_path)


def test_the_language_model_is_a_distribution_with_every_word() -> None:
    text = bigram_arpa(["a b", "a c"], ["a", "b", "c", "d"])
    assert "ngram 1=6" in text and " d " in text.split("\\2-grams:")[0]
    seen = text.split("\\2-grams:\n")[1].split("\n")
    after_a = [10 ** float(line.split()[0]) for line in seen if line.split()[1:2] == ["a"]]
    assert sum(after_a) == pytest.approx(0.5, abs=1e-3)


def test_a_word_without_pronunciation_is_refused() -> None:
    with pytest.raises(ValueError, match="zzz"):
        dictionary_of(["zzz"], ["one W AH N"])


def test_the_base_checkpoint_loads_with_standard_tools() -> None:
    from transformers import PreTrainedTokenizerFast

    base = DATA.parent / "base"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    text = "what is <|audio_3|>"
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == text.split()
    assert config["vocab_size"] % 64 == 0 and config["vocab_size"] > len(tokenizer)
    assert set(REPLY_WORDS) <= set(tokenizer.get_vocab())
