"""Nodes that count GPUs for Ray and have no CUDA device are avoided; refused only where the rest is too few."""

from typing import Any

import pytest

from actors.checks.cuda import _unusable
from actors.errors import UserError

NODES = [{"NodeID": name, "NodeManagerHostname": f"host-{name}", "Resources": {"GPU": 4.0}} for name in "abc"]


@pytest.mark.parametrize(
    ("answers", "need", "bare"),
    [
        ([4, 4, 4], 12.0, []),
        ([4, 0, 4], 8.0, ["b"]),
        (["no answer within 120 s", 0, 1], 4.0, ["a", "b"]),
    ],
)
def test_a_node_without_cuda_that_the_plan_can_do_without_is_left_out(
    answers: list[int | str], need: float, bare: list[str]
) -> None:
    assert _unusable(NODES, answers, need) == bare


def test_too_few_usable_gpus_are_one_line_that_says_why_of_each_node() -> None:
    answers: Any = [4, 0, "ValueError: x"]
    with pytest.raises(UserError) as caught:
        _unusable(NODES, answers, 5.0)
    assert str(caught.value) == (
        "cluster.kind=gpu: the plan needs 5 GPUs, 4 of this Ray cluster can be used;"
        " host-b (4 for Ray): no CUDA device can be used; host-c (4 for Ray): ValueError: x"
        " (see nvidia-smi there)"
    )
