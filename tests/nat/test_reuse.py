# SPDX-License-Identifier: Apache-2.0
"""One tuple, used again and again for other backends, faster than Watch looks: no guess."""

import socket
import struct
import time
from functools import partial
from typing import NamedTuple

import pytest

from ktrace_agent.enrich.conntrack_watch import Watch
from tests.bpf.workers import Line
from tests.nat.cluster import CLIENT, VIP_PORT, VIPS, Address, Answered, Asked, Cluster, packed

pytestmark = pytest.mark.world("bpf")

CONNECTIONS, PORTS, PACE_S = 400, 25, 0.01
RESET_ON_CLOSE = struct.pack("=ii", 1, 0)


class Dated(NamedTuple):
    asked: Asked
    begun_ns: int


def churn(line: Line, target: Address) -> list[Dated]:
    """Short connections from few ports; a reset at the end frees the port at once."""
    made = []
    for token in range(CONNECTIONS):
        with socket.socket() as sock:
            sock.settimeout(10)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((CLIENT[4], 40_000 + token % PORTS))
            begun = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            sock.connect(target)
            sock.send(b"%d" % token)
            assert int(sock.recv(64)) == token
            made.append(Dated(Asked(token, "tcp", sock.getsockname(), target), begun))
        time.sleep(PACE_S)
    return made


def test_a_tuple_that_is_used_again_is_right_or_unknown(cluster: Cluster):
    router = cluster.router
    watch = Watch(lambda: {router.inode: router.pid}, period_s=0.4)
    watch.start()
    servers = cluster.serve()
    made = cluster.client.call(partial(churn, target=(VIPS[4][1], VIP_PORT)))
    truth: dict[int, Answered] = {}
    for server in servers:
        server.say("stop")
        truth |= {one.token: one for one in server.result()}
    seen = watch.stop()

    def count() -> tuple[int, int]:
        right = wrong = 0
        for asked, begun in made:
            entry = seen.lookup(
                cluster.client.inode, "tcp", packed(asked.local), packed(asked.remote), begun, begun
            )
            answered = truth[asked.token]
            same = entry and entry.reply == (packed(answered.local), packed(answered.remote))
            right, wrong = right + (same is True), wrong + (same is False)
        return right, wrong

    _, guessed_wrong = count()
    assert guessed_wrong > 0, "the tuples were not used again between two looks"
    begins: dict[tuple[Address, Address], list[int]] = {}
    for asked, begun in made:
        begins.setdefault((asked.local, asked.remote), []).append(begun)
    for (local, remote), times in begins.items():
        seen.announce(cluster.client.inode, packed(local), packed(remote), times)
    right, wrong = count()
    assert wrong == 0
    assert right >= PORTS
