"""What must be in the environment before vLLM is imported. No heavy import: the driver reads ``ENV`` too.

Actors put ``ENV`` into their runtime environment; ``prepare_environment`` does the same for a plain process.
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

CPU_ENV: dict[str, str] = {
    "TORCH_COMPILE_DISABLE": "1"
}  # else a C++ compile inside the first request that samples


def prepare_environment() -> bool:
    """Set what is not set yet, before vLLM is imported. True when there is a GPU."""
    for name, value in ENV.items():
        os.environ.setdefault(name, value)
    import torch  # only now: OpenMP reads OMP_NUM_THREADS when it is loaded

    gpu = torch.cuda.is_available()
    if not gpu:
        for name, value in CPU_ENV.items():
            os.environ.setdefault(name, value)
    return gpu
