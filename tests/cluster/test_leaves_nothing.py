# SPDX-License-Identifier: Apache-2.0
"""What a cluster leaves on the host: nothing, also after its starter was killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bpf.workers import wait_until
from tests.cluster import cgroups
from tests.cluster.cluster import Cluster, state_root
from tests.cluster.conftest import started
from tests.cluster.daemons import start_time
from tests.cluster.instances import own_name
from tests.cluster.kwok import Kwok, Life

pytestmark = [pytest.mark.world("cluster"), pytest.mark.timeout(600)]

SYSCTLS = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
           "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes", "kernel/hostname",
           "net/ipv4/ip_forward", "net/netfilter/nf_conntrack_max")  # fmt: skip
PLAYED = 13


def host() -> dict[str, str]:
    """What a cluster might change: links, addresses, rules, mounts, sockets, sysctls."""
    seen = {
        command: subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout
        for command in ("ip -brief address", "ip route", "ip netns", "nft list ruleset")
    }
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    seen["mounts"] = "\n".join(  # an image that somebody builds meanwhile is none of ours
        line for line in mounts if " - overlay " not in line or str(state_root()) in line
    )
    seen["sockets"] = "\n".join(sorted(map(str, Path("/tmp").glob("*.sock"))))
    return seen | {name: Path("/proc/sys", name).read_text() for name in SYSCTLS}


def network_namespaces() -> set[str]:
    """Of all processes of the host."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(os.readlink(path))
        except OSError:  # it ended meanwhile
            continue
    return found


def cgroups_named(instance: str) -> list[Path]:
    """In every hierarchy there is, whatever the cluster thinks that it made."""
    return [*Path("/sys/fs/cgroup").glob(f"*{instance}*"),
            *Path("/sys/fs/cgroup").glob(f"*/*{instance}*")]  # fmt: skip


def test_down_leaves_the_host_as_it_was() -> None:
    before = host()
    with started("leaves", nodes=("node-a",), lost_after_s=3600) as cluster:
        life = Life(message='{"node": "{{ $root.spec.nodeName }}"}', start_s=0.2, run_s=0.2)
        Kwok(cluster).start(PLAYED, life)
        cluster.kubectl("create", "-f", "-", stdin=PLAYED_POD)
        ended = "--for=jsonpath={.status.phase}=Succeeded"
        cluster.kubectl("wait", "pod/one", ended, "--timeout=60s")
        status = cluster.get("pod", "one")["status"]["containerStatuses"][0]
        assert status["state"]["terminated"]["message"] == '{"node": "node-0007"}'
        ours = {pid: start_time(pid) for pid in cgroups.members(f"ktrace-{cluster.instance}")}
        assert len(ours) > 10
        assert cgroups_named(cluster.instance)
        spaces = [os.readlink(f"/proc/{one.pid}/ns/net")
                  for one in (cluster.control.space, cluster.node("node-a").space)]  # fmt: skip
        assert network_namespaces().issuperset(spaces)
    assert host() == before
    assert not [pid for pid, started_at in ours.items() if start_time(pid) == started_at]
    assert network_namespaces().isdisjoint(spaces)
    assert not cgroups_named(cluster.instance)
    assert not cluster.state.exists()


def test_killed_starter_stops_nobody_who_comes_next() -> None:
    name = own_name("killed")
    before = host()
    starter = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster", "--instance", name, "up"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    cluster = Cluster(name, nodes=("node-a",))
    try:
        wait_until(lambda: len(cgroups.members(f"ktrace-{name}")) > 5, "a half made cluster", 60)
        starter.send_signal(signal.SIGKILL)
        starter.wait()
        assert not cluster.running
        cluster.up()
        assert cluster.ready_nodes() == ["node-a"]
    finally:
        starter.kill()
        cluster.down()
    assert host() == before
    assert not cgroups_named(name)


PLAYED_POD = """
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"},
 "spec": {"nodeName": "node-0007", "restartPolicy": "Never",
          "containers": [{"name": "main", "image": "none"}]}}
"""
