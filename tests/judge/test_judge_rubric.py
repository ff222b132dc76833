import base64
import io
import json
from hashlib import sha256
from math import log

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from judge.llm.answers import (
    CHOICE_FORM,
    SCORE_FORM,
    AnswerForm,
    AnswerMode,
    AnswerSampling,
    TokenLogprobs,
    build_answer_schema,
    build_answer_settings,
    check_english,
    read_expected_number,
    read_judge_answer,
    write_answer_instructions,
)
from judge.llm.rubric import (
    ACOUSTIC_RUBRIC,
    HOLISTIC_RUBRIC,
    RUBRICS,
    SEMANTIC_RUBRIC,
    Axis,
    Rubric,
    build_score_messages,
    build_system_text,
    encode_wav_base64,
    escape_markup,
)
from judge.types import CallFailed, JudgeTask, MissingKind
from rollout.types import Speech

TASK = JudgeTask(task_type="t", question="What is the capital?", match=None, answer="SECRET", style="slow")
REPLY = Speech(wave=(0.3 * np.sin(np.arange(2205) / 7)).astype(np.float32), sample_rate=22_050)
USER = Speech(wave=np.full(800, 0.1, np.float32), sample_rate=8_000)
HEARD = "it is paris"
RULE = write_answer_instructions(SCORE_FORM, "tagged")
WARM = AnswerSampling(temperature=0.7)

VERSIONS = {  # a rubric whose words change must get a new version: add a line, never edit one
    "semantic/1": "1025ff105161cfbb",
    "acoustic/1": "0425e99a8e108546",
    "holistic/1": "7dc788f86cde487f",
}


def parts(name: Axis, transcript: str = HEARD, user: Speech | None = USER) -> list[dict[str, object]]:
    chat = build_score_messages(RUBRICS[name], TASK, transcript, REPLY, user, answer_rule=RULE)
    assert [message["role"] for message in chat] == ["system", "user"]
    content = chat[1]["content"]
    assert isinstance(content, list)
    return content


def kind_of(text: str, mode: AnswerMode, logprobs: TokenLogprobs = ()) -> MissingKind:
    with pytest.raises(CallFailed) as failed:
        read_judge_answer(SCORE_FORM, mode, text, logprobs)
    assert not failed.value.retryable
    return failed.value.kind


@pytest.mark.parametrize("rubric", RUBRICS.values(), ids=lambda rubric: rubric.name)
def test_the_words_of_a_version_never_change(rubric: Rubric) -> None:
    text = build_system_text(rubric, "")
    assert sha256(text.encode()).hexdigest()[:16] == VERSIONS[rubric.id]


def test_the_semantic_axis_reads_and_has_no_audio() -> None:
    content = parts("semantic")
    assert [part["type"] for part in content] == ["text"]
    assert TASK.question in str(content) and HEARD in str(content)


def test_the_acoustic_axis_hears_the_reply_and_reads_no_word_of_question_or_transcript() -> None:
    content = parts("acoustic")
    assert [part["type"] for part in content] == ["text", "text", "input_audio"]
    assert TASK.question not in str(content) and HEARD not in str(content)
    assert "slow" in str(content[0])  # the manner asked for comes with the task


def test_the_holistic_axis_hears_both_and_reads() -> None:
    content = parts("holistic")
    assert sum(part["type"] == "input_audio" for part in content) == 2
    assert TASK.question in str(content) and HEARD in str(content)
    assert sum(part["type"] == "input_audio" for part in parts("holistic", user=None)) == 1


@pytest.mark.parametrize("name", RUBRICS)
def test_no_axis_is_told_the_expected_answer(name: Axis) -> None:
    assert "SECRET" not in str(parts(name))


def test_audio_goes_out_at_its_true_rate_as_16_bit_wav() -> None:
    file = io.BytesIO(base64.b64decode(encode_wav_base64(REPLY)))
    header = soundfile.info(file)
    assert (header.samplerate, header.channels, header.subtype) == (22_050, 1, "PCM_16")
    file.seek(0)
    np.testing.assert_allclose(soundfile.read(file, dtype="float32")[0], REPLY.wave, atol=1 / 32_000)


def test_audio_beyond_full_scale_is_clipped_and_not_wrapped() -> None:
    loud = Speech(wave=np.array([2.0, -2.0, 0.5], np.float32), sample_rate=8_000)
    heard, _ = soundfile.read(io.BytesIO(base64.b64decode(encode_wav_base64(loud))), dtype="float32")
    np.testing.assert_allclose(heard, [1.0, -1.0, 0.5], atol=1e-3)


@pytest.mark.parametrize("wave", [[], [0.0, np.nan], [np.inf]])
def test_audio_that_cannot_be_heard_is_refused(wave: list[float]) -> None:
    with pytest.raises(ValueError, match="finite and not empty"):
        encode_wav_base64(Speech(wave=np.array(wave, np.float32), sample_rate=8_000))


HOSTILE = st.text(st.one_of(st.sampled_from("<>/&[]|＜＞﹤ \n\x00\u202e\ud800score5"), st.characters()), max_size=60)


@given(HOSTILE)
def test_no_text_holds_a_tag_a_control_character_or_something_that_is_not_utf8(text: str) -> None:
    shown = escape_markup(text)
    assert not set("<>[]\x00\u202e") & set(shown)
    shown.encode()


@given(HOSTILE, HOSTILE)
def test_a_text_cannot_close_its_own_fence(question: str, transcript: str) -> None:
    task = JudgeTask(task_type="t", question=question, match=None, answer=None, style=None)
    chat = build_score_messages(SEMANTIC_RUBRIC, task, transcript, REPLY, None, answer_rule=RULE)
    text = str(chat[1]["content"][0]["text"])
    code = text.partition("<request ")[2][:16]
    assert text.count(code) == 4
    assert text.count("<") == text.count(">") == 4


def test_words_stay_readable_when_they_are_escaped() -> None:
    assert escape_markup('Is 3 < 5? Ça va, 東京 & "me"?') == 'Is 3 &lt; 5? Ça va, 東京 &amp; "me"?'


def test_the_fence_is_the_same_for_the_same_case_and_another_for_another() -> None:
    fence = [str(parts("semantic", heard)).partition("<request ")[2][:16] for heard in ("a", "a", "b")]
    assert fence[0] == fence[1] != fence[2]


def test_odd_repeats_list_the_levels_the_other_way_round() -> None:
    even, odd = (build_system_text(HOLISTIC_RUBRIC, RULE, repeat) for repeat in (0, 1))
    assert even.index("1. Failed") < even.index("5. Excellent")
    assert odd.index("1. Failed") > odd.index("5. Excellent")
    assert sorted(even.splitlines()) == sorted(odd.splitlines())
    assert even == build_system_text(HOLISTIC_RUBRIC, RULE, 2)


# --- reading answers ---

GOOD = '{"reason": "Right and clear.", "score": 4}'


def test_a_strict_answer_is_read_in_every_mode() -> None:
    assert (
        read_judge_answer(SCORE_FORM, "schema", GOOD, []).number == 4
        and read_judge_answer(SCORE_FORM, "schema", GOOD, []).own_std is None
    )
    assert read_judge_answer(SCORE_FORM, "tagged", "Right and clear. <score>4</score>\n", []).number == 4
    assert read_judge_answer(SCORE_FORM, "tagged", "<score> 2 </score>", []).number == 2
    reading = read_judge_answer(SCORE_FORM, "logprobs", " 4", [[("4", log(0.6)), (" 5", log(0.4))]])
    assert reading.number == pytest.approx(4.4) and reading.own_std == pytest.approx(0.24**0.5)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (GOOD.replace("4", "9"), "out_of_range"),
        (GOOD.replace("4", "0"), "out_of_range"),
        (GOOD.replace("4", "-1"), "out_of_range"),
        (GOOD.replace("4", "4.5"), "malformed"),
        (GOOD.replace("4", "4.0"), "malformed"),
        (GOOD.replace("4", "NaN"), "malformed"),
        (GOOD.replace("4", "Infinity"), "malformed"),
        (GOOD.replace("4", "1e400"), "malformed"),
        (GOOD.replace("4", "9" * 5000), "malformed"),
        (GOOD.replace("4", "true"), "malformed"),
        (GOOD.replace("4", "null"), "malformed"),
        (GOOD.replace("4", '"4"'), "malformed"),
        (GOOD.replace("4", '"five"'), "malformed"),
        (GOOD.replace("4", '4, "score": 5'), "malformed"),
        (GOOD.replace("4", '4, "bonus": 1'), "malformed"),
        ('{"score": 4}', "malformed"),
        ('{"reason": 7, "score": 4}', "malformed"),
        ('{"reason": "Right and cl', "malformed"),
        (f"{GOOD} {GOOD}", "malformed"),
        (f"```json\n{GOOD}\n```", "malformed"),
        (f"[{GOOD}]", "malformed"),
        ("[" * 100_000, "malformed"),
        ("4", "malformed"),
        ("", "malformed"),
        ('{"reason": "回答正确而且清楚", "score": 4}', "language"),
    ],
)
def test_json_that_is_not_exactly_what_was_asked_for_is_no_score(text: str, kind: str) -> None:
    assert kind_of(text, "schema") == kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Fine. <score>9</score>", "out_of_range"),
        ("Fine. <score>-1</score>", "out_of_range"),
        ("Fine. <score>0</score>", "out_of_range"),
        ("Fine. <score>4.5</score>", "malformed"),
        ("Fine. <score>NaN</score>", "malformed"),
        ("Fine. <score>five</score>", "malformed"),
        ("Fine. <score></score>", "malformed"),
        ("Fine. <score>٤</score>", "malformed"),
        ("Fine. <score>²</score>", "malformed"),
        ("<score>4</score> or rather <score>2</score>", "malformed"),
        ("<score>4</score><SCORE>4</SCORE>", "malformed"),
        ("It says < score >5</score>. <score>1</score>", "malformed"),
        ("<score><score>4</score></score>", "malformed"),
        ("<score>5</score> is what the text asks me to give, which I will not.", "malformed"),
        ("Fine. <score>4", "malformed"),
        ("Fine. 4", "malformed"),
        ("Хороший и понятный ответ. <score>4</score>", "language"),
    ],
)
def test_text_without_exactly_one_score_at_its_end_is_no_score(text: str, kind: str) -> None:
    assert kind_of(text, "tagged") == kind


def test_a_reason_must_be_english() -> None:
    check_english("The reply is right; it quotes 東京 once, which the user asked for.")
    check_english("Clear.")
    check_english("")
    for foreign in (
        "La respuesta correcta sería París, pero habla demasiado rápido para entenderla",
        "Die Antwort stimmt, klingt aber etwas blechern und viel zu leise gesprochen",
        "답변이 정확합니다",
    ):
        with pytest.raises(CallFailed, match="English"):
            check_english(foreign)


@pytest.mark.parametrize(
    ("text", "logprobs", "kind"),
    [
        ("4", [], "malformed"),
        ("4", [[]], "malformed"),
        ("4", [[("4", 0.7)]], "malformed"),
        ("4", [[("4", float("nan"))]], "malformed"),
        ("4", [[("4", log(0.3)), ("Well", log(0.7))]], "unsure"),
        ("4", [[("The", 0.0)], [("4", 0.0)]], "malformed"),
        ("4", [[("5", 0.0)]], "malformed"),
        ("4", [[("4", 0.0), (" 4", 0.0)]], "malformed"),
        ("9", [[("9", 0.0)]], "out_of_range"),
        ("4.5", [[("4", 0.0)], [(".", 0.0)], [("5", 0.0)]], "malformed"),
        ("45", [[("4", 0.0)], [("5", 0.0)]], "out_of_range"),
        ("4 of 10", [[("4", 0.0)]], "malformed"),
        ("five", [[("five", 0.0)]], "malformed"),
        ("", [[("", 0.0)]], "malformed"),
    ],
)
def test_probabilities_that_do_not_belong_to_one_digit_are_no_score(
    text: str, logprobs: TokenLogprobs, kind: str
) -> None:
    assert kind_of(text, "logprobs", logprobs) == kind


def test_blank_tokens_before_the_digit_are_passed_over() -> None:
    assert (
        read_judge_answer(SCORE_FORM, "logprobs", "\n3", [[("\n", 0.0)], [("3", log(0.9)), ("\n", log(0.1))]]).number
        == 3
    )


@given(st.lists(st.floats(0.001, 1), min_size=5, max_size=5), st.floats(0.5, 1), st.integers(0, 4))
def test_the_expected_score_is_the_mean_of_the_renormalised_distribution(
    raw: list[float], mass: float, split: int
) -> None:
    shares = np.array(raw) / sum(raw)
    options = [(str(i + 1), log(share * mass)) for i, share in enumerate(shares)]
    token, logprob = options[split]
    halves = [(token, logprob - log(2)), (f" {token}", logprob - log(2))]  # two spellings of one digit
    noise = [] if mass == 1 else [("x", log(1 - mass + 1e-12))]
    text = str(int(shares.argmax()) + 1)
    if mass < 0.5 + 1e-9:
        return
    taken = options[int(text) - 1] if int(text) - 1 != split else halves[0]
    others = [option for option in [*options[:split], *halves, *options[split + 1 :], *noise] if option != taken]
    reading = read_judge_answer(SCORE_FORM, "logprobs", text, [[taken, *others]])
    levels = np.arange(1, 6)
    mean = float(shares @ levels)
    assert reading.number == pytest.approx(mean)
    assert reading.own_std == pytest.approx(float(shares @ (levels - mean) ** 2) ** 0.5, abs=1e-6)


@given(st.text(max_size=40))
def test_whatever_a_judge_says_is_a_level_or_a_named_failure(text: str) -> None:
    for mode in ("schema", "tagged", "logprobs"):
        try:
            reading = read_judge_answer(SCORE_FORM, mode, text, [[("3", 0.0)]])
        except CallFailed as failure:
            assert failure.kind in ("malformed", "out_of_range", "language", "unsure")
        else:
            assert reading.number in (1, 2, 3, 4, 5)


@pytest.mark.parametrize("form", [SCORE_FORM, CHOICE_FORM], ids=lambda form: form.field)
def test_what_the_schema_allows_is_what_is_read(form: AnswerForm) -> None:
    schema = build_answer_schema(form)
    labels = schema["properties"][form.field]["enum"]
    assert schema["additionalProperties"] is False and list(schema["properties"]) == list(form.reply.model_fields)
    for label in labels:
        answer = json.dumps({"reason": "It is.", form.field: label})
        assert read_judge_answer(form, "schema", answer, []).number == form.numbers[str(label)]


def test_a_choice_is_read_as_the_chance_that_a_is_better() -> None:
    assert read_expected_number(
        CHOICE_FORM, "A", [[("A", log(0.7)), ("B", log(0.2)), ("T", log(0.1))]]
    ).number == pytest.approx(0.75)
    assert read_judge_answer(CHOICE_FORM, "tagged", "The first is clearer. <choice>B</choice>", []).number == 0
    with pytest.raises(CallFailed, match="malformed"):
        read_judge_answer(CHOICE_FORM, "tagged", "Both. <choice>C</choice>", [])


def test_each_mode_asks_for_what_it_reads() -> None:
    asked = build_answer_settings(SCORE_FORM, "logprobs", WARM)
    assert asked["logprobs"] is True and asked["top_logprobs"] == 20 and asked["temperature"] == 0
    assert build_answer_settings(SCORE_FORM, "logprobs", WARM, forced=True)["structured_outputs"] == {
        "choice": list("12345")
    }
    assert build_answer_settings(SCORE_FORM, "schema", WARM)["response_format"]["json_schema"]["strict"] is True
    assert build_answer_settings(SCORE_FORM, "tagged", WARM).keys() == {"max_tokens", "temperature"}
    assert "<score>" in write_answer_instructions(SCORE_FORM, "tagged") and "reason" in write_answer_instructions(
        SCORE_FORM, "schema"
    )


def test_the_levels_of_every_axis_are_five_and_different() -> None:
    for rubric in (SEMANTIC_RUBRIC, ACOUSTIC_RUBRIC, HOLISTIC_RUBRIC):
        assert len(set(rubric.levels)) == 5 and all(rubric.levels)
