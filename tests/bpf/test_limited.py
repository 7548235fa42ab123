# SPDX-License-Identifier: Apache-2.0
"""With fewer rights or less room than a capture needs: what is missing, and what to do."""

import pytest

from tests.bpf.conftest import Begin
from tests.bpf.test_bad_input import ktrace

pytestmark = pytest.mark.world("bpf")


def test_what_no_program_serves_is_not_called_complete(capture: Begin) -> None:
    """CAP_BPF and CAP_PERFMON alone open no tracefs: no program sees the system calls."""
    few = ("setpriv", "--bounding-set=-sys_admin,-sys_ptrace,-net_admin")
    with capture(prefix=few) as one:
        pass
    missing = one.summary["hooks_missing"]
    if not missing:
        pytest.skip("this kernel shows tracefs to those without CAP_SYS_ADMIN")
    assert "connect" in missing
    assert any("No program serves" in note and "connect" in note for note in one.summary["notes"])
    found = next(f for f in one.summary["findings"] if f["id"] == "CAPTURE_INCOMPLETE")
    assert all(name in found["title"] for name in missing)
    assert "hooks_missing" in found["refuted_by"]
    shown = ktrace("show", str(one.file("bundle.tgz"))).stdout
    assert "complete: nothing was lost" not in shown
    if one.summary["complete"]:
        assert "no event was lost, but no program serves" in " ".join(shown.split())
