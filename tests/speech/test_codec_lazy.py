"""Codecs are loaded where speech is encoded or decoded, at the first use, and never by the learner."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEARNER = sorted(path for path in (ROOT / "learner").glob("*.py") if path.name != "__init__.py")
KINDS = "mel residual composed graphs whisper_vq whisper_vq_model".split()


def imported(name: str) -> set[str]:
    """Modules of ours that importing ``name`` imports at once: not what a function imports when it is called."""
    file = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    file = file if file.is_file() else ROOT.joinpath(*name.split("."), "__init__.py")
    if not file.is_file():
        return set()  # another's package, or a name in a module
    actual = {name.rpartition(".")[0]} - {""}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            actual |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            actual |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return actual


def all_imported(names: set[str]) -> set[str]:
    reached: set[str] = set()
    while names:
        reached |= names
        names = set().union(*map(imported, names)) - reached
    return reached


def test_importing_all_of_the_learner_imports_no_codec() -> None:
    reached = all_imported({f"learner.{path.stem}" for path in LEARNER})
    assert {"speech.codecs.base", "speech.codecs", "torch"} <= reached  # the walk goes where there is something
    assert not reached & ({f"speech.codecs.{kind}" for kind in KINDS} | {"onnxruntime"})


def test_the_learner_never_asks_a_family_for_its_codec() -> None:
    for path in LEARNER:
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "attr", getattr(node, "id", ""))
            assert name not in {"codec", "load_codec"}, f"{path.name}:{getattr(node, 'lineno', 0)}"


def test_a_mel_codec_loads_no_library_of_the_other_kinds() -> None:
    code = """
import sys
from pathlib import Path
from speech.codecs import load_codec
load_codec(Path("examples/tiny_world/base"))
print([name for name in ("torch", "transformers", "onnxruntime") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
