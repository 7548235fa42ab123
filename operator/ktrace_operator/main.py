# SPDX-License-Identifier: Apache-2.0
"""The console script `ktrace-operator`: arguments, start-up, exit status."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from ktrace_operator.errors import OperatorError, UsageError
from ktrace_operator.serve import logs
from ktrace_operator.serve.run import serve
from ktrace_operator.serve.uninstall import release_all
from ktrace_operator.settings import Settings, SettingsError, load

SETTINGS_VARIABLE = "KTRACE_SETTINGS"

_ABOUT = """\
Run TraceSnapshots: start an agent pod on each selected node, collect the agents' results and
write them to the status of the snapshot.
"""
_MORE = """\
examples:
  ktrace-operator run --settings=settings.yaml      in a cluster, or outside with KUBECONFIG
  ktrace-operator release --settings=settings.yaml  before an uninstall: remove all agent pods

The settings file names the served namespaces, the agent image, limits and outputs. The chart
renders it from its values. Replicas elect a leader with a Lease; the others wait.

exit status: 0 stopped by a signal, 1 failed, 2 wrong argument or setting, 3 Lease lost
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ktrace-operator",
        description=_ABOUT,
        epilog=_MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ktrace {version('ktrace')}")
    commands = parser.add_subparsers(dest="command", metavar="run | release", required=True)
    for name, text in (
        ("run", "serve snapshots until SIGTERM"),
        ("release", "delete all agent pods of the served namespaces, with their finalizers"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "--settings",
            metavar="FILE",
            default=os.environ.get(SETTINGS_VARIABLE),
            help=f"settings file in YAML (default: ${SETTINGS_VARIABLE})",
        )
    return parser


def _settings(path: str | None) -> Settings:
    if not path:
        raise UsageError(f"--settings=FILE or the variable {SETTINGS_VARIABLE} is required")
    try:
        return load(Path(path))
    except SettingsError as error:
        raise UsageError(str(error)) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status."""
    given = _parser().parse_args(arguments)
    try:
        settings = _settings(given.settings)
        logs.configure(settings.log_level, settings.log_format)
        if given.command == "release":
            release_all(settings)
        else:
            asyncio.run(serve(settings))
    except OperatorError as error:
        print(f"ktrace-operator: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    return 0


def entry() -> None:
    """Entry point of the console script. Threads that wait for a response do not delay the exit."""
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
