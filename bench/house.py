"""How the source reads, in figures: names, docstrings, sizes, circles of imports, settings.

    python -m bench.house [--list FIGURE]

``--list`` prints what is behind a figure: ``one-word``, ``shared``, ``long``, ``circles`` or ``undocumented``.
Nothing is imported but the settings' schema; every other figure is read off the syntax trees.
"""

import argparse
import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel

from conf.schema import Config

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("store", "conf", "speech", "rollout", "judge", "learner", "report", "actors", "commands")
LONG_FUNCTION = 40  # lines
LONG_FILE = 300
MAY_SHARE = {"main", "load"}  # entry points, and the door of each model family

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A source file: its dotted name and its syntax tree."""

    name: str
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed file."""
        return ast.parse(self.path.read_text())

    @property
    def where(self) -> str:
        """The path below the project's root."""
        return str(self.path.relative_to(ROOT))


def read_modules() -> list[Module]:
    """Every module of the product."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [
        Module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path)
        for path in paths
    ]


def list_functions(module: Module) -> Iterator[tuple[Function, ast.ClassDef | None]]:
    """Module-level functions and the methods of module-level classes, each with its class."""
    for node in module.tree.body:
        if isinstance(node, Function):
            yield node, None
        elif isinstance(node, ast.ClassDef):
            yield from ((method, node) for method in node.body if isinstance(method, Function))


def is_protocol(owner: ast.ClassDef) -> bool:
    """True for a class that only says what others must offer."""
    return any("Protocol" in ast.unparse(base) for base in owner.bases)


def is_property(method: Function) -> bool:
    """True for what is read like a field."""
    return any("property" in ast.unparse(decorator) for decorator in method.decorator_list)


def is_one_word(name: str) -> bool:
    """True for a name of one word, a leading underscore aside."""
    return "_" not in name.strip("_")


def split_functions(modules: list[Module]) -> tuple[dict[str, str], dict[str, str]]:
    """Where -> name of the module-level functions, and of the methods that chose their own name."""
    named = [(module, function, owner) for module in modules for function, owner in list_functions(module)]
    required = {function.name for _, function, owner in named if owner and is_protocol(owner)}
    free = {f"{module.where}:{function.lineno}": function.name for module, function, owner in named if owner is None}
    methods = {
        f"{module.where}:{function.lineno}": function.name
        for module, function, owner in named
        if owner and function.name not in required and not function.name.startswith("__") and not is_property(function)
    }
    return free, methods


def define_names(module: Module) -> set[str]:
    """The public names that a module defines at its top level."""
    names: set[str] = set()
    for node in module.tree.body:
        if isinstance(node, Function | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def share_names(modules: list[Module]) -> tuple[dict[str, list[str]], int]:
    """Public names with several homes -> those modules, and the number of public names."""
    homes: defaultdict[str, list[str]] = defaultdict(list)
    for module in modules:
        for name in define_names(module):
            homes[name].append(module.name)
    return {name: where for name, where in homes.items() if len(where) > 1 and name not in MAY_SHARE}, len(homes)


def import_edges(modules: list[Module]) -> dict[str, set[str]]:
    """Module -> the modules that it imports, wherever in the file."""
    names = {module.name for module in modules}
    edges: dict[str, set[str]] = {}
    for module in modules:
        used: set[str] = set()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & names
                used |= inner or {node.module}
        edges[module.name] = (used & names) - {module.name}
    return edges


def list_circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other by imports."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        stack = [start]
        while stack:
            for name in edges[stack.pop()] - seen:
                seen.add(name)
                stack.append(name)
        return seen

    reached = {name: reach(name) for name in edges}
    circles = {frozenset(b for b in reached[a] if a in reached[b]) for a in edges if a in reached[a]}
    return sorted(sorted(circle) for circle in circles)


def list_undocumented(modules: list[Module]) -> tuple[list[str], int]:
    """Public functions, classes and methods without a docstring, and the number of all of them."""
    missing: list[str] = []
    total = 0
    for module in modules:
        owners = [node for node in module.tree.body if isinstance(node, ast.ClassDef)]
        public: list[Function | ast.ClassDef] = [owner for owner in owners if not owner.name.startswith("_")]
        public += [
            function
            for function, owner in list_functions(module)
            if not function.name.startswith("_") and not (owner and owner.name.startswith("_"))
        ]
        total += len(public)
        missing += [f"{module.where}:{node.lineno} {node.name}" for node in public if not ast.get_docstring(node)]
    return missing, total


def count_leaves(settings: type[BaseModel]) -> int:
    """Settings that a user can give, those of nested groups and of the items of lists included."""

    def models_in(kind: object) -> Iterator[type[BaseModel]]:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind
        for inner in getattr(kind, "__args__", ()):
            yield from models_in(inner)

    total = 0
    for field in settings.model_fields.values():
        inner = list(models_in(field.annotation))
        total += sum(map(count_leaves, inner)) if inner else 1
    return total


def measure_house() -> tuple[list[tuple[str, str, str]], dict[str, list[str]]]:
    """Rows of (figure, measured, aim), and what is behind some of them."""
    modules = read_modules()
    free, methods = split_functions(modules)
    shared, public = share_names(modules)
    circles = list_circles(import_edges(modules))
    lengths = {
        f"{module.where}:{function.lineno} {function.name}": (function.end_lineno or 0) - function.lineno + 1
        for module in modules
        for node in ast.walk(module.tree)
        for function in ([node] if isinstance(node, Function) else [])
    }
    long = [where for where, lines in lengths.items() if lines > LONG_FUNCTION]
    undocumented, documentable = list_undocumented(modules)
    files: defaultdict[Path, int] = defaultdict(int)
    for module in modules:
        files[module.path.parent] += 1
    largest, most = max(files.items(), key=lambda item: item[1])
    sizes = {module.where: len(module.path.read_text().splitlines()) for module in modules}
    tests = sum(len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py"))
    short = [f"{where} {name}" for names in (free, methods) for where, name in names.items() if is_one_word(name)]
    rows = [
        ("one-word module-level functions", share(map(is_one_word, free.values())), "<= 30 %"),
        ("one-word methods", share(map(is_one_word, methods.values())), "<= 70 %"),
        ("public names in more than one module", f"{100 * len(shared) / public:.1f} % of {public}", "<= 2 %"),
        ("circles of modules", str(len(circles)), "0"),
        ("largest folder", f"{most} files ({largest.relative_to(ROOT)})", "<= 25"),
        (f"files over {LONG_FILE} lines", str(sum(lines > LONG_FILE for lines in sizes.values())), "0"),
        (
            f"functions over {LONG_FUNCTION} lines",
            f"{100 * len(long) / len(lengths):.2f} % of {len(lengths)}",
            "<= 0.7 %",
        ),
        (
            "public docstrings",
            f"{100 * (1 - len(undocumented) / documentable):.1f} % of {documentable}",
            ">= 94 %",
        ),
        ("settings, all counted", str(count_leaves(Config)), ""),
        ("lines of source", f"{sum(sizes.values()):,} in {len(modules)} files", ""),
        ("lines of tests", f"{tests:,}", ""),
    ]
    behind = {
        "one-word": short,
        "shared": [f"{name}: {', '.join(where)}" for name, where in sorted(shared.items())],
        "long": long,
        "circles": [" ".join(circle) for circle in circles],
        "undocumented": undocumented,
    }
    return rows, behind


def share(truths: Iterator[bool]) -> str:
    """``12.5 % of 80``."""
    counted = list(truths)
    return f"{100 * sum(counted) / len(counted):.1f} % of {len(counted)}"


def main() -> int:
    """Print the figures, or what is behind one of them."""
    parser = argparse.ArgumentParser(prog="python -m bench.house", description=__doc__)
    parser.add_argument("--list", choices=("one-word", "shared", "long", "circles", "undocumented"))
    chosen = parser.parse_args().list
    rows, behind = measure_house()
    if chosen:
        print("\n".join(behind[chosen]))
        return 0
    for figure, measured, aim in rows:
        print(f"{figure:38} {measured:28} {aim}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
