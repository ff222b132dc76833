"""The folders import in one direction, and what is dangerous or heavy stays where it belongs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = (
    "store",
    "conf",
    "speech",
    "rollout",
    "judge",
    "learner",
    "actors",
    "commands",
)  # each imports only from those before it
ALLOWED = {name: set(LAYERS[: index + 1]) for index, name in enumerate(LAYERS)}
ALLOWED["report"] = {"store", "conf", "speech", "report"}
ALLOWED["actors"] |= {"report"}
ALLOWED["commands"] |= {"report"}
# The page and `wavgate judge calibrate` must mean the same by their figures; a module of formulas alone.
LENT = {"report": {"judge.agreement"}}
NOT_PRODUCT = {"bench", "examples", "tests"}
SOURCES = sorted(path for name in ALLOWED for path in (ROOT / name).rglob("*.py"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}:{node.lineno} imports relatively"
            yield node.module or ""


def tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_a_folder_imports_only_from_those_to_its_left(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    own = {name for name in imports(path) if name not in LENT.get(folder, ())}
    ours = {name.partition(".")[0] for name in own} & (set(ALLOWED) | NOT_PRODUCT)
    assert ours <= ALLOWED[folder], f"{named(path)} imports {sorted(ours - ALLOWED[folder])}"


def test_what_is_lent_across_the_layers_imports_nothing_of_ours() -> None:
    for name in {name for names in LENT.values() for name in names}:
        path = ROOT / f"{name.replace('.', '/')}.py"
        assert not tops(path) & (set(ALLOWED) | NOT_PRODUCT), named(path)


def test_only_actors_import_ray() -> None:
    assert [
        named(path) for path in SOURCES if "ray" in tops(path) and path.relative_to(ROOT).parts[0] != "actors"
    ] == []


def test_only_the_vllm_engine_imports_vllm() -> None:
    users = [path.relative_to(ROOT) for path in SOURCES if "vllm" in tops(path)]
    assert [path for path in users if path.parts[0] != "rollout" or not path.name.startswith("vllm_")] == []


def test_our_package_names_are_not_taken_by_an_installed_package() -> None:
    names = sorted(ALLOWED)
    code = f"import {', '.join(names)}; print(*[m.__file__ for m in ({', '.join(names)})], sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(ROOT / name / "__init__.py") for name in names]


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    code = "import sys, commands.cli; print([m for m in ('torch', 'ray', 'vllm', 'transformers', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_unpickles_weights_or_data() -> None:
    forbidden = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    assert [named(path) for path in SOURCES if tops(path) & forbidden] == []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            assert called not in {"eval", "exec", "pd.read_pickle"}, where
            if called == "torch.load":  # plain tensors only: nothing of the file is run
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), where
            if called in {"np.load", "numpy.load"}:
                assert not any(k.arg == "allow_pickle" for k in node.keywords), where


def test_no_code_from_a_checkpoint_is_trusted() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert ast.unparse(node.value) == "False", f"{named(path)}:{node.value.lineno}"


def test_no_file_is_longer_than_three_hundred_lines() -> None:
    lengths = {named(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 300} == {}
