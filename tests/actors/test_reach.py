"""Joining a Ray: who does not answer, is none or wants another token is one line, in bounded time."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from ray._common.tls_utils import generate_self_signed_tls_certs

from actors import reach
from actors.checks.cuda import count_cuda_devices
from actors.errors import UserError
from actors.reach import CLUSTER_ID_METHOD, find_ray_address
from commands.cli import main

TOKEN = "0123456789abcdef" * 2


class Head(grpc.GenericRpcHandler):
    """Answers what a head answers first, to who has the token."""

    def service(self, details: Any) -> Any:
        """The one question of ``find_ray_address``."""
        return grpc.unary_unary_rpc_method_handler(self._answer) if details.method == CLUSTER_ID_METHOD else None

    def _answer(self, question: bytes, context: Any) -> bytes:
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {TOKEN}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""


@pytest.fixture
def head() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Head()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The token that Ray's own code finds, which reads it once in a process."""
    metadata: list[tuple[str, str]] = []
    where = "ray._private.authentication"
    monkeypatch.setattr(f"{where}.authentication_utils.is_token_auth_enabled", lambda: True)
    where += ".grpc_authentication_client_interceptor"
    monkeypatch.setattr(f"{where}._get_authentication_metadata_tuple", lambda: tuple(metadata))
    return metadata


def refusal(address: str) -> str:
    with pytest.raises(UserError) as caught:
        find_ray_address(address)
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"cluster.address={address}: ")
    return line.removeprefix(f"cluster.address={address}: ")


def test_a_head_that_knows_our_token_is_joined(head: str, sent: list[tuple[str, str]]) -> None:
    sent.append(("authorization", f"Bearer {TOKEN}"))
    assert find_ray_address(head) == head


@pytest.mark.parametrize("token", [None, "f" * 32], ids=["no token", "another"])
def test_a_head_with_another_token_says_what_it_needs(
    token: str | None, head: str, sent: list[tuple[str, str]]
) -> None:
    sent += [("authorization", f"Bearer {token}")] if token else []
    line = refusal(head)
    assert line.startswith(f"the Ray at {head} does not take this shell's token: needs RAY_AUTH_MODE=token")


def test_nobody_at_an_address_is_told_at_once(sent: list[tuple[str, str]]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert refusal(address).startswith(f"nobody answers at {address}: ")


def test_a_host_without_an_address_is_told(sent: list[tuple[str, str]]) -> None:
    assert refusal("no-such-host.invalid:6379").startswith("nobody answers at no-such-host.invalid:6379: ")


def test_who_accepts_and_says_nothing_is_waited_for_so_long_only(
    sent: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reach.HEAD_ANSWER_TIMEOUT_S < 30
    monkeypatch.setattr(reach, "HEAD_ANSWER_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        assert refusal(address) == f"nobody answers at {address} within 0.2 s"


def test_another_service_is_no_ray(sent: list[tuple[str, str]]) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        assert refusal(address).startswith(f"what answers at {address} is no Ray: ")
    finally:
        server.stop(None).wait()


def certificate(folder: Path, name: str) -> tuple[bytes, bytes]:
    """A key and a certificate of its own, which are files too."""
    pytest.importorskip("cryptography")
    cert, key = generate_self_signed_tls_certs()
    (folder / f"{name}.crt").write_text(cert)
    (folder / f"{name}.key").write_text(key)
    return key.encode(), cert.encode()


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[str]:
    """A head that speaks TLS with who has the certificate ``head``."""
    key, cert = certificate(tmp_path, "head")
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Head()])
    rule = grpc.ssl_server_credentials([(key, cert)], root_certificates=cert, require_client_auth=True)
    address = f"localhost:{server.add_secure_port('127.0.0.1:0', rule)}"
    server.start()
    yield address
    server.stop(None).wait()


def encrypt(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, authority: str | None = None) -> None:
    """What Ray reads before it speaks TLS."""
    monkeypatch.setenv("RAY_USE_TLS", "1")
    monkeypatch.setenv("RAY_TLS_SERVER_CERT", str(folder / f"{name}.crt"))
    monkeypatch.setenv("RAY_TLS_SERVER_KEY", str(folder / f"{name}.key"))
    monkeypatch.setenv("RAY_TLS_CA_CERT", str(folder / f"{authority or name}.crt"))


def test_a_head_that_speaks_tls_is_joined_with_rays_own_certificates(
    encrypted: str, sent: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent.append(("authorization", f"Bearer {TOKEN}"))
    encrypt(monkeypatch, tmp_path, "head")
    assert find_ray_address(encrypted) == encrypted


def test_a_head_that_speaks_tls_says_so_to_who_does_not(encrypted: str, sent: list[tuple[str, str]]) -> None:
    assert "does the head speak TLS? then RAY_USE_TLS=1 and the RAY_TLS_* files" in refusal(encrypted)


@pytest.mark.parametrize("authority", ["other", "head"])
def test_another_certificate_is_one_line(
    authority: str,
    encrypted: str,
    sent: list[tuple[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    certificate(tmp_path, "other")
    encrypt(monkeypatch, tmp_path, "other", authority)
    assert "RAY_TLS_CA_CERT must know our certificate" in refusal(encrypted)


def test_tls_where_the_head_has_none_or_the_files_are_not_there_is_one_line(
    head: str, sent: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encrypt(monkeypatch, tmp_path, "head")
    assert refusal(head).startswith("RAY_USE_TLS is set in this shell: [Errno 2] No such file")
    certificate(tmp_path, "head")
    assert "RAY_USE_TLS=1 here: the head needs it too" in refusal(head)
    monkeypatch.delenv("RAY_TLS_CA_CERT")
    assert "RAY_TLS_CA_CERT must also be set" in refusal(head)


def test_auto_without_a_ray_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> str:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(reach, "get_ray_address_from_environment", none)
    assert refusal("auto").startswith("no Ray runs on this machine: start one (`ray start --head`)")


@pytest.mark.skipif(count_cuda_devices() > 0, reason="this machine has a CUDA device")
def test_a_gpu_run_where_there_is_no_cuda_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "cluster=gpu1", "cluster.address=local", "experiment=smoke", f"run.root={tmp_path}"]
    assert main(command) == 2
    rule = "cluster.kind=gpu: this machine has no CUDA device; cluster=local needs none\n"
    assert capsys.readouterr().err == rule and list(tmp_path.iterdir()) == []
