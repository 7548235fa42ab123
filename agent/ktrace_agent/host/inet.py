# SPDX-License-Identifier: Apache-2.0
"""Internet addresses and protocol numbers in the form that ktrace stores them.

An address has 16 bytes. An IPv4 address is IPv4-mapped (RFC 4291, section 2.5.5.2).
numpy is imported for type checking only: this module is loaded while a capture runs.
"""

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Octets = npt.NDArray[np.uint8]
    """Shape (addresses, 16)."""
    Truth = npt.NDArray[np.bool_]

TCP, UDP = int(socket.IPPROTO_TCP), int(socket.IPPROTO_UDP)
Protocol = Literal["tcp", "udp"]
PROTOCOL_NAMES: Mapping[int, Protocol] = {TCP: "tcp", UDP: "udp"}
PROTOCOL_NUMBERS: Mapping[Protocol, int] = {"tcp": TCP, "udp": UDP}

MAPPED = b"\0" * 10 + b"\xff\xff"
"""Prefix of an IPv4-mapped address."""
WILDCARDS = (MAPPED + b"\0" * 4, b"\0" * 16)
"""0.0.0.0 and ::"""
_LOOPBACK = b"\0" * 15 + b"\1"


def is_ipv4(address: bytes) -> bool:
    """Whether the address is IPv4-mapped."""
    return address.startswith(MAPPED)


def is_local_to_netns(address: bytes) -> bool:
    """Whether the address is loopback (127.0.0.0/8, ::1) or IPv6 link-local (fe80::/10).

    Such an address names a different host in each network namespace.
    """
    if is_ipv4(address):
        return address[12] == 127
    return address == _LOOPBACK or (address[0] == 0xFE and address[1] & 0xC0 == 0x80)


def are_ipv4(octets: "Octets") -> "Truth":
    """is_ipv4() of each row of `octets`."""
    return _equal(octets[:, :12], MAPPED)


def are_local_to_netns(octets: "Octets") -> "Truth":
    """is_local_to_netns() of each row of `octets`."""
    loopback = are_ipv4(octets) & (octets[:, 12] == 127) | _equal(octets, _LOOPBACK)
    found: Truth = loopback | (octets[:, 0] == 0xFE) & (octets[:, 1] & 0xC0 == 0x80)
    return found


def _equal(octets: "npt.NDArray[Any]", expected: bytes) -> "Truth":
    found: Truth = (octets == [*expected]).all(axis=1)
    return found


def address_text(address: bytes) -> str:
    """Formats an address: `192.0.2.1`, or `[2001:db8::1]` for IPv6."""
    if is_ipv4(address):
        return socket.inet_ntop(socket.AF_INET, address[12:])
    return f"[{socket.inet_ntop(socket.AF_INET6, address)}]"
