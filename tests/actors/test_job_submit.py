"""``ray job submit`` runs the same entry point on a cluster started with ``ray start --head``, token authentication on.

The cluster is this test's own: an isolated home, free ports, a folder of its own; only its processes are ended.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from conf.load import read_config
from examples.judge_server.service import MODEL
from examples.judge_server.started import started
from report.read import read_metric_rows
from tests.helpers import processes

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"
NAME, SECRET = "WAVGATE_TEST_JUDGE_KEY", "sk-canary-0d5e77ab3c914f28"  # in the environment of every node
SHIPPED = ("store", "commands", "conf", "speech", "rollout", "judge", "learner", "actors", "report", "examples")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A running head; the environment to talk to it."""
    short = tempfile.mkdtemp(prefix="wgj", dir="/tmp")  # Ray's sockets need a short path
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    token = home / ".ray" / "auth_token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    dashboard, port, client = free_port(), free_port(), free_port()
    environment = {
        **kept,
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_agent_register_timeout_ms": "120000",
        NAME: SECRET,
    }
    command = [
        str(RAY), "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1",
        f"--ray-client-server-port={client}", "--num-cpus=4", f"--temp-dir={short}", "--object-store-memory=300000000", "--disable-usage-stats",
    ]  # fmt: skip
    before = processes.children()
    log = (tmp_path / "head.log").open("wb")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        processes.wait_for(lambda: answers(f"{address}/api/jobs/", token.read_text()), process)
        yield {**environment, "RAY_API_SERVER_ADDRESS": address}
    except AssertionError as error:
        raise AssertionError((tmp_path / "head.log").read_text()[-2000:]) from error
    finally:
        processes.end_all(kept=before, grace_s=0.0)
        shutil.rmtree(short, ignore_errors=True)


def answers(url: str, token: str) -> bool:
    """Whether the job server is up, and takes this token."""
    try:
        return httpx2.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=processes.HANG_S).is_success
    except httpx2.TransportError:
        return False


@pytest.mark.long
def test_a_submitted_job_trains_on_the_cluster(head: dict[str, str], tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in SHIPPED:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    data = source / "examples" / "tiny_world" / "data"
    for split in ("validation", "test"):
        path = data / f"{split}.jsonl"
        path.write_text("\n".join(path.read_text().splitlines()[:3]) + "\n")
    command = [
        str(RAY), "job", "submit", "--working-dir", str(source), "--", sys.executable, "-m", "actors.driver",
        "experiment=smoke", "cluster.address=auto", "run.steps=1", "run.name=submitted", "learner.ranks=1",
        "judge=openai", "judge.acoustic_by=local", f"judge.api.model={MODEL}", f"judge.api.key_env={NAME}",
    ]  # fmt: skip
    with started("--key-env", NAME, **{NAME: SECRET}) as url:
        command.append(f"judge.api.base_url={url}")
        done = subprocess.run(command, env=head, capture_output=True, text=True, timeout=processes.HANG_S, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    listed = subprocess.run(
        [str(RAY), "job", "list"],
        env=head,
        capture_output=True,
        text=True,
        timeout=processes.HANG_S,
        check=True,
    )
    assert NAME in listed.stdout and SECRET not in listed.stdout + done.stdout, "Ray's record of the job"
    run = Path(head["HOME"]) / "wavgate-runs" / "submitted"
    assert "runtime_resources" not in (run / "config.yaml").read_text(), "that folder ends with the cluster"
    assert read_config(run / "config.yaml").data.train == ROOT / "examples/tiny_world/data/train.jsonl"
    assert "a Ray job's own folder is temporary" in done.stdout
    assert [row["step"] for row in read_metric_rows(run / "metrics.jsonl").rows] == [1]
    calls = (run / "judge_calls.jsonl").read_text()
    assert '"kind": null' in calls and SECRET not in calls
    assert (run / "report.html").is_file() and (run / "final" / "model.safetensors").is_file()
