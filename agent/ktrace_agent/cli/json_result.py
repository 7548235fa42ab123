# SPDX-License-Identifier: Apache-2.0
"""The result of a capture as the JSON document that --json prints."""

from typing import TYPE_CHECKING, Any

from ktrace_agent.kernel.observed import known_loss
from ktrace_api.names import NodeReason

if TYPE_CHECKING:
    from ktrace_agent.bundle.seal import Sealed  # brings numpy and DuckDB: not while recording


def document(sealed: "Sealed", sent_to: str = "") -> dict[str, Any]:
    """Paths, size and completeness of the bundle, counts, verdict and findings.

    `sent_to` is the address of the archive's verified copy, "" if there is none.
    """
    summary = sealed.summary
    kinds = ("events", "parquet", "summary", "node", "bundle")
    return {
        "reason": str(NodeReason.COMPLETED),
        "ended_by": summary.ended_by,
        "node": summary.node,
        "started": summary.started.isoformat(),
        "ended": summary.ended.isoformat(),
        "paths": {
            kind: str(path.absolute()) for kind, path in zip(kinds, sealed.paths, strict=True)
        },
        "sent_to": sent_to or None,
        "bytes": sealed.bytes,
        "sha256": sealed.sha256,
        "events": summary.rows,
        "lost": known_loss(summary.lost, summary.hooks_missing),
        "complete": summary.complete,
        "gaps": [str(gap) for gap in summary.gaps],
        "hooks_missing": list(summary.hooks_missing),
        "counts": {str(row): count for row, count in summary.rows_by_type.items()},
        "notes": list(summary.notes),
        "verdict": str(summary.verdict.verdict),
        "findings": [
            one.model_dump(mode="json", include={"id", "severity", "title", "subject", "next"})
            for one in summary.findings
        ],
    }
