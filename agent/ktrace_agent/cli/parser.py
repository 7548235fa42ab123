# SPDX-License-Identifier: Apache-2.0
"""The command line of `ktrace` as click parses it, and the wording of click's errors."""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ktrace_agent.cli.options import OPTIONS, Option, refuse
from ktrace_agent.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

_SEE = "See '{} --help'."
_HARD_SPACE = "\N{NO-BREAK SPACE}"
EXAMPLES = """\b
Examples:
  ktrace --duration=10s                       record everything, bundle in ./out
  ktrace --duration=60s --dns-only            record DNS queries and answers
  ktrace --duration=90s --ports=80,443,6443   record one Service, or the API server
  ktrace --duration=60s --with-connect-latency --ports=443,6443
                                              find slow and failed connects
  ktrace --duration=30s --json | jq .paths    print the result as JSON
  ktrace --sink='s3://traces/edge?region=eu-central-1'
                                              upload a verified copy to a bucket
  ktrace show out                             read the bundle again
  ktrace doctor                               check the kernel and privileges
"""
NOTES = """\b
Query the rows:
  jq -c 'select(.type=="connect" and .errno!=0)' out/ktrace.*.events.jsonl

\b
Privileges:
  Recording requires root, or CAP_BPF and CAP_PERFMON.

\b
Signals:
  Ctrl-C, SIGTERM or SIGHUP stops recording early and saves the bundle.
  A second Ctrl-C aborts without a bundle.

\b
Environment:
  Every flag has a variable: KTRACE_DURATION, KTRACE_OUT_DIR, ...
  A flag overrides its variable. Empty variables are ignored; empty flags are errors.

\b
Exit status:
  0    bundle saved
  1    agent failed, or the result could not be printed
  2    wrong flag, variable or argument
  3    permission denied
  4    kernel not supported
  5    bundle could not be written or uploaded
  6    show, query: bundle corrupt, or not a ktrace bundle
  7    another ktrace agent is already running on this node
  130  aborted by a second Ctrl-C, without a bundle
  141  standard output was closed by its reader; a capture has saved its bundle
"""


class TextOption(click.Option):
    """A flag whose value stays a text. An empty value is an error.

    Otherwise --ports="$PORTS" with an unset PORTS would record all ports. Empty environment
    variables do not arrive here: click ignores them.
    """

    def __init__(self, param_decls: Sequence[str], *, option: Option, **attrs: Any) -> None:
        alone: dict[str, Any] = {}
        if option.alone:
            alone = {"is_flag": False, "flag_value": option.alone}
        metavar = f"[{option.metavar}]" if option.alone else option.metavar
        default = f"[default: {option.default}]" if option.default else ""
        super().__init__(
            param_decls,
            metavar=metavar,
            envvar=option.variable,
            help=f"{option.help}  {default.replace(' ', _HARD_SPACE)}".rstrip(),
            **(alone | attrs),
        )
        self.option = option

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        for text in value if isinstance(value, list | tuple) else (value,):
            if isinstance(text, str) and not text.strip():
                variable = {self.option.flag: self.option.variable}
                raise refuse(self.option, text, variable if _from_variable(ctx, self) else {})
        return super().process_value(ctx, value)


class _Help(click.Command):
    """A command whose help does not break a line inside of `[default: VALUE]`."""

    def get_help(self, ctx: click.Context) -> str:
        return super().get_help(ctx).replace(_HARD_SPACE, " ")


class Command(_Help):
    """A command for which `--json=-1` is a wrong value of --json; click sees an option `-1`."""

    def __init__(self, name: str | None, **attrs: Any) -> None:
        super().__init__(name, options_metavar="[FLAGS]", **attrs)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Flags"):
            formatter.write_dl(_help_records(self, ctx))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = {one.option.flag: one.option for one in _text_options(self) if one.option.alone}
        for arg in args:
            flag, _, value = arg.partition("=")
            if flag in options and value.startswith("-"):
                raise refuse(options[flag], value, {})
        return super().parse_args(ctx, args)


class Commands(_Help, click.Group):
    """A group whose command `capture` runs if no command is given."""

    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        alone = ("--help", "-h", "--version")
        known = (*self.commands, *alone)
        if args and args[0] in alone:
            args = args[:1]  # other arguments are ignored
        if not args or (args[0] not in known and args[0].startswith("-")):
            args = ["capture", *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands:
            from difflib import get_close_matches

            near = [f"Did you mean {name}?" for name in get_close_matches(args[0], self.commands)]
            raise UsageError(f"unknown command: {args[0]}. {[*near, _SEE.format('ktrace')][0]}")
        return super().resolve_command(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[capture] [FLAGS]")
        for usage in ("show BUNDLE [--json]", "query BUNDLE SELECT", "doctor [--json]"):
            formatter.write_usage(ctx.command_path, usage, prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Flags of capture"):
            formatter.write_dl(_help_records(self.commands["capture"], ctx))
        self.format_commands(ctx, formatter)


class _Whole(click.types.StringParamType):
    """A text that is not split if it comes from an environment variable."""

    def split_envvar_value(self, rv: str) -> list[str]:
        return [rv]


def flag(option: Option, parameter: str = "") -> Callable[[F], F]:
    """Add a flag to a command; its value is the text of `parameter`."""
    return click.option(option.flag, parameter or option.parameter, cls=TextOption, option=option)


def repeated_flag(option: Option) -> Callable[[F], F]:
    """Add a flag that can be given several times; its value is a tuple of texts."""
    return click.option(
        option.flag,
        option.parameter,
        cls=TextOption,
        option=option,
        type=_Whole(),
        multiple=True,
    )


def variables_of(ctx: click.Context) -> dict[str, str]:
    """The flags whose values came from the environment, with their variables."""
    found = {
        one.option.flag: one.option.variable
        for one in _text_options(ctx.command)
        if _from_variable(ctx, one)
    }
    if ctx.get_parameter_source("node") is ParameterSource.DEFAULT and os.environ.get("NODE_NAME"):
        found["--node"] = "NODE_NAME"
    return found


def complaint(error: click.UsageError) -> str:
    """One line for an error of click's parser: what is wrong, and what to do."""
    path = error.ctx.command_path if error.ctx else "ktrace"
    see = _SEE.format(path.removesuffix(" capture"))
    if isinstance(error, click.NoSuchOption):
        near = f"Did you mean {error.possibilities[0]}?" if error.possibilities else see
        return f"unknown flag: {error.option_name}. {near}"
    if isinstance(error, click.BadOptionUsage):
        accepts = {one.flag: f": use {one.accepts}" for one in OPTIONS}
        return f"{error.option_name}: missing value{accepts.get(error.option_name, '')}"
    if isinstance(error, click.MissingParameter) and error.param is not None:
        return f"missing argument: {error.param.human_readable_name}. {see}"
    text = error.format_message()
    return f"{text[:1].lower()}{text[1:].rstrip('.')}. {see}"


def _help_records(command: click.Command, ctx: click.Context) -> list[tuple[str, str]]:
    options = (one for one in command.get_params(ctx) if isinstance(one, click.Option))
    return [record for one in options if (record := one.get_help_record(ctx)) is not None]


def _text_options(command: click.Command) -> list[TextOption]:
    return [one for one in command.params if isinstance(one, TextOption)]


def _from_variable(ctx: click.Context, parameter: click.Parameter) -> bool:
    return ctx.get_parameter_source(parameter.name or "") is ParameterSource.ENVIRONMENT
