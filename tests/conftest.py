"""Shared fixtures. The environment is set before anything imports torch: one math thread, no network."""

import os

os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    WAVGATE_CACHE="off",
)

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from tests.helpers import processes

hypothesis.settings.register_profile(  # a busy machine is no failure
    "wavgate", deadline=None, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("wavgate")
torch.set_num_threads(1)


DATA = Path(__file__).parent.parent / "examples" / "tiny_world" / "data"
CLUSTERS = {
    "test_api_judge",
    "test_bench_judge",
    "test_driver",
    "test_interrupt",
    "test_job_submit",
    "test_pairing",
    "test_run_glm4_voice",
    "test_run_kimi_audio",
    "test_run_step_audio2",
    "test_run_vita_audio",
}
ENGINES = {
    "test_family_glm4_voice_engine",
    "test_family_vita_audio_ahead",
    "test_family_vita_audio_engine",
    "test_features_learner",
    "test_features_vllm",
    "test_learner_step",
    "test_pool",
    "test_rollout_vllm",
    "test_rollout_worker",
    "test_secrets",
}


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Before any test, and before any worker of xdist is started."""
    if "PYTEST_XDIST_WORKER" not in os.environ and not config.option.collectonly:
        processes.supervise()
    processes.adopt()


def pytest_configure(config: pytest.Config) -> None:
    """xdist would put the groups with the most tests first; the order here is that of their time."""
    config.option.loadscopereorder = False


def what_it_starts() -> Iterator[None]:
    """Ends with it; what has to be ended for it is its failure."""
    before = processes.children()
    yield
    left = processes.end_all(kept=before)
    assert not left, f"left running, and ended: {left}"


of_a_module = pytest.fixture(scope="module", autouse=True)(what_it_starts)
of_a_test = pytest.fixture(autouse=True)(what_it_starts)


@pytest.fixture(scope="module", autouse=True)
def garbage_of_a_module(of_a_module: None) -> Iterator[None]:
    """An error in something's end (``__del__``, a coroutine that nobody awaited) fails the file that left it:
    collected whenever Python gets to it, it would fail a test of another file, now and then.
    """
    yield
    gc.collect()


def pytest_itemcollected(item: pytest.Item) -> None:
    """On two workers (make test): one cluster at a time, and beside it one test with engines or ranks of its own;
    of the rest a file's tests stay together, for the sake of what they share.
    """
    name = item.path.stem
    group = "clusters" if name in CLUSTERS else "engines" if name in ENGINES else name
    item.add_marker(pytest.mark.xdist_group(group))
    if name in CLUSTERS | ENGINES:
        item.add_marker(pytest.mark.heavy)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest groups first."""
    items.sort(key=lambda item: item.path.stem not in CLUSTERS | ENGINES)  # stable


@pytest.fixture(scope="session")
def micro_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Qwen2 in the tiny layout, with a codec of 32 codes. Do not write into it."""
    from tests.helpers.sound_fixtures import write_micro_checkpoint  # here: most tests need no transformers

    return write_micro_checkpoint(tmp_path_factory.mktemp("micro") / "base")


@pytest.fixture(scope="session")
def short_world(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that replace the tiny world's data by a few rows of it. Do not write into their folder."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(DATA / "bank", folder / "bank")
    for split, count in (("train", 40), ("validation", 3), ("test", 6)):
        rows = (DATA / f"{split}.jsonl").read_text().splitlines()
        (folder / f"{split}.jsonl").write_text("\n".join(rows[:: len(rows) // count][:count]) + "\n")
    return [f"data.{split}={folder / split}.jsonl" for split in ("train", "validation", "test")]
