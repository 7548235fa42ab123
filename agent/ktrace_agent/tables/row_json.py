# SPDX-License-Identifier: Apache-2.0
"""Facts that many rows share: decoded once, and rendered once as the JSON that rows contain.

A line of events.jsonl is a concatenation of these texts (view `lines` in layout.py):

    {"ts":"T  kind.head  owner.head ,"tuple":"A -> B  kind.middle  MEASURE  flags  kind.rest  DNS
    ,"ns":{"net":N  owner.tail ,"conntrack":{...}  kind.tail  SOCK","flow":"FLOW"}
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ktrace_agent.tables.records import (
    FAMILIES,
    KNOWN_CGROUP,
    KNOWN_PROCESS,
    KNOWN_SECURITY,
    OWNER_KEY,
    OWNER_SOURCES,
    PEER_SOURCES,
    RESULTS,
    ROLES,
    ROW,
    ROW_TYPES,
    STATES,
    comm_text,
    errno_name,
    flag_names,
)
from ktrace_api.names import UNKNOWN, PeerSource, RowType
from ktrace_api.row import PodIdentity

KIND_KEY = np.dtype(
    [
        (name, ROW[name])
        for name in (
            "error",
            "type",
            "family",
            "old_state",
            "new_state",
            "role",
            "owner_source",
            "peer_source",
            "result",
            "synack",
        )
    ]
    + [("pad", "V3")]
)
"""The small fields of a ROW, of which few combinations occur."""


class Kind(NamedTuple):
    """A line of table `kinds`; None = unknown, or not a field of the type.

    The last four fields are parts of the row's JSON.
    """

    type: str
    family: str | None
    role: str | None
    old_state: str | None
    new_state: str | None
    errno: int | None
    error: str | None
    result: str | None
    synack: bool | None
    owner_source: str
    peer_source: str
    has_peer: bool
    head: str
    middle: str
    rest: str
    tail: str


class Owner(NamedTuple):
    """A line of table `owners`: a process (None = unknown), and two parts of the row's JSON."""

    comm: str | None
    pid: int | None
    tgid: int | None
    ppid: int | None
    uid: int | None
    gid: int | None
    ns_mnt: int | None
    ns_pid: int | None
    ns_user: int | None
    seccomp_mode: int | None
    caps_eff: int | None
    cgroup_id: int | None
    head: str
    tail: str


def members(**values: Any) -> str:
    """Renders members of a JSON object without the braces; None becomes "-"."""
    shown = {name: UNKNOWN if value is None else value for name, value in values.items()}
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":"))[1:-1]


def name_of(names: tuple[str, ...], number: int) -> str:
    """Returns the name of a number, or `-`."""
    return str(names[number]) if number < len(names) else UNKNOWN


def or_none(text: str) -> str | None:
    """Returns None for the text "-"."""
    return None if text == UNKNOWN else text


def kinds(keys: npt.NDArray[Any], node: str) -> list[Kind]:
    """Decodes each KIND_KEY; `node` is part of the JSON of every row."""
    names = KIND_KEY.names or ()
    return [_kind(dict(zip(names, key, strict=True)), node) for key in keys.tolist()]


def _kind(key: dict[str, Any], node: str) -> Kind:
    row_type, error = ROW_TYPES[key["type"]], errno_name(key["error"])
    family, role = FAMILIES.get(key["family"], UNKNOWN), name_of(ROLES, key["role"])
    old, new = name_of(STATES, key["old_state"]), name_of(STATES, key["new_state"])
    result, synack = name_of(RESULTS, key["result"]), bool(key["synack"])
    owner_source = name_of(OWNER_SOURCES, key["owner_source"])
    peer_source = name_of(PEER_SOURCES, key["peer_source"])
    errors = {"errno": key["error"], "error": error}
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    match row_type:
        case RowType.TCP_STATE:
            before, measure = {"old_state": old, "new_state": new}, "state_us"
        case RowType.UDP_SEND | RowType.UDP_RECV:
            measure, after = "bytes", errors
        case RowType.CONNECT:
            measure, after = "duration_us", errors | {"result": result}
        case RowType.TCP_RETRANSMIT:
            before, measure, after = {"state": new}, "segs", {"synack": synack}
    fields = before | after
    return Kind(
        type=row_type,
        family=or_none(family),
        role=or_none(role),
        old_state=or_none(fields.get("old_state", UNKNOWN)),
        new_state=or_none(fields.get("new_state", fields.get("state", UNKNOWN))),
        errno=fields.get("errno"),
        error=or_none(fields.get("error", UNKNOWN)),
        result=or_none(fields.get("result", UNKNOWN)),
        synack=fields.get("synack"),
        owner_source=owner_source,
        peer_source=peer_source,
        has_peer=peer_source != PeerSource.NONE,
        head='Z",' + members(type=row_type, node=node) + ",",
        middle='",' + members(family=family, role=role, **before) + f',"{measure}":',
        rest="," + members(**after) if after else "",
        tail="," + members(owner_source=owner_source, peer_source=peer_source) + ',"sock":"',
    )


def owners(keys: npt.NDArray[Any], pods: Mapping[int, PodIdentity]) -> list[Owner]:
    """Decodes each OWNER_KEY; `pods` has the names of each cgroup."""
    names = OWNER_KEY.names or ()
    return [_owner(dict(zip(names, key, strict=True)), pods) for key in keys.tolist()]


_NO_POD = PodIdentity()


def _owner(key: dict[str, Any], pods: Mapping[int, PodIdentity]) -> Owner:
    known = key["known"]
    process: dict[str, Any] = dict.fromkeys(("comm", "pid", "tgid", "ppid", "uid", "gid"))
    spaces: dict[str, Any] = dict.fromkeys(("ns_mnt", "ns_pid", "ns_user"))
    if known & KNOWN_PROCESS:
        process = {name: key[name] for name in process} | {"comm": comm_text(key["comm"])}
        spaces = {name: key[name] or None for name in spaces}
    seccomp, caps = (
        (key["seccomp_mode"], key["caps_eff"]) if known & KNOWN_SECURITY else (None, None)
    )
    security = {
        "seccomp_mode": seccomp,
        "caps_eff": None if caps is None else f"0x{caps >> 32:08x}_{caps & 0xFFFFFFFF:08x}",
    }
    cgroup_id = key["cgroup_id"] if known & KNOWN_CGROUP else None
    bare = {name.removeprefix("ns_"): inode for name, inode in spaces.items()}
    pod = _NO_POD if cgroup_id is None else pods.get(cgroup_id, _NO_POD)
    return Owner(
        **process,
        **spaces,
        seccomp_mode=seccomp,
        caps_eff=caps,
        cgroup_id=cgroup_id,
        head=members(**process),
        tail=f',{members(**bare)}}},"sec":{{{members(**security)}}},'
        f"{members(cgroup_id=cgroup_id, k8s=pod.model_dump())}",
    )


def message_flags(flags: int) -> tuple[str | None, str]:
    """Returns the names of MSG_ flags, joined by commas, and their JSON; -1 = not a field."""
    if flags < 0:
        return None, ""
    names = flag_names(flags)
    return ",".join(names), "," + members(flags=names)
