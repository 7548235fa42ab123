# SPDX-License-Identifier: Apache-2.0
"""A TraceSnapshot as the API server gives it, read strictly; what to think of one that cannot be.

After a rollback, objects of a newer version are still there: a finding, a reason, a field that
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
    """A spec that this operator cannot read, though the API server took it."""

    metadata: ObjectMeta
    status: SnapshotStatus
    message: str


class Foreign(NamedTuple):
    """A status that this operator cannot read: another version's, never to be written over.

    What it says (paths of bundles, above all) is nowhere else.
    """

    metadata: ObjectMeta
    ended: bool
    """Whether it says that the snapshot came to its end."""
    message: str


def read_snapshot(raw: dict[str, Any]) -> TraceSnapshot | Unreadable | Foreign:
    """The object; else what could be read of it, and one line that names the field."""
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
    """Whether Finished is True, whatever else is there."""
    conditions = status.get("conditions") if isinstance(status, dict) else None
    return any(
        isinstance(one, dict)
        and (one.get("type"), one.get("status")) == (ConditionType.FINISHED, "True")
        for one in conditions or ()
    )
