"""Admission keeps accepted + running <= (S + step) * B."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.buffer import AdmissionControl


@given(staleness=st.integers(0, 3), batch=st.integers(1, 8), choices=st.lists(st.booleans(), max_size=60))
def test_the_inequality_holds_for_any_schedule(staleness: int, batch: int, choices: list[bool]) -> None:
    admission, step = AdmissionControl(staleness, batch), 1
    for starts in choices:
        if starts and admission.admits(step):
            admission.start()
        elif admission.running:
            admission.finish()
        elif admission.accepted >= step * batch:
            step += 1
        assert admission.accepted + admission.running <= (staleness + step) * batch


@pytest.mark.parametrize("staleness", [0, 1])
def test_staleness_is_how_many_batches_run_ahead(staleness: int) -> None:
    admission, ahead = AdmissionControl(staleness, 4), 0
    while admission.admits(1):
        admission.start()
        ahead += 1
    assert ahead == staleness + 1


def test_a_resumed_run_admits_the_next_step_only() -> None:
    admission = AdmissionControl(0, 4)
    admission.resume_at(7)
    assert not admission.admits(7)
    assert admission.admits(8)
