"""Numbers in words and digits are read exactly; what people say for any integer is read back."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.answers.numbers import parse_numbers, parse_single_number
from tests.helpers.run_steps import steps

UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
SCALES = [(10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (10**3, "thousand"), (100, "hundred")]


def in_words(n: int, joiner: str = " and ", hyphen: str = "-") -> str:
    """The naive writer: "two hundred and five thousand and one"."""
    if n < 20:
        return UNITS[n]
    if n < 100:
        tens, unit = divmod(n, 10)
        return TENS[tens] + (hyphen + UNITS[unit] if unit else "")
    for scale, name in SCALES:
        count, rest = divmod(n, scale)
        if count:
            spoken = f"{in_words(count, joiner, hyphen)} {name}"
            gap = joiner if rest < 100 else " "
            return spoken + (gap + in_words(rest, joiner, hyphen) if rest else "")
    raise AssertionError(n)


integers = st.one_of(st.integers(0, 130), st.integers(0, 99_999), st.integers(0, 10**12))


@given(integers, st.sampled_from([" and ", " "]), st.sampled_from(["-", " "]))
def test_any_integer_said_in_words_is_read_back(n: int, joiner: str, hyphen: str) -> None:
    assert parse_numbers(f"so the answer is {in_words(n, joiner, hyphen)} apples") == [n]
    assert parse_single_number(in_words(n, joiner, hyphen)) == n


def test_every_integer_up_to_two_thousand_is_read_back() -> None:
    assert [parse_single_number(in_words(n)) for n in range(2001)] == list(range(2001))


@given(integers)
def test_any_integer_in_digits_is_read_back(n: int) -> None:
    assert parse_numbers(f"it is {n}.") == parse_numbers(f"it is {n:,}!") == [n]
    assert parse_numbers(f"-{n:,}") == parse_numbers(f"minus {in_words(n)}") == [-n]


@given(st.integers(0, 9_999), st.text("0123456789", min_size=1, max_size=9))
def test_any_decimal_said_digit_by_digit_is_read_back(whole: int, digits: str) -> None:
    said = f"{in_words(whole)} point {' '.join(UNITS[int(digit)] for digit in digits)}"
    assert parse_numbers(said) == parse_numbers(f"{whole}.{digits}") == [Fraction(f"{whole}.{digits}")]


@given(st.lists(integers, max_size=5))
def test_numbers_come_in_order_one_for_each_that_was_said(row: list[int]) -> None:
    assert parse_numbers(", then ".join(in_words(n) for n in row)) == row
    assert parse_numbers(", ".join(str(n) for n in row)) == row


@given(st.integers(1, 18), st.integers(3, 19))
def test_a_fraction_is_read_in_all_its_forms(above: int, below: int) -> None:
    for said in (f"{above}/{below}", f"{above} over {below}", f"{in_words(above)} over {in_words(below)}"):
        assert parse_numbers(said) == [Fraction(above, below)]


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("12", 12),
        ("-3.5", "-7/2"),
        ("−3.5", "-7/2"),
        ("1,200", 1200),
        ("1,234,567.5", "2469135/2"),
        (".5", "1/2"),
        ("$12.50", "25/2"),
        ("three quarters", "3/4"),
        ("twenty-one", 21),
        ("2/3", "2/3"),
        ("75 %", "3/4"),
        ("75%", "3/4"),
        ("seventy five percent", "3/4"),
        ("seven and a half per cent", "3/40"),
        ("a hundred", 100),
        ("a hundred and five", 105),
        ("hundred and five", 105),
        ("a thousand", 1000),
        ("two hundred thousand", 200_000),
        ("fifteen hundred", 1500),
        ("fourteen hundred and ninety two", 1492),
        ("two million and one", 2_000_001),
        ("2.5 million", 2_500_000),
        ("two point five million", 2_500_000),
        ("two and a half million", 2_500_000),
        ("half a million", 500_000),
        ("2 million 300 thousand", 2_300_000),
        ("three point one four", "157/50"),
        ("three point fourteen", "157/50"),
        ("three point oh five", "61/20"),
        ("point five", "1/2"),
        ("minus three", -3),
        ("negative three quarters", "-3/4"),
        ("two thirds", "2/3"),
        ("one third", "1/3"),
        ("a third", "1/3"),
        ("an eighth", "1/8"),
        ("three over four", "3/4"),
        ("one half", "1/2"),
        ("a half", "1/2"),
        ("half", "1/2"),
        ("two and a half", "5/2"),
        ("two and three quarters", "11/4"),
        ("1 1/2", "3/2"),
        ("1½", "3/2"),
        ("¾", "3/4"),
        ("twenty one hundredths", "21/100"),
        ("one hundred thousandths", "1/10"),
        ("nineteen ninety nine", 1999),
        ("twenty twenty four", 2024),
        ("twenty twenty", 2020),
        ("nineteen oh five", 1905),
        ("eighteen twelve", 1812),
    ],
)
def test_what_people_say_for_one_number(said: str, value: int | str) -> None:
    assert parse_single_number(said) == Fraction(value)
    assert parse_numbers(f"i think the answer is {said}") == [Fraction(value)]


@pytest.mark.parametrize(
    ("said", "values"),
    [
        ("", []),
        ("nothing at all", []),
        ("one two three", [1, 2, 3]),
        ("ten eleven twelve", [10, 11, 12]),
        ("eleven twelve", [11, 12]),  # counting, not a year
        ("ten twenty", [10, 20]),
        ("twenty, one", [20, 1]),
        ("one hundred and two hundred", [100, 200]),
        ("one thousand and two thousand", [1000, 2000]),
        ("five and six", [5, 6]),
        ("five minus three", [5, 3]),
        ("two plus two is four", [2, 2, 4]),
        ("10-12", [10, 12]),
        ("3,5", [3, 5]),
        ("20 24", [20, 24]),
        ("three over zero", [3, 0]),
        ("3/0", [3, 0]),
        ("at this point five people", [5]),
        ("on the twenty third", []),
        ("the 21st", []),
        ("the third", []),
        ("a twenty second delay", [20]),
        ("twelve apples are 2 percent", [12, Fraction(1, 50)]),
    ],
)
def test_what_is_ambiguous_is_decided(said: str, values: list[int | Fraction]) -> None:
    assert parse_numbers(said) == values


@pytest.mark.parametrize(
    "text",
    ["", "twelve-ish", "12 apples", "1 2", "the answer is 12", "a", "third", "nan", "1e5", "9" * 41],
)
def test_what_is_not_one_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be one number"):
        parse_single_number(text)


WORDS = "a an and point oh half third thirds hundred thousand million one ten twenty nine over / - % minus 3 1,000 .5 percent per cent 999 negative zero".split()


@given(st.one_of(st.text(max_size=80), st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join)))
def test_any_text_is_read(text: str) -> None:
    assert all(isinstance(value, Fraction) for value in parse_numbers(text))


@pytest.mark.parametrize("word", [*WORDS, "1" * 50, "twenty "])
def test_a_very_long_text_is_read_in_one_pass(word: str) -> None:
    once, twice = (steps(parse_numbers, f"{word} " * count) for count in (1000, 2000))
    assert twice < 2.1 * once


def test_endless_digits_are_no_number() -> None:
    assert parse_numbers("1" * 10_000) == []
    assert len(parse_numbers("zero point " + "one " * 5000)) > 1
