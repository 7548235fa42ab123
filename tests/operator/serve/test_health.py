# SPDX-License-Identifier: Apache-2.0
"""Silence is noticed."""

import asyncio
import socket
import time

import aiohttp
import pytest

from ktrace_operator.serve.health import Health, WatchCheck

A, B = ("agents", "a"), ("agents", "b")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_watch_that_tells_is_not_behind(clock: Clock):
    check = WatchCheck(clock)
    check.delivered(A, "1")
    assert check.listed({A: "1"}) == set()
    clock.now += 1000
    assert check.behind == 0


@pytest.mark.parametrize("lost", ["added", "changed", "deleted"])
def test_a_deaf_watch(clock: Clock, lost: str):
    check = WatchCheck(clock)
    check.delivered(A, "1")
    there = {"added": {A: "1", B: "1"}, "changed": {A: "2"}, "deleted": {}}[lost]
    missed = {"added": B, "changed": A, "deleted": A}[lost]
    assert check.listed(there) == {missed}
    clock.now += 60
    if lost != "deleted":
        check.listed(there)
        assert check.behind == 60
        check.delivered(missed, there[missed])
    assert check.listed(there) == set()
    assert check.behind == 0


def test_nothing_is_known_of_a_namespace_that_was_not_listed(clock: Clock):
    check = WatchCheck(clock)
    other = ("team-a", "x")
    for key in (A, B, other):
        check.delivered(key, "1")
    assert check.listed({A: "1"}, {"agents"}) == {B}, "of its own namespace one is gone"
    clock.now += 100
    assert check.listed({A: "1"}, {"agents"}) == set()
    assert check.behind == 0
    assert check.listed({A: "1", other: "1"}) == set(), "what was told of it is still known"


def test_a_watch_that_was_behind_stays_so_until_its_namespace_is_listed(clock: Clock):
    check = WatchCheck(clock)
    check.delivered(A, "1")
    check.listed({A: "2"}, {"agents"})
    clock.now += 60
    check.listed({}, set())
    assert check.behind == 60
    check.delivered(A, "2")
    assert check.behind == 0


def health(clock: Clock, queue: float = 0, leads: bool = True) -> tuple[Health, WatchCheck]:
    watches = WatchCheck(clock)
    return Health(lambda: queue, watches, lambda: leads, clock), watches


def test_all_is_well(clock: Clock):
    well, _ = health(clock)
    well.acting = True
    assert well.faults() == []


def test_a_replica_that_waits_for_its_turn_is_well(clock: Clock):
    waits, _ = health(clock, queue=100, leads=False)
    assert waits.faults() == []


def test_each_fault_is_said(clock: Clock):
    bad, watches = health(clock, queue=61, leads=False)
    bad.acting = True
    watches.listed({A: "1"})
    clock.now += 76
    said = "\n".join(bad.faults())
    for what in ("event loop", "oldest key in the queue", "a watch is 76 s behind", "Lease"):
        assert what in said


def test_the_probe_answers_503_with_the_reason():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]

    async def scene() -> list[tuple[int, str]]:
        age = 0.0
        probed = Health(lambda: age, WatchCheck(), lambda: True)
        probed.acting = True
        runner = await probed.serve(port)
        answers = []
        try:
            async with aiohttp.ClientSession() as session:
                for seconds in (0.0, 99.0):
                    age = seconds
                    async with session.get(f"http://127.0.0.1:{port}/healthz") as answer:
                        answers.append((answer.status, await answer.text()))
        finally:
            await runner.cleanup()
        return answers

    assert asyncio.run(scene()) == [(200, "ok\n"), (503, "oldest key in the queue is 99 s old\n")]


def test_a_loop_that_turns_is_not_late():
    async def scene() -> list[str]:
        turning = Health(lambda: 0, WatchCheck(), lambda: True, clock=time.monotonic)
        ticking = asyncio.create_task(turning.tick())
        await asyncio.sleep(0.01)
        ticking.cancel()
        return turning.faults()

    assert asyncio.run(scene()) == []
