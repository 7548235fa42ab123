# SPDX-License-Identifier: Apache-2.0
"""What the loader writes, and the verifier's limit; nothing is booted."""

import json
from pathlib import Path

import numpy as np
import pytest

from ktrace_agent.tables.records import EVENT, STATES, TYPE
from ktrace_api.names import RowType
from tests.kernels import report, results
from tests.kernels.loader import refused
from tests.kernels.packages import SERIES
from tests.kernels.recording import Recording, address
from tests.kernels.results import MAX_INSTRUCTIONS

LOOPBACK = bytes(10) + b"\xff\xff\x7f\0\0\1"


def events() -> bytes:
    found = np.zeros(2, EVENT)
    found["type"] = TYPE[RowType.TCP_STATE], TYPE[RowType.UDP_RECV]
    found["tgid"] = 7
    found["old_state"], found["new_state"] = STATES.index("CLOSE"), STATES.index("LISTEN")
    found["local_port"], found["bytes"] = 53, 29
    found["remote_addr"] = LOOPBACK
    return found.tobytes()


def test_output_is_parsed_line_by_line():
    content = events()
    output = (
        b"program tcp_state 424025 3\niterator list_pending 4\n\n\n\n\n"
        b"map counters 4 2 3 1\n\0\0\0\0aabbccrecords %d\n%b"
    ) % (len(content), content)
    found = Recording(output, ("tcp_state",))
    assert found.instructions == {"tcp_state": 424025}
    assert found.programs["tcp_state"].recursion_misses() == 3
    assert found.iterators == {"list_pending": b"\n\n\n\n"}
    assert found.map("counters").lookup_percpu(0) == [b"aa", b"bb", b"cc"]
    assert dict(found.rows()) == {
        ("tcp_state", "7", "CLOSE", "LISTEN"): 1,
        ("udp_recv", "7", "53", "-", "29"): 1,
    }
    assert address(found.events[0]["remote_addr"]) == "127.0.0.1"


def test_an_unknown_line_is_an_error():
    with pytest.raises(ValueError, match="what"):
        Recording(b"what 1\n", ())


def test_a_program_above_half_of_the_verifiers_limit_fails():
    results.assert_within_limit({"tcp_state": MAX_INSTRUCTIONS})
    with pytest.raises(AssertionError, match=r"above half .*'tcp_state': 500001"):
        results.assert_within_limit({"tcp_state": MAX_INSTRUCTIONS + 1, "sock_send": 1})


def test_a_program_that_was_not_measured_fails():
    with pytest.raises(AssertionError):
        results.assert_within_limit({"tcp_state": 0})


def test_reasons_of_refused_programs():
    errors = (
        "libbpf: prog 'child_born': failed to load: -13\n"
        "load child_born: combined stack size of 2 calls is 576. Too large\tprocessed 9 insns\t\n"
        "libbpf: prog 'sock_send': failed to load: -3\n"
        "attach inet_send: Unknown error 524\n"
    )
    assert refused(errors) == {
        "child_born": "combined stack size of 2 calls is 576. Too large",
        "sock_send": "not loaded",
        "inet_send": "Unknown error 524",
    }


def test_the_page_waits_for_every_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    page = tmp_path / "kernels.md"
    for series in SERIES:
        for run in ("chosen", "retransmits"):
            assert report.main(["--write", str(page)]) == 1, (series, run)
            assert not page.exists()
            result = {
                "series": series,
                "version": "6.1.2-3",
                "arch": "amd64",
                "run": run,
                "hooks": {"tcp_state": "tracepoint"},
                "refused": {"sock_send": "no tracepoint"},
                "rows": {"tcp_state": 266, "connect": 40},
                "instructions": {"tcp_state": 241108},
                "figures": {"found": 318, "counted": 319},
            }
            (tmp_path / f"{series}.{run}.json").write_text(json.dumps(result))
    assert report.main(["--write", str(page)]) == 0
    lines = page.read_text().splitlines()
    assert "| 6.1.2 amd64 | 306 |  |  | 318 of 319 |" in lines
    assert "| 6.1.2 amd64 | `sock_send` | no tracepoint |" in lines
