# SPDX-License-Identifier: Apache-2.0
"""Constant sentences of findings and verdicts."""

from string import Formatter
from typing import Any

from syrupy.assertion import SnapshotAssertion

from ktrace_agent.analyze import sentences
from ktrace_agent.analyze.titles import fill
from ktrace_api.finding import SENTENCE_CHARS, Cause, FindingId

FIELDS: dict[str, Any] = {
    "causes": "DNS, this node", "count": 2, "counters": "TcpExt.TCPAbortOnClose, ...",
    "filters": "port 443, one pod", "hooks": "connect, accept", "rows": 424, "sample": 1000,
    "seconds": 10, "share": 0.2, "title": "Accept queue full on an unknown listener",
}  # fmt: skip


def test_sentences(snapshot: SnapshotAssertion):
    shown = {}
    for name, template in vars(sentences).items():
        if isinstance(template, str) and name.isupper():
            names = {field for _, field, _, _ in Formatter().parse(template) if field}
            shown[name] = fill(template, **{field: FIELDS[field] for field in names})
    assert shown == snapshot


def test_what_would_refute_a_finding(snapshot: SnapshotAssertion):
    variants = {
        f"{finding}/{variant}": fill(text, count=12) if "{" in text else text
        for (finding, variant), text in sentences.REFUTED_BY_VARIANT.items()
    }
    shown: dict[str, str] = {str(one): text for one, text in sentences.REFUTED_BY.items()}
    shown |= variants
    assert "\n".join(f"{name}: {text}" for name, text in shown.items()) == snapshot
    assert max(map(len, shown.values())) <= SENTENCE_CHARS


def test_every_id_and_every_cause_has_its_words():
    assert sentences.REFUTED_BY.keys() == set(FindingId)
    assert sentences.CAUSES.keys() == set(Cause)
