"""Codecs are loaded where speech is encoded or decoded, at the first use, and never by the learner."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEARNER = sorted(path for path in (ROOT / "learner").glob("*.py") if path.name != "__init__.py")
KINDS = "mel residual composed graphs whisper_vq whisper_vq_model".split()


def loaded_after(code: str, names: list[str]) -> str:
    told = f"import sys; {code}; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_a_process_that_imports_all_of_the_learner_has_no_codec() -> None:
    names = [f"speech.codecs.{kind}" for kind in KINDS] + ["onnxruntime"]
    modules = ", ".join(f"learner.{path.stem}" for path in LEARNER)
    assert loaded_after(f"import {modules}", names) == "[]"


def test_the_learner_never_asks_a_family_for_its_codec() -> None:
    for path in LEARNER:
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "attr", getattr(node, "id", ""))
            assert name not in {"codec", "load_codec"}, f"{path.name}:{getattr(node, 'lineno', 0)}"


def test_a_mel_codec_loads_no_library_of_the_other_kinds() -> None:
    code = "from pathlib import Path; from speech.codecs import load_codec; load_codec(Path('examples/tiny_world/base'))"
    assert loaded_after(code, ["torch", "transformers", "onnxruntime"]) == "[]"
