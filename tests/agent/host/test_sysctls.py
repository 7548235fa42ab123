# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

from ktrace_agent.host import sysctls


def test_readable_settings_have_dots_and_single_blanks(tmp_path: Path):
    folder = tmp_path / "sys/net/ipv4"
    folder.mkdir(parents=True)
    (folder / "ip_local_port_range").write_text("32768\t60999\n")
    (folder / "tcp_congestion_control").write_text("x" * 200)
    (folder / "another_setting").write_text("1")
    assert sysctls.read(tmp_path) == {
        "net.ipv4.ip_local_port_range": "32768 60999",
        "net.ipv4.tcp_congestion_control": "x" * 128,
    }
