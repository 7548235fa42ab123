# SPDX-License-Identifier: Apache-2.0
"""The command `ktrace`: arguments and environment -> CaptureConfig -> session -> exit status.

Standard output carries the result (a table for people, one JSON document with --json),
standard error everything else. Only click is loaded here; the rest comes in when needed.
"""

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ktrace_agent import streams
from ktrace_agent.errors import KtraceError, UsageError
from ktrace_agent.flags import (
    BY_PARAMETER,
    FLAGS,
    NEED_NO_VALUE,
    boolean,
    configure,
    refuse,
    word,
)
from ktrace_agent.outdir import prepared
from ktrace_agent.signals import Stop, stopping
from ktrace_agent.streams import OutputFailed, ReaderLeft
from ktrace_agent.threshold_flags import (
    FILE_FLAG,
    FILE_VARIABLE,
    FLAG,
    PAIR,
    VARIABLE,
    thresholds,
)
from ktrace_api import __version__
from ktrace_api.names import CAPTURE_VARIABLE, NodeReason

if TYPE_CHECKING:
    from ktrace_agent.bundle import Sealed
    from ktrace_agent.session import Observer
    from ktrace_api.assignment import S3Target
    from ktrace_api.capture import CaptureConfig

INTERRUPTED = 130
"""Exit status after a second Ctrl-C: as shells count a death by SIGINT."""

_HOST_ROOT = "the folder where the host's / is mounted"
_OTHERS = {
    "pairs": (FLAG, VARIABLE, PAIR),
    "threshold_file": (FILE_FLAG, FILE_VARIABLE, "a file that can be read"),
    "out_dir": ("--out-dir", "KTRACE_OUT_DIR", "a folder that is writable and has room"),
    "sink": ("--sink", "KTRACE_SINK", "s3://BUCKET/PREFIX?region=NAME&endpoint=URL"),
    "host_root": ("--host-root", "KTRACE_HOST_ROOT", _HOST_ROOT),
}
"""Flags beside those of flags.py by parameter: name, variable, and what is accepted."""

_EXAMPLES = """\b
Examples:
  ktrace --duration=10s                       everything on this host, bundle in ./out
  ktrace --duration=60s --dns-only            DNS first: who asks, who gets no answer
  ktrace --duration=90s --ports=80,443,6443   one Service, or the API server
  ktrace --duration=60s --with-connect-latency --ports=443,6443
                                              slow connects: how long, how they end
  ktrace --duration=30s --json | jq .paths    for programs
  ktrace --sink='s3://traces/edge?region=eu-central-1'
                                              a verified copy in a bucket
  ktrace doctor                               what this kernel offers, what to do about it
"""
_NOTES = """\b
Look closer:
  jq -c 'select(.type=="connect" and .errno!=0)' out/ktrace.*.events.jsonl

\b
Ctrl-C, SIGTERM or a lost terminal ends the capture early and still seals the
bundle; a second Ctrl-C gives up and leaves no bundle.

\b
Every flag can be given by its variable: KTRACE_DURATION, KTRACE_OUT_DIR, ...
Only metadata is recorded, never payload. Needs root, or CAP_BPF and CAP_PERFMON.

\b
Exit status:
  0  the bundle is sealed          3  no permission
  1  the agent failed              4  this kernel is not supported
  2  wrong use                     5  the bundle could not be written or sent
  6  show, query: the bundle is damaged or none
  7  an agent of the operator: another one records on this node
  130  given up by a second Ctrl-C
  141  the reader of standard output left; a capture has sealed its bundle
A result that cannot be printed is a failure (1) too; the message says where the
sealed bundle is.
"""
_QUERY = """Answer one SELECT in DuckDB's SQL from a bundle.tgz, or the folder with one.

\b
Tables: rows, flows, sockets, findings, counters, sysctls, accounting, capture, hooks.
  ktrace query out 'SELECT comm, remote, count(*) FROM rows GROUP BY ALL ORDER BY 3 DESC'
  ktrace query out 'DESCRIBE flows'
"""


class _Command(click.Command):
    """A command that takes `--json=-1` for a wrong value of --json, not for a flag `-1`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {name for parameter in self.params for name in parameter.opts}
        for arg in args:
            name, _, value = arg.partition("=")
            if name in known and name in NEED_NO_VALUE and value.startswith("-"):
                raise refuse(name, value, NEED_NO_VALUE[name])
        return super().parse_args(ctx, args)


class _Commands(click.Group):
    """A group whose first command is meant where none is named."""

    command_class = _Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        alone = ("--help", "-h", "--version")
        known = (*self.commands, *alone)
        if args and args[0] in alone:
            args = args[:1]  # whatever else is there, it is not looked at
        if not args or (args[0] not in known and args[0].startswith("-")):
            args = ["capture", *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[capture] [FLAGS]")
        for usage in ("show BUNDLE [--json]", "query BUNDLE SELECT", "doctor [--json]"):
            formatter.write_usage(ctx.command_path, usage, prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        capture = self.commands["capture"]
        records = [
            record
            for parameter in capture.get_params(ctx)
            if parameter.name != "help" and (record := parameter.get_help_record(ctx))
        ]
        with formatter.section("Flags of a capture"):
            formatter.write_dl(records)
        self.format_commands(ctx, formatter)


class _Whole(click.types.StringParamType):
    """A text that stays in one piece also where it comes from a variable."""

    def split_envvar_value(self, rv: str) -> list[str]:
        return [rv]


def _capture_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Every flag as a text; a BOOL needs no value."""
    for flag in reversed(FLAGS):
        alone = "true" if flag.boolean else flag.alone
        optional: dict[str, Any] = {"is_flag": False, "flag_value": alone} if alone else {}
        command = click.option(
            flag.name,
            flag.parameter,
            metavar=f"[{flag.metavar}]" if alone else flag.metavar,
            envvar=flag.variable,
            help=flag.help,
            **optional,
        )(command)
    return command


_json_flag = click.option(
    "--json",
    "as_json",
    metavar="[BOOL]",
    is_flag=False,
    flag_value="true",
    envvar="KTRACE_JSON",
    help="Print the result as one JSON document and nothing else.",
)


@click.group(
    cls=_Commands,
    help="Record what this node's sockets do, as metadata, into one sealed bundle.\n\n" + _EXAMPLES,
    epilog=_NOTES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="ktrace", message="%(prog)s %(version)s")
def cli() -> None:
    """Choose a command; `capture` where none is named."""


@cli.command(short_help="Record for a while and seal a bundle (what bare `ktrace` does).")
@_capture_flags
@click.option(
    FLAG,
    "pairs",
    type=_Whole(),
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
@_json_flag
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
    variables = _variables(ctx)
    _refuse_blank(ctx, variables)
    if values["node"] is None:
        values["node"] = os.environ.get("NODE_NAME") or socket.gethostname()
    limits = thresholds(pairs, threshold_file, variables)
    config = configure(values, variables, limits)
    if not Path(host_root).is_dir():
        raise refuse("--host-root", host_root, _HOST_ROOT, variables.get("--host-root", ""))
    target = _target(sink, config, _source("--sink", variables)) if sink else None
    stop = Stop()
    with prepared(Path(out_dir), _source("--out-dir", variables)) as folder, stopping(stop):
        from ktrace_agent import result, session, terminal

        with terminal.observer(config) as observer:
            sealed = session.run(config, folder, observer, stop, Path(host_root))
            sent_to = _deliver(sealed, target, observer) if target else ""
        try:
            if as_document:
                _print(json.dumps(result.document(sealed, sent_to), indent=2))
            else:
                terminal.show(sealed, sent_to)
        except OutputFailed as error:
            raise type(error)(f"{error}; the bundle is sealed: {sealed.bundle}") from error


def _target(sink: str, config: "CaptureConfig", source: str) -> "S3Target":
    """Where --sink leads, and whether there is a chance to be let in."""
    from ktrace_agent.sinks import address, credentials

    target = address.parse(sink, config.node, os.environ, source=source)
    credentials.from_environment(os.environ)
    return target


def _deliver(sealed: "Sealed", target: "S3Target", observer: "Observer") -> str:
    """Send the bundle; the address of the archive there."""
    from ktrace_agent import delivery

    try:
        delivery.deliver(sealed, target, delivery.UPLOAD_SECONDS, observer.sealing)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"given up: the bundle is in {sealed.bundle.parent} only") from None
    return f"{delivery.place(target)}/{sealed.bundle.name}"


@cli.command(short_help="Show what this kernel and this user can do, and what to do about it.")
@_json_flag
def doctor(as_json: str | None) -> None:
    """Show kernel, BTF, privileges, and which programs serve which facts."""
    from ktrace_agent import doctor as examination

    found = examination.examine()
    if _asked_for_json(as_json):
        _print(json.dumps(examination.document(found), indent=2))
    else:
        examination.show(found)
    if found.error is not None:
        raise click.exceptions.Exit(found.error.exit_status)


@cli.command(short_help="Show what a bundle holds, after checking that it is whole.")
@click.argument("bundle")
@_json_flag
def show(bundle: str, as_json: str | None) -> None:
    """Show what a bundle holds: a bundle.tgz, a summary.json, or the folder with one of them.

    Of several bundles of one node in a folder the newest. With --json the whole summary.
    """
    from ktrace_agent import look

    look.show(_bundle(bundle), as_document=_asked_for_json(as_json))


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
    from ktrace_agent import look

    look.answer(_bundle(bundle), select, form)


def _variables(ctx: click.Context) -> dict[str, str]:
    """Which values came from the environment, and by which variable."""
    origin = {name: flag.variable for name, flag in BY_PARAMETER.items() if _is_variable(ctx, name)}
    if ctx.get_parameter_source("node") is ParameterSource.DEFAULT and os.environ.get("NODE_NAME"):
        origin["node"] = "NODE_NAME"
    return origin | {
        flag: variable for name, (flag, variable, _) in _OTHERS.items() if _is_variable(ctx, name)
    }


def _is_variable(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is ParameterSource.ENVIRONMENT


def _source(flag: str, variables: Mapping[str, str]) -> str:
    """The flag, and the variable that its value came from."""
    return f"{flag} (from {variables[flag]})" if flag in variables else flag


def _refuse_blank(ctx: click.Context, variables: Mapping[str, str]) -> None:
    """An empty value is a variable that a script never set: it must not mean everything.

    A variable of ours that is empty is one that is not set, it does not come here.
    """
    known = {
        **{name: (name, flag.name, flag.accepts) for name, flag in BY_PARAMETER.items()},
        **{name: (flag, flag, accepts) for name, (flag, _, accepts) in _OTHERS.items()},
    }
    for name, (key, flag, accepts) in known.items():
        given = ctx.params[name]
        for text in given if isinstance(given, tuple) else (given,):
            if text is not None and not text.strip():
                raise refuse(flag, text, accepts, variables.get(key, ""))


def _bundle(text: str) -> Path:
    """Where a bundle is; an empty text would be the folder one is in."""
    if not text.strip():
        raise refuse("BUNDLE", text, "a bundle.tgz, or the folder where one is")
    return Path(text)


def _asked_for_json(text: str | None) -> bool:
    variable = "KTRACE_JSON" if _is_variable(click.get_current_context(), "as_json") else ""
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


def _usage(error: click.UsageError) -> str:
    """Click's complaint as one line that names the flag."""
    if isinstance(error, click.NoSuchOption):
        near = f"; did you mean {error.possibilities[0]}?" if error.possibilities else ""
        return f"{error.option_name}: there is no such flag{near or '; see `ktrace --help`'}"
    if isinstance(error, click.BadOptionUsage):
        flag = BY_PARAMETER.get(error.option_name.removeprefix("--").replace("-", "_"))
        accepts = f"; give {flag.accepts}" if flag else ""
        return f"{error.option_name}: a value is missing{accepts}"
    return f"{error.format_message().rstrip('.')}; see `ktrace --help`"


def main(args: Sequence[str]) -> int:
    """Run with these arguments (without the program's name); the exit status."""
    with streams.guarded():
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
        return _fail(args, UsageError.reason, _usage(error), UsageError.exit_status)
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
        with streams.guarded():
            from ktrace_agent import assigned

            sys.exit(assigned.run(os.environ))
    sys.exit(main(args))


if __name__ == "__main__":
    entry()
