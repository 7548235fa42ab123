# SPDX-License-Identifier: Apache-2.0
"""Logs on standard error, one JSON object a line; no body of an object is ever logged."""

import json
import logging
import sys
from collections.abc import Hashable
from datetime import UTC, datetime
from typing import Literal


class JsonFormatter(logging.Formatter):
    """`{"ts", "level", "logger", "message", "error"}`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(level: str, form: Literal["json", "text"]) -> None:
    """Sets all loggers up; those of libraries say only what is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("ktrace_operator").setLevel(level.upper())


class News:
    """What is wrong with each thing, so that it is said when it changes and not at each look."""

    def __init__(self) -> None:
        self._wrong: dict[Hashable, str] = {}

    def changed(self, about: Hashable, wrong: str | None) -> bool:
        """Takes what is wrong now, None: nothing; says whether that is news. Safe for threads."""
        before = self._wrong.pop(about, None)
        if wrong is not None:
            self._wrong[about] = wrong
        return before != wrong
