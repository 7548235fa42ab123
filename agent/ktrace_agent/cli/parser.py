# SPDX-License-Identifier: Apache-2.0
"""How the command line of `ktrace` is read: what click is told, and where a value came from.

Only click is loaded here.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import click
from click.core import ParameterSource

from ktrace_agent.cli.options import BY_PARAMETER, FLAGS, NEED_NO_VALUE, refuse
from ktrace_agent.cli.threshold_options import FILE_FLAG, FILE_VARIABLE, FLAG, PAIR, VARIABLE

HOST_ROOT = "the folder where the host's / is mounted"
_OTHERS = {
    "pairs": (FLAG, VARIABLE, PAIR),
    "threshold_file": (FILE_FLAG, FILE_VARIABLE, "a file that can be read"),
    "out_dir": ("--out-dir", "KTRACE_OUT_DIR", "a folder that is writable and has room"),
    "sink": ("--sink", "KTRACE_SINK", "s3://BUCKET/PREFIX?region=NAME&endpoint=URL"),
    "host_root": ("--host-root", "KTRACE_HOST_ROOT", HOST_ROOT),
}
"""Flags beside those of flags.py by parameter: name, variable, and what is accepted."""

EXAMPLES = """\b
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
NOTES = """\b
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


class _Command(click.Command):
    """A command that takes `--json=-1` for a wrong value of --json, not for a flag `-1`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {name for parameter in self.params for name in parameter.opts}
        for arg in args:
            name, _, value = arg.partition("=")
            if name in known and name in NEED_NO_VALUE and value.startswith("-"):
                raise refuse(name, value, NEED_NO_VALUE[name])
        return super().parse_args(ctx, args)


class Commands(click.Group):
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


class Whole(click.types.StringParamType):
    """A text that stays in one piece also where it comes from a variable."""

    def split_envvar_value(self, rv: str) -> list[str]:
        return [rv]


def capture_flags(command: Callable[..., None]) -> Callable[..., None]:
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


json_flag = click.option(
    "--json",
    "as_json",
    metavar="[BOOL]",
    is_flag=False,
    flag_value="true",
    envvar="KTRACE_JSON",
    help="Print the result as one JSON document and nothing else.",
)


def variables_of(ctx: click.Context) -> dict[str, str]:
    """Which values came from the environment, and by which variable."""
    origin = {name: flag.variable for name, flag in BY_PARAMETER.items() if is_variable(ctx, name)}
    if ctx.get_parameter_source("node") is ParameterSource.DEFAULT and os.environ.get("NODE_NAME"):
        origin["node"] = "NODE_NAME"
    return origin | {
        flag: variable for name, (flag, variable, _) in _OTHERS.items() if is_variable(ctx, name)
    }


def is_variable(ctx: click.Context, name: str) -> bool:
    """Whether the value of a parameter came from the environment."""
    return ctx.get_parameter_source(name) is ParameterSource.ENVIRONMENT


def source_of(flag: str, variables: Mapping[str, str]) -> str:
    """The flag, and the variable that its value came from."""
    return f"{flag} (from {variables[flag]})" if flag in variables else flag


def refuse_blank(ctx: click.Context, variables: Mapping[str, str]) -> None:
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


def complaint(error: click.UsageError) -> str:
    """Click's complaint as one line that names the flag."""
    if isinstance(error, click.NoSuchOption):
        near = f"; did you mean {error.possibilities[0]}?" if error.possibilities else ""
        return f"{error.option_name}: there is no such flag{near or '; see `ktrace --help`'}"
    if isinstance(error, click.BadOptionUsage):
        flag = BY_PARAMETER.get(error.option_name.removeprefix("--").replace("-", "_"))
        accepts = f"; give {flag.accepts}" if flag else ""
        return f"{error.option_name}: a value is missing{accepts}"
    return f"{error.format_message().rstrip('.')}; see `ktrace --help`"
