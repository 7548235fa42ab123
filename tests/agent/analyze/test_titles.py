# SPDX-License-Identifier: Apache-2.0
"""Every title, filled with few and with many, with an unknown process and with long names."""

from string import Formatter
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from ktrace_agent.analyze import titles
from ktrace_agent.analyze.findings.wording import by, who
from ktrace_agent.analyze.titles import GAPS, TITLES, Variant, fill, title
from ktrace_api.finding import TITLE_CHARS, FindingId

ONE: dict[str, Any] = {"comm": "shop", "tgid": 4711, "processes": 1}
MANY: dict[str, Any] = {"comm": "curl", "tgid": 1059, "processes": 12}
UNKNOWN: dict[str, Any] = {"comm": None, "tgid": None, "processes": 1}
LONGEST_IPV6 = "[2001:0db8:85a3:1111:2222:8a2e:0370:7334]:65535"

SMALL: dict[str, Any] = {
    "after": 1, "backends": "10.1.0.7:8080", "before": 0, "count": 1, "dropped": 1, "drops": 1,
    "error": "EPERM", "evicted": 1, "failed": 1, "full": 0.03, "gaps": "1 event lost",
    "growth": 1, "held": 1, "hooks": "connect", "known": 1, "late": 1, "most": 1, "ms": 9,
    "other": "10.0.0.3", "peer": "10.77.0.1:53", "resets": 1, "segs": 1, "sent": 1,
    "share": 0.001, "some": 0.1, "stalled": 1, "total": 1, "wait": "0.9",
}  # fmt: skip
LARGE: dict[str, Any] = {
    "after": 1060, "backends": "10.1.0.7:8080", "before": 5, "count": 2, "dropped": 5000,
    "drops": 1328, "error": "ENETUNREACH", "evicted": 800, "failed": 48, "full": 0.5,
    "gaps": "500 events lost, accept not traced", "growth": 1055, "held": 262144,
    "hooks": "connect and accept", "known": 3, "late": 2, "most": 262144, "ms": 1900,
    "other": "10.0.0.3", "peer": "10.77.0.1:8090", "resets": 5, "segs": 40, "sent": 2000,
    "share": 0.02, "some": 0.95, "stalled": 3, "total": 50, "wait": "0.9",
}  # fmt: skip

POOLED = {
    FindingId.DNS_NO_REPLY, FindingId.DNS_SLOW, FindingId.TCP_SYN_UNANSWERED,
    FindingId.TCP_CONNECT_REFUSED, FindingId.TCP_CONNECT_TIMEOUT,
    FindingId.TCP_CONNECT_UNREACHABLE, FindingId.TCP_CONNECT_SLOW, FindingId.CONNECT_DENIED,
    FindingId.EPHEMERAL_PORTS_EXHAUSTED,
}  # fmt: skip
"""Findings about several processes; the others are about one."""

ALL = [(finding, variant) for finding, variants in TITLES.items() for variant in variants]
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "few": (SMALL, ONE),
    "many": (LARGE, MANY),
    "unknown process": (LARGE, UNKNOWN),
    "IPv6": (LARGE | {"peer": "[fd00::2]:8090"}, ONE),
}


def filled(
    finding: FindingId, variant: Variant, fields: dict[str, Any], process: dict[str, Any]
) -> str:
    if process is MANY and finding not in POOLED:
        process = ONE
    fields = fields | {"by": by(process), "who": who(process)}
    names = {name for _, name, _, _ in Formatter().parse(TITLES[finding][variant]) if name}
    return title(finding, variant, **{name: fields[name] for name in names})


@pytest.mark.parametrize("case", CASES)
def test_titles(case: str, snapshot: SnapshotAssertion):
    shown = [f"{one}/{variant}: {filled(one, variant, *CASES[case])}" for one, variant in ALL]
    assert "\n".join(shown) == snapshot


@pytest.mark.parametrize(("finding", "variant"), ALL)
def test_a_title_fits_100_columns_and_is_never_cut(finding: FindingId, variant: Variant):
    assert max(len(filled(finding, variant, *case)) for case in CASES.values()) <= 100
    worst: dict[str, Any] = {"comm": "x" * 15, "tgid": 4194304, "processes": 1}
    assert len(filled(finding, variant, LARGE | {"peer": LONGEST_IPV6}, worst)) <= TITLE_CHARS


def test_every_id_has_a_title():
    assert TITLES.keys() == set(FindingId)
    assert all(Variant.PLAIN in variants for variants in TITLES.values())


def test_gaps(snapshot: SnapshotAssertion):
    fields = {"lost": 1, "unseen": 2, "capped": 5000, "overflow": 1}
    shown = [fill(GAPS[name], count=count) for name, count in fields.items()]
    assert [*shown, fill(GAPS["hooks"], hooks="accept"), GAPS["early"]] == snapshot


def test_clauses(snapshot: SnapshotAssertion):
    """The few words behind the verdict, for every cause that a finding may have."""
    pairs = titles._CLAUSES
    shown = [f"{one}/{cause}: {titles.clause(one, cause, '10.0.0.2:53')}" for one, cause in pairs]
    assert "\n".join(shown) == snapshot


def test_a_clause_without_its_peer_is_left_out():
    for (finding, cause), template in titles._CLAUSES.items():
        assert titles.clause(finding, cause, "-") == ("" if "{peer}" in template else template)


@pytest.mark.parametrize("fields", [{}, {"peer": "x"}, {"some": 0.5, "peer": "x"}])
def test_missing_and_unused_fields_are_errors(fields: dict[str, Any]):
    with pytest.raises(KeyError, match="some"):
        title(FindingId.CPU_PRESSURE, **fields)


def test_braces_in_a_name_are_text():
    """Process names are data: they must not be read as fields."""
    shown = title(FindingId.TCP_RESETS, peer="{who}", resets=1, who="{0.__class__} (1)")
    assert shown == "{who} reset 1 established connection from {0.__class__} (1)"


def test_a_field_without_a_value_is_unknown():
    """The remote address of a row may be NULL."""
    shown = title(FindingId.TCP_CONNECT_REFUSED, peer=None, failed=3, total=3, by="shop, pid 7")
    assert shown == "unknown peer refused 3 of 3 connections (shop, pid 7)"
