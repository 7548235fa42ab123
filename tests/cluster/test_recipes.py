# SPDX-License-Identifier: Apache-2.0
"""The three recipes of the user guide find the incident that was planted, from apply to bundle.

All nodes of this cluster share one kernel, so every agent sees every node's events. What is said
of names is asked of the agent on the client's node: only that one's runtime knows its pods.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from ktrace_api.bundle import Manifest
from ktrace_api.row import EVENT
from ktrace_api.summary import Summary
from tests.bpf.workers import wait_until
from tests.cluster import images, installed
from tests.cluster.cluster import NODES, Cluster
from tests.cluster.incidents import SHOP, DeadBackend, DeadDns, Incident, SlowConnect
from tests.cluster.installed import AGENTS
from tests.cluster.s3 import BUCKET
from tests.cluster.snapshots import Object, Snapshots, conditions, entries_of

pytestmark = [pytest.mark.world("cluster"), pytest.mark.timeout(600)]

EXAMPLES = images.ROOT / "examples"
SCHEMAS = images.ROOT / "docs/schemas"
VOLUME = "bundles"
DURATION = "13s"
"""Long enough for a connect that is given up after 3 s to happen several times."""
END_S = 240.0


@dataclass(frozen=True)
class Recipe:
    """An example, the incident that it is for, and what it must find."""

    example: str
    incident: type[Incident]
    finding: str
    verdict: str
    output: Object = field(default_factory=dict)


RECIPES = {
    "dns": Recipe("dns.yaml", DeadDns, "DNS_NO_REPLY", "dns"),
    "service-vip": Recipe("service-vip.yaml", DeadBackend, "TCP_SYN_UNANSWERED", "nat"),
    "slow-connect": Recipe(
        "slow-connect.yaml",
        SlowConnect,
        "TCP_CONNECT_SLOW",
        "routing",
        {"output": {"pvc": {"claimName": VOLUME, "subPath": "incidents"}}},
    ),
}


@dataclass(frozen=True)
class Played:
    """What came of a recipe: the status, and by node every file that was delivered."""

    recipe: Recipe
    peer: str
    status: Object
    files: dict[str, dict[str, bytes]]

    def of(self, node: str, end: str) -> bytes:
        """The file of a node whose name ends so."""
        return next(data for name, data in self.files[node].items() if name.endswith(end))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of the client's node."""
        return [json.loads(line) for line in self.of(NODES[-1], ".events.jsonl").splitlines()]


@pytest.fixture(scope="module")
def snapshots(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshots]:
    installed.load_images(cluster)
    values = installed.values()
    yield installed.install(cluster, tmp_path_factory.mktemp("chart"), values)
    installed.uninstall(cluster)


@pytest.fixture(scope="module", params=RECIPES)
def played(
    cluster: Cluster, snapshots: Snapshots, request: pytest.FixtureRequest
) -> Iterator[Played]:
    """The example as it is in the repository, only shorter."""
    recipe = RECIPES[request.param]
    volume = cluster.shared_volume(VOLUME, AGENTS) if recipe.output else None
    [question] = [
        one
        for one in yaml.safe_load_all((EXAMPLES / recipe.example).read_text())
        if one["kind"] == "TraceSnapshot"
    ]
    question["spec"] |= {"duration": DURATION, **recipe.output}
    with recipe.incident(cluster, f"localhost/ktrace-operator:{installed.TAG}") as incident:
        cluster.apply(question)
        status = snapshots.end_of(question["metadata"]["name"], END_S)
        peer = incident.peer
    yield Played(recipe, peer, status, delivered(cluster, status, volume))
    snapshots.wait_gone()


def delivered(cluster: Cluster, status: Object, volume: Path | None) -> dict[str, dict[str, bytes]]:
    """Node -> name of each file in its folder -> content, from where `status.path` says."""
    found: dict[str, dict[str, bytes]] = {}
    for node, entry in entries_of(status).items():
        folder = status["path"] + entry["path"].rpartition("/")[0]
        if volume is None:
            prefix = folder.removeprefix(f"s3://{BUCKET}/")
            keys = cluster.s3().keys(BUCKET, prefix)
            found[node] = {Path(key).name: cluster.s3().get(BUCKET, key) for key in keys}
        else:
            place = volume / folder.removeprefix(f"pvc://{VOLUME}/")
            found[node] = {path.name: path.read_bytes() for path in place.iterdir()}
    return found


def test_every_node_delivered_what_the_status_says(played: Played):
    status = played.status
    assert (status["phase"], status["nodes"]["succeeded"]) == ("Completed", len(NODES))
    assert conditions(status)["Succeeded"] == "True"
    for node in NODES:
        entry = entries_of(status)[node]
        bundle = played.files[node][entry["path"].rpartition("/")[2]]
        assert (len(bundle), hashlib.sha256(bundle).hexdigest()) == (
            entry["bytes"],
            entry["sha256"],
        )
        assert len(played.files[node]) == 5


def test_every_document_of_a_bundle_validates(played: Played):
    for node in NODES:
        with tarfile.open(fileobj=BytesIO(played.of(node, ".bundle.tgz"))) as archive:
            content = {
                member.name: archive.extractfile(member).read()  # type: ignore[union-attr]
                for member in archive.getmembers()
            }
        manifest = Manifest.model_validate_json(content.pop("manifest.json"))
        assert {one.name: (one.bytes, one.sha256) for one in manifest.files} == {
            name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in content.items()
        }
        lines = played.of(node, ".events.jsonl").splitlines()
        assert len(lines) == entries_of(played.status)[node]["events"]
        for line in lines:
            EVENT.validate_json(line)
        for kind in ("summary", "node"):
            schema = json.loads((SCHEMAS / f"{kind}.schema.json").read_text())
            Draft202012Validator(schema).validate(json.loads(played.of(node, f".{kind}.json")))


def test_the_planted_incident_is_found_and_named(played: Played):
    recipe = played.recipe
    found = {one["id"]: one for one in played.status["findings"]}
    assert recipe.finding in found, found
    assert found[recipe.finding]["severity"] in ("critical", "warning")
    assert found[recipe.finding]["nodes"] >= 1
    summary = Summary.model_validate_json(played.of(NODES[-1], ".summary.json"))
    subjects = [one.subject for one in summary.findings if one.id == recipe.finding]
    assert (SHOP, Incident.client, played.peer) in {
        (one.namespace, one.pod, one.peer) for one in subjects
    }, subjects
    assert summary.verdict.verdict == recipe.verdict, summary.verdict


def test_pods_and_service_addresses_are_named_in_the_rows(played: Played):
    mine = [row for row in played.rows if row["k8s"]["pod"] == Incident.client]
    assert mine
    assert {row["k8s"]["namespace"] for row in mine} == {SHOP}
    assert {row["k8s"]["container"] for row in mine} == {"main"}
    to_service = [row for row in mine if row["tuple"].endswith(f"-> {played.peer}")]
    assert to_service
    translated = {row["conntrack"]["backend"] for row in to_service} - {"-"}
    assert translated, "no row knows the backend behind the Service's address"
    assert all(not backend.startswith("10.96.") for backend in translated)


def test_a_second_apply_of_the_same_file_starts_nothing(
    cluster: Cluster, snapshots: Snapshots, played: Played
):
    name = Path(played.recipe.example).stem
    before = snapshots.get(name)
    cluster.apply(
        {key: before[key] for key in ("apiVersion", "kind", "spec")}
        | {"metadata": {"name": name, "namespace": AGENTS}}
    )
    wait_until(lambda: snapshots.get(name)["status"] == before["status"], "the same status", 30)
    assert snapshots.made(name) == [1] * len(NODES)
