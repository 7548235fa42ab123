# SPDX-License-Identifier: Apache-2.0
"""Networks for the scenes: each has addresses of its own, so that scenes can share a capture."""

import errno
import fcntl
import heapq
import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from tests.bpf import syscalls
from tests.bpf.namespaces import Namespace, Pair
from tests.bpf.workers import Crew, Line, wait_until

_NUMBERS = count(1)
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
SYN_ACK = 0x12


class Link(Pair):
    """Client and server, each in a namespace, a veth between them; IPv4 and IPv6."""

    def __init__(self, crew: Crew) -> None:
        number = next(_NUMBERS) % 250
        self.V4 = (f"10.88.{number}.1", f"10.88.{number}.2")
        self.V6 = (f"fd88:{number}::1", f"fd88:{number}::2")
        super().__init__(crew)
        self.namespaces = [self.client, self.server]

    @property
    def there(self) -> str:
        """The server's address."""
        return self.V4[1]

    def second_address(self) -> str:
        """Another address of the server."""
        address = self.V4[1].removesuffix("2") + "3"
        self.server.ip(f"addr add {address}/24 dev eth0")
        return address

    def single_segments(self) -> None:
        """A packet is what a wire would carry: one segment, not 64 KiB of them."""
        for end in (self.client, self.server):
            end.ip("link set eth0 gso_max_segs 1", "link set eth0 gro_max_size 1500")


def matched(namespace: Namespace) -> int:
    """Packets that the nftables counters of a namespace counted."""
    listed = json.loads(namespace.run("nft", "-j", "list", "ruleset"))["nftables"]
    rules = [item["rule"] for item in listed if "rule" in item]
    return sum(
        part["counter"]["packets"]
        for rule in rules
        for part in rule["expr"]
        if isinstance(part.get("counter"), dict)
    )


def on_input(rule: str) -> str:
    """A ruleset for received packets; `rule` contains a counter."""
    return f"""table inet lab {{
        chain input {{
            type filter hook input priority 0
            {rule}
        }}
    }}"""


class Routed:
    """A node as Kubernetes makes it: the client and the backends behind it, NAT in between."""

    VIP = "10.96.0.10"

    def __init__(self, crew: Crew, backends: int) -> None:
        self.node, self.client = Namespace(crew), Namespace(crew)
        self.backends = [Namespace(crew) for _ in range(backends)]
        self.namespaces = [self.node, self.client, *self.backends]
        self.node.sysctl("net.ipv4.ip_forward", "1")
        number = next(_NUMBERS) % 250
        self.addresses: list[str] = []
        for index, end in enumerate([*self.backends, self.client]):
            base, name = f"10.89.{number}", f"veth{index}"
            gateway, address = f"{base}.{4 * index + 1}", f"{base}.{4 * index + 2}"
            self.addresses.append(address)
            self.node.ip(
                f"link add {name} type veth peer name eth0 netns {end.pid}",
                f"addr add {gateway}/30 dev {name}",
                f"link set {name} up",
            )
            end.ip(
                f"addr add {address}/30 dev eth0",
                "link set eth0 up",
                f"route add default via {gateway}",
            )
        self.client_address = self.addresses.pop()
        self.client.call(self._warm_up)

    def _warm_up(self, line: Line) -> None:
        """Until all have found each other: nothing waits for a neighbour later."""
        for address in self.addresses:
            wait_until(partial(_refused, address), f"an answer of {address}")

    def service(self, port: str, targets: Sequence[str]) -> None:
        """What goes to this port of the VIP, e.g. `tcp dport 80`, goes to the targets by turns.

        A target is `address` or `address . port`.
        """
        turns = ", ".join(f"{number} : {target}" for number, target in enumerate(targets))
        to = f"numgen inc mod {len(targets)} map {{ {turns} }}"
        self.node.nft(f"""table ip lab {{
            chain prerouting {{
                type nat hook prerouting priority dstnat
                ip daddr {self.VIP} {port} counter dnat to {to}
            }}
        }}""")

    @property
    def enter(self) -> list[str]:
        """The agent lives in the node's namespace, as on a real node."""
        return ["nsenter", f"--net=/proc/{self.node.pid}/ns/net"]


def _refused(host: str) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((host, 1)) == errno.ECONNREFUSED


@dataclass(frozen=True)
class Wire:
    """What a relay does to a packet on one way: the seconds it takes, None where it is lost."""

    takes: Callable[[bytes], float | None] = lambda packet: 0.0


def tcp_flags(packet: bytes) -> int:
    """TCP flags of an IPv4 packet; 0 if it is not TCP."""
    if packet[0] >> 4 != 4 or packet[9] != 6:
        return 0
    return packet[(packet[0] & 15) * 4 + 13]


class Tunnel:
    """Client and server with a path between them that a process carries, packet by packet."""

    def __init__(self, crew: Crew, *, to_server: Wire, to_client: Wire, mtu: int = 1500) -> None:
        number = next(_NUMBERS) % 250
        self.here, self.there = f"10.90.{number}.1", f"10.90.{number}.2"
        self.client, self.server = Namespace(crew), Namespace(crew)
        self.namespaces = [self.client, self.server]
        self._relay = crew.start(_relay(self.client.pid, self.server.pid, to_server, to_client))
        assert self._relay.hear() == "ready"
        for end, own, peer in (
            (self.client, self.here, self.there),
            (self.server, self.there, self.here),
        ):
            end.sysctl("net.ipv6.conf.tun0.disable_ipv6", "1")
            end.sysctl("net.ipv4.icmp_ratelimit", "0")
            end.ip(f"addr add {own} peer {peer} dev tun0", f"link set tun0 mtu {mtu} up")

    def tally(self) -> dict[str, int]:
        """Ends the path: how many packets were carried, held back and lost."""
        self._relay.say("stop")
        return self._relay.result()


def _open_tun(pid: int) -> int:
    syscalls.enter_netns(pid)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"tun0", _IFF_TUN | _IFF_NO_PI))
    return fd


def _relay(client: int, server: int, to_server: Wire, to_client: Wire) -> Any:
    def job(line: Line) -> dict[str, int]:
        ends = [_open_tun(client), _open_tun(server)]
        ways = {ends[0]: (ends[1], to_server), ends[1]: (ends[0], to_client)}
        waiting: list[tuple[float, int, int, bytes]] = []
        tally, order = {"carried": 0, "held": 0, "lost": 0}, count()
        line.say("ready")
        while not line.spoken_to():
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, _, out, packet = heapq.heappop(waiting)
                os.write(out, packet)
            pause = min(0.05, waiting[0][0] - now) if waiting else 0.05
            for fd in select.select(ends, [], [], max(pause, 0))[0]:
                try:
                    packet = os.read(fd, 65536)
                except OSError:  # the device is down at first: EIO
                    continue
                out, wire = ways[fd]
                seconds = wire.takes(packet)
                tally["lost" if seconds is None else "held" if seconds else "carried"] += 1
                if seconds:
                    heapq.heappush(waiting, (now + seconds, next(order), out, packet))
                elif seconds is not None:
                    os.write(out, packet)
        return tally

    return job
