# SPDX-License-Identifier: Apache-2.0
"""The queue: no key is lost, none is worked on twice at once, failures come again later."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktrace_operator.errors import Throttled
from ktrace_operator.serve import workqueue
from ktrace_operator.serve.workqueue import WorkQueue

Work = Callable[[str], Awaitable[timedelta | None]]


async def run_until(queue: WorkQueue[str], work: Work, done: Callable[[], bool]) -> None:
    """Lets 3 workers work until it is so; a test fails by its timeout if it never is."""
    running = asyncio.create_task(queue.run(3, work))
    try:
        async with asyncio.timeout(30):
            while not done():
                await asyncio.sleep(0.001)
                if running.done():
                    running.result()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def test_a_key_waits_at_most_once():
    async def scene() -> list[str]:
        queue, worked = WorkQueue[str](), list[str]()

        async def work(key: str) -> None:
            worked.append(key)

        for key in ("a", "b", "a", "a", "b"):
            queue.add(key)
        await run_until(queue, work, lambda: len(worked) >= 2)
        return worked

    assert asyncio.run(scene()) == ["a", "b"]


def test_a_key_that_is_added_while_it_is_worked_on_is_worked_on_again_after():
    async def scene() -> tuple[int, int]:
        queue, most, times = WorkQueue[str](), 0, 0
        now = 0

        async def work(key: str) -> None:
            nonlocal now, most, times
            now += 1
            most = max(most, now)
            if times == 0:
                queue.add(key)
            await asyncio.sleep(0.01)
            times += 1
            now -= 1

        queue.add("a")
        await run_until(queue, work, lambda: times == 2)
        return most, times

    assert asyncio.run(scene()) == (1, 2)


def test_a_failure_comes_again_later_and_does_not_stop_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workqueue, "FIRST_DELAY", 0.01)

    async def scene() -> Counter[str]:
        queue, tries = WorkQueue[str](), Counter[str]()

        async def work(key: str) -> None:
            tries[key] += 1
            if key == "bad" and tries[key] < 5:
                raise ValueError("not yet")

        queue.add("bad")
        queue.add("good")
        await run_until(queue, work, lambda: tries["bad"] == 5)
        return tries

    assert asyncio.run(scene()) == Counter(bad=5, good=1)


def test_a_server_that_says_when_is_obeyed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workqueue, "FIRST_DELAY", 0.001)

    async def scene() -> list[float]:
        queue, times = WorkQueue[str](), list[float]()
        loop = asyncio.get_running_loop()

        async def work(key: str) -> None:
            times.append(loop.time())
            if len(times) == 1:
                raise Throttled("slow down", 429, retry_after=0.3)

        queue.add("a")
        await run_until(queue, work, lambda: len(times) == 2)
        return times

    first, second = asyncio.run(scene())
    assert second - first >= 0.29


def test_of_two_times_the_earlier_counts_and_an_add_counts_at_once():
    async def scene() -> list[str]:
        queue, worked = WorkQueue[str](), list[str]()

        async def work(key: str) -> None:
            worked.append(key)

        queue.add_after("a", 3600)
        queue.add_after("a", 0.01)
        queue.add_after("a", 7200)
        queue.add_after("b", 3600)
        queue.add("b")
        await run_until(queue, work, lambda: len(worked) >= 2)
        return sorted(worked)

    assert asyncio.run(scene()) == ["a", "b"]


def test_work_says_when_it_is_due_again():
    async def scene() -> int:
        queue, times = WorkQueue[str](), 0

        async def work(key: str) -> timedelta | None:
            nonlocal times
            times += 1
            return timedelta(seconds=0.01) if times < 7 else None

        queue.add("a")
        await run_until(queue, work, lambda: times == 7)
        return times

    assert asyncio.run(scene()) == 7


def test_age_is_that_of_the_oldest():
    async def scene() -> tuple[float, float]:
        clock = [100.0]
        queue = WorkQueue[str](clock=lambda: clock[0])
        empty = queue.oldest
        queue.add("a")
        clock[0] += 61
        queue.add("b")
        return empty, queue.oldest

    assert asyncio.run(scene()) == (0.0, 61.0)


@settings(max_examples=60)
@given(
    adds=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3)), min_size=1, max_size=30)
)
def test_what_was_added_is_worked_on_after_it_was_added(adds: list[tuple[str, int]]):
    async def scene() -> None:
        queue = WorkQueue[str]()
        added, begun, at_once = Counter[str](), Counter[str](), Counter[str]()

        async def work(key: str) -> None:
            at_once[key] += 1
            assert at_once[key] == 1, "two workers have one key"
            begun[key] = added[key]
            await asyncio.sleep(0)
            at_once[key] -= 1

        async def add() -> None:
            for key, pause in adds:
                added[key] += 1
                queue.add(key)
                for _ in range(pause):
                    await asyncio.sleep(0)

        adding = asyncio.create_task(add())
        await run_until(queue, work, lambda: adding.done() and begun == added)

    asyncio.run(scene())
