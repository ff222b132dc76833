"""Becoming a driver of Ray: a private one's, or a running one's that answers and knows our token.

That is asked before Ray is, which waits for minutes on who does not answer, and ends in pages of its log.
"""

import logging
import os
import re
import shlex
import sys
from contextlib import chdir, suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import get_ray_address_from_environment
from ray.exceptions import AuthenticationError
from ray.job_config import JobConfig

from actors.errors import UserError
from actors.run.interrupt import shield_children_from_hangup

WORKER_IMPORT_ROOT = Path(__file__).resolve().parent.parent

HEAD_ANSWER_TIMEOUT_S = 10.0  # longest wait for the first answer; a head's takes milliseconds
CLUSTER_ID_METHOD = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # what all of Ray asks a head first: an empty message
TOKEN_RULE = (
    "needs RAY_AUTH_MODE=token and the head's token, in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH"
    " names or in ~/.ray/auth_token (docs/cluster.md)"
)


def kill_session_processes(session: Path) -> None:
    """Kill what a private Ray that did not come up has left: it would live as long as this process."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any(str(session) in word for word in process.cmdline()):
                process.kill()


def find_ray_address(address: str) -> str:
    """host:port of the Ray at ``address``, which may be ``auto``. UserError: none answers, or not to us."""
    try:
        place: str = get_ray_address_from_environment(address, None)
    except ConnectionError:
        rule = "start one (`ray start --head`), name one (host:port), or choose cluster.address=local"
        raise UserError(f"cluster.address={address}: no Ray runs on this machine: {rule}") from None
    channel = _channel(address, place)
    try:
        channel.unary_unary(CLUSTER_ID_METHOD)(b"", timeout=HEAD_ANSWER_TIMEOUT_S)
    except AuthenticationError:
        raise UserError(f"cluster.address={address}: this shell has no token: {TOKEN_RULE}") from None
    except grpc.RpcError as error:
        raise UserError(f"cluster.address={address}: {_explain_refusal(place, error)}") from None
    finally:
        channel.close()
    return place


def _channel(address: str, place: str) -> grpc.Channel:
    """As Ray itself makes one: with this shell's token and certificates. UserError: these are missing."""
    try:
        return init_grpc_channel(place, options=[("grpc.enable_http_proxy", 0)])
    except (RuntimeError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cluster.address={address}: RAY_USE_TLS is set in this shell: {reason}") from None


def _encrypts() -> bool:
    """Whether Ray's processes of this shell speak TLS."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _explain_refusal(place: str, error: grpc.RpcError) -> str:
    code, detail = error.code(), " ".join(str(error.details()).split())
    match code:
        case grpc.StatusCode.UNAUTHENTICATED:
            return f"the Ray at {place} does not take this shell's token: {TOKEN_RULE}"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"nobody answers at {place} within {HEAD_ANSWER_TIMEOUT_S:g} s"
        case grpc.StatusCode.UNAVAILABLE:
            reason = detail.rpartition("last error: ")[2]
            return f"nobody answers at {place}: {reason}{_tls_rule(reason)}"
    return f"what answers at {place} is no Ray: {detail}"


def _tls_rule(reason: str) -> str:
    """What to look at where one side speaks TLS and the other does not, or they do not trust each other."""
    if not re.search("handshake|certificate|closed|reset", reason, re.IGNORECASE):
        return ""
    if _encrypts():
        return " (RAY_USE_TLS=1 here: the head needs it too, and its RAY_TLS_CA_CERT must know our certificate)"
    return " (does the head speak TLS? then RAY_USE_TLS=1 and the RAY_TLS_* files are needed here)"


def quote_interpreter() -> dict[str, str]:
    """What a runtime environment needs where this interpreter's path has spaces: Ray puts the path into
    a line of shell as it is, and no worker ever starts.
    """
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


def join_ray(address: str, runtime_env: dict[str, Any]) -> None:
    """Become a driver of a running Ray. UserError: there is none, or it does not let us."""
    place = find_ray_address(address)
    try:
        initialise_ray(place, runtime_env=runtime_env, log_to_driver=False, logging_level=logging.CRITICAL)
    except Exception as error:  # versions that differ, no node here, ...: Ray has no class for it
        reason = " ".join(str(error).split())[:400]
        raise UserError(f"cluster.address={address}: the Ray at {place} cannot be joined: {reason}") from error


def initialise_ray(address: str, **settings: Any) -> None:
    """``ray.init``, after which every worker looks for modules in the project's folder first.

    Ray puts the driver's folder before all others, in which there may be a ``judge.py`` of the user's; and a
    job's working folder, where it has one.
    """
    with chdir(WORKER_IMPORT_ROOT), shield_children_from_hangup():
        ray.init(address, job_config=JobConfig(_py_driver_sys_path=[str(WORKER_IMPORT_ROOT)]), **settings)


def protect_token() -> None:
    """Ray writes its auth token readable by everyone: take that back."""
    token = Path.home() / ".ray" / "auth_token"
    if token.is_file() and token.stat().st_mode & 0o077:
        token.chmod(0o600)
