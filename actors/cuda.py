"""Are there CUDA devices where the plan wants GPUs? Asked of the driver library, before anything starts.

Ray counts what it was told (``--num-gpus``) or finds in /dev; only the driver knows what can be used.
"""

import ctypes
import os

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.errors import UserError

ANSWER_S = 120.0  # longest wait for a node: it starts a process for the question


def cuda_devices() -> int:
    """How many devices of this machine the CUDA driver can use; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    usable = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if usable else 0


def _devices_of_node() -> int:
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides them all from who claims none
    return cuda_devices()


def check_nodes() -> None:
    """UserError: a node of the cluster that we joined counts GPUs for Ray, and has no CUDA device."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) > 0]
    ask = ray.remote(max_calls=1)(_devices_of_node)  # its process sees all GPUs: no other work may get it
    asked = [
        ask.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in nodes
    ]
    counts = ray.get(asked, timeout=ANSWER_S)
    bare = [
        f"{node['NodeManagerHostname']} ({node['Resources']['GPU']:g} for Ray)"
        for node, count in zip(nodes, counts, strict=True)
        if count == 0
    ]
    if bare:
        raise UserError(
            f"cluster.kind=gpu: no CUDA device can be used on {', '.join(bare)}: see nvidia-smi there"
        )
