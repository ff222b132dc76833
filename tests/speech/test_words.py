"""The same words always score the same, however people type and recognisers write them."""

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.recognisers.pocketsphinx import word_error_rate
from judge.rules.choices import find_chosen_letters
from judge.rules.verifiable import gives_answer, score_answer
from judge.rules.voice import TINY_VOICE_NORMS as NORMS
from judge.types import JudgeTask, Scale, ScoredVerdict
from speech.answers.algebra import are_equal
from speech.answers.expressions import parse_expression
from speech.answers.numbers import parse_numbers
from speech.answers.spelling import normalize_spelling, strip_accents
from speech.answers.words import split_spoken_words, split_words, unify_accents

SAME = [  # what is typed, what is written for the same words
    ("don't", "don’t", "don‘t", "donʼt", "don´t", "don`t", "DON'T", "ｄｏｎ＇ｔ"),
    ("café", "cafe\u0301", "CAFÉ", "ＣＡＦÉ", "ca\u00adfé", "ca\u200bfé", "\u200fcafé\u200e", "\ufeffcafé"),
    ("naïve", "nai\u0308ve", "Naïve."),
    ("office", "oﬃce", "oﬀice"),
    ("well known", "well-known", "well–known", "well—known", "well‑known", "well — known"),
    ("encyclopaedia", "encyclopædia"),
    ("straße", "STRASSE", "strasse", "STRAẞE"),
    ("twelve", "12", "１２", "١٢", "१२", "⑫", "12."),
    ("twenty one", "twenty-one", "21", "２１"),
    ("nineteen ninety nine", "1999", "1,999", "one thousand nine hundred and ninety-nine"),
    ("nineteen oh five", "1905"),
    ("two thousand and five", "2005", "2,005"),
    ("a hundred and five", "one hundred five", "105"),
    ("three point five", "3.5", "3.50", "٣.٥"),
    ("fifty percent", "50%", "50 %", "fifty per cent", "５０％"),
    ("minus three", "-3", "−3", "–3"),
    ("seven plus five equals twelve", "7 + 5 = 12", "7+5=12"),
    ("five dollars", "$5", "$ 5", "5 dollars", "＄5"),
    ("one euro", "€1", "1 euro"),
    ("two million pounds", "£2 million", "£2,000,000"),
    ("salt and pepper", "salt & pepper"),
    ("the twenty first", "the 21st", "the twenty-first"),
    ("the third", "the 3rd", "the 3ʳᵈ"),
    ("one half", "1/2", "½"),
    ("mister smith", "Mr. Smith", "mr smith"),
    ("x squared", "x²"),
    ("eleven fifteen", "11:15"),
    ("fifteen thirty", "15:30", "1530"), ("ten oh five", "10:05", "ten zero five", "10 oh 5"),
    ("seven", "7:00", "seven o'clock", "7 o’clock", "07:00"), ("seven thirty pm", "7:30 p.m.", "7:30pm", "7:30 PM"),
    ("ten am", "10 a.m.", "10 am", "10am", "ten a m", "10 A.M.", "ten AM"), ("eleven oh five", "11:05", "1105"),
    ("sixteen, seventy", "16, 70", "16; 70", "sixteen. Seventy."), ("one hundred. Five.", "100. 5.", "100; 5"),
    ("nineteen, ninety nine", "19, 99"), ("ten thousand", "10 000", "10,000", "10\u202f000", "10\u00a0000", "10'000"),
    ("a million", "1 000 000", "1,000,000", "1\u2009000\u2009000"), ("two thousand", "2 thousand", "2000"),
    ("one thousand, two hundred", "1,200"), ("two million, three hundred thousand and five", "2,300,005"),
    ("five euros", "5 €", "5€", "€5", "€5.00"), ("one dollar", "$1.00", "$1"), ("three pounds", "£3", "3 £"),
    ("two dollars fifty cents", "$2.50", "2 dollars 50 cents"), ("two euros fifty cents", "2,50 €", "€2.50"),
    ("ninety nine cents", "$0.99", "99¢"), ("one pound one penny", "£1.01"), ("minus five dollars", "-$5", "−$5"),
    ("five to ten dollars", "$5-10", "$5–10"), ("five to ten", "5-10", "5–10"), ("us", "US", "U.S.", "U S", "u. s."),
    ("the FBI", "the F.B.I.", "the F B I", "the f b i"), ("CIA", "C.I.A.", "C I A"), ("ещё", "еще", "ЕЩЁ", "ещё"),
    ("two and a half", "2½", "2 1/2", "2.5", "two and one half"), ("a quarter", "one quarter", "1/4", "¼"),
    ("two and a half million", "2½ million", "2.5 million", "2,500,000"), ("two and three quarters", "2¾", "2 3/4"),
    ("three times four", "3×4", "3 x 4", "3 × 4", "3x4", "3 * 4"), ("five minus three", "5 - 3", "5 − 3"),
    ("eight divided by two", "8 ÷ 2"), ("one hundred and fifth", "105th", "the hundred fifth".removeprefix("the ")),
    ("twenty second rule", "22nd rule", "20-second rule", "20 second rule"), ("twelfth", "12th"),
    ("nineteen nineties", "1990s", "1990’s"), ("the nineties", "the 90s", "the '90s"), ("hundreds of thousands", "100s of 1000s"),
    ("number five", "No. 5", "no.5", "№5", "№ 5", "#5"), ("twenty degrees celsius", "20°C", "20 ℃", "20 °C", "20 degrees C"),
    ("five five five one two three four", "555-1234"), ("zero zero seven", "007"), ("five hundred and fifty five", "555"),
    ("one five five five one two three four five six seven", "1-555-123-4567", "1 (555) 123-4567"),
    ("twenty twenty one", "2021"), ("nineteen twenty", "1920"), ("sixteen sixteen", "1616"), ("okay", "OK", "O.K."),
    ("example dot com", "example.com"), ("doctor smith", "Dr. Smith", "Dr Smith"),
    ("hello world", "“Hello,” world!", "«hello» world…", "'hello' world", "hello\u00a0world", "hello\u2003world\n"),
    ("тест", "ТЕСТ", "Тест."),
    ("سلام", "سلامـــ".replace("ـ", "\u0640"), "سلام؟"),
    ("今天天气", "今天 天气", "今天天气。", "「今天天气」"),
]  # fmt: skip


@pytest.mark.parametrize("forms", SAME, ids=lambda forms: str(forms[0]))
def test_forms_of_the_same_words_are_the_same_list_and_have_no_error(forms: tuple[str, ...]) -> None:
    for one, other in pairwise((*forms, forms[0])):
        assert split_words(one) == split_words(other)
        assert word_error_rate(one, other) == 0
        said = ScoredVerdict(value=5, judge="verifiable/1", why=f"heard {other!r}, expected final {one!r}")
        assert score_answer(other, _task("final", one), Scale(1, 5)) == said
        assert gives_answer(f"it is {other}", _task("contains", one))


DIFFERENT = [
    ("seven", "27"), ("seven", "twenty seven"), ("five", "105"), ("12", "1.2"), ("50", "50%"),
    ("100 5", "105"), ("16, 70", "1670"), ("19, 99", "1999"), ("two thousand five", "2000 5"), ("1 000 200 x", "1 2"),
    ("99", "1999"), ("30", "15:30"), ("second", "twenty second"), ("3:30", "330"), ("5-3", "5 to 3"), ("half", "2.5"),
    ("100 200 300", "100200300"), ("one hundred, five", "105"), ("am I a doctor", "am ia doctor"), ("007", "7"),
    ("is it? No. 5", "is it number 5"), ("5 cents", "5 dollars"), ("$2.50", "$250"), ("1/2", "12"), ("я и в", "яив"),
    ("el", "al"), ("año", "anos"), ("maté", "màte"), ("か", "が"), ("его", "ему"), ("cat", "cut"), ("1 2", "3"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_other_words_stay_other_words(one: str, other: str) -> None:
    assert word_error_rate(one, other) > 0
    assert not gives_answer(other, _task("final", one))


def test_accents_that_one_side_leaves_out_are_no_error_and_letters_stay() -> None:
    assert split_words("Café Muñoz, Ødegård") == ["café", "muñoz", "ødegård"]
    assert word_error_rate("the café of José", "the cafe of josé") == 0
    assert gives_answer("it is cafe", _task("final", "café")) and gives_answer("it is café", _task("final", "cafe"))
    assert gives_answer("un café crème", _task("regex", "cafe creme")) and gives_answer(
        "un café", _task("regex", "café")
    )
    assert unify_accents(["résumé"], ["resume"]) == (["resume"], ["resume"])


def test_a_language_keeps_its_letters_and_one_without_blanks_is_compared_sign_by_sign() -> None:
    assert split_words("Это тест") == ["это", "тест"]
    assert split_words("안녕 세계") == ["안녕", "세계"]
    assert split_words("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]
    assert split_words("東京タワー") == list("東京タワー")
    assert word_error_rate("今天天气很好", "今天天氣很好") == pytest.approx(1 / 6)
    assert split_words("ที่นี่") and all(not unicodedata.combining(sign[0]) for sign in split_words("ที่นี่"))


def test_numbers_and_choices_read_the_same_signs() -> None:
    assert parse_numbers("１２ and −٣ and 1½") == parse_numbers("12 and -3 and 1 1/2")
    assert find_chosen_letters("The answer is Ｂ．") == find_chosen_letters("the answer is b") == {"b"}
    assert gives_answer("the answer is Ｂ", _task("choice", "Ｂ： Paris"))
    assert gives_answer("x² + １", _task("math", "x^2+1")) and gives_answer(
        "x squared plus one", _task("math", "x²+1")
    )


def test_what_sounds_long_is_measured_long() -> None:
    assert split_spoken_words("12,999") == "twelve thousand nine hundred ninety nine".split()
    assert split_spoken_words("$1,205") == ["one", "thousand", "two", "hundred", "five", "dollars"]
    assert split_spoken_words("it's 12") == ["it's", "twelve"]
    assert split_spoken_words("...") == []


AS_SAID = [  # what is said, how else it is written
    ("three point one four", "3.14"), ("zero point five", "0.5"), ("minus two point zero seven", "-2.07"),
    ("it was nineteen ninety nine", "It was 1999."), ("nineteen oh five", "1905"), ("nineteen hundred", "1900"),
    ("eleven oh one", "1101"), ("twelve fifteen", "1215"), ("twenty ten", "2010"), ("twenty ninety nine", "2099"),
    ("two thousand nine", "2009"), ("two thousand one hundred", "2100"), ("one thousand ninety nine", "1099"),
    ("one thousand two hundred dollars", "$1,200"), ("fifty point five percent", "50.5%"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "written"), AS_SAID)
def test_years_and_decimals_last_as_long_as_they_sound_in_letters_and_in_digits(said: str, written: str) -> None:
    assert split_spoken_words(said) == split_spoken_words(written) == said.split()
    assert NORMS.seconds(said) == NORMS.seconds(written)


@pytest.mark.parametrize(
    ("raised", "flat"),
    [("x¹⁰", "x^10"), ("10²³", "10^23"), ("x⁻¹", "1/x"), ("2¹⁰", "1024"), ("x²", "x^2"), ("x³y⁻²", "x^3/y^2"),
     ("x⁺⁴", "x^4"), ("2¹\u200b⁰", "1024")],
)  # fmt: skip
def test_a_row_of_raised_digits_is_one_power(raised: str, flat: str) -> None:
    assert are_equal(parse_expression(raised), parse_expression(flat))
    assert normalize_spelling(normalize_spelling(raised)) == normalize_spelling(raised)


def test_marks_go_from_letters_that_have_them_as_accents_only() -> None:
    assert strip_accents("a\u0301\u0323bά が नी") == "abα が नी"
    assert strip_accents("שָׁלוֹם سَلام") == "שלום سلام"


PIECES = [
    *"aé1 295.,'-’%$½²ⅷǄßİΣςŉ﷽の/",
    "\u0301",
    "\u200d",
    "ท",
    "ี",
    "ﬁ",
    " twenty ",
    " hundred ",
    " nineteen ",
    " point ", ":30 ", "15:05", "10 000", " and ", " half ", "th ", "nd ", "s ", " second ", "€", ".50", " x ", " - ", "U.S.",
    " oh ", "o'clock", " fifth ", " a ", " I ", "°C", "No. ", "555-1234", " p.m.", "\u202f000", ", ", "million ", "ninety ",
]  # fmt: skip
TEXT = st.lists(st.sampled_from(PIECES)).map("".join)


@given(TEXT | st.text())
def test_words_of_words_and_plain_text_of_plain_text_are_themselves(text: str) -> None:
    said = split_words(text)
    assert split_words(" ".join(said)) == said
    assert normalize_spelling(normalize_spelling(text)) == normalize_spelling(text)
    assert word_error_rate(text, text) == 0


@given(st.text())
def test_case_and_composition_change_no_word(text: str) -> None:
    once = split_words(text)
    assert split_words(unicodedata.normalize("NFD", text)) == once == split_words(unicodedata.normalize("NFC", text))
    assert split_words(normalize_spelling(text)) == once


def _said(value: int, british: bool) -> str:
    """As num2words has it: "one million, two hundred and five thousand, one hundred"."""
    if value < 100:
        few = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
        few = f"{few} seventeen eighteen nineteen".split()
        tens = "twenty thirty forty fifty sixty seventy eighty ninety".split()
        return few[value] if value < 20 else tens[value // 10 - 2] + (f"-{few[value % 10]}" if value % 10 else "")
    scale, name = next((s, n) for s, n in ((10**6, "million"), (1000, "thousand"), (100, "hundred")) if value >= s)
    rest = value % scale
    link = " and " if british and rest < 100 else ", " if british and scale > 100 else " "
    return f"{_said(value // scale, british)} {name}{link + _said(rest, british) if rest else ''}"


@given(st.integers(0, 10**6) | st.integers(0, 10**9 - 1), st.booleans())
def test_a_number_is_the_same_in_letters_and_in_digits(value: int, british: bool) -> None:
    said = _said(value, british)
    assert split_words(said) == split_words(str(value)) == split_words(f"{value:,}")
    assert split_words(f"{value:,}".replace(",", "\u202f")) == split_words(said)
    assert parse_numbers(said) == [value]
    assert split_words(f"minus {said}") == split_words(f"-{value}") and split_words(f"{said} percent") == split_words(
        f"{value}%"
    )


@given(st.integers(1, 10**6), st.booleans())
def test_an_ordinal_is_the_same_in_letters_and_in_digits(value: int, british: bool) -> None:
    said, odd = _said(value, british), {"one": "first", "two": "second", "three": "third", "five": "fifth"}
    last = said.replace("-", " ").split()[-1]
    odd |= {"eight": "eighth", "nine": "ninth", "twelve": "twelfth"}
    ranked = said.removesuffix(last) + odd.get(last, f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")
    tail = "th" if value % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(value % 10, "th")
    assert split_words(f"the {ranked} of them") == split_words(f"the {value}{tail} of them")


@given(st.integers(0, 10**4), st.text("0123456789", min_size=1, max_size=5))
def test_a_decimal_is_the_same_in_letters_and_in_digits(whole: int, places: str) -> None:
    said = f"{_said(whole, False)} point {' '.join(_said(int(digit), False) for digit in places)}"
    assert split_words(said) == split_words(f"{whole}.{places}")


@given(st.integers(0, 23), st.integers(0, 59))
def test_a_time_is_the_same_in_letters_and_in_digits(hour: int, minute: int) -> None:
    minutes = "" if not minute else f" oh {_said(minute, False)}" if minute < 10 else f" {_said(minute, False)}"
    for written in (f"{hour}:{minute:02}", f"{hour:02}:{minute:02}"):
        assert split_words(f"at {_said(hour, False)}{minutes} sharp") == split_words(f"at {written} sharp")


@given(st.integers(0, 10**4), st.integers(0, 99))
def test_money_is_the_same_in_letters_and_in_digits(dollars: int, cents: int) -> None:
    parts = [f"{_said(dollars, True)} dollar{'s' * (dollars != 1)}"] if dollars or not cents else []
    parts += [f"{_said(cents, True)} cent{'s' * (cents != 1)}"] if cents else []
    assert (
        split_words(" ".join(parts))
        == split_words(f"${dollars}.{cents:02}")
        == split_words(f"{dollars:,}.{cents:02} $")
    )


def _task(match: str, answer: str) -> JudgeTask:
    return JudgeTask(task_type="t", question="q", match=match, answer=answer, style=None)  # type: ignore[arg-type]
