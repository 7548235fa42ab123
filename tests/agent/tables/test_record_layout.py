# SPDX-License-Identifier: Apache-2.0
"""The numpy mirror against the C structs: compiled for BPF, read back from BTF."""

import ctypes
import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ktrace_agent.kernel import collector
from ktrace_agent.kernel.collector import KernelConfig
from ktrace_agent.kernel.recording import HookCounters, Overflow
from ktrace_agent.tables import records
from ktrace_api.names import ConnectResult, OwnerSource, PeerSource, Role, RowType

BPF = Path(__file__).parents[3] / "agent" / "bpf"
FLAGS = ("-g", "-O2", "-target", "bpf", "-Wall", "-Wpadded", "-Werror")
UNIT = """
typedef unsigned char __u8; typedef unsigned short __u16; typedef unsigned int __u32;
typedef unsigned long long __u64; typedef int __s32;
#include "events.h"
struct kt_event event; struct kt_flow_key flow_key; struct kt_flow flow;
struct kt_counters counters; struct kt_overflow overflow; struct kt_config config;
struct kt_cgroup cgroup; struct kt_pod_uid pod;
enum kt_type type; enum kt_owner_source owner; enum kt_peer_source peer; enum kt_role role;
enum kt_result result;
"""


@pytest.fixture(scope="module")
def btf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Struct and enum types by name."""
    clang = shutil.which("clang") or shutil.which("clang-14")
    if clang is None or shutil.which("bpftool") is None:
        pytest.fail("clang and bpftool are needed: scripts/bootstrap.sh test")
    folder = tmp_path_factory.mktemp("layout")
    (folder / "layout.c").write_text(UNIT)
    subprocess.run(
        [clang, *FLAGS, f"-I{BPF}", "-c", "layout.c", "-o", "layout.o"],
        cwd=folder,
        check=True,
    )
    dump = ["bpftool", "btf", "dump", "file", "layout.o", "format", "raw", "-j"]
    raw = subprocess.run(dump, cwd=folder, check=True, capture_output=True).stdout
    return {kind["name"]: kind for kind in json.loads(raw)["types"]}


@pytest.mark.parametrize(
    ("struct", "dtype"),
    [
        ("kt_event", records.EVENT),
        ("kt_flow_key", records.FLOW_KEY),
        ("kt_flow", records.FLOW),
    ],
)
def test_offsets_and_sizes(btf: dict[str, Any], struct: str, dtype: np.dtype[Any]):
    found = btf[struct]
    offsets: Mapping[str, Any] = dtype.fields or {}
    expected = [(member["name"], member["bits_offset"] // 8) for member in found["members"]]
    ends = [offset for _, offset in expected[1:]] + [found["size"]]
    assert found["size"] == dtype.itemsize
    assert expected == [(name, offsets[name][1]) for name in offsets]
    # Without padding, each member ends where the next one begins.
    assert ends == [offsets[name][1] + dtype[name].itemsize for name in offsets]


def test_names_of_cgroups_and_pods_are_where_the_kernel_puts_them(btf: dict[str, Any]):
    found = btf["kt_cgroup"]
    expected = [(member["name"], member["bits_offset"] // 8) for member in found["members"]]
    assert expected == [
        (name, getattr(collector.CgroupNames, name).offset) for name in ("name", "in_pods")
    ]
    assert found["size"] == ctypes.sizeof(collector.CgroupNames)
    assert btf["kt_pod_uid"]["size"] == collector.POD_UID_LEN


def test_the_knobs_are_where_the_kernel_reads_them(btf: dict[str, Any]):
    found = btf["kt_config"]
    expected = [(member["name"], member["bits_offset"] // 8) for member in found["members"]]
    names = [name for name, *_ in KernelConfig._fields_]
    assert expected == [(name, getattr(KernelConfig, name).offset) for name in names]
    assert found["size"] == ctypes.sizeof(KernelConfig)


@pytest.mark.parametrize(
    ("struct", "mirror"), [("kt_counters", HookCounters), ("kt_overflow", Overflow)]
)
def test_counters_are_u64_in_the_same_order(btf: dict[str, Any], struct: str, mirror: Any):
    members = [(member["name"], member["bits_offset"]) for member in btf[struct]["members"]]
    assert members == [(field.name, 64 * n) for n, field in enumerate(fields(mirror))]
    assert btf[struct]["size"] == 8 * len(members)


@pytest.mark.parametrize(
    ("enum", "prefix", "names"),
    [
        ("kt_type", "KT_", RowType),
        ("kt_owner_source", "KT_OWNER_", OwnerSource),
        ("kt_peer_source", "KT_PEER_", PeerSource),
        ("kt_role", "KT_ROLE_", Role),
        ("kt_result", "KT_RESULT_", ["none", *ConnectResult]),
    ],
)
def test_names_stand_at_their_numbers(btf: dict[str, Any], enum: str, prefix: str, names: Any):
    values = {
        value["name"].removeprefix(prefix).lower(): value["val"] for value in btf[enum]["values"]
    }
    shown = {"-": "unknown", "tcp_retransmit": "retransmit"}
    assert {shown.get(str(name), str(name)): n for n, name in enumerate(names)} == {
        name: n for name, n in values.items() if n < len(names)
    }
