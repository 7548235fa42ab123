# SPDX-License-Identifier: Apache-2.0
"""Parsers of the kernel's counter files: bytes in, names and numbers out.

They never raise: text of an unknown form is left out. Formats:
net/ipv4/proc.c, net/ipv6/proc.c, net/core/net-procfs.c, kernel/sched/psi.c,
net/netfilter/nf_conntrack_standalone.c.
"""

import re
from collections.abc import Callable, Iterator

Number = int | float
Counters = dict[str, Number]
"""Name -> value, e.g. `TcpExt.ListenOverflows` -> 3; in the order of the file."""

MAX_NAMES = 1024

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_HEX = re.compile(r"[0-9a-fA-F]{1,16}")
_SHARE = re.compile(r"[0-9]{1,3}\.[0-9]{1,6}")

SOFTNET = {
    0: "processed",
    1: "dropped",
    2: "time_squeeze",
    8: "cpu_collision",
    9: "received_rps",
    10: "flow_limit_count",
    11: "backlog_len",
}
"""Columns of softnet_stat; older kernels have fewer."""


def _lines(data: bytes) -> list[str]:
    return data.decode("ascii", "replace").split("\n")


def _bounded(pairs: Iterator[tuple[str, Number]]) -> Counters:
    counters: Counters = {}
    for name, value in pairs:
        if len(counters) >= MAX_NAMES:
            break
        counters[name] = value
    return counters


def columns(data: bytes) -> Counters:
    """Parse netstat and snmp: a line of names, then a line of values, with the same prefix."""
    return _bounded(_columns(_lines(data)))


def _columns(lines: list[str]) -> Iterator[tuple[str, Number]]:
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        group, _, rest = names.partition(":")
        again, _, numbers = values.partition(":")
        if group != again or not _NAME.fullmatch(group):
            continue
        for name, number in zip(rest.split(), numbers.split(), strict=False):
            if _NAME.fullmatch(name) and _INTEGER.fullmatch(number):
                yield f"{group}.{name}", int(number)


def pairs(data: bytes) -> Counters:
    """Parse snmp6: a name and a value on each line."""
    return _bounded(_pairs(_lines(data)))


def _pairs(lines: list[str]) -> Iterator[tuple[str, Number]]:
    for line in lines:
        match line.split():
            case [name, number] if _NAME.fullmatch(name) and _INTEGER.fullmatch(number):
                yield name, int(number)


def sockstat(data: bytes) -> Counters:
    """Parse sockstat and sockstat6: `TCP: inuse 1 orphan 0`; memory is in pages."""
    return _bounded(_sockstat(_lines(data)))


def _sockstat(lines: list[str]) -> Iterator[tuple[str, Number]]:
    for line in lines:
        group, _, rest = line.partition(":")
        words = rest.split()
        if not _NAME.fullmatch(group):
            continue
        for name, number in zip(words[::2], words[1::2], strict=False):
            if _NAME.fullmatch(name) and _INTEGER.fullmatch(number):
                yield f"{group}.{name}", int(number)


def softnet(data: bytes) -> Counters:
    """Parse softnet_stat: a line of hexadecimal columns for each CPU; returns the sums."""
    sums: Counters = {}
    for line in _lines(data):
        words = line.split()
        for column, name in SOFTNET.items():
            if column < len(words) and _HEX.fullmatch(words[column]):
                sums[name] = sums.get(name, 0) + int(words[column], 16)
    return sums


def pressure(data: bytes) -> Counters:
    """Parse PSI: percent of time that some or all tasks waited (avg10, 60, 300), total in us."""
    return _bounded(_pressure(_lines(data)))


def _pressure(lines: list[str]) -> Iterator[tuple[str, Number]]:
    for line in lines:
        kind, *fields = line.split() or [""]
        if kind not in ("some", "full"):
            continue
        for field in fields:
            name, _, number = field.partition("=")
            if name == "total" and _INTEGER.fullmatch(number):
                yield f"{kind}.total", int(number)
            elif name in ("avg10", "avg60", "avg300") and _SHARE.fullmatch(number):
                yield f"{kind}.{name}", float(number)


def conntrack(data: bytes) -> Counters:
    """Parse stat/nf_conntrack: names, then hexadecimal columns for each CPU; returns the sums.

    `entries` is the size of the namespace's table. Every line repeats it, so it is not summed.
    """
    names, *lines = _lines(data)
    counters: Counters = {}
    for line in lines:
        for name, word in zip(names.split()[:MAX_NAMES], line.split(), strict=False):
            if not _NAME.fullmatch(name) or not _HEX.fullmatch(word):
                continue
            value = int(word, 16)
            counters[name] = value if name == "entries" else counters.get(name, 0) + value
    return counters


def value(data: bytes) -> Counters:
    """Parse a file with one integer, such as most sysctls."""
    text = data.decode("ascii", "replace").strip()
    return {"value": int(text)} if _INTEGER.fullmatch(text) else {}


ABORTS = (
    "TcpExt.TCPAbortOnClose",
    "TcpExt.TCPAbortOnData",
    "TcpExt.TCPAbortOnLinger",
    "TcpExt.TCPAbortOnMemory",
    "TcpExt.TCPAbortOnTimeout",
)
"""Connections that sockets of the namespace aborted themselves, in netstat."""
DUPLICATES = "TcpExt.TCPDSACKRecv"
"""Retransmitted segments that their receivers already had, in netstat."""

REFERENCES: dict[str, frozenset[str]] = {
    "netstat": frozenset({*ABORTS, DUPLICATES}),
    "snmp": frozenset({"Udp.InDatagrams"}),
    "snmp6": frozenset({"Udp6InDatagrams"}),
}
"""Reference counters that findings subtract or divide by, by file. Reported even if unchanged, so
that a missing counter means unknown, not zero."""

PER_NETNS: dict[str, Callable[[bytes], Counters]] = {
    "netstat": columns,
    "snmp": columns,
    "snmp6": pairs,
    "sockstat": sockstat,
    "sockstat6": sockstat,
    "stat/nf_conntrack": conntrack,
}
"""Files of /proc/PID/net with counters of one network namespace."""

PER_HOST: dict[str, tuple[str, Callable[[bytes], Counters]]] = {
    "softnet_stat": ("net/softnet_stat", softnet),
    "pressure/cpu": ("pressure/cpu", pressure),
    "pressure/memory": ("pressure/memory", pressure),
    "pressure/io": ("pressure/io", pressure),
    "conntrack/count": ("sys/net/netfilter/nf_conntrack_count", value),
    "conntrack/max": ("sys/net/netfilter/nf_conntrack_max", value),
}
"""Files of /proc with counters of the host; conntrack/count is that of the agent's namespace."""
