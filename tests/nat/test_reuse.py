# SPDX-License-Identifier: Apache-2.0
"""One tuple, used again and again for other backends, faster than Watch dumps: no guess."""

import socket
import struct
import time
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest

from ktrace_agent.enrich.conntrack.connection import Connection, Endpoint, Tuple
from ktrace_agent.enrich.conntrack.lookup import Conntrack
from ktrace_agent.enrich.conntrack.watch import Watch
from ktrace_agent.tables.endpoints import ENDPOINT, Flows, resolve
from ktrace_agent.tables.records import ROW, Dictionary
from tests.bpf.workers import Line
from tests.nat.cluster import CLIENT, VIP_PORT, VIPS, Address, Answered, Asked, Cluster, packed

pytestmark = pytest.mark.world("bpf")

AGAIN, PORTS, ONCE, PACE_S = 391, 25, 29, 0.01
"""Connections from a few ports, and from a port of their own each."""
RESET_ON_CLOSE = struct.pack("=ii", 1, 0)


class Dated(NamedTuple):
    asked: Asked
    begun_ns: int


def churn(line: Line, target: Address) -> list[Dated]:
    """Short connections; a reset at the end frees the port at once."""
    ports = [40_000 + number % PORTS for number in range(AGAIN)]
    ports += range(41_000, 41_000 + ONCE)
    made = []
    for token, port in enumerate(ports):
        with socket.socket() as sock:
            sock.settimeout(10)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((CLIENT[4], port))
            begun = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            sock.connect(target)
            sock.send(b"%d" % token)
            assert int(sock.recv(64)) == token
            made.append(Dated(Asked(token, "tcp", sock.getsockname(), target), begun))
        time.sleep(PACE_S)
    return made


def connections(made: list[Dated], netns: int, seen: Conntrack) -> list[Connection]:
    """The connection of each socket's row."""
    rows, addresses = np.zeros(len(made), ROW), Dictionary(16)
    for number, (asked, begun) in enumerate(made):
        row, near, far = rows[number], packed(asked.local), packed(asked.remote)
        row["ts"], row["sock"], row["net"] = begun, number + 1, netns
        row["local"], row["remote"] = map(addresses.number, (near.address, far.address))
        row["local_port"], row["remote_port"] = near.port, far.port
    none = np.empty(0, np.int64)
    flows = Flows(np.empty(0, ENDPOINT), none, none, none)
    found = resolve(rows, np.arange(len(made), dtype=np.uint32), flows, addresses, seen)
    return [found.connections[number] for number in found.connection[found.of_row].tolist()]


def test_a_tuple_that_is_used_again_is_unknown_and_others_are_right(cluster: Cluster):
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
    replies = [
        Tuple(packed(truth[asked.token].local), packed(truth[asked.token].remote))
        for asked, _ in made
    ]
    guesses = [
        seen.lookup(
            Endpoint(
                cluster.client.inode, "tcp", packed(asked.local), packed(asked.remote), begun, begun
            )
        )
        for asked, begun in made
    ]
    pairs = zip(guesses, replies, strict=True)
    assert any(guess and guess.reply != reply for guess, reply in pairs), (
        "the tuples were not used again between two dumps"
    )
    said = [one.reply for one in connections(made, cluster.client.inode, seen)]
    known = [number for number, reply in enumerate(said) if reply is not None]
    assert [said[number] for number in known] == [str(replies[number]) for number in known]
    assert min(known) >= AGAIN
    assert len(known) > ONCE // 2  # one that begins and ends during a dump is not
