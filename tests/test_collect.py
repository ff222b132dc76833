"""What a step does when verdicts are missing: it goes on, or it says that the judges are out."""

import pytest

from actors.collect import check_outage
from actors.errors import JudgeOutage
from judge.types import Judged, Missing, Scored


def judged(reward: float | None) -> Judged:
    verdict = (
        Missing(judge="j", reason="HTTP 503", kind="server")
        if reward is None
        else Scored(value=reward, judge="j")
    )
    return Judged(prompt_id="p", index=0, axes={}, reward=verdict, transcript=None)


def test_as_many_missing_verdicts_as_allowed_are_no_outage() -> None:
    check_outage([judged(3.0), judged(None)], most=0.5)


def test_more_missing_verdicts_than_allowed_stop_the_run_with_their_reason() -> None:
    with pytest.raises(JudgeOutage, match=r"2 of 3 verdicts are missing.*HTTP 503"):
        check_outage([judged(3.0), judged(None), judged(None)], most=0.5)
