# SPDX-License-Identifier: Apache-2.0

import threading
import time

import pytest

from ktrace_agent.enrich.poller import DUTY, Poller
from tests.bpf.workers import wait_until


class Source:
    """Counts its polls and reports the same work for each."""

    def __init__(self, worked_s: float = 0.0) -> None:
        self.polls, self.worked_s = 0, worked_s
        self.blocked = threading.Event()
        self.blocked.set()

    def poll(self) -> float:
        self.polls += 1
        self.blocked.wait(10)
        return self.worked_s


def test_it_polls_at_once_and_again_after_the_period():
    source = Source()
    poller = Poller("test", source.poll, period_s=0.01)
    poller.start()
    wait_until(lambda: source.polls >= 3, "three polls", 10)
    poller.stop()
    polls = source.polls
    time.sleep(0.05)
    assert source.polls == polls


def test_a_first_poll_by_the_caller_counts():
    source = Source()
    poller = Poller("test", source.poll, period_s=3600)
    poller.start(worked_s=source.poll())
    time.sleep(0.05)
    poller.stop()
    assert source.polls == 1


@pytest.mark.parametrize(
    ("worked_s", "pause_s"), [(0.0, 2.0), (0.05, 2.0), (0.2, 0.2 * DUTY), (3.0, 10.0)]
)
def test_a_pause_bounds_the_share_of_a_core(worked_s: float, pause_s: float):
    poller = Poller("test", Source().poll, period_s=2.0, max_pause_s=10.0)
    assert poller._pause_after(worked_s) == pause_s


def test_stop_does_not_wait_for_a_poll_that_does_not_return():
    source = Source()
    source.blocked.clear()
    poller = Poller("test", source.poll, period_s=0.01)
    poller.start()
    wait_until(lambda: source.polls == 1, "a poll", 10)
    begun = time.monotonic()
    poller.stop(timeout_s=0.05)
    assert time.monotonic() - begun < 5
    source.blocked.set()
    poller.stop()
    assert source.polls == 1


def test_stop_without_start_does_nothing():
    Poller("test", Source().poll, period_s=1).stop()
