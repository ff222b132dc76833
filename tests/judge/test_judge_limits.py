"""In virtual time: a loop whose clock jumps to the next timer, so that an hour of limits takes milliseconds."""

import asyncio
import selectors
from bisect import bisect_left
from collections.abc import Coroutine
from dataclasses import replace
from itertools import accumulate
from math import inf
from random import Random
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judge.endpoint.breaker import CircuitBreaker
from judge.endpoint.limits import EndpointLimits, Lease, Limiter, RateLimit, limit_audio, limit_requests
from judge.types import CallFailed

T = TypeVar("T")
ALL = EndpointLimits(
    concurrency=10_000,
    requests_per_minute=None,
    audio_seconds_per_minute=None,
    spend_cap=None,
    breaker_failures=3,
    breaker_rest_s=5,
)
HAIR = 1e-4  # seconds; timers may ring a microsecond early


class Jump(selectors.DefaultSelector):
    """Nothing to read or write ever comes: to wait for it is to let time pass."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everybody waits and no timer runs: this would hang"
        self.now += max(timeout, 0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jump = Jump()
        super().__init__(self.jump)

    def time(self) -> float:
        return self.jump.now


def virtually(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


def now() -> float:
    return asyncio.get_running_loop().time()


def limiter_of(limits: EndpointLimits = ALL, **changes: Any) -> Limiter:
    return Limiter(replace(limits, **changes), clock=asyncio.get_running_loop().time)


def most_in_a_minute(grants: list[tuple[float, float]]) -> float:
    """Of (time, amount), the largest sum in a window that begins at a grant."""
    times, sums = [at for at, _ in grants], [0.0, *accumulate(amount for _, amount in grants)]
    ends = (bisect_left(times, start + 60 - HAIR) for start in times)
    return max(sums[end] - sums[i] for i, end in enumerate(ends))


# Rates


@given(
    st.integers(1, 3000),
    st.lists(st.one_of(st.just(0.0), st.floats(0, 90)), min_size=1, max_size=60),
    st.lists(st.floats(0, 0.02), min_size=1, max_size=5),
)
@settings(max_examples=60)
def test_no_minute_has_one_percent_more_requests_than_allowed(
    per_minute: int, gaps: list[float], late: list[float]
) -> None:
    rate, at, grants = limit_requests(per_minute), 0.0, []
    for i in range(max(len(gaps), min(2 * per_minute, 400))):
        at = max(at + gaps[i % len(gaps)] * (i < len(gaps)), rate.due()) + late[i % len(late)]
        rate.charge(1, at)
        grants.append((at, 1.0))
    assert most_in_a_minute(grants) <= per_minute * 1.01


@given(
    st.floats(1, 3000),
    st.lists(st.tuples(st.floats(0, 30), st.one_of(st.just(0.0), st.floats(0, 90))), min_size=1, max_size=80),
)
def test_no_minute_has_more_audio_than_allowed_but_for_one_percent_and_the_last_clip(
    per_minute: float, clips: list[tuple[float, float]]
) -> None:
    rate, at, grants = limit_audio(per_minute), 0.0, []
    for seconds, gap in clips:
        at = max(at + gap, rate.due())
        rate.charge(seconds, at)
        grants.append((at, seconds))
    for i, (start, _) in enumerate(grants):
        window = [seconds for at, seconds in grants[i:] if at < start + 60 - HAIR]
        assert sum(window[:-1]) <= per_minute * 1.01 + 1e-6


@pytest.mark.parametrize("late", [0.0, 0.005, 0.05])
@pytest.mark.parametrize("per_minute", [200, 999, 6000])
def test_steady_demand_gets_the_whole_rate_even_from_late_timers(per_minute: int, late: float) -> None:
    rate, at, granted = limit_requests(per_minute), 0.0, 0
    while at < 600:
        at = max(at, rate.due() + late)
        rate.charge(1, at)
        granted += 1
    assert 0.99 <= granted / (10 * per_minute) <= 1.01


def test_a_rate_without_a_limit_is_always_due() -> None:
    for rate in (limit_requests(None), limit_audio(None)):
        for _ in range(9):
            rate.charge(1e6, 5.0)
        assert rate.due() <= 5.0


def test_an_idle_hour_saves_nothing_up() -> None:
    rate = RateLimit(per_minute=60, burst=0)
    rate.charge(1, 0.0)
    rate.charge(1, 3600.0)
    assert rate.due() == 3601


# The limiter


async def workers(
    limiter: Limiter, number: int, seconds: float, clip: float = 0.0, call_s: float = 0.5
) -> list[tuple[float, float]]:
    """So many workers ask without a pause. Returns (time, audio seconds) of each grant."""
    grants: list[tuple[float, float]] = []
    random = Random(number)

    async def worker() -> None:
        while True:
            lease = await limiter.acquire(clip)
            grants.append((now(), clip))
            await asyncio.sleep(random.uniform(0, 2 * call_s))
            limiter.release(lease, ok=True, spent=0)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for _ in range(number):
                group.create_task(worker())
    return grants


@pytest.mark.parametrize("per_minute", [1, 7, 60, 150, 1000])
def test_hungry_workers_get_the_request_rate_within_two_percent(per_minute: int) -> None:
    async def main() -> list[tuple[float, float]]:
        return await workers(limiter_of(requests_per_minute=per_minute), 64, 240 + HAIR)

    grants = [(at, 1.0) for at, _ in virtually(main())]
    assert most_in_a_minute(grants) <= 1.02 * per_minute
    assert 0.98 * 4 * per_minute <= len(grants) <= 1.02 * 4 * per_minute + 1


@pytest.mark.parametrize("clip", [0.3, 3.0, 7.0])
def test_hungry_workers_get_the_audio_rate_within_two_percent(clip: float) -> None:
    async def main() -> list[tuple[float, float]]:
        return await workers(limiter_of(audio_seconds_per_minute=900), 64, 240, clip)

    grants = virtually(main())
    assert most_in_a_minute(grants) <= 1.02 * 900
    assert sum(seconds for _, seconds in grants) == pytest.approx(4 * 900, rel=0.02)


def test_the_narrower_of_two_rates_decides() -> None:
    async def main(requests: float, audio: float) -> int:
        limiter = limiter_of(requests_per_minute=requests, audio_seconds_per_minute=audio)
        return len(await workers(limiter, 8, 120, clip=2.0))

    assert virtually(main(30, 6000)) == pytest.approx(60, abs=1)
    assert virtually(main(6000, 60)) == pytest.approx(60, abs=1)


def test_a_clip_longer_than_a_minute_of_allowance_is_let_through_and_paid_for() -> None:
    async def main() -> float:
        limiter = limiter_of(audio_seconds_per_minute=10)
        await limiter.acquire(30)
        await limiter.acquire(1)
        return now()

    assert virtually(main()) == pytest.approx(180, rel=0.01)


def test_no_more_calls_are_on_their_way_than_allowed() -> None:
    async def main() -> list[int]:
        limiter, seen = limiter_of(concurrency=5), []

        async def call() -> None:
            lease = await limiter.acquire(1)
            seen.append(limiter.state().in_flight)
            await asyncio.sleep(1)
            limiter.release(lease, ok=None, spent=0)

        await asyncio.gather(*(call() for _ in range(50)))
        assert now() == pytest.approx(10)
        return seen

    assert max(virtually(main())) == 5


def test_first_come_first_served_even_when_a_later_clip_would_fit() -> None:
    async def main() -> list[int]:
        limiter, order = limiter_of(audio_seconds_per_minute=60, concurrency=2), []

        async def call(number: int) -> None:
            lease = await limiter.acquire(20 if number % 2 else 0)
            order.append(number)
            await asyncio.sleep(0.1)
            limiter.release(lease, ok=True, spent=0)

        await asyncio.gather(*(call(number) for number in range(20)))
        return order

    assert virtually(main()) == list(range(20))


def test_the_spend_cap_ends_waiting_and_asking_and_is_overshot_only_by_calls_on_their_way() -> None:
    async def main() -> None:
        limiter = limiter_of(concurrency=4, spend_cap=1.0)
        ends: list[str] = []

        async def worker() -> None:
            try:
                while True:
                    lease = await limiter.acquire(1)
                    await asyncio.sleep(0.1)
                    limiter.release(lease, ok=True, spent=0.15)
            except CallFailed as failed:
                assert (failed.kind, failed.retryable) == ("spend_cap", False)
                assert "of a spend cap of 1" in failed.reason
                ends.append(failed.kind)

        await asyncio.gather(*(worker() for _ in range(30)))
        assert len(ends) == 30
        assert 1 <= limiter.state().spent <= 1 + 4 * 0.15
        assert limiter.state().in_flight == limiter.state().waiting == 0

    virtually(main())


def test_what_earlier_runs_spent_counts() -> None:
    async def main() -> None:
        limiter = Limiter(replace(ALL, spend_cap=2.0), spent=2.0)
        with pytest.raises(CallFailed, match="spent 2 of a spend cap of 2"):
            await limiter.acquire(1)

    virtually(main())


@pytest.mark.parametrize("rated", [{"requests_per_minute": 60.0}, {"audio_seconds_per_minute": 60.0}, {}])
def test_after_a_restart_the_rates_of_the_last_minute_count_as_used_up(rated: dict[str, float]) -> None:
    async def main() -> None:
        await asyncio.sleep(7)
        clock = asyncio.get_running_loop().time
        limiter = Limiter(replace(ALL, **rated), restarted=True, clock=clock)  # type: ignore[arg-type]
        await limiter.acquire(1)
        assert now() == pytest.approx(67 if rated else 7)

    virtually(main())


@pytest.mark.parametrize("amount", [-0.1, float("nan"), inf])
def test_amounts_that_are_none_are_refused(amount: float) -> None:
    async def main() -> None:
        limiter = limiter_of()
        with pytest.raises(ValueError, match="audio_seconds must be finite and not negative"):
            await limiter.acquire(amount)
        lease = await limiter.acquire(1)
        with pytest.raises(ValueError, match="spent must be finite and not negative"):
            limiter.release(lease, ok=True, spent=amount)
        assert limiter.state().spent == 0

    virtually(main())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("concurrency", 0),
        ("breaker_failures", 0),
        ("requests_per_minute", 0),
        ("audio_seconds_per_minute", -1),
        ("spend_cap", float("nan")),
        ("breaker_rest_s", inf),
    ],
)
def test_a_limit_that_is_none_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*: got {value}"):
        replace(ALL, **{name: value})


def test_a_cancelled_worker_leaves_no_trace() -> None:
    async def main() -> None:
        limiter = limiter_of(concurrency=1, audio_seconds_per_minute=60)
        first = await limiter.acquire(0)
        waiting = [asyncio.create_task(limiter.acquire(50)) for _ in range(3)]
        last = asyncio.create_task(limiter.acquire(0))
        await asyncio.sleep(1)
        for task in waiting[1:]:
            task.cancel()
        limiter.release(first, ok=True, spent=0)  # waiting[0] is granted, and does not know it yet
        waiting[0].cancel()
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(end) for end in ends] == [asyncio.CancelledError] * 3
        assert limiter.state().in_flight == 0  # and the audio it asked for stays charged
        await last
        assert now() == pytest.approx(51, abs=1)
        assert (limiter.state().in_flight, limiter.state().waiting) == (1, 0)

    virtually(main())


@pytest.mark.parametrize("spent", [0.0, 1.0])
def test_a_waiter_cancelled_in_the_moment_its_turn_comes_is_passed_over(spent: float) -> None:
    async def main() -> None:
        limiter = limiter_of(concurrency=1, spend_cap=1.0)
        first = await limiter.acquire(1)
        cancelled, other = (asyncio.create_task(limiter.acquire(1)) for _ in range(2))
        await asyncio.sleep(1)
        cancelled.cancel()
        limiter.release(first, ok=True, spent=spent)
        ends = await asyncio.gather(cancelled, other, return_exceptions=True)
        assert [type(end) for end in ends] == [asyncio.CancelledError, CallFailed if spent else Lease]
        assert limiter.state().in_flight == (not spent) and limiter.state().waiting == 0

    virtually(main())


# The breaker


def test_failures_in_a_row_open_it_and_nothing_but_probes_goes_until_one_succeeds() -> None:
    async def main() -> None:
        limiter, started = limiter_of(breaker_failures=3, breaker_rest_s=5), []
        down_until = 130.0

        async def call() -> None:
            while True:
                lease = await limiter.acquire(1)
                started.append(now())
                await asyncio.sleep(1)
                ok = now() > down_until
                limiter.release(lease, ok=ok, spent=0)
                if ok:
                    return

        for _ in range(3):
            limiter.release(await limiter.acquire(1), ok=False, spent=0)
        assert limiter.state().breaker == "open"
        await asyncio.gather(*(call() for _ in range(40)))
        probes = [5, 16, 37, 78, 119, 160]  # rests of 5, 10, 20, 40, 40, 40 s, and each takes a second
        assert started == pytest.approx(probes + [161] * 39, abs=HAIR)
        figures = limiter.state()
        assert figures.breaker == "closed" and figures.opened == 6
        assert figures.seconds_open == pytest.approx(161, abs=HAIR)

    virtually(main())


def test_a_success_between_failures_keeps_it_closed_and_a_refusal_says_nothing() -> None:
    breaker = CircuitBreaker(failures=3, rest_s=5)
    for ok in (False, False, True, False, None, False, True) * 9:
        breaker.end(breaker.start(), ok, 0.0)
    assert breaker.state(0) == "closed"
    for ok in (False, None, False, None, None, False):
        assert breaker.state(0) == "closed"
        breaker.end(breaker.start(), ok, 0.0)
    assert (breaker.state(0), breaker.state(4.9), breaker.state(5)) == ("open", "open", "half_open")


def test_calls_from_before_an_opening_neither_close_nor_reopen_it() -> None:
    breaker = CircuitBreaker(failures=1, rest_s=5)
    old = [breaker.start() for _ in range(4)]
    breaker.end(old[0], False, 0.0)
    breaker.end(old[1], True, 1.0)
    assert breaker.due() == 5
    probe = breaker.start()
    breaker.end(old[2], False, 6.0)
    assert breaker.due() == inf  # still only the probe
    breaker.end(probe, True, 7.0)
    breaker.end(old[3], False, 8.0)  # its time-out comes after the recovery
    assert breaker.state(8.0) == "closed" and breaker.opened == 1


def test_a_rest_is_as_short_as_the_first_again_after_a_recovery() -> None:
    breaker, at, rests = CircuitBreaker(failures=1, rest_s=5), 0.0, []
    for ok in (False, False, False, False, False, False, True, False):
        breaker.end(breaker.start(), ok, at)
        if not ok:
            rests.append(breaker.due() - at)
            at = breaker.due()
    assert rests == [5, 10, 20, 40, 40, 40, 5]


@pytest.mark.parametrize("end", ["refusal", "cancelled"])
def test_a_probe_that_says_nothing_is_followed_by_another(end: str) -> None:
    async def main() -> None:
        limiter = limiter_of(breaker_failures=1, breaker_rest_s=5)
        limiter.release(await limiter.acquire(1), ok=False, spent=0)
        if end == "cancelled":
            probe = asyncio.create_task(limiter.acquire(1))
            asyncio.get_running_loop().call_at(5, probe.cancel)
            await asyncio.wait([probe])
        else:
            limiter.release(await limiter.acquire(1), ok=None, spent=0)
        last = await limiter.acquire(1)
        assert now() == pytest.approx(5)
        assert limiter.state().breaker == "half_open"
        limiter.release(last, ok=True, spent=0)
        assert limiter.state().breaker == "closed"

    virtually(main())


# Everything at once, against a naive reading of the log


class Event(NamedTuple):
    at: float
    what: str  # "ask", then "gone" or "grant" and "end"
    who: int
    amount: float = 0.0  # audio seconds of a grant, money of an end


async def storm(limits: EndpointLimits, seed: int, callers: int) -> list[Event]:
    random, log, limiter = Random(seed), [], limiter_of(limits)
    outages = sorted(random.uniform(0, 200) for _ in range(4))

    async def caller(who: int) -> None:
        await asyncio.sleep(random.choice([0, random.uniform(0, 120)]))
        seconds = random.choice([0.0, 1.0, 8.0])
        log.append(Event(now(), "ask", who))
        try:
            async with asyncio.timeout(random.choice([None, None, None, 20])):
                lease = await limiter.acquire(seconds)
        except (TimeoutError, CallFailed):
            log.append(Event(now(), "gone", who))
            return
        log.append(Event(now(), "grant", who, seconds))
        await asyncio.sleep(random.choice([0.0, 0.5, 3.0, 3.0, 25.0]))
        down = any(start <= now() < start + 12 for start in outages)
        ok = random.choice([True, True, True, None, False]) if not down else False
        cost = random.choice([0.0, 0.125])
        limiter.release(lease, ok=ok, spent=cost)
        log.append(Event(now(), "end", who, cost))

    await asyncio.gather(*(caller(who) for who in range(callers)))
    figures = limiter.state()
    assert figures.in_flight == figures.waiting == 0
    assert figures.spent == sum(event.amount for event in log if event.what == "end")
    assert figures.requests >= sum(event.what == "grant" for event in log)
    return sorted(log, key=lambda event: event.at)  # stable


@pytest.mark.parametrize("seed", range(12))
def test_a_storm_of_callers_keeps_every_limit(seed: int) -> None:
    random = Random(seed)
    limits = EndpointLimits(
        concurrency=random.choice([1, 4, 30]),
        requests_per_minute=random.choice([None, 60, 150]),
        audio_seconds_per_minute=random.choice([None, 300]),
        spend_cap=random.choice([None, 6.0]),
        breaker_failures=random.choice([1, 3]),
        breaker_rest_s=4.0,
    )
    log = virtually(storm(limits, seed, 250))
    asked: list[int] = []
    flying: set[int] = set()  # with a lease
    spent, most = 0.0, inf
    for event in log:
        match event.what:
            case "ask":
                asked.append(event.who)
            case "gone":
                asked.remove(event.who)
            case "grant":
                assert limits.spend_cap is None or spent < limits.spend_cap
                assert event.who == asked[0], "somebody asked earlier"
                asked.remove(event.who)
                flying.add(event.who)
                assert len(flying) <= limits.concurrency
            case "end":
                flying.remove(event.who)
                spent += event.amount
                if limits.spend_cap is not None and most == inf and spent >= limits.spend_cap:
                    most = spent + 0.125 * len(flying)
    grants = [event for event in log if event.what == "grant"]
    assert len(grants) > 20 and not asked and spent <= most
    if limits.requests_per_minute is not None:
        assert most_in_a_minute([(e.at, 1.0) for e in grants]) <= 1.01 * limits.requests_per_minute
    if limits.audio_seconds_per_minute is not None:
        assert most_in_a_minute([(e.at, e.amount) for e in grants]) <= 1.01 * 300 + 8


def test_one_case_that_keeps_failing_opens_no_breaker_and_a_second_one_does() -> None:
    breaker = CircuitBreaker(3, 1.0)
    for _ in range(10):
        breaker.end(breaker.start(), False, 0.0, "the same")
    assert breaker.state(0.0) == "closed"
    breaker.end(breaker.start(), False, 0.0, "another")
    assert breaker.state(0.0) == "open" and breaker.opened == 1
    breaker.end(breaker.start(), True, 2.0, "the same")
    for _ in range(10):
        breaker.end(breaker.start(), False, 3.0, "the same")
    assert breaker.state(3.0) == "closed", "what failed before the recovery is forgotten"


def test_an_outage_lasts_from_the_opening_to_the_first_success() -> None:
    breaker = CircuitBreaker(1, 1.0)
    assert breaker.down_s(7.0) == 0
    breaker.end(breaker.start(), False, 10.0)
    breaker.end(breaker.start(), False, 12.0)
    assert breaker.down_s(15.0) == 5.0
    breaker.end(breaker.start(), True, 16.0)
    assert breaker.down_s(17.0) == 0
