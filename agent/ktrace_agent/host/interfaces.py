# SPDX-License-Identifier: Apache-2.0
"""Links and addresses of the agent's own network namespace, by ioctl and /proc.

/sys/class/net shows the namespace of the process that mounted it. It is used only for the state of
an interface with the same index. Nothing raises: unreadable values are left out.
"""

import fcntl
import ipaddress
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from ktrace_agent.host.small_file import text_or_empty

MAX_INTERFACES = 64

_SIOCGIFCONF = 0x8912
_SIOCGIFFLAGS = 0x8913
_SIOCGIFNETMASK = 0x891B
_SIOCGIFMTU = 0x8921
_IFF_UP = 0x1
_IFF_RUNNING = 0x40
_IFREQ = 40
"""sizeof(struct ifreq) where pointers have 64 bits."""
_MAX_IPV4 = 1024


@dataclass(frozen=True, slots=True)
class Link:
    """One interface: MTU in bytes, state as in operstate, addresses with prefix length."""

    name: str
    index: int
    mtu: int
    state: str
    addresses: tuple[str, ...]


def read(
    limit: int = MAX_INTERFACES, *, proc: Path = Path("/proc"), sys: Path = Path("/sys")
) -> tuple[tuple[Link, ...], int]:
    """Return the first `limit` interfaces by index, and the number of further ones."""
    try:
        found = sorted(socket.if_nameindex())
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    except OSError:
        return (), 0
    with sock:
        addresses = _ipv4(sock)
        for name, text in _ipv6(proc / "self/net/if_inet6"):
            addresses.setdefault(name, []).append(text)
        links = tuple(
            Link(
                name=name,
                index=index,
                mtu=_query(sock, _SIOCGIFMTU, name, "i"),
                state=_state(sock, name, index, sys),
                addresses=tuple(addresses.get(name, [])[:8]),
            )
            for index, name in found[:limit]
        )
    return links, max(0, len(found) - limit)


def _query(sock: socket.socket, request: int, name: str, form: str) -> int:
    ifreq = struct.pack(f"16s{_IFREQ - 16}x", name.encode())
    try:
        answer = fcntl.ioctl(sock, request, ifreq)
    except OSError:
        return 0
    value: int = struct.unpack_from(form, answer, 16)[0]
    return value


def _state(sock: socket.socket, name: str, index: int, sys: Path) -> str:
    folder = sys / "class/net" / name
    if text_or_empty(folder / "ifindex").strip() == str(index) and (
        state := text_or_empty(folder / "operstate").strip()
    ):
        return state
    flags = _query(sock, _SIOCGIFFLAGS, name, "H")
    return "up" if flags & _IFF_UP and flags & _IFF_RUNNING else "down"


def _ipv4(sock: socket.socket) -> dict[str, list[str]]:
    """Return all IPv4 addresses by interface; those of an alias (eth0:1) belong to eth0."""
    import array  # a buffer whose address can be passed to an ioctl

    buffer = array.array("B", bytes(_MAX_IPV4 * _IFREQ))
    place, _ = buffer.buffer_info()
    found: dict[str, list[str]] = {}
    try:
        answer = fcntl.ioctl(sock, _SIOCGIFCONF, struct.pack("iP", len(buffer), place))
    except OSError:
        return found
    size = struct.unpack_from("i", answer)[0]
    for start in range(0, size - size % _IFREQ, _IFREQ):
        ifreq = buffer[start : start + _IFREQ].tobytes()
        label = ifreq[:16].split(b"\0")[0].decode(errors="replace")
        try:
            mask = fcntl.ioctl(sock, _SIOCGIFNETMASK, ifreq)[20:24]
        except OSError:
            continue
        length = int.from_bytes(mask).bit_count()
        name = label.partition(":")[0]
        found.setdefault(name, []).append(f"{ipaddress.IPv4Address(ifreq[20:24])}/{length}")
    return found


def _ipv6(path: Path) -> list[tuple[str, str]]:
    """Parse if_inet6 into interface and address: address index length scope flags name."""
    found = []
    for line in text_or_empty(path).splitlines():
        match line.split():
            case [digits, _, length, _, _, name]:
                try:
                    address = ipaddress.IPv6Address(bytes.fromhex(digits))
                    found.append((name, f"{address}/{int(length, 16)}"))
                except ValueError:
                    continue
    return found
