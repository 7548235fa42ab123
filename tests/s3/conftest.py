# SPDX-License-Identifier: Apache-2.0
"""One S3 server for all tests of this folder, and bundles to send there."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ktrace_agent.sinks.parcel import Parcel
from ktrace_api.assignment import S3Target
from ktrace_api.snapshot import S3Output
from tests.s3.server import AGENT, BUCKET, Identity, Server

MakeParcel = Callable[..., Parcel]
MakeTarget = Callable[..., S3Target]


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("s3") / "server")
    one.start()
    yield one
    one.stop()


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """The server, and an environment that holds the agent's credentials and no other AWS facts."""
    be(AGENT, monkeypatch)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    return running


def be(identity: Identity | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold these credentials, or none."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        if name not in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in (identity.environ if identity else {}).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def parcel(tmp_path: Path) -> MakeParcel:
    """Files of a size, with content that no two parts of share."""

    def make(size: int, name: str = "ktrace.n1.x.bundle.tgz") -> Parcel:
        block = hashlib.shake_128(name.encode()).digest(1009)
        content = (block * (size // len(block) + 1))[:size]
        (tmp_path / name).write_bytes(content)
        return Parcel(tmp_path / name, size, hashlib.sha256(content).hexdigest())

    return make


@pytest.fixture
def target(server: Server, request: pytest.FixtureRequest) -> MakeTarget:
    """A folder of the test's own in the bucket; other facts of the output by name."""

    def make(**output: object) -> S3Target:
        facts = {"bucket": BUCKET, "endpoint": server.endpoint, "path_style": True, **output}
        folder = "".join(c if c.isalnum() else "-" for c in request.node.name)
        return S3Target(output=S3Output.model_validate(facts), folder=f"t{folder}/node=n1")

    return make
