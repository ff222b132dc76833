"""Are there CUDA devices where the plan wants GPUs? Asked of the driver library, before anything starts.

Ray counts what it was told (``--num-gpus``) or finds in /dev; only the driver knows what can be used.
"""

import ctypes
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.errors import UserError, describe_error

NODE_ANSWER_TIMEOUT_S = 120.0  # longest wait for a node: it starts a process for the question


def count_cuda_devices() -> int:
    """How many devices of this machine the CUDA driver can use; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    usable = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if usable else 0


def _count_node_devices() -> int:
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides them all from who claims none
    return count_cuda_devices()


def bare_nodes(need: float) -> list[str]:
    """Ids of the nodes of the cluster that we joined which count GPUs for Ray and have no CUDA device, or say
    nothing: no bundle with GPUs may go there.

    UserError: without them there are fewer than ``need`` GPUs.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) > 0]
    return _unusable(nodes, [_devices_or_reason(reply) for reply in _ask(nodes)], need)


def _unusable(nodes: Sequence[Mapping[str, Any]], answers: Sequence[int | str], need: float) -> list[str]:
    """``answers``: of each node its devices, or why it gave none."""
    bare, reasons, left = [], [], 0.0
    for node, answer in zip(nodes, answers, strict=True):
        gpus = node["Resources"]["GPU"]
        if isinstance(answer, int) and answer > 0:
            left += gpus
            continue
        bare.append(node["NodeID"])
        reason = "no CUDA device can be used" if answer == 0 else answer
        reasons.append(f"{node['NodeManagerHostname']} ({gpus:g} for Ray): {reason}")
    if left < need:
        rule = f"the plan needs {need:g} GPUs, {left:g} of this Ray cluster can be used"
        raise UserError(f"cluster.kind=gpu: {rule}; {'; '.join(reasons)} (see nvidia-smi there)")
    return bare


def _ask(nodes: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Every node for its devices; all have answered, or their time is over."""
    question = ray.remote(max_calls=1)(_count_node_devices)  # its process sees all GPUs: no other work may get it
    calls = [
        question.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in nodes
    ]
    if calls:
        ray.wait(calls, num_returns=len(calls), timeout=NODE_ANSWER_TIMEOUT_S)
    return calls


def _devices_or_reason(reply: Any) -> int | str:
    try:
        return int(ray.get(reply, timeout=0))
    except GetTimeoutError:
        ray.cancel(reply, force=True)
        return f"no answer within {NODE_ANSWER_TIMEOUT_S:g} s"
    except RayError as error:
        return describe_error(error)
