# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ktrace_api.bundle import Manifest
from ktrace_api.model import Model
from ktrace_api.node import NodeInfo
from ktrace_api.row import EVENT
from ktrace_api.schemas import schemas, write
from ktrace_api.summary import Summary

ROW = {
    "ts": "2026-01-24T21:57:54.326Z",
    "type": "tcp_state",
    "node": "etcd-1",
    "comm": "kubelet",
    "pid": 928,
    "tgid": 928,
    "ppid": 1,
    "uid": 0,
    "gid": 0,
    "tuple": "192.168.122.60:24801 -> 192.168.18.69:6443",
    "family": "ipv4",
    "role": "client",
    "old_state": "SYN_SENT",
    "new_state": "ESTABLISHED",
    "state_us": 412,
    "ns": {"net": 4026532001, "mnt": 4026531840, "pid": 4026531836, "user": 4026531837},
    "sec": {"seccomp_mode": 2, "caps_eff": "0x00000000_00000000"},
    "cgroup_id": 4711,
    "k8s": {"pod_uid": "-", "namespace": "-", "pod": "-", "container": "-", "container_id": "-"},
    "conntrack": {"state": "-", "reply": "-", "nat": "-", "backend": "-"},
    "owner_source": "process",
    "peer_source": "socket",
    "sock": "0x3f2",
    "flow": "0x9f3c52a0c1d2e3f",
}


def test_a_row_survives_the_model():
    row = EVENT.validate_json(json.dumps(ROW))
    assert json.loads(row.model_dump_json()) == ROW


@pytest.mark.parametrize(
    "name", ["pid", "uid", "state_us", "cgroup_id", "sock", "flow", "family", "role"]
)
def test_unknown_is_a_dash_whatever_the_type(name: str):
    assert getattr(EVENT.validate_python({**ROW, name: "-"}), name) == "-"


@pytest.mark.parametrize(
    "change",
    [
        {"type": "udp"},
        {"new_state": "OPEN"},
        {"pid": -1},
        {"pid": None},
        {"bytes": 1},
        {"ts": "2026-01-24 21:57:54"},
        {"sock": "3f2"},
        {"flow": "0x9f3c52a0c1d2e3f4a"},
    ],
)
def test_what_is_no_row(change: dict[str, Any]):
    with pytest.raises(ValidationError):
        EVENT.validate_python({**ROW, **change})


def test_the_published_schemas_are_those_of_the_models():
    folder = Path(__file__).parents[2] / "docs" / "schemas"
    published = {
        path.name: json.loads(path.read_text("utf-8")) for path in folder.glob("*.schema.json")
    }
    assert published == schemas(), "run make generate"


def test_schemas_are_written_where_they_are_asked_for(tmp_path: Path):
    write(tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(schemas())


@pytest.mark.parametrize("model", [Summary, NodeInfo, Manifest])
def test_every_file_carries_its_schema_version(model: type[Model]):
    assert model.model_fields["schema_version"].default == 1
