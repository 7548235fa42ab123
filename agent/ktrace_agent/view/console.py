# SPDX-License-Identifier: Apache-2.0
"""Writes results for people to standard output."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ktrace_agent.bundle.seal import Sealed

_WIDTH_OF_A_FILE = 100


def write(*parts: "RenderableType") -> None:
    """Write to standard output, with colors on a terminal unless NO_COLOR is set.

    Without a terminal, lines are 100 columns wide and have no trailing blanks.
    """
    from rich.console import Console

    terminal = sys.stdout.isatty()
    out = Console(
        file=sys.stdout,
        width=None if terminal else _WIDTH_OF_A_FILE,
        highlight=False,
        markup=False,
        emoji=False,
    )
    with out.capture() as text:
        for part in parts:
            out.print(part, soft_wrap=isinstance(part, str))
    lines = text.get().split("\n")
    sys.stdout.write("\n".join(lines if terminal else map(str.rstrip, lines)))
    sys.stdout.flush()


def show(sealed: "Sealed", sent_to: str = "") -> None:
    """Show the report, the path of the bundle and the address of its verified copy."""
    from ktrace_agent.view import findings, report

    whereabouts = findings.whereabouts(sealed.summary, sealed.bundle, sent_to)
    write(report.report(sealed.summary), *whereabouts)
