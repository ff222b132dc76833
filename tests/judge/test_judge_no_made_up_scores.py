"""Reads the source of judge/ and of `wavgate judge`: no number stands in for a score that is not there (docs/method.md §5)."""

import ast
from math import inf, nan
from pathlib import Path

import pytest

from judge.types import ScoredVerdict

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("judge", "commands/judge") for path in (ROOT / folder).rglob("*.py"))
SCORE_NAMES = {"value", "score", "reward", "fraction"}
FALLBACKS = {"get", "getattr", "setdefault", "pop", "next", "nan_to_num", "fillna"}


def is_number(node: ast.AST | None) -> bool:
    if isinstance(node, ast.UnaryOp):
        return is_number(node.operand)
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def has_number(node: ast.AST | None) -> bool:
    return node is not None and any(is_number(part) for part in ast.walk(node))


def name_of(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def made_up(node: ast.AST) -> str | None:
    """The rule that a node breaks."""
    match node:
        case ast.ExceptHandler():
            if any(has_number(inner) for statement in node.body for inner in ast.walk(statement)):
                return "a number in an except branch"
        case ast.Call():
            literal = any(word.arg == "value" and is_number(word.value) for word in node.keywords)
            if literal and name_of(node.func) in ("ScoredVerdict", "replace"):
                return "a literal score"
            if name_of(node.func) in FALLBACKS and any(map(is_number, node.args[1:])):
                return "a number when something is missing"
        case ast.BoolOp(op=ast.Or()):
            if any(map(is_number, node.values)):
                return "a number when something is missing"
        case ast.IfExp():
            tests = ast.unparse(node.test)
            if ("None" in tests or "Missing" in tests) and (is_number(node.body) or is_number(node.orelse)):
                return "a number when something is missing"
        case ast.AnnAssign(target=ast.Name(id=name)) if name in SCORE_NAMES and is_number(node.value):
            return "a default score"
        case ast.arguments():
            named = [*node.posonlyargs, *node.args][::-1]
            pairs = [
                *zip(named, node.defaults[::-1], strict=False),
                *zip(node.kwonlyargs, node.kw_defaults, strict=True),
            ]
            if any(argument.arg in SCORE_NAMES and is_number(default) for argument, default in pairs):
                return "a default score"
    return None


def offences(source: str) -> list[str]:
    actual = ((made_up(node), getattr(node, "lineno", 0)) for node in ast.walk(ast.parse(source)))
    return [f"line {line}: {rule}" for rule, line in actual if rule]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_number_stands_in_for_a_missing_score(path: Path) -> None:
    assert offences(path.read_text()) == []


def test_the_judge_is_read() -> None:
    assert {"panel.py", "acoustic.py", "verifiable.py", "types.py"} <= {path.name for path in SOURCES}


@pytest.mark.parametrize(
    "planted",
    [
        "try:\n    ask()\nexcept Exception:\n    return_value = 2.5",
        "try:\n    ask()\nexcept ValueError:\n    verdict = ScoredVerdict(value=0.0, judge='j')",
        "def f():\n    try:\n        ask()\n    except ValueError:\n        if late:\n            return -1",
        "scores.get('semantic', 3.0)",
        "getattr(verdict, 'value', 0.0)",
        "score = parse(text) or 2.5",
        "ScoredVerdict(value=2.5, judge='j')",
        "x = 0.0 if reward is None else reward",
        "x = verdict.value if not isinstance(verdict, Missing) else 1.0",
        "class S:\n    value: float = 0.0",
        "def f(text, score=2.5): ...",
        "def f(*, reward: float = -1.0): ...",
        "np.nan_to_num(scores, 0.0)",
    ],
)
def test_planted_made_up_scores_are_found(planted: str) -> None:
    assert offences(planted)


@pytest.mark.parametrize(("value", "spread"), [(nan, 0.0), (inf, 0.0), (3.0, nan), (3.0, inf), (3.0, -0.1)])
def test_what_is_no_number_is_no_score_whoever_gives_it(value: float, spread: float) -> None:
    with pytest.raises(ValueError, match=r"a score must be a finite number .*: mine gave"):
        ScoredVerdict(value=value, spread=spread, judge="mine")
