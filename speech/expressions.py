"""Arithmetic and algebra as people say and write it: "two x squared minus one half", "(x+1)/2", "√2".

Invariant: a text is only ever calculated with, no name is looked up; length and nesting are bounded, so that
any text is done within milliseconds. Equality is that of values: speech/algebra.py.

Precedence is that of school; "all over" and "all squared" take everything before them. What people write
without a sign is ambiguous ("1/2x", "the square root of 2 x"): both readings of what was said count, and what
is expected must be the same in both.
"""

from collections.abc import Callable, Set
from fractions import Fraction

from speech.algebra import Node, names_of, same, settled
from speech.cardinals import tokens
from speech.numbers import quantity

LONGEST = 120  # symbols
DEEPEST = 12  # brackets, roots and exponents in each other

Symbol = Fraction | str  # a number; a variable; or one of + - * / ^ ^2 ^3 √ ( )

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


def expression(text: str) -> Node:
    """What a text is as a whole; of "x = 3" the right side.

    ValueError: it is no expression, is ambiguous, or has no real value.
    """
    left, equals, right = text.rpartition("=")
    if equals and left.strip().lower() not in _NAMES:
        raise ValueError("must be an expression, or a variable = an expression")
    said = tokens(right)
    symbols, end = _run(said, 0, _NAMES)
    readings = _readings(symbols) if end == len(said) else []
    if not readings:
        raise ValueError("must be an expression in numbers, single-letter variables and + - * / ^ ( )")
    if not same(readings[0], readings[0]):
        raise ValueError("must have a real value of moderate size")
    if not same(readings[0], readings[-1]):
        raise ValueError("can be read in two ways: put brackets and * where they belong")
    return readings[0]


def says(text: str, expected: Node) -> bool:
    """Is the last expression in a text equal to the one expected?

    Words between ("is", "equals", "so") separate expressions, so "x equals 3" ends with 3. "a" and "i" are
    variables only where the expected expression has them. A number that is expected must be worked out: who
    says a sum back has not answered it.

    Example:
        says("so the answer is two x plus three", expression("3 + 2*x"))  # True
    """
    said, wanted = tokens(text), names_of(expected)
    at, last = 0, list[Symbol]()
    while at < len(said):
        symbols, end = _run(said, at, wanted)
        if not _SIGNS.issuperset(symbols):
            last = symbols
        at = end + 1
    number = not wanted and settled(expected)
    return any(same(reading, expected) and (settled(reading) or not number) for reading in _readings(last))


def _run(said: list[str], at: int, wanted: Set[str]) -> tuple[list[Symbol], int]:
    """The symbols from a token on, and where the first word stands that is none."""
    run: list[Symbol] = []
    opened = 0
    while found := _symbol(said, at, wanted):
        symbol, at = found
        if isinstance(symbol, str) and symbol.startswith("all "):
            opened += 1
            run += [")", symbol.removeprefix("all ")]
        else:
            run.append(symbol)
    return ["("] * opened + run, at


def _symbol(said: list[str], at: int, wanted: Set[str]) -> tuple[Symbol, int] | None:
    for length in range(min(_LONGEST_PHRASE, len(said) - at), 0, -1):
        sign = _PHRASES.get(tuple(said[at : at + length]))
        if sign is not None:
            return sign, at + length
    if at >= len(said):
        return None
    number = quantity(said, at)
    if number is not None:
        return number
    name = said[at] if said[at] in wanted else _HEARD_AS.get(said[at], said[at])
    if name in wanted or (name in _NAMES and said[at] not in _HEARD_AS):
        return name, at + 1
    return None


def _readings(symbols: list[Symbol]) -> list[Node]:
    """What the symbols mean when products without a sign bind tighter than / and √, and when they do not."""
    if not 0 < len(symbols) <= LONGEST:
        return []
    read = (_Reader(symbols, tight).whole() for tight in (True, False))
    return [node for node in read if node is not None]


class _Unreadable(Exception):
    """Not an expression."""


class _Reader:
    """Recursive descent over symbols.

    sum      product {(+ | -) product}
    product  term {(* | /) term}              term: signed {power} when tight
    signed   {+ | -} power
    power    atom {^2 | ^3} [^ signed]
    atom     number | variable | ( sum ) | √ what it covers
    """

    def __init__(self, symbols: list[Symbol], tight: bool) -> None:
        self._symbols, self._tight = symbols, tight
        self._at = self._depth = 0

    def whole(self) -> Node | None:
        try:
            node = self._sum()
        except _Unreadable:
            return None
        return node if self._at == len(self._symbols) else None

    def _sum(self) -> Node:
        node = self._product()
        while (sign := self._take("+", "-")) is not None:
            node = (sign, node, self._product())
        return node

    def _product(self) -> Node:
        node = self._term()
        while True:
            if (sign := self._take("*", "/")) is not None:
                node = (sign, node, self._term())
            elif self._unsigned_factor_follows():
                node = ("*", node, self._power())
            else:
                return node

    def _term(self) -> Node:
        return self._side_by_side(self._signed()) if self._tight else self._signed()

    def _side_by_side(self, node: Node) -> Node:
        while self._unsigned_factor_follows():
            node = ("*", node, self._power())
        return node

    def _signed(self) -> Node:
        minus = False
        while (sign := self._take("+", "-")) is not None:
            minus ^= sign == "-"
        node = self._power()
        return ("*", Fraction(-1), node) if minus else node

    def _power(self) -> Node:
        node = self._atom()
        while (sign := self._take("^2", "^3")) is not None:
            node = ("^", node, Fraction(int(sign[1])))
        return ("^", node, self._deeper(self._signed)) if self._take("^") else node

    def _atom(self) -> Node:
        if self._take("("):
            node = self._deeper(self._sum)
            if self._take(")") is None:
                raise _Unreadable
            return node
        if self._take("√"):
            return ("^", self._deeper(self._under_root), Fraction(1, 2))
        symbol = self._next()
        if symbol is None or symbol in _SIGNS:
            raise _Unreadable
        self._at += 1
        return symbol

    def _under_root(self) -> Node:
        bracket = self._next() == "("
        return self._atom() if bracket or not self._tight else self._side_by_side(self._power())

    def _deeper(self, rule: Callable[[], Node]) -> Node:
        self._depth += 1
        if self._depth > DEEPEST:
            raise _Unreadable
        node = rule()
        self._depth -= 1
        return node

    def _unsigned_factor_follows(self) -> bool:
        symbol = self._next()
        return isinstance(symbol, str) and (symbol not in _SIGNS or symbol in ("(", "√"))

    def _next(self) -> Symbol | None:
        return self._symbols[self._at] if self._at < len(self._symbols) else None

    def _take(self, *signs: str) -> str | None:
        symbol = self._next()
        if not isinstance(symbol, str) or symbol not in signs:
            return None
        self._at += 1
        return symbol
