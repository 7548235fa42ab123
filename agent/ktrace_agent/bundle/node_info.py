# SPDX-License-Identifier: Apache-2.0
"""Builds node.json: facts of the node, offered kernel features, changes of the counters."""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ktrace_agent.enrich.conntrack.lookup import Conntrack
from ktrace_agent.enrich.pods.identify import Identities
from ktrace_agent.host import boot, counter_changes, interfaces, sysctls
from ktrace_agent.kernel.preflight import Platform
from ktrace_agent.kernel.probes import Choice
from ktrace_agent.kernel.recording import Recording
from ktrace_api import __version__
from ktrace_api.capture import CaptureConfig
from ktrace_api.names import UNKNOWN
from ktrace_api.node import (
    ClockOffsets,
    ConntrackFacts,
    ConntrackNetns,
    Delta,
    HookChoice,
    IdentityFacts,
    Interface,
    Kernel,
    Lacking,
    NetnsCounters,
    NodeInfo,
    Refusal,
    RuntimeSocket,
)

MAX_CGROUPS = 128
MAX_CONNTRACK_NETNS = 64


def describe(
    config: CaptureConfig,
    platform: Platform,
    choices: Sequence[Choice],
    recording: Recording,
    report: counter_changes.Report,
    identities: Identities,
    conntrack: Conntrack | None,
) -> NodeInfo:
    """Combine the facts collected before, during and after the capture."""
    links, links_left_out = interfaces.read()
    this_boot, clock = boot.read(), recording.clock
    cgroups = sorted(recording.cgroups.items())
    return NodeInfo(
        node=config.node,
        hostname=socket.gethostname(),
        boot_id=this_boot.boot_id,
        uptime_s=this_boot.uptime_s,
        agent_version=__version__,
        kernel=Kernel(
            release=platform.release,
            version=platform.version,
            arch=platform.machine,
            btf=platform.btf,
            backend=platform.backend or "core",
        ),
        cgroup=platform.cgroup.version,
        hooks=tuple(_hook(choice) for choice in choices),
        clock=ClockOffsets(
            offset_start_ns=clock.offset_start_ns,
            offset_end_ns=clock.offset_end_ns,
            step_ns=clock.offset_end_ns - clock.offset_start_ns,
        ),
        config=config,
        interfaces=tuple(_interface(link) for link in links),
        interfaces_left_out=links_left_out,
        sysctls=sysctls.read(),
        host=_files(report.host),
        host_missing={file: str(reason) for file, reason in report.missing.items()},
        netns=tuple(_netns(one) for one in report.netns),
        netns_left_out=report.netns_left_out,
        counters_left_out=report.counters_left_out,
        cgroups={str(number): path for number, path in cgroups[:MAX_CGROUPS]},
        cgroups_left_out=max(0, len(cgroups) - MAX_CGROUPS),
        identity=_identity(identities),
        conntrack=None if conntrack is None else _conntrack(conntrack),
    )


def _interface(link: interfaces.Link) -> Interface:
    return Interface(
        name=link.name,
        index=link.index,
        mtu=link.mtu,
        state=link.state,
        addresses=link.addresses,
    )


def _netns(one: counter_changes.NetnsReport) -> NetnsCounters:
    return NetnsCounters(
        netns=one.netns, counters=_files(one.counters), missing=str(one.missing or UNKNOWN)
    )


def _identity(identities: Identities) -> IdentityFacts:
    sources = asdict(identities.sources)
    sockets = tuple(RuntimeSocket(**one) for one in sources.pop("sockets"))
    return IdentityFacts(**sources, sockets=sockets, notes=identities.notes)


def _conntrack(found: Conntrack) -> ConntrackFacts:
    busiest = sorted(found.tables.items(), key=lambda one: -len(one[1].keys))[:MAX_CONNTRACK_NETNS]
    return ConntrackFacts(
        host_netns=found.host,
        entries=len(found),
        left_out=found.left_out,
        seconds=round(found.seconds, 3),
        netns=tuple(_conntrack_netns(netns, len(table.keys), found) for netns, table in busiest),
        problems=tuple(
            Lacking(netns=one.netns, reason=one.lack, detail=one.detail) for one in found.problems
        ),
    )


def _conntrack_netns(netns: int, entries: int, found: Conntrack) -> ConntrackNetns:
    figures = found.figures.get(netns)
    return ConntrackNetns(
        netns=netns,
        source=found.sources.get(netns, UNKNOWN),
        entries=entries,
        peak=figures.peak if figures else 0,
        counters={
            name: Delta(before=was, after=now, delta=now - was)
            for name, was in (figures.before.items() if figures else ())
            if (now := figures.after.get(name, was) if figures else was) or was
        },
    )


def _hook(choice: Choice) -> HookChoice:
    return HookChoice(
        hook=choice.hook,
        chosen=choice.program or UNKNOWN,
        refused=tuple(Refusal(program=r.program, reason=r.reason) for r in choice.refused),
    )


def _files(changes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Delta]]:
    return {
        file: {
            name: Delta(before=change.before, after=change.after, delta=change.delta)
            for name, change in counters.items()
        }
        for file, counters in changes.items()
    }
