# SPDX-License-Identifier: Apache-2.0
"""Two listeners of one port, one per family: a child belongs to its listener, accepted or not."""

import pytest

from tests.bpf.conftest import Begin
from tests.bpf.namespaces import Pair
from tests.bpf.tcp_jobs import V4, V6, Kind, listener, tcp
from tests.bpf.workers import Job, Line

pytestmark = pytest.mark.world("bpf")

PORT = 7721
COUNT = {V4: 7, V6: 11}


def listen_only(kind: Kind) -> Job:
    """Connections are not accepted: the kernel answers for the process."""

    def job(line: Line) -> None:
        with listener(kind, PORT):
            line.say("ready")
            line.hear()

    return job


def knock(kind: Kind) -> Job:
    def job(line: Line) -> None:
        for _ in range(COUNT[kind]):
            with tcp(kind) as sock:
                sock.connect((kind.server, PORT))

    return job


@pytest.mark.parametrize("early", [False, True], ids=["new", "before"])
def test_a_child_of_each_family(capture: Begin, pair: Pair, early: bool) -> None:
    """As a container's proxy has them: 0.0.0.0 here, :: for IPv6 alone there."""
    one, servers = capture(f"--ports={PORT}"), {}

    def begin() -> None:
        for kind in COUNT:
            servers[kind] = pair.server.start(listen_only(kind))
            servers[kind].hear()

    if early:
        begin()
    with one:
        if not early:
            begin()
        for kind in COUNT:
            pair.client.call(knock(kind))
    for kind, server in servers.items():
        server.kill()
        born = [
            row
            for row in one.of("tcp_state", net=pair.server.inode)
            if row["old_state"] == "LISTEN" and row["family"] == kind.shown_family
            and row["new_state"] == "SYN_RECV"
        ]  # fmt: skip
        assert len(born) == COUNT[kind]
        assert {(row["tgid"], row["owner_source"]) for row in born} == {(server.tgid, "listener")}
