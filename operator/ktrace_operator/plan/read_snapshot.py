# SPDX-License-Identifier: Apache-2.0
"""Parses a TraceSnapshot strictly and classifies one that cannot be parsed.

After a rollback, objects of a newer version still exist, with findings, reasons or fields that
this version does not know.
"""

from typing import Any, NamedTuple

from pydantic import ValidationError

from ktrace_api.kubeobject import ObjectMeta
from ktrace_api.model import first_error
from ktrace_api.names import ConditionType
from ktrace_api.snapshot import TraceSnapshot
from ktrace_api.status import SnapshotStatus


class Unreadable(NamedTuple):
    """A spec that the API server accepted and this operator cannot read."""

    metadata: ObjectMeta
    status: SnapshotStatus
    message: str


class Foreign(NamedTuple):
    """A status that this operator cannot read, written by another version.

    It is never overwritten, because it is the only record of the bundles' paths.
    """

    metadata: ObjectMeta
    ended: bool
    """Whether its condition Finished is True."""
    message: str


def read_snapshot(raw: dict[str, Any]) -> TraceSnapshot | Unreadable | Foreign:
    """The parsed object; or its readable part with one line that names the bad field."""
    try:
        return TraceSnapshot.model_validate(raw)
    except ValidationError as error:
        message = first_error(error).line("the object")
    metadata = ObjectMeta.model_validate(raw["metadata"])
    try:
        status = SnapshotStatus.model_validate(raw.get("status") or {})
    except ValidationError as error:
        return Foreign(metadata, _ended(raw["status"]), f"status.{first_error(error).line('')}")
    return Unreadable(metadata, status, message)


def _ended(status: Any) -> bool:
    """Whether Finished is True, whatever else the status contains."""
    conditions = status.get("conditions") if isinstance(status, dict) else None
    return any(
        isinstance(one, dict)
        and (one.get("type"), one.get("status")) == (ConditionType.FINISHED, "True")
        for one in conditions or ()
    )
