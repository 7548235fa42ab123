# SPDX-License-Identifier: Apache-2.0
"""A capture for the operator: KTRACE_CAPTURE in, a termination message out.

However the run ends, its last step is one write to the termination log. The operator reads only
that message and the exit status.
"""

import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from ktrace_agent import signals
from ktrace_agent.cli import termination_message
from ktrace_agent.cli.out_dir import prepared
from ktrace_agent.errors import AgentError, Failure, KtraceError, NodeBusy, UsageError, failure
from ktrace_agent.sinks import s3_credentials
from ktrace_api.assignment import Assignment, S3Target
from ktrace_api.model import first_error
from ktrace_api.names import CAPTURE_VARIABLE, NodeReason
from ktrace_api.result import AgentResult, Delivered

if TYPE_CHECKING:
    from ktrace_agent.bundle.seal import Sealed

SOCKET = "\0ktrace-agent"
"""Abstract socket in the node's network namespace; the process bound to it is the node's agent."""
TERMINATION_LOG = "/dev/termination-log"
WORK_DIR = "/var/lib/ktrace/work"
BUNDLE_FOLDER = "bundle"
"""Folder of the bundle in the work directory, which also holds temporary files."""


@dataclass
class _Outcome:
    """The facts about this run so far."""

    uid: str = ""
    node: str = ""
    sealed: "Sealed | None" = None
    delivered: Delivered | None = None

    def result(self, reason: NodeReason, message: str = "") -> AgentResult:
        return termination_message.result(
            self.uid,
            self.node,
            reason,
            ended=datetime.now(UTC),
            message=message,
            summary=self.sealed.summary if self.sealed else None,
            delivered=self.delivered,
        )


def run(environ: Mapping[str, str]) -> int:
    """Run the assignment in KTRACE_CAPTURE and report the result.

    Returns the exit status: 0 only for Completed.
    """
    outcome = _Outcome()
    with signals.ignored():  # the result is reported even if more signals arrive
        failed = _failure(lambda: _work(environ, outcome))
        if failed is None:
            return _report(environ, outcome.result(NodeReason.COMPLETED), 0)
        outcome.delivered = None
        result = outcome.result(failed.reason, s3_credentials.scrub(failed.message, environ))
        return _report(environ, result, failed.exit_status)


def _failure(work: Callable[[], None]) -> Failure | None:
    """Run `work`; returns its failure, whatever it raises."""
    try:
        work()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - every failure is reported
        unexpected = not isinstance(error, KtraceError | KeyboardInterrupt | MemoryError)
        if unexpected and os.environ.get("KTRACE_DEBUG"):
            traceback.print_exc()
        return failure(error, "aborted by a second signal: no bundle was delivered")
    return None


def _work(environ: Mapping[str, str], outcome: _Outcome) -> None:
    stop = signals.Stop()
    with signals.stopping(stop, gives_up=signals.BOTH):
        _capture(environ, outcome, stop)


def _capture(environ: Mapping[str, str], outcome: _Outcome, stop: signals.Stop) -> None:
    text = environ[CAPTURE_VARIABLE]
    outcome.uid, outcome.node = termination_message.addressee(text)
    outcome.node = outcome.node or environ.get("NODE_NAME", "")
    assignment = parse(text)
    if isinstance(assignment.target, S3Target):
        # Report a bad Secret before the capture, not after it.
        s3_credentials.from_environment(environ)
    work = Path(environ.get("KTRACE_WORK_DIR", WORK_DIR)) / BUNDLE_FOLDER
    host_root = Path(environ.get("KTRACE_HOST_ROOT", "/"))
    with _alone(), prepared(work, "KTRACE_WORK_DIR") as folder:
        from ktrace_agent import session
        from ktrace_agent.sinks import deliver
        from ktrace_agent.view import progress

        config = assignment.capture.model_copy(update={"pods": assignment.pods})
        with progress.observer(config) as observer:
            outcome.sealed = session.run(config, folder, observer, stop, host_root)
        outcome.delivered = deliver.deliver(
            outcome.sealed, assignment.target, assignment.upload_seconds, log
        )
        log(f"delivered to {deliver.place(assignment.target)}")


def parse(text: str) -> Assignment:
    """Parse an assignment; raises UsageError with the first wrong field, never with its value."""
    try:
        return Assignment.model_validate_json(text)
    except ValidationError as error:
        raise UsageError(
            f"{CAPTURE_VARIABLE}: {first_error(error).line('the whole document')};"
            " operator and agent must have the same version"
        ) from error


@contextmanager
def _alone() -> Iterator[None]:
    """Be the only agent of this node until the process ends; raises NodeBusy if one exists."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as claim:
        try:
            claim.bind(SOCKET)
        except OSError as error:
            raise NodeBusy(
                "another ktrace agent is already running on this node; try again later"
            ) from error
        yield


def log(text: str) -> None:
    """Write a line of progress to `kubectl logs`."""
    sys.stderr.write(f"ktrace: {text}\n")
    sys.stderr.flush()


def _report(environ: Mapping[str, str], result: AgentResult, status: int) -> int:
    """Write the termination message; if that fails, the run has failed."""
    log(": ".join(filter(None, (str(result.reason), result.message))))
    path = environ.get("KTRACE_TERMINATION_LOG", TERMINATION_LOG)
    create = os.O_CREAT if path != TERMINATION_LOG else 0  # created by the container runtime
    try:
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | create, 0o644)
        try:
            os.write(fd, result.to_message())
        finally:
            os.close(fd)
    except OSError as error:
        log(f"cannot write the result to {path}: {error.strerror}")
        return status or AgentError.exit_status
    return status
