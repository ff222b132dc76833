"""What must be in the environment of every process, before torch, vLLM or the hub's client are imported.

``set_environment`` is the first thing that an entry point does (the packages ``actors``, ``bench`` and
``examples`` do it when they are imported); actors get ``ENV`` in their runtime environment as well. What a
user has set stays. No heavy import.
One thread per process: two made the same work ten times slower on a busy machine (an idle thread spins).
"""

import os

ENV: dict[str, str] = {
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in this process, stepped by our own thread
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

CPU_ENV: dict[str, str] = {  # else a C++ compile inside the first request that samples
    "TORCH_COMPILE_DISABLE": "1",  # read once by torch, when it is imported, and by vLLM
    "TORCHDYNAMO_DISABLE": "1",  # read where a function is wrapped, so also after torch was imported
}


def set_environment() -> None:
    """``ENV``, where nothing is set yet."""
    for name, value in ENV.items():
        os.environ.setdefault(name, value)


def prepare_environment() -> bool:
    """Set what is not set yet, before vLLM is imported. True when there is a GPU; else none compiles."""
    set_environment()
    import torch  # only now: OpenMP reads OMP_NUM_THREADS when it is loaded

    gpu = torch.cuda.is_available()
    if not gpu:
        for name, value in CPU_ENV.items():
            os.environ.setdefault(name, value)
    return gpu
