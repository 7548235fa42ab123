# SPDX-License-Identifier: Apache-2.0
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrace_agent.cli import termination_message
from ktrace_api.finding import Cause, Confidence, Finding, FindingId, Severity, Subject
from ktrace_api.names import Gap, NodeReason
from ktrace_api.result import MAX_MESSAGE_BYTES, read
from tests.agent.view.test_report import quiet

NOW = datetime(2026, 1, 24, 21, 57, 54, tzinfo=UTC)


def finding(id_: FindingId, comm: str = "curl", left_out: int = 0, title: str = "t") -> Finding:
    return Finding(
        id=id_,
        severity=Severity.WARNING,
        title=title,
        subject=Subject(comm=comm, tgid=7, peer="10.0.0.2:443"),
        counts={"subjects_left_out": left_out} if left_out else {},
        points_to=Cause.DNS,
        refuted_by="nothing",
        next="look",
        confidence=Confidence.HIGH,
    )


def test_findings_of_one_id_are_one_line_with_the_worst_first_and_their_number():
    found = termination_message.reported(
        [
            finding(FindingId.DNS_NO_REPLY, "coredns"),
            finding(FindingId.TCP_RESETS),
            finding(FindingId.DNS_NO_REPLY, "curl", left_out=5),
        ]
    )
    assert [(one.id, one.count) for one in found] == [
        (FindingId.DNS_NO_REPLY, 7),
        (FindingId.TCP_RESETS, 1),
    ]
    assert found[0].subject == "coredns 7 -> 10.0.0.2:443"


@pytest.mark.parametrize(
    ("subject", "line"),
    [
        (Subject(), "-"),
        (Subject(comm="curl"), "curl"),
        (Subject(comm="curl", tgid=7, namespace="shop", pod="web-0"), "shop/web-0 (curl 7)"),
        (Subject(peer="10.0.0.2"), "- -> 10.0.0.2"),
        (Subject(pod="p" * 253, namespace="n" * 253), f"{'n' * 200}"),
    ],
)
def test_a_subject_is_one_line(subject: Subject, line: str):
    assert termination_message.subject_line(subject) == line


@given(st.text(max_size=2000))
def test_a_message_is_one_short_line(text: str):
    line = termination_message.shortened(text)
    assert len(line) <= termination_message.MESSAGE_CHARS
    assert "\n" not in line


def test_both_ends_of_a_long_message_are_kept():
    line = termination_message.shortened(
        f"bucket b does not exist; {'x' * 500} the bundle is in /w/b"
    )
    assert line.startswith("bucket b does not exist; x")
    assert line.endswith(" the bundle is in /w/b")


def test_unknown_losses_stay_unknown_on_their_way_to_the_operator():
    """A missing hook that writes rows: how many events it would have had, nothing counted."""
    summary = quiet(
        complete=False, gaps=("not_traced",), hooks_missing=("socket_recv", "udp_recv_address")
    )
    result = termination_message.result(
        "u-1", "n1", NodeReason.AGENT_ERROR, ended=NOW, summary=summary
    )
    again = read(result.to_message())
    assert (again.complete, again.lost, again.events) == (False, None, 0)
    assert again.gaps == (Gap.NOT_TRACED,)
    assert again.hooks_missing == ("socket_recv", "udp_recv_address")


def test_a_hook_without_rows_leaves_the_losses_known():
    summary = quiet(complete=False, gaps=("not_traced",), hooks_missing=("accept",))
    result = termination_message.result(
        "u-1", "n1", NodeReason.AGENT_ERROR, ended=NOW, summary=summary
    )
    assert read(result.to_message()).lost == 0


@given(
    message=st.text(max_size=400),
    titles=st.lists(st.text(max_size=160), min_size=0, max_size=21),
    uid=st.text(max_size=80),
)
def test_whatever_is_reported_fits_and_is_read_again(message: str, titles: list[str], uid: str):
    ids = list(FindingId)
    found = [finding(ids[n % len(ids)], title=title) for n, title in enumerate(titles)]
    reported = termination_message.reported(found)
    result = termination_message.result(
        uid, "n1", NodeReason.AGENT_ERROR, ended=NOW, message=message
    )
    result = result.model_copy(update={"findings": tuple(reported[:12])})
    text = result.to_message()
    assert len(text) <= MAX_MESSAGE_BYTES
    again = read(text)
    assert len(again.findings) + again.findings_left_out == len(result.findings)


@given(st.text(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["snapshot", "capture", "uid", "node", "x"]), inner),
    max_leaves=8,
).map(json.dumps))  # fmt: skip
def test_an_addressee_is_a_pair_of_texts(text: str):
    uid, node = termination_message.addressee(text)
    assert isinstance(uid, str)
    assert isinstance(node, str)


def test_an_assignment_of_another_version_still_has_its_addressee():
    text = json.dumps({"version": 9, "snapshot": {"uid": "u"}, "capture": {"node": "n"}, "new": 1})
    assert termination_message.addressee(text) == ("u", "n")
    assert termination_message.addressee("[" * 100_000) == ("", "")
