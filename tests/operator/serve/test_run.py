# SPDX-License-Identifier: Apache-2.0
"""The list of each minute, which finds what a watch did not tell of."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest

from ktrace_operator.errors import ApiError, Denied, Unavailable
from ktrace_operator.serve.health import WatchCheck
from ktrace_operator.serve.problems import Problems
from ktrace_operator.serve.reconcile import SnapshotKey
from ktrace_operator.serve.run import relist

SERVED = ("team-a", "agents", "team-b")


class Lists:
    """Snapshots and traced names of namespaces; of some there is an error instead."""

    def __init__(self) -> None:
        self.snapshots: dict[str, dict[str, str]] = {"agents": {"a": "1"}, "team-b": {"b": "1"}}
        self.pods: dict[str, set[str]] = {"agents": {"orphan"}}
        self.no_snapshots: dict[str, ApiError] = {}
        self.no_pods: dict[str, ApiError] = {}

    def versions(self, namespace: str) -> dict[str, str]:
        if namespace in self.no_snapshots:
            raise self.no_snapshots[namespace]
        return self.snapshots.get(namespace, {})

    def traced(self, namespace: str) -> set[str]:
        if namespace in self.no_pods:
            raise self.no_pods[namespace]
        return self.pods.get(namespace, set())


class Added(list[SnapshotKey]):
    """The queue: what was added."""

    add = list.append


def relisted(lists: Lists, watches: WatchCheck, problems: Problems) -> set[str]:
    """What one list of everything adds, as namespace/name."""
    queue = Added()

    async def scene() -> None:
        with ThreadPoolExecutor(1) as threads:
            await relist(SERVED, lists, queue, watches, threads, problems)  # type: ignore[arg-type]

    asyncio.run(scene())
    return {str(key) for key in queue}


@pytest.mark.parametrize("closed", SERVED)
@pytest.mark.parametrize("error", [Denied("403: forbidden", 403), Unavailable("503: later", 503)])
def test_a_namespace_that_cannot_be_listed_hides_no_other(closed: str, error: ApiError):
    lists = Lists()
    lists.no_snapshots[closed] = error
    open_ones = {"agents/a", "agents/orphan", "team-b/b"}
    found = relisted(lists, WatchCheck(), Problems())
    assert found == {key for key in open_ones if not key.startswith(closed)}


def test_snapshots_are_compared_though_pods_cannot_be_listed():
    lists = Lists()
    lists.no_pods["agents"] = Denied("403: forbidden", 403)
    assert relisted(lists, WatchCheck(), Problems()) == {"agents/a", "team-b/b"}


def test_a_namespace_that_comes_back_is_no_correction():
    lists, watches, problems = Lists(), WatchCheck(), Problems()
    watches.delivered(("agents", "a"), "1")
    watches.delivered(("team-b", "b"), "1")
    lists.pods.clear()
    lists.no_snapshots["team-b"] = Unavailable("503: later", 503)
    assert relisted(lists, watches, problems) == set()
    lists.no_snapshots.clear()
    assert relisted(lists, watches, problems) == set()


def test_what_is_wrong_is_said_when_it_changes(caplog: pytest.LogCaptureFixture):
    lists, watches, problems = Lists(), WatchCheck(), Problems()
    for error in ("forbidden", "forbidden", "unauthorized", "", "forbidden"):
        lists.no_snapshots = {"team-a": Denied(error)} if error else {}
        with caplog.at_level(logging.WARNING):
            relisted(lists, watches, problems)
    assert [one.getMessage().rpartition(": ")[2] for one in caplog.records] == [
        "forbidden",
        "unauthorized",
        "forbidden",
    ]
