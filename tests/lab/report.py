# SPDX-License-Identifier: Apache-2.0
"""The lab's results as text: findings that were found, missed or false, by scene."""

import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from tests.lab.judge import Outcome


@dataclass(frozen=True)
class Score:
    """The lab in numbers."""

    expected: int
    found: int
    false: int
    verdicts: int
    verdicts_true: int
    incidents: int
    healthy: int
    skipped: int
    failed: int

    @property
    def recall(self) -> float:
        return self.found / self.expected if self.expected else 1.0

    @property
    def good(self) -> bool:
        """Whether the project's target is met: a recall of 0.95 and no false finding."""
        return self.recall >= 0.95 and not self.false and not self.failed


def score(outcomes: Sequence[Outcome]) -> Score:
    played = [one for one in outcomes if not one.skipped and not one.failed]
    return Score(
        expected=sum(len(one.expected) for one in played),
        found=sum(len(one.found) for one in played),
        false=sum(len(one.false) for one in played),
        verdicts=len(played),
        verdicts_true=sum(one.verdict_true for one in played),
        incidents=sum(one.incident for one in played),
        healthy=sum(not one.incident for one in played),
        skipped=sum(bool(one.skipped) for one in outcomes),
        failed=sum(bool(one.failed) for one in outcomes),
    )


def matrix(outcomes: Sequence[Outcome]) -> list[str]:
    """Incidents by findings as a Markdown table. document() explains the signs."""
    ids = sorted({name for one in outcomes for name in (*one.expected, *one.also, *one.false)})
    lines = ["| scene | captures | " + " | ".join(ids) + " | verdict |"]
    lines.append("|---|---|" + "---|" * (len(ids) + 1))
    for name in dict.fromkeys(one.scene for one in outcomes):
        same = [one for one in outcomes if one.scene == name and not one.skipped]
        if not same:
            continue
        if not (same[0].incident or any(one.false for one in same)):
            continue
        cells = [_cell(same, identity) for identity in ids]
        verdicts = Counter(one.verdict + ("" if one.verdict_true else " (!)") for one in same)
        lines.append(f"| {name} | {len(same)} | {' | '.join(cells)} | {', '.join(verdicts)} |")
    return lines


def _cell(same: Sequence[Outcome], identity: str) -> str:
    expected = sum(identity in one.expected for one in same)
    found = sum(identity in one.found for one in same)
    also = sum(identity in one.also and identity not in one.found for one in same)
    false = sum(one.false.count(identity) for one in same)
    parts = [f"{found}/{expected}"] if expected else []
    parts += [f"+{also}"] if also else []
    parts += [f"!{false}"] if false else []
    return " ".join(parts)


def sentence(result: Score) -> str:
    return (
        f"Recall {result.recall:.3f} ({result.found} of {result.expected} expected findings, each "
        f"with the correct subject), {result.false} false findings at warning or above, correct "
        f"verdict in {result.verdicts_true} of {result.verdicts}; {result.incidents} captures of "
        f"incidents, {result.healthy} healthy scenes, {result.skipped} skipped, "
        f"{result.failed} failed."
    )


def document(outcomes: Sequence[Outcome], seconds: float) -> str:
    """docs/accuracy.md."""
    result, machine = score(outcomes), platform.uname()
    lines = [
        "# How accurate the findings are",
        "",
        "`make lab` writes this page. The lab produces incidents with real processes in network",
        "namespaces and captures each with the `ktrace` command, without and with background",
        "traffic. Healthy traffic must have no finding above info. Before a result is judged, the",
        "scene proves with its own counters that it happened as described.",
        "",
        f"Last run: {datetime.now(UTC):%Y-%m-%d}, kernel {machine.release} ({machine.machine}),",
        f"{seconds:.0f} s. {sentence(result)}",
        "",
        "## Incidents and findings",
        "",
        "`2/2`: found with the correct subject in 2 of 2 captures. `+1`: not expected, but true.",
        "`!1`: false. `(!)`: the verdict is not correct.",
        "",
        *matrix(outcomes),
        "",
        "## Incidents",
        "",
        "| scene | fault |",
        "|---|---|",
        *_descriptions(outcomes, incident=True),
        "",
        "## Healthy scenes",
        "",
        "| scene | traffic | findings above info |",
        "|---|---|---|",
        *_descriptions(outcomes, incident=False),
        "",
        "## Known errors",
        "",
        *_wrong(outcomes),
        "",
        "## Scenes that this host could not produce",
        "",
        *_skipped(outcomes),
    ]
    return "\n".join(lines) + "\n"


def _descriptions(outcomes: Sequence[Outcome], *, incident: bool) -> list[str]:
    lines = []
    chosen = {one.scene: one for one in outcomes if one.incident == incident and not one.skipped}
    for name, one in chosen.items():
        false = sum(len(other.false) for other in outcomes if other.scene == name)
        lines.append(f"| {name} | {one.about} |" + ("" if incident else f" {false} |"))
    return lines


def _wrong(outcomes: Sequence[Outcome]) -> list[str]:
    lines = []
    for one in outcomes:
        where = one.scene + (" with background" if one.background else "")
        lines += [f"- {where}: missed {name}" for name in one.missed if not one.skipped]
        lines += [f"- {where}: false {name}" for name in one.false]
        if not one.verdict_true and not one.skipped and not one.failed:
            lines.append(f"- {where}: verdict {one.verdict}")
        if one.failed:
            lines.append(f"- {where}: the scene did not happen as described")
    return lines or ["None."]


def _skipped(outcomes: Sequence[Outcome]) -> list[str]:
    lines = {f"- {one.scene} ({one.about}): {one.skipped}" for one in outcomes if one.skipped}
    return sorted(lines) or ["None."]
