"""The examples in docstrings are Python, and what they call is there: they go with the code that they show."""

import ast
import builtins
import textwrap
from collections.abc import Iterator, Set

import pytest

from bench import house

MODULES = house.read_modules()
DOCUMENTED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Module)
CLASSES = {node.name: node for module in MODULES for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)}
KNOWN = {name for module in MODULES for node in module.tree.body for name in [getattr(node, "name", "")]}


def read_examples() -> Iterator[tuple[str, str]]:
    for module in MODULES:
        for node in ast.walk(module.tree):
            text = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
            if text is not None and "Example:\n" in text:
                lines = text.split("Example:\n", 1)[1].splitlines()
                end = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("    ")), None)
                yield f"{module.name}.{getattr(node, 'name', '')}", textwrap.dedent("\n".join(lines[:end]))


def list_members(name: str) -> Set[str]:
    """What a class and those that it is made from define or assign to ``self``."""
    node = CLASSES.get(name)
    if node is None:
        return set()
    members = {getattr(part, "name", None) or getattr(part, "attr", None) or getattr(part, "id", "")
               for part in ast.walk(node)}  # fmt: skip
    return members.union(*(list_members(ast.unparse(base)) for base in node.bases))


def list_unknown_names(code: str) -> list[str]:
    """Functions that are nowhere, and attributes that the class of an object of the example does not have."""
    tree = ast.parse(code)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    given = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    unknown = (
        {call.func.id for call in calls if isinstance(call.func, ast.Name)} - given - KNOWN - {"Path", *dir(builtins)}
    )
    made = {
        target.id: ast.unparse(node.value.func).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            kind = made.get(node.value.id, node.value.id)
            if (
                kind in CLASSES and node.attr not in list_members(kind) and not node.attr.startswith("model_")
            ):  # pydantic
                unknown.add(f"{kind}.{node.attr}")
    return sorted(unknown)


EXAMPLES = dict(read_examples())


@pytest.mark.parametrize("place", sorted(EXAMPLES))
def test_what_an_example_calls_is_there(place: str) -> None:
    assert list_unknown_names(EXAMPLES[place]) == []


def test_an_example_that_calls_what_is_gone_is_seen() -> None:
    assert list_unknown_names("x = MelCodec(book)\ny = x.hear(open(z))\npack(y)") == ["MelCodec.hear", "pack"]
