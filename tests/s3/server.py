# SPDX-License-Identifier: Apache-2.0
"""A real S3 server on loopback, with real authentication, and a client of the test's own."""

import json
import socket
import subprocess
import sysconfig
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.bpf.workers import wait_until

WEED = Path(sysconfig.get_path("scripts")) / "weed"
BUCKET = "traces"
_PORTS = (
    *(f"{part}.port" for part in ("master", "volume", "filer", "s3")),
    *(f"{part}.port.grpc" for part in ("master", "volume", "filer", "s3")),
    "s3.port.https",
)


@dataclass(frozen=True)
class Identity:
    key: str
    secret: str
    actions: tuple[str, ...]

    @property
    def environ(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


ADMIN = Identity("KTRACEADMIN", "secret-of-the-admin", ("Admin", "Read", "Write", "List"))
AGENT = Identity(
    "KTRACEAGENT", "canary-7d1f-secret", tuple(f"{verb}:{BUCKET}" for verb in ("Read", "Write"))
)
"""What the agent is given: one bucket, and no listing."""
READER = Identity("KTRACEREADER", "secret-of-the-reader", (f"Read:{BUCKET}", f"List:{BUCKET}"))


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Server:
    """seaweedfs in one process; it keeps its data and its ports over a restart."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        (folder / "data").mkdir(parents=True)
        known = [
            {
                "name": one.key.lower(),
                "credentials": [{"accessKey": one.key, "secretKey": one.secret}],
                "actions": list(one.actions),
            }
            for one in (ADMIN, AGENT, READER)
        ]
        _certify(folder)
        (folder / "s3.json").write_text(json.dumps({"identities": known}))

    @property
    def port(self) -> int:
        return self._ports["s3.port"]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def tls_endpoint(self) -> str:
        return f"https://localhost:{self._ports['s3.port.https']}"

    @property
    def certificate(self) -> Path:
        return self._folder / "tls.crt"

    def start(self) -> None:
        command = [
            "setpriv",
            "--pdeathsig=KILL",  # also where the test run itself is killed
            str(WEED),
            f"-logdir={self._folder}",
            "server",
            f"-dir={self._folder}/data",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=50",
            f"-filer.localSocket={self._folder}/filer.sock",
            "-s3",
            f"-s3.config={self._folder}/s3.json",
            f"-s3.localSocket={self._folder}/s3.sock",
            f"-s3.cert.file={self.certificate}",
            f"-s3.key.file={self._folder}/tls.key",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            *(f"-{name}={port}" for name, port in self._ports.items()),
        ]
        with (self._folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True
            )
        wait_until(self._is_ready, "the S3 server", 60)

    def stop(self) -> None:
        """At once: its port refuses from now on."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for name, port in self._ports.items():
            if name.endswith(".grpc"):
                part = name.partition(".")[0]
                Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock").unlink(missing_ok=True)

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, (self._folder / "output").read_text()[-2000:]
        try:
            if BUCKET not in [one["Name"] for one in self.admin.list_buckets()["Buckets"]]:
                self.admin.create_bucket(Bucket=BUCKET)
            self.admin.put_object(Bucket=BUCKET, Key="ready", Body=b"x")
        except (BotoCoreError, ClientError):
            return False
        return True

    @cached_property
    def admin(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=ADMIN.key,
            aws_secret_access_key=ADMIN.secret,
            config=Config(
                connect_timeout=2,
                read_timeout=20,
                retries={"total_max_attempts": 1},
                s3={"addressing_style": "path"},
            ),
        )

    def put(self, key: str, body: bytes) -> None:
        self.admin.put_object(Bucket=BUCKET, Key=key, Body=body)

    def get(self, key: str) -> bytes:
        return bytes(self.admin.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def keys(self, prefix: str) -> list[str]:
        pages = self.admin.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]


def _certify(folder: Path) -> None:
    """A certificate for localhost that signs itself."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", "tls.key", "-out", "tls.crt"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
