# SPDX-License-Identifier: Apache-2.0
"""A capture that the operator asked for: KTRACE_CAPTURE in, a termination message out.

However it ends, the last thing that happens is one write to the termination log: the operator
knows nothing of this process but that message and its exit status.
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
from ktrace_agent.errors import AgentError, KtraceError, NodeBusy, UsageError
from ktrace_agent.sinks import s3_credentials
from ktrace_api.assignment import Assignment, S3Target
from ktrace_api.model import first_error
from ktrace_api.names import CAPTURE_VARIABLE, NodeReason
from ktrace_api.result import AgentResult, Delivered

if TYPE_CHECKING:
    from ktrace_agent.bundle.seal import Sealed

SOCKET = "\0ktrace-agent"
"""Abstract, in the node's network namespace: whoever is bound to it is the node's one agent."""
TERMINATION_LOG = "/dev/termination-log"
WORK_DIR = "/var/lib/ktrace/work"
BUNDLE_FOLDER = "bundle"
"""Below the work directory, beside what else needs room there."""
INTERRUPTED = 130


@dataclass
class _Outcome:
    """What is known of this run so far."""

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
    """Do the work of KTRACE_CAPTURE and report it; the exit status, 0 only for Completed."""
    outcome = _Outcome()
    with signals.ignored():  # what has an end is reported whatever is sent
        reason, message, status = _end_of(lambda: _work(environ, outcome))
        if reason is not NodeReason.COMPLETED:
            outcome.delivered = None
        result = outcome.result(reason, s3_credentials.scrub(message, environ))
        return _tell(environ, result, status)


def _end_of(work: Callable[[], None]) -> tuple[NodeReason, str, int]:
    """Reason, message and exit status of whatever happens."""
    try:
        work()
    except KtraceError as error:
        return error.reason, str(error), error.exit_status
    except KeyboardInterrupt:
        message = "given up at the second signal: nothing was delivered"
        return NodeReason.CANCELED, message, INTERRUPTED
    except MemoryError:
        message = "the agent has no memory left; raise its limit or lower maxEvents"
        return AgentError.reason, message, AgentError.exit_status
    except Exception as error:  # noqa: BLE001 - whatever it was: the operator must hear of it
        if os.environ.get("KTRACE_DEBUG"):
            traceback.print_exc()
        return AgentError.reason, f"{type(error).__name__}: {error}", AgentError.exit_status
    return NodeReason.COMPLETED, "", 0


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
        # A bad Secret is reported before the capture, not after it.
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
            outcome.sealed, assignment.target, assignment.upload_seconds, say
        )
        say(f"delivered to {deliver.place(assignment.target)}")


def parse(text: str) -> Assignment:
    """The assignment; raises UsageError that names the first wrong field, never its value."""
    try:
        return Assignment.model_validate_json(text)
    except ValidationError as error:
        raise UsageError(
            f"{CAPTURE_VARIABLE}: {first_error(error).line('the whole document')};"
            " operator and agent must have the same version"
        ) from error


@contextmanager
def _alone() -> Iterator[None]:
    """Be the one agent of this node; the kernel ends it with the process. NodeBusy otherwise."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as claim:
        try:
            claim.bind(SOCKET)
        except OSError as error:
            raise NodeBusy("another agent records on this node; try again later") from error
        yield


def say(text: str) -> None:
    """A line of progress for `kubectl logs`."""
    sys.stderr.write(f"ktrace: {text}\n")
    sys.stderr.flush()


def _tell(environ: Mapping[str, str], result: AgentResult, status: int) -> int:
    """Write the termination message; a result that nobody can read is no success."""
    say(": ".join(filter(None, (str(result.reason), result.message))))
    path = environ.get("KTRACE_TERMINATION_LOG", TERMINATION_LOG)
    create = os.O_CREAT if path != TERMINATION_LOG else 0  # the runtime made that one
    try:
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | create, 0o644)
        try:
            os.write(fd, result.to_message())
        finally:
            os.close(fd)
    except OSError as error:
        say(f"cannot write the result to {path}: {error.strerror}")
        return status or AgentError.exit_status
    return status
