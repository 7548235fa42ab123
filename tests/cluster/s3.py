# SPDX-License-Identifier: Apache-2.0
"""A real S3 server beside the control plane, with real authentication, and a client for it."""

import json
import os
import secrets
import sysconfig
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.bpf.workers import wait_until
from tests.cluster.daemons import Daemon
from tests.cluster.spaces import CONTROL_ADDRESS, Space

PORT = 8333
ENDPOINT = f"http://{CONTROL_ADDRESS}:{PORT}"
"""For pods and nodes."""
REGION = "us-east-1"
BUCKET = "traces"
START = Path(__file__).parent / "weed.sh"
READY_S = 60.0
IDENTITIES = {
    "admin": ["Admin", "Read", "Write", "List", "Tagging"],
    "agent": [f"{verb}:{BUCKET}" for verb in ("Read", "Write", "List")],
    "reader": [f"{verb}:{BUCKET}" for verb in ("Read", "List")],
}
"""Name -> what it may do: `agent` has one bucket, `reader` is refused when it writes."""


@dataclass(frozen=True)
class Identity:
    access_key: str
    secret_key: str


@dataclass(frozen=True)
class S3:
    """One identity at one endpoint."""

    endpoint: str
    identity: Identity

    @cached_property
    def client(self) -> Any:
        """A boto3 client that tries twice and waits seconds, not minutes."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.identity.access_key,
            aws_secret_access_key=self.identity.secret_key,
            config=Config(
                connect_timeout=3,
                read_timeout=20,
                retries={"total_max_attempts": 2},
                s3={"addressing_style": "path"},
            ),
        )

    def buckets(self) -> list[str]:
        return [item["Name"] for item in self.client.list_buckets()["Buckets"]]

    def create_bucket(self, name: str) -> None:
        self.client.create_bucket(Bucket=name)

    def put(self, bucket: str, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=bucket, Key=key, Body=body)

    def get(self, bucket: str, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=bucket, Key=key)["Body"].read())

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Names of all objects that begin with `prefix`, in order."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def download(self, bucket: str, prefix: str, folder: Path) -> list[Path]:
        """All objects below `prefix`, in folders as their keys say."""
        paths = []
        for key in self.keys(bucket, prefix):
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.get(bucket, key))
            paths.append(path)
        return paths


class Server:
    """seaweedfs in the control plane's namespace; `folder` is below the cluster's state."""

    def __init__(self, space: Space, folder: Path, cgroup: str) -> None:
        self._space = space
        self._folder = folder
        self._cgroup = cgroup
        self._keys = folder / "identities.json"

    def prepare(self) -> None:
        """Make keys for every identity, and the server's configuration."""
        (self._folder / "data").mkdir(parents=True)
        made = {
            name: Identity(f"KTRACE{name.upper()}", secrets.token_hex(20)) for name in IDENTITIES
        }
        _private(self._keys, {name: asdict(identity) for name, identity in made.items()})
        known = [
            {
                "name": name,
                "credentials": [
                    {"accessKey": identity.access_key, "secretKey": identity.secret_key}
                ],
                "actions": IDENTITIES[name],
            }
            for name, identity in made.items()
        ]
        _private(self._folder / "s3.json", {"identities": known})

    @property
    def identities(self) -> dict[str, Identity]:
        return {name: Identity(**keys) for name, keys in json.loads(self._keys.read_text()).items()}

    @property
    def daemon(self) -> Daemon:
        command = self._space.enter(
            *("unshare", "--mount", "--propagation", "private"),
            *("sh", START),
            self._folder,
            Path(sysconfig.get_path("scripts")) / "weed",
            "-logdir=/mnt",
            "server",
            "-dir=/mnt/data",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-volume.max=200",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64",
            "-s3",
            f"-s3.port={PORT}",
            "-s3.ip.bind=0.0.0.0",
            "-s3.config=/mnt/s3.json",
        )
        return Daemon("s3", self._folder, self._cgroup, command)

    def wait(self, admin: S3) -> None:
        """Until it takes objects with bytes (for those it makes a volume); then `traces` exists."""
        daemon = self.daemon

        def made() -> bool:
            assert daemon.alive, f"the S3 server ended: {daemon.tail()}"
            try:
                if BUCKET not in admin.buckets():
                    admin.create_bucket(BUCKET)
                admin.put(BUCKET, "ready", b"ready")
            except (BotoCoreError, ClientError):
                return False
            admin.client.delete_object(Bucket=BUCKET, Key="ready")
            return True

        wait_until(made, "the S3 server", READY_S)


def _private(path: Path, content: Any) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(content, file, indent=1)
