"""A Ray that cannot hold the plan is left again, whatever went wrong."""

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from actors import cluster
from actors.cluster import Cluster, plan_placement
from actors.errors import UserError
from actors.reach import quote_interpreter
from conf.load import load_config


@pytest.mark.parametrize("error", [UserError("too few GPUs"), KeyboardInterrupt()])
def test_a_cluster_whose_placing_fails_is_left_again(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []

    class Group:
        def wait(self, seconds: float) -> bool:
            happened.append("wait")
            raise error

    monkeypatch.setattr(cluster, "join_ray", lambda *_: happened.append("join"))
    monkeypatch.setattr(cluster, "protect_token", lambda: None)
    monkeypatch.setattr(cluster, "bare_nodes", lambda need: ["f00"])
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"GPU": 8.0, "CPU": 99.0})
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: happened.append("shutdown"))
    monkeypatch.setattr(cluster, "remove_placement_group", lambda group: happened.append("remove"))
    asked: list[Any] = []

    def reserve(bundles: list[Any], *, bundle_label_selector: list[Any], **_: Any) -> Group:
        asked.extend(zip(bundles, bundle_label_selector, strict=True))
        return Group()

    monkeypatch.setattr(cluster, "placement_group", reserve)
    config = load_config(["cluster=gpu8", f"run.root={tmp_path}"])
    with pytest.raises(type(error)):
        Cluster(config.cluster, plan_placement(config, 4))
    assert happened == ["join", "wait", "remove", "shutdown"]
    rules = [rule for bundle, rule in asked if "GPU" in bundle]
    assert rules == [{"ray.io/node-id": "!in(f00)"}] * 8
    assert [rule for bundle, rule in asked if "GPU" not in bundle] == [{}] * config.judge.workers


@pytest.mark.parametrize("path", ["/a second clone/.venv/bin/python", "/usr/bin/python3"])
def test_a_worker_is_started_with_our_interpreter_whatever_its_path(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", path)
    handed = quote_interpreter().get("py_executable", path)
    assert shlex.split(f"exec {handed} worker.py") == ["exec", path, "worker.py"]  # Ray's line of shell
