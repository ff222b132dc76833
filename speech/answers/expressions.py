"""Arithmetic and algebra as people say and write it: "two x squared minus one half", "(x+1)/2", "√2".

Invariant: a text is only ever calculated with, no name is looked up; length and nesting are bounded, so that
any text is done within milliseconds. Equality is that of values: speech/answers/algebra.py.

Precedence is that of school; "all over" and "all squared" take everything before them. What people write
without a sign is ambiguous ("1/2x", "the square root of 2 x"): both readings of what was said count, and what
is expected must be the same in both.
"""

from collections.abc import Callable, Set
from fractions import Fraction

from speech.answers.algebra import ExpressionNode, are_equal, find_variables, is_fully_evaluated
from speech.answers.cardinals import split_number_tokens
from speech.answers.numbers import parse_quantity

MAX_EXPRESSION_SYMBOLS = 120  # symbols
MAX_EXPRESSION_DEPTH = 12  # brackets, roots and exponents in each other

ExpressionSymbol = Fraction | str  # a number; a variable; or one of + - * / ^ ^2 ^3 √ ( )

_SIGNS = frozenset(("+", "-", "*", "/", "^", "^2", "^3", "√", "(", ")"))
_PHRASES: dict[tuple[str, ...], str] = {
    tuple(phrase.split()): sign
    for sign, phrases in {
        "+": "+, plus",
        "-": "-, minus, negative",
        "*": "*, ×, ·, times, multiplied by",
        "/": "/, ÷, over, divided by",
        "^": "^, * *, to the power, to the power of, raised to, raised to the power, raised to the power of",
        "^2": "², squared, to the second power",
        "^3": "³, cubed",
        "√": "√, sqrt, root of, square root of, the square root of",
        "(": "(, open parenthesis, open bracket",
        ")": "), close parenthesis, close bracket, closed parenthesis, closed bracket",
        "all /": "all over, all divided by",
        "all ^2": "all squared",
        "all ^3": "all cubed",
    }.items()
    for phrase in phrases.split(", ")
}
_LONGEST_PHRASE = max(map(len, _PHRASES))
_NAMES = frozenset("abcdefghijklmnopqrstuvwxyz") | {"pi", "theta"}
_HEARD_AS = {"ex": "x", "why": "y", "zee": "z", "zed": "z", "a": "a", "i": "i"}  # words otherwise


def parse_expression(text: str) -> ExpressionNode:
    """What a text is as a whole; of "x = 3" the right side.

    ValueError: it is no expression, is ambiguous, or has no real value.
    """
    left, equals, right = text.rpartition("=")
    if equals and left.strip().lower() not in _NAMES:
        raise ValueError("must be an expression, or a variable = an expression")
    tokens = split_number_tokens(right)
    symbols, end = _read_symbols(tokens, 0, _NAMES)
    readings = _parse_readings(symbols) if end == len(tokens) else []
    if not readings:
        raise ValueError("must be an expression in numbers, single-letter variables and + - * / ^ ( )")
    if not are_equal(readings[0], readings[0]):
        raise ValueError("must have a real value of moderate size")
    if not are_equal(readings[0], readings[-1]):
        raise ValueError("can be read in two ways: put brackets and * where they belong")
    return readings[0]


def last_expression_equals(text: str, expected: ExpressionNode) -> bool:
    """Is the last expression in a text equal to the one expected?

    Words between ("is", "equals", "so") separate expressions, so "x equals 3" ends with 3. "a" and "i" are
    variables only where the expected expression has them. A number that is expected must be worked out: who
    says a sum back has not answered it.

    Example:
        last_expression_equals("so the answer is two x plus three", parse_expression("3 + 2*x"))  # True
    """
    tokens, variables = split_number_tokens(text), find_variables(expected)
    index, last = 0, list[ExpressionSymbol]()
    while index < len(tokens):
        symbols, end = _read_symbols(tokens, index, variables)
        if not _SIGNS.issuperset(symbols):
            last = symbols
        index = end + 1
    number = not variables and is_fully_evaluated(expected)
    return any(
        are_equal(reading, expected) and (is_fully_evaluated(reading) or not number)
        for reading in _parse_readings(last)
    )


def _read_symbols(tokens: list[str], index: int, variables: Set[str]) -> tuple[list[ExpressionSymbol], int]:
    """The symbols from a token on, and where the first word stands that is none."""
    run: list[ExpressionSymbol] = []
    opened = 0
    while symbol_and_end := _read_symbol(tokens, index, variables):
        symbol, index = symbol_and_end
        if isinstance(symbol, str) and symbol.startswith("all "):
            opened += 1
            run += [")", symbol.removeprefix("all ")]
        else:
            run.append(symbol)
    return ["("] * opened + run, index


def _read_symbol(tokens: list[str], index: int, variables: Set[str]) -> tuple[ExpressionSymbol, int] | None:
    for length in range(min(_LONGEST_PHRASE, len(tokens) - index), 0, -1):
        sign = _PHRASES.get(tuple(tokens[index : index + length]))
        if sign is not None:
            return sign, index + length
    if index >= len(tokens):
        return None
    number = parse_quantity(tokens, index)
    if number is not None:
        return number
    name = tokens[index] if tokens[index] in variables else _HEARD_AS.get(tokens[index], tokens[index])
    if name in variables or (name in _NAMES and tokens[index] not in _HEARD_AS):
        return name, index + 1
    return None


def _parse_readings(symbols: list[ExpressionSymbol]) -> list[ExpressionNode]:
    """What the symbols mean when products without a sign bind tighter than / and √, and when they do not."""
    if not 0 < len(symbols) <= MAX_EXPRESSION_SYMBOLS:
        return []
    read = (_Parser(symbols, tight).parse() for tight in (True, False))
    return [node for node in read if node is not None]


class _Unreadable(Exception):
    """Not an expression."""


class _Parser:
    """Recursive descent over symbols.

    sum      product {(+ | -) product}
    product  term {(* | /) term}              term: signed {power} when tight
    signed   {+ | -} power
    power    atom {^2 | ^3} [^ signed]
    atom     number | variable | ( sum ) | √ what it covers
    """

    def __init__(self, symbols: list[ExpressionSymbol], tight: bool) -> None:
        self._symbols, self._tight = symbols, tight
        self._at = self._depth = 0

    def parse(self) -> ExpressionNode | None:
        try:
            node = self._parse_sum()
        except _Unreadable:
            return None
        return node if self._at == len(self._symbols) else None

    def _parse_sum(self) -> ExpressionNode:
        node = self._parse_product()
        while (sign := self._take_sign("+", "-")) is not None:
            node = (sign, node, self._parse_product())
        return node

    def _parse_product(self) -> ExpressionNode:
        node = self._parse_term()
        while True:
            if (sign := self._take_sign("*", "/")) is not None:
                node = (sign, node, self._parse_term())
            elif self._unsigned_factor_follows():
                node = ("*", node, self._parse_power())
            else:
                return node

    def _parse_term(self) -> ExpressionNode:
        return self._parse_implicit_product(self._parse_signed()) if self._tight else self._parse_signed()

    def _parse_implicit_product(self, node: ExpressionNode) -> ExpressionNode:
        while self._unsigned_factor_follows():
            node = ("*", node, self._parse_power())
        return node

    def _parse_signed(self) -> ExpressionNode:
        minus = False
        while (sign := self._take_sign("+", "-")) is not None:
            minus ^= sign == "-"
        node = self._parse_power()
        return ("*", Fraction(-1), node) if minus else node

    def _parse_power(self) -> ExpressionNode:
        node = self._parse_atom()
        while (sign := self._take_sign("^2", "^3")) is not None:
            node = ("^", node, Fraction(int(sign[1])))
        return ("^", node, self._parse_nested(self._parse_signed)) if self._take_sign("^") else node

    def _parse_atom(self) -> ExpressionNode:
        if self._take_sign("("):
            node = self._parse_nested(self._parse_sum)
            if self._take_sign(")") is None:
                raise _Unreadable
            return node
        if self._take_sign("√"):
            return ("^", self._parse_nested(self._parse_under_root), Fraction(1, 2))
        symbol = self._peek_symbol()
        if symbol is None or symbol in _SIGNS:
            raise _Unreadable
        self._at += 1
        return symbol

    def _parse_under_root(self) -> ExpressionNode:
        bracket = self._peek_symbol() == "("
        return self._parse_atom() if bracket or not self._tight else self._parse_implicit_product(self._parse_power())

    def _parse_nested(self, rule: Callable[[], ExpressionNode]) -> ExpressionNode:
        self._depth += 1
        if self._depth > MAX_EXPRESSION_DEPTH:
            raise _Unreadable
        node = rule()
        self._depth -= 1
        return node

    def _unsigned_factor_follows(self) -> bool:
        symbol = self._peek_symbol()
        return isinstance(symbol, str) and (symbol not in _SIGNS or symbol in ("(", "√"))

    def _peek_symbol(self) -> ExpressionSymbol | None:
        return self._symbols[self._at] if self._at < len(self._symbols) else None

    def _take_sign(self, *signs: str) -> str | None:
        symbol = self._peek_symbol()
        if not isinstance(symbol, str) or symbol not in signs:
            return None
        self._at += 1
        return symbol
