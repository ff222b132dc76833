"""Whether two expressions are equal: by their values, never by their shape.

Invariant: whatever the expression, its value is had within milliseconds: the size of powers is bounded.

Both are calculated at several fixed, generic rational points with exact fractions (Schwartz and Zippel: two
different polynomials of degree d agree at a random one of n points with probability d/n at most). Only where
a root or a broken exponent has no exact value, values are floats, and equal within 1e-9.
"""

from collections.abc import Set
from fractions import Fraction
from functools import cache
from math import gcd, isclose, isfinite, isqrt
from random import Random

MAX_POWER_BITS = 1024  # of a power
TEST_POINTS = 8
MIN_AGREEING_POINTS = 2  # points at which both expressions must have a value

ExpressionNode = Fraction | str | tuple[str, "ExpressionNode", "ExpressionNode"]
# a number, a variable, an operation: + - * / ^


def are_equal(node: ExpressionNode, other: ExpressionNode) -> bool:
    """Equal wherever both have a value, and at least twice both have one."""
    agreed = 0
    for point in range(TEST_POINTS):
        left, right = _evaluate_or_none(node, point), _evaluate_or_none(other, point)
        if left is None or right is None:
            continue
        exact = isinstance(left, Fraction) and isinstance(right, Fraction)
        if not (left == right if exact else isclose(left, right, rel_tol=1e-9, abs_tol=1e-9)):
            return False
        agreed += 1
    return agreed >= MIN_AGREEING_POINTS


def is_fully_evaluated(node: ExpressionNode) -> bool:
    """Whether nothing is left to calculate: a number, a fraction in lowest terms, a root that has no end."""
    if not isinstance(node, tuple):
        return True
    sign, left, right = node
    if sign == "*" and left == -1:
        return is_fully_evaluated(right)
    if sign == "/" and isinstance(left, Fraction) and isinstance(right, Fraction):
        whole = left.denominator == right.denominator == 1
        return whole and right != 1 and gcd(left.numerator, right.numerator) == 1
    return isinstance(_evaluate_or_none(node, 0), float) and is_fully_evaluated(left) and is_fully_evaluated(right)


def find_variables(node: ExpressionNode) -> Set[str]:
    """The variables of an expression."""
    if isinstance(node, tuple):
        return find_variables(node[1]) | find_variables(node[2])
    return {node} if isinstance(node, str) else set()


def _evaluate_or_none(node: ExpressionNode, point: int) -> Fraction | float | None:
    """None: no real value there, or none of moderate size."""
    try:
        value = _evaluate(node, point)
    except ArithmeticError:
        return None
    return value if isinstance(value, Fraction) or isfinite(value) else None


def _evaluate(node: ExpressionNode, point: int) -> Fraction | float:
    if isinstance(node, Fraction):
        return node
    if isinstance(node, str):
        return _draw_coordinate(node, point)
    sign, left, right = node[0], _evaluate(node[1], point), _evaluate(node[2], point)
    match sign:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            return left / right
    return _raise_to_power(left, right)


@cache
def _draw_coordinate(name: str, point: int) -> Fraction:
    """A variable's value at a point; half of the points are positive everywhere, for roots."""
    random = Random(f"{name} {point}")
    value = Fraction(random.randint(2, 97), random.randint(2, 31))
    return value if point % 2 or random.random() < 0.5 else -value


def _raise_to_power(base: Fraction | float, exponent: Fraction | float) -> Fraction | float:
    """Exact where it can be. ArithmeticError: no real value, or too large a one."""
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if size * abs(exponent) > MAX_POWER_BITS:
            raise OverflowError
        if exponent.denominator == 2 and base > 0:
            root = Fraction(isqrt(base.numerator), isqrt(base.denominator))
            if root * root == base:
                return Fraction(root**exponent.numerator)
        if exponent.denominator == 1:
            return Fraction(base**exponent.numerator)
    if base < 0 and exponent != int(exponent):
        raise ArithmeticError
    return float(float(base) ** float(exponent))
