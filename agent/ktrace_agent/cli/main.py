# SPDX-License-Identifier: Apache-2.0
"""The command `ktrace`: arguments and environment -> CaptureConfig -> session -> exit status.

Standard output carries the result (a table for people, one JSON document with --json),
standard error everything else. Only click is loaded here; the rest comes in when needed.
"""

import json
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ktrace_agent.cli import standard_streams
from ktrace_agent.cli.options import boolean, configure, refuse, word
from ktrace_agent.cli.out_dir import prepared
from ktrace_agent.cli.parser import (
    EXAMPLES,
    HOST_ROOT,
    NOTES,
    Commands,
    Whole,
    capture_flags,
    complaint,
    is_variable,
    json_flag,
    refuse_blank,
    source_of,
    variables_of,
)
from ktrace_agent.cli.standard_streams import OutputFailed, ReaderLeft
from ktrace_agent.cli.threshold_options import FILE_FLAG, FILE_VARIABLE, FLAG, VARIABLE, thresholds
from ktrace_agent.errors import KtraceError, UsageError
from ktrace_agent.signals import Stop, stopping
from ktrace_api import __version__
from ktrace_api.names import CAPTURE_VARIABLE, NodeReason

if TYPE_CHECKING:
    from ktrace_agent.bundle.seal import Sealed
    from ktrace_agent.session import Observer
    from ktrace_api.assignment import S3Target
    from ktrace_api.capture import CaptureConfig

INTERRUPTED = 130
"""Exit status after a second Ctrl-C: as shells count a death by SIGINT."""

_QUERY = """Answer one SELECT in DuckDB's SQL from a bundle.tgz, or the folder with one.

\b
Tables: rows, flows, sockets, findings, counters, sysctls, accounting, capture, hooks.
  ktrace query out 'SELECT comm, remote, count(*) FROM rows GROUP BY ALL ORDER BY 3 DESC'
  ktrace query out 'DESCRIBE flows'
"""


@click.group(
    cls=Commands,
    help="Record what this node's sockets do, as metadata, into one sealed bundle.\n\n" + EXAMPLES,
    epilog=NOTES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="ktrace", message="%(prog)s %(version)s")
def cli() -> None:
    """Choose a command; `capture` where none is named."""


@cli.command(short_help="Record for a while and seal a bundle (what bare `ktrace` does).")
@capture_flags
@click.option(
    FLAG,
    "pairs",
    type=Whole(),
    metavar="NAME=VALUE",
    envvar=VARIABLE,
    multiple=True,
    help="Where a finding begins (docs/thresholds.md); may be given again.",
)
@click.option(
    FILE_FLAG,
    metavar="FILE",
    envvar=FILE_VARIABLE,
    help="Thresholds as TOML or JSON; --threshold stands above it.",
)
@click.option(
    "--out-dir",
    metavar="DIR",
    envvar="KTRACE_OUT_DIR",
    default="out",
    help="Where the bundle goes; made where it is missing.  [default: ./out]",
)
@click.option(
    "--sink",
    metavar="URL",
    envvar="KTRACE_SINK",
    help="Where a verified copy of the bundle goes, s3://BUCKET/PREFIX (docs/delivery.md).",
)
@click.option(
    "--host-root",
    metavar="DIR",
    envvar="KTRACE_HOST_ROOT",
    default="/",
    help="Where the host's / is, for an agent in a container.  [default: /]",
)
@json_flag
@click.pass_context
def capture(
    ctx: click.Context,
    /,
    out_dir: str,
    sink: str | None,
    host_root: str,
    as_json: str | None,
    pairs: tuple[str, ...],
    threshold_file: str | None,
    **values: str | None,
) -> None:
    """Record what this node's sockets do and seal a bundle."""
    as_document = _asked_for_json(as_json)
    variables = variables_of(ctx)
    refuse_blank(ctx, variables)
    if values["node"] is None:
        values["node"] = os.environ.get("NODE_NAME") or socket.gethostname()
    limits = thresholds(pairs, threshold_file, variables)
    config = configure(values, variables, limits)
    if not Path(host_root).is_dir():
        raise refuse("--host-root", host_root, HOST_ROOT, variables.get("--host-root", ""))
    target = _target(sink, config, source_of("--sink", variables)) if sink else None
    stop = Stop()
    with prepared(Path(out_dir), source_of("--out-dir", variables)) as folder, stopping(stop):
        from ktrace_agent import session
        from ktrace_agent.cli import json_result
        from ktrace_agent.view import console, progress

        with progress.observer(config) as observer:
            sealed = session.run(config, folder, observer, stop, Path(host_root))
            sent_to = _deliver(sealed, target, observer) if target else ""
        try:
            if as_document:
                _print(json.dumps(json_result.document(sealed, sent_to), indent=2))
            else:
                console.show(sealed, sent_to)
        except OutputFailed as error:
            raise type(error)(f"{error}; the bundle is sealed: {sealed.bundle}") from error


def _target(sink: str, config: "CaptureConfig", source: str) -> "S3Target":
    """Where --sink leads, and whether there is a chance to be let in."""
    from ktrace_agent.sinks import s3_address, s3_credentials

    target = s3_address.parse(sink, config.node, os.environ, source=source)
    s3_credentials.from_environment(os.environ)
    return target


def _deliver(sealed: "Sealed", target: "S3Target", observer: "Observer") -> str:
    """Send the bundle; the address of the archive there."""
    from ktrace_agent.sinks import deliver

    try:
        deliver.deliver(sealed, target, deliver.UPLOAD_SECONDS, observer.sealing)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"given up: the bundle is in {sealed.bundle.parent} only") from None
    return f"{deliver.place(target)}/{sealed.bundle.name}"


@cli.command(short_help="Show what this kernel and this user can do, and what to do about it.")
@json_flag
def doctor(as_json: str | None) -> None:
    """Show kernel, BTF, privileges, and which programs serve which facts."""
    from ktrace_agent.cli.doctor import document, examine
    from ktrace_agent.cli.doctor import show as show_for_people

    found = examine()
    if _asked_for_json(as_json):
        _print(json.dumps(document(found), indent=2))
    else:
        show_for_people(found)
    if found.error is not None:
        raise click.exceptions.Exit(found.error.exit_status)


@cli.command(short_help="Show what a bundle holds, after checking that it is whole.")
@click.argument("bundle")
@json_flag
def show(bundle: str, as_json: str | None) -> None:
    """Show what a bundle holds: a bundle.tgz, a summary.json, or the folder with one of them.

    Of several bundles of one node in a folder the newest. With --json the whole summary.
    """
    from ktrace_agent.cli import bundle_commands

    bundle_commands.show(_bundle(bundle), as_document=_asked_for_json(as_json))


@cli.command(
    help=_QUERY, short_help="Answer a SELECT over rows, flows, sockets, findings of a bundle."
)
@click.argument("bundle")
@click.argument("select")
@click.option(
    "--format",
    "form",
    metavar="FORMAT",
    help="table, csv or jsonl.  [default: table on a terminal, else csv]",
)
def query(bundle: str, select: str, form: str | None) -> None:
    """Answer one SELECT from a bundle."""
    from ktrace_agent.cli import bundle_commands

    bundle_commands.answer(_bundle(bundle), select, form)


def _bundle(text: str) -> Path:
    """Where a bundle is; an empty text would be the folder one is in."""
    if not text.strip():
        raise refuse("BUNDLE", text, "a bundle.tgz, or the folder where one is")
    return Path(text)


def _asked_for_json(text: str | None) -> bool:
    variable = "KTRACE_JSON" if is_variable(click.get_current_context(), "as_json") else ""
    return text is not None and boolean("--json", text, variable)


def _wants_json(args: Sequence[str]) -> bool:
    """Whether errors should be JSON too, also when the arguments themselves are wrong."""
    wanted = word(os.environ.get("KTRACE_JSON", "")) is True
    for arg in args:
        name, _, value = arg.partition("=")
        if name == "--json":
            wanted = word(value) is not False
    return wanted


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _fail(args: Sequence[str], reason: NodeReason, message: str, status: int) -> int:
    """One line on standard error, or one JSON document on standard output."""
    line = " ".join(message.split())
    if _wants_json(args):
        error = {"reason": str(reason), "message": line, "exit_status": status}
        with suppress(OutputFailed):  # then the line has to do
            _print(json.dumps({"error": error}, indent=2))
            return status
    sys.stderr.write(f"ktrace: {line}\n")
    return status


def main(args: Sequence[str]) -> int:
    """Run with these arguments (without the program's name); the exit status."""
    with standard_streams.guarded():
        return _run(args)


def _run(args: Sequence[str]) -> int:
    try:
        status = cli.main(list(args), prog_name="ktrace", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except ReaderLeft as error:
        return error.exit_status
    except KtraceError as error:
        return _fail(args, error.reason, str(error), error.exit_status)
    except click.UsageError as error:
        return _fail(args, UsageError.reason, complaint(error), UsageError.exit_status)
    except (KeyboardInterrupt, click.Abort) as error:
        captured = args[:1] not in (["show"], ["query"], ["doctor"])
        message = "given up at the second interrupt: there is no bundle" if captured else "given up"
        said = str(error.__cause__ or error)  # click makes an Abort of it
        return _fail(args, NodeReason.CANCELED, said or message, INTERRUPTED)
    except Exception as error:  # the last line of defence: one line, not a trace
        if os.environ.get("KTRACE_DEBUG"):
            raise
        message = f"{type(error).__name__}: {error}; set KTRACE_DEBUG=1 for the trace"
        return _fail(args, NodeReason.AGENT_ERROR, message, 1)


def entry() -> None:
    """The console script: without arguments, an assignment in KTRACE_CAPTURE is worked on."""
    args = sys.argv[1:]
    if not args and CAPTURE_VARIABLE in os.environ:
        with standard_streams.guarded():
            from ktrace_agent.cli import assigned

            sys.exit(assigned.run(os.environ))
    sys.exit(main(args))


if __name__ == "__main__":
    entry()
