# SPDX-License-Identifier: Apache-2.0
"""Remembers the current problem of each subject, so that only a change of it is logged."""

from collections.abc import Hashable


class Problems:
    """The current problem by subject. Safe for threads."""

    def __init__(self) -> None:
        self._current: dict[Hashable, str] = {}

    def changed(self, subject: Hashable, problem: str | None) -> bool:
        """Records the problem (None: solved) and returns whether it differs from the last one."""
        before = self._current.pop(subject, None)
        if problem is not None:
            self._current[subject] = problem
        return before != problem
