# SPDX-License-Identifier: Apache-2.0
import json
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from ktrace_agent.host import counter_changes, counters
from ktrace_agent.host.counter_changes import Change, compare, fit
from ktrace_agent.host.counters import Files, Missing, Snapshot
from ktrace_agent.host.procfs import PER_HOST, PER_NETNS


def snap(
    netns: Mapping[int, Files | Missing] | None = None,
    hosts: Files | None = None,
    *,
    own: int = 0,
    whole: bool = True,
) -> Snapshot:
    return Snapshot(hosts or {}, netns or {}, own, whole)


def tcp(**values: int) -> dict[str, bytes | Missing]:
    names, numbers = " ".join(values), " ".join(map(str, values.values()))
    return {"snmp": f"Tcp: {names}\nTcp: {numbers}\n".encode()}


def test_only_what_changed_is_told():
    before, after = tcp(RetransSegs=5, OutRsts=7), tcp(RetransSegs=8, OutRsts=7)
    report = compare(snap({1: before}), snap({1: after}), [1])
    assert report.netns[0].counters == {"snmp": {"Tcp.RetransSegs": Change(5, 8, 3)}}
    assert report.netns[0].missing is None


def test_a_gauge_that_stands_still_is_told_unless_it_is_zero():
    raw: Files = {"sockstat": b"TCP: inuse 4 orphan 0 tw 30000\n"}
    report = compare(snap({1: raw}), snap({1: raw}), [1])
    assert report.netns[0].counters == {
        "sockstat": {"TCP.inuse": Change(4, 4, 0), "TCP.tw": Change(30000, 30000, 0)}
    }


def test_a_name_that_appears_began_at_zero():
    before: Files = {"snmp": b"IcmpMsg: InType8\nIcmpMsg: 1\n"}
    after: Files = {"snmp": b"IcmpMsg: InType3 InType8\nIcmpMsg: 2 1\n"}
    report = compare(snap({1: before}), snap({1: after}), [1])
    assert report.netns[0].counters == {"snmp": {"IcmpMsg.InType3": Change(0, 2, 2)}}


def test_reasons_of_namespaces_without_figures():
    raw = tcp(OutRsts=1)
    before = snap({1: raw, 3: Missing.TOO_MANY, 4: raw})
    after = snap({1: Missing.DENIED, 3: raw, 5: raw})
    found = {one.netns: one.missing for one in compare(before, after, [1, 2, 3, 4, 5]).netns}
    assert found == {
        1: Missing.DENIED,
        2: Missing.VANISHED,
        3: Missing.TOO_MANY,
        4: Missing.VANISHED,
        5: Missing.APPEARED,
    }


def test_figures_of_a_namespace_that_appeared_are_since_it_was_made():
    report = compare(snap(), snap({5: tcp(OutRsts=3)}), [5])
    assert report.netns[0].counters == {"snmp": {"Tcp.OutRsts": Change(0, 3, 3)}}


def test_a_namespace_is_not_called_new_when_the_first_look_was_cut_short():
    report = compare(snap(whole=False), snap({5: tcp(OutRsts=3)}), [5])
    assert report.netns[0].missing is Missing.TOO_LATE
    assert report.netns[0].counters == {}


def test_the_own_namespace_comes_first_and_the_order_of_events_is_kept():
    netns: dict[int, Files | Missing] = {n: tcp(OutRsts=1) for n in range(1, 100)}
    report = compare(snap(netns, own=7), snap(netns, own=7), [9, 3, 7, 3, *range(10, 99)])
    assert report.netns_left_out == 0
    assert len(report.netns) == 92
    report = fit(report)
    assert [one.netns for one in report.netns[:3]] == [7, 9, 3]
    assert len(report.netns) == counter_changes.KEPT_NETNS
    assert report.netns_left_out == 92 - counter_changes.KEPT_NETNS


def test_files_of_the_host_that_are_not_there_have_a_reason():
    there: Files = {"softnet_stat": b"00000001 00000000\n"}
    later: Files = {"softnet_stat": b"00000005 00000002\n", "pressure/cpu": Missing.ABSENT}
    report = compare(snap(hosts=there), snap(hosts=later), [])
    assert report.host == {
        "softnet_stat": {"processed": Change(1, 5, 4), "dropped": Change(0, 2, 2)}
    }
    assert set(report.missing) == set(PER_HOST) - {"softnet_stat"}


def as_json(report: counter_changes.Report) -> str:
    """As node.json holds it, indented even more than there."""
    files = {"host": report.host, "netns": [
        {"netns": one.netns, "missing": one.missing, "counters": one.counters}
        for one in report.netns
    ]}  # fmt: skip
    named = json.loads(json.dumps(files), object_hook=lambda found: {
        key: dict(zip(Change._fields, value, strict=True))
        if isinstance(value, list) and len(value) == 3 and key != "netns" else value
        for key, value in found.items()
    })  # fmt: skip
    return json.dumps({"node": named}, indent=2)


def crowded(seed: int) -> Snapshot:
    """Every file full of long names, all of which change."""
    names = [f"{'N' * 50}{i}" for i in range(200)]
    big = 10**19 + seed
    columns = f"X: {' '.join(names)}\nX: {' '.join(str(big) for _ in names)}\n".encode()
    rows = "".join(f"{name} {big}\n" for name in names).encode()
    groups = "".join(f"{name}: used {big}\n" for name in names).encode()
    table = f"{' '.join(names)}\n{' '.join(f'{seed:x}' for _ in names)}\n".encode()
    files: Files = {
        "netstat": columns, "snmp": columns, "snmp6": rows, "sockstat": groups,
        "sockstat6": groups, "stat/nf_conntrack": table,
    }  # fmt: skip
    assert set(files) == set(PER_NETNS)
    return snap(dict.fromkeys(range(4_026_531_840, 4_026_532_000), files), own=4_026_531_841)


def test_the_size_is_bounded_whatever_happened():
    report = fit(compare(crowded(1), crowded(2), range(4_026_531_840, 4_026_532_000)))
    assert report.counters_left_out > 10_000
    assert len(as_json(report)) <= counter_changes.MAX_BYTES
    assert len(as_json(report)) > counter_changes.MAX_BYTES / 2


def test_trouble_goes_before_the_rest_when_there_is_no_room():
    before, after = crowded(1), crowded(2)
    last = 4_026_531_900
    for one, value in ((before, 1), (after, 5)):
        assert isinstance(one.netns, dict)
        full = one.netns[last]
        assert not isinstance(full, Missing)
        raw = f"TcpExt: ListenOverflows\nTcpExt: {value}\n".encode()
        one.netns[last] = {**full, "netstat": raw}
    report = fit(compare(before, after, range(4_026_531_840, 4_026_532_000)))
    found = next(one for one in report.netns if one.netns == last)
    assert found.counters == {"netstat": {"TcpExt.ListenOverflows": Change(1, 5, 4)}}


def test_what_findings_subtract_is_told_also_where_it_stands_still():
    """One that is not told is not known. In node.json it would only take room."""
    raw: Files = {"netstat": b"TcpExt: TW TCPAbortOnData\nTcpExt: 7 0\n"}
    report = compare(snap({1: raw}), snap({1: raw}), [1])
    assert report.netns[0].counters == {"netstat": {"TcpExt.TCPAbortOnData": Change(0, 0, 0)}}
    assert fit(report).netns[0].counters == {}
    assert fit(report).counters_left_out == 0


def test_what_node_json_has_no_room_for_is_compared_all_the_same():
    events = range(4_026_531_840, 4_026_532_000)
    report = compare(crowded(1), crowded(2), events)
    assert [len(one.counters) for one in report.netns] == [len(PER_NETNS)] * 160
    assert report.counters_left_out == report.netns_left_out == 0
    assert fit(report).netns_left_out == 160 - counter_changes.KEPT_NETNS


def test_no_more_namespaces_are_compared_than_a_snapshot_reads():
    report = compare(snap(own=7), snap(own=7), range(1000, 2000))
    assert (len(report.netns), report.netns_left_out) == (
        counters.MAX_NETNS,
        1001 - counters.MAX_NETNS,
    )


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_arbitrary_files_never_raise(old: bytes, new: bytes):
    before = snap({1: dict.fromkeys(PER_NETNS, old)}, dict.fromkeys(PER_HOST, old))
    after = snap({1: dict.fromkeys(PER_NETNS, new)}, dict.fromkeys(PER_HOST, new))
    assert len(as_json(fit(compare(before, after, [1])))) <= counter_changes.MAX_BYTES


def test_this_host():
    before = counters.snapshot()
    after = counters.snapshot({before.own})
    report = compare(before, after, [before.own])
    assert report.netns[0].missing is None
