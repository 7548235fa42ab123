# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from ktrace_agent.host import interfaces


def test_the_loopback_of_this_host():
    links, left_out = interfaces.read()
    lo = next(link for link in links if link.name == "lo")
    assert left_out == 0
    assert lo.index == 1
    assert lo.mtu > 1000
    assert "127.0.0.1/8" in lo.addresses


def test_more_interfaces_than_the_limit_are_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("socket.if_nameindex", lambda: [(i, f"veth{i}") for i in range(1, 100)])
    links, left_out = interfaces.read(10)
    assert [link.index for link in links] == list(range(1, 11))
    assert left_out == 89


def test_sysfs_of_another_namespace_is_not_believed(tmp_path: Path):
    lo = tmp_path / "class/net/lo"
    lo.mkdir(parents=True)
    (lo / "ifindex").write_text("77\n")
    (lo / "operstate").write_text("dormant\n")
    links, _ = interfaces.read(sys=tmp_path)
    assert links[0].state in ("up", "down")
    (lo / "ifindex").write_text("1\n")
    assert interfaces.read(sys=tmp_path)[0][0].state == "dormant"


@pytest.mark.parametrize("text", ["", "x\n", "zz 01 80 10 80 lo\n", "00 01 80 10 80 lo\n"])
def test_a_strange_if_inet6_gives_no_address(tmp_path: Path, text: str):
    (tmp_path / "self/net").mkdir(parents=True)
    (tmp_path / "self/net/if_inet6").write_text(text)
    links, _ = interfaces.read(proc=tmp_path)
    assert not [one for link in links for one in link.addresses if ":" in one]
