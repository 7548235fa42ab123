# SPDX-License-Identifier: Apache-2.0
"""The command `ktrace`: arguments and environment -> CaptureConfig -> session -> exit status.

The result goes to standard output (a report, or one JSON document with --json), everything else to
standard error. Only click and the models are imported here; the rest is imported when needed.
"""

import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ktrace_agent.cli import standard_streams
from ktrace_agent.cli.options import (
    CAPTURE,
    HOST_ROOT,
    JSON,
    OUT_DIR,
    SINK,
    THRESHOLD,
    THRESHOLD_FILE,
    boolean,
    configure,
    invalid,
    refuse,
    source_of,
    truth,
)
from ktrace_agent.cli.out_dir import prepared
from ktrace_agent.cli.parser import (
    EXAMPLES,
    NOTES,
    Commands,
    complaint,
    flag,
    repeated_flag,
    variables_of,
)
from ktrace_agent.cli.standard_streams import OutputFailed, ReaderLeft
from ktrace_agent.cli.threshold_options import thresholds
from ktrace_agent.errors import Failure, KtraceError, UsageError, failure
from ktrace_agent.signals import Stop, stopping
from ktrace_api import __version__
from ktrace_api.names import CAPTURE_VARIABLE

if TYPE_CHECKING:
    from ktrace_agent.bundle.seal import Sealed
    from ktrace_agent.session import Observer
    from ktrace_api.assignment import S3Target
    from ktrace_api.capture import CaptureConfig

_QUERY = """Run one SELECT statement (DuckDB SQL) on a bundle.

BUNDLE is a bundle.tgz or a folder that holds one.

\b
Tables: rows, flows, sockets, findings, counters, sysctls, accounting, capture, hooks.
  ktrace query out 'SELECT comm, remote, count(*) FROM rows GROUP BY ALL ORDER BY 3 DESC'
  ktrace query out 'DESCRIBE flows'
"""


@click.group(
    cls=Commands,
    help="Record socket activity on this node for a few seconds and save it as one bundle. "
    "Only metadata is recorded, never payload.\n\n" + EXAMPLES,
    epilog=NOTES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="ktrace", message="%(prog)s %(version)s")
def cli() -> None:
    """Run a command; `capture` if none is given."""


def _capture_flags(command: Callable[..., None]) -> Callable[..., None]:
    for option in (JSON, HOST_ROOT, SINK, OUT_DIR, THRESHOLD_FILE):
        command = flag(option)(command)
    command = repeated_flag(THRESHOLD)(command)
    for option in reversed(CAPTURE):
        command = flag(option)(command)
    return command


@cli.command(short_help="Record and save a bundle (the default command).")
@_capture_flags
@click.pass_context
def capture(
    ctx: click.Context,
    /,
    threshold: tuple[str, ...],
    threshold_file: str | None,
    out_dir: str | None,
    sink: str | None,
    host_root: str | None,
    json: str | None,
    **values: str | None,
) -> None:
    """Record socket activity on this node and save it as one bundle."""
    variables = variables_of(ctx)
    as_document = _truth(json, variables)
    if values["node"] is None:
        values["node"] = os.environ.get("NODE_NAME") or socket.gethostname()
    limits = thresholds(threshold, threshold_file, variables)
    config = configure(values, variables, limits)
    root = Path(host_root or HOST_ROOT.default)
    if not root.is_dir():
        raise refuse(HOST_ROOT, root, variables)
    target = _target(sink, config, source_of(SINK, variables)) if sink else None
    folder_name = Path(out_dir or OUT_DIR.default)
    stop = Stop()
    with prepared(folder_name, source_of(OUT_DIR, variables)) as folder, stopping(stop):
        from ktrace_agent import session
        from ktrace_agent.cli import json_result
        from ktrace_agent.view import console, progress

        with progress.observer(config) as observer:
            sealed = session.run(config, folder, observer, stop, root)
            sent_to = _deliver(sealed, target, observer) if target else ""
        try:
            if as_document:
                _print_json(json_result.document(sealed, sent_to))
            else:
                console.show(sealed, sent_to)
        except OutputFailed as error:
            raise type(error)(f"{error}; the bundle is saved: {sealed.bundle}") from error


def _target(sink: str, config: "CaptureConfig", source: str) -> "S3Target":
    """Parse --sink and check that the credentials in the environment are usable."""
    from ktrace_agent.sinks import s3_address, s3_credentials

    target = s3_address.parse(sink, config.node, os.environ, source=source)
    s3_credentials.from_environment(os.environ)
    return target


def _deliver(sealed: "Sealed", target: "S3Target", observer: "Observer") -> str:
    """Upload the bundle; returns the URL of its archive."""
    from ktrace_agent.sinks import deliver

    try:
        deliver.deliver(sealed, target, deliver.UPLOAD_SECONDS, observer.sealing)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"upload aborted: the bundle is only in {sealed.bundle.parent}"
        ) from None
    return f"{deliver.place(target)}/{sealed.bundle.name}"


@cli.command(short_help="Check the kernel and privileges.")
@flag(JSON)
@click.pass_context
def doctor(ctx: click.Context, json: str | None) -> None:
    """Check whether ktrace can record here: kernel features, BTF, privileges, eBPF programs."""
    from ktrace_agent.cli.doctor import document, examine
    from ktrace_agent.cli.doctor import show as show_for_people

    found = examine()
    if _truth(json, variables_of(ctx)):
        _print_json(document(found))
    else:
        show_for_people(found)
    if found.error is not None:
        raise click.exceptions.Exit(found.error.exit_status)


@cli.command(short_help="Show the report of a bundle.")
@click.argument("bundle")
@flag(JSON)
@click.pass_context
def show(ctx: click.Context, bundle: str, json: str | None) -> None:
    """Verify a bundle and show its report.

    BUNDLE is a bundle.tgz, a summary.json, or a folder that holds one of them. If the folder
    holds several bundles of one node, the newest is shown. --json prints the full summary.
    """
    from ktrace_agent.cli import bundle_commands

    bundle_commands.show(_bundle(bundle), as_document=_truth(json, variables_of(ctx)))


@cli.command(help=_QUERY, short_help="Run a SELECT statement on a bundle.")
@click.argument("bundle")
@click.argument("select")
@click.option(
    "--format",
    "form",
    metavar="FORMAT",
    help="Output format: table, csv or jsonl (default: table on a terminal, otherwise csv).",
)
def query(bundle: str, select: str, form: str | None) -> None:
    """Run one SELECT statement on a bundle."""
    from ktrace_agent.cli import bundle_commands

    bundle_commands.answer(_bundle(bundle), select, form)


def _bundle(text: str) -> Path:
    """The path of a bundle. An empty text is an error; as a path it would be this folder."""
    if not text.strip():
        raise invalid("BUNDLE", "path", text, "a bundle.tgz or a folder that holds one")
    return Path(text)


def _truth(text: str | None, variables: Mapping[str, str]) -> bool:
    """The value of --json."""
    return text is not None and boolean(JSON, text, variables)


def _wants_json(args: Sequence[str]) -> bool:
    """Whether errors are printed as JSON. Works even if the arguments are wrong."""
    wanted = truth(os.environ.get(JSON.variable, "")) is True
    for arg in args:
        name, _, value = arg.partition("=")
        if name == JSON.flag:
            wanted = truth(value) is not False
    return wanted


def _print_json(document: object) -> None:
    sys.stdout.write(dumps(document, indent=2) + "\n")
    sys.stdout.flush()


def _fail(args: Sequence[str], failed: Failure) -> int:
    """Report a failure: one line on standard error, or one JSON document on standard output."""
    line = " ".join(failed.message.split())
    status = failed.exit_status
    if _wants_json(args):
        error = {"reason": str(failed.reason), "message": line, "exit_status": status}
        with suppress(OutputFailed):  # the line on standard error is the fallback
            _print_json({"error": error})
            return status
    sys.stderr.write(f"ktrace: {line}\n")
    return status


def main(args: Sequence[str]) -> int:
    """Run with these arguments (without the program's name); returns the exit status."""
    with standard_streams.guarded():
        return _run(args)


def _run(args: Sequence[str]) -> int:
    captures = args[:1] not in (["show"], ["query"], ["doctor"])
    interrupted = "aborted by a second interrupt: no bundle was saved" if captures else "aborted"
    try:
        status = cli.main(list(args), prog_name="ktrace", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except ReaderLeft as error:
        return error.exit_status
    except click.UsageError as error:
        return _fail(args, failure(UsageError(complaint(error)), interrupted))
    except click.Abort as error:  # click's form of a KeyboardInterrupt
        return _fail(args, failure(error.__cause__ or KeyboardInterrupt(), interrupted))
    except (KtraceError, KeyboardInterrupt, MemoryError) as error:
        return _fail(args, failure(error, interrupted))
    except Exception as error:  # any bug: one line instead of a traceback
        if os.environ.get("KTRACE_DEBUG"):
            raise
        found = failure(error, interrupted)
        message = f"{found.message} (set KTRACE_DEBUG=1 for the traceback)"
        return _fail(args, found._replace(message=message))


def entry() -> None:
    """The console script. Without arguments it runs the assignment in KTRACE_CAPTURE, if set."""
    args = sys.argv[1:]
    if not args and CAPTURE_VARIABLE in os.environ:
        with standard_streams.guarded():
            from ktrace_agent.cli import assigned

            sys.exit(assigned.run(os.environ))
    sys.exit(main(args))


if __name__ == "__main__":
    entry()
