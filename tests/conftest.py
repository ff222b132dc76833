"""Shared fixtures. The environment is set before anything imports torch: one math thread, no network."""

import os

os.environ.update(
    OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false"
)

from pathlib import Path

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("wavgate", deadline=None, database=None)  # a busy machine is no failure
hypothesis.settings.load_profile("wavgate")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def micro_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Qwen2 in the tiny layout, with a codec of 32 codes. Do not write into it."""
    from tests.fixtures import write_micro_checkpoint  # here: most tests need no transformers

    return write_micro_checkpoint(tmp_path_factory.mktemp("micro") / "base")
