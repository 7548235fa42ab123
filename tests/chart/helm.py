# SPDX-License-Identifier: Apache-2.0
"""helm: what the chart renders, and whether it takes some values at all."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.binaries import KUBE_VERSION, program

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "charts/ktrace"
RELEASE, NAMESPACE = "ktrace", "ktrace"
REGISTRY = "registry.example.com"
Thing = dict[str, Any]


class Refused(Exception):
    """helm ended with an error; the text is what it says."""


def helm(*arguments: str, kubeconfig: Path | None = None) -> str:
    """Output of a command of helm's; no setting of the machine's user is used."""
    with tempfile.TemporaryDirectory() as home:
        folders = {f"HELM_{name}_HOME": home for name in ("CACHE", "CONFIG", "DATA")}
        done = subprocess.run(
            [program("helm") / "helm", *arguments],
            env={**os.environ, **folders, "KUBECONFIG": str(kubeconfig or "/dev/null")},
            check=False,
            capture_output=True,
            text=True,
        )
    if done.returncode != 0:
        raise Refused(done.stderr.strip() or done.stdout.strip())
    return done.stdout


def with_registry(values: dict[str, Any]) -> dict[str, Any]:
    """The values with an image.registry, which the chart requires, unless they set one."""
    return {**values, "image": {"registry": REGISTRY, **values.get("image", {})}}


def _with(values: dict[str, Any], *arguments: str, kubeconfig: Path | None = None) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(with_registry(values), file)
        file.flush()
        return helm(*arguments, "--values", file.name, kubeconfig=kubeconfig)


def render(values: dict[str, Any], release: str = RELEASE, chart: Path = CHART) -> list[Thing]:
    """Every object that the chart renders from some values, including hooks."""
    version = ("--kube-version", KUBE_VERSION)
    arguments = ("template", release, str(chart), "--namespace", NAMESPACE, *version)
    return [thing for thing in yaml.safe_load_all(_with(values, *arguments)) if thing]


def notes(values: dict[str, Any]) -> str:
    """NOTES.txt, which `helm template` leaves out: rendered as an object of a copy of the chart."""
    with tempfile.TemporaryDirectory() as folder:
        chart = Path(folder) / CHART.name
        shutil.copytree(CHART, chart)
        source = (chart / "templates/NOTES.txt").read_text()
        (chart / "templates/notes.yaml").write_text(
            f'{{{{- define "notes" }}}}{source}{{{{- end }}}}\n'
            'kind: Notes\nmetadata: {name: notes}\ntext: {{ include "notes" . | toJson }}\n'
        )
        [found] = of_kind(render(values, chart=chart), "Notes")
    return str(found["text"])


def lint(values: dict[str, Any]) -> str:
    return _with(values, "lint", "--strict", str(CHART), "--kube-version", KUBE_VERSION)


def install(kubeconfig: Path, values: dict[str, Any], *more: str) -> str:
    """Installs the chart, or changes its values."""
    arguments = ("upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE)
    return _with(values, *arguments, "--create-namespace", *more, kubeconfig=kubeconfig)


def uninstall(kubeconfig: Path, *more: str) -> str:
    return helm("uninstall", RELEASE, "--namespace", NAMESPACE, *more, kubeconfig=kubeconfig)


def of_kind(things: list[Thing], *kinds: str) -> list[Thing]:
    return [thing for thing in things if thing["kind"] in kinds]


def named(things: list[Thing], kind: str, name: str) -> Thing:
    """The one object of a kind and name."""
    [found] = [one for one in of_kind(things, kind) if one["metadata"]["name"] == name]
    return found
