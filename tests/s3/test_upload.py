# SPDX-License-Identifier: Apache-2.0
import pytest

from ktrace_agent.sinks.parcel import Budget
from ktrace_agent.sinks.s3 import PART_BYTES, S3

from .conftest import MakeParcel, MakeTarget
from .server import BUCKET, Server

pytestmark = pytest.mark.world("s3")


@pytest.mark.parametrize("size", [0, 1, 10_007, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 17])
def test_what_arrives_is_what_was_sent(
    server: Server, target: MakeTarget, parcel: MakeParcel, size: int
):
    sent, said = parcel(size), list[str]()
    S3(target(), Budget(60), said.append).deliver([sent])
    key = f"{target().folder}/{sent.name}"
    assert server.get(key) == sent.path.read_bytes()
    head = server.admin.head_object(Bucket=BUCKET, Key=key)
    assert head["Metadata"] == {"ktrace-sha256": sent.sha256}
    assert len(said) == 1


@pytest.mark.parametrize("size", [10_007, 2 * PART_BYTES + 17])
def test_over_tls_the_checksum_goes_behind_the_content(
    server: Server,
    target: MakeTarget,
    parcel: MakeParcel,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
):
    """There the request is signed without its body, and the hash is a trailer."""
    sent, to = parcel(size), target(endpoint=server.tls_endpoint)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(server.certificate))
    S3(to, Budget(60), lambda _: None).deliver([sent])
    assert server.get(f"{to.folder}/{sent.name}") == sent.path.read_bytes()
