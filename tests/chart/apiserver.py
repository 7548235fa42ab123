# SPDX-License-Identifier: Apache-2.0
"""etcd, kube-apiserver and a controller manager on loopback, without nodes: what validates,
admits, authorizes and counts is the real one, and it is there in a few seconds."""

import json
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
import yaml

from tests.cluster.binaries import program

DEADLINE_S = 60.0
CONTROLLERS = (
    "resourcequota-controller",
    "serviceaccount-controller",
    "clusterrole-aggregation-controller",
    "validatingadmissionpolicy-status-controller",
    "namespace-controller",
    "garbage-collector-controller",
)


@dataclass(frozen=True)
class Answer:
    """What the API server said."""

    status: int
    body: dict[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def message(self) -> str:
        return str(self.body.get("message", ""))


@dataclass(frozen=True)
class User:
    """Somebody whom the administrator impersonates."""

    name: str
    groups: tuple[str, ...] = ("system:authenticated",)

    @staticmethod
    def account(namespace: str, name: str) -> "User":
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")
        user = f"system:serviceaccount:{namespace}:{name}"
        return User(user, (*groups, "system:authenticated"))


@dataclass
class Api:
    """A running API server, and requests to it."""

    url: str
    folder: Path
    token: str = field(repr=False)

    def __post_init__(self) -> None:
        self._pool = urllib3.PoolManager(
            ca_certs=str(self.folder / "certs/apiserver.crt"), timeout=30, retries=False
        )

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    def write_kubeconfig(self) -> None:
        cluster = {
            "server": self.url,
            "certificate-authority": str(self.folder / "certs/apiserver.crt"),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "chart", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": self.token}}],
            "contexts": [{"name": "chart", "context": {"cluster": "chart", "user": "admin"}}],
            "current-context": "chart",
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        user: User | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Answer:
        """One request as the administrator, or as somebody whom they impersonate."""
        headers = urllib3.HTTPHeaderDict(
            {
                "Authorization": f"Bearer {self.token}",
                "Content-Type": content_type,
                "Accept": accept,
            }
        )
        if user is not None:
            headers.add("Impersonate-User", user.name)
            for group in user.groups:
                headers.add("Impersonate-Group", group)
        data = None if body is None else json.dumps(body).encode()
        answer = self._pool.request(method, self.url + path, body=data, headers=headers)
        try:
            found = json.loads(answer.data)
        except ValueError:
            found = {"message": answer.data.decode(errors="replace")}
        return Answer(answer.status, found, tuple(answer.headers.getlist("Warning")))

    def create(
        self, thing: Mapping[str, Any], *, user: User | None = None, dry_run: bool = False
    ) -> Answer:
        """POSTs an object to where its kind lives; unknown fields are refused, as kubectl does."""
        query = "?fieldValidation=Strict" + ("&dryRun=All" if dry_run else "")
        return self.request("POST", collection(thing) + query, thing, user=user)

    def patch(
        self, path: str, body: object, *, user: User | None = None, dry_run: bool = False
    ) -> Answer:
        """A merge patch."""
        query = "?dryRun=All" if dry_run else ""
        kind = "application/merge-patch+json"
        return self.request("PATCH", path + query, body, user=user, content_type=kind)

    def delete(self, path: str) -> Answer:
        return self.request("DELETE", path)

    def table(self, path: str) -> dict[str, Any]:
        """What `kubectl get` shows of an object."""
        kind = "application/json;as=Table;v=v1;g=meta.k8s.io"
        return self.request("GET", path, accept=kind).body

    def apply(self, *things: Mapping[str, Any]) -> None:
        """Creates what is not there."""
        for thing in things:
            answer = self.create(thing)
            assert answer.ok or answer.status == 409, answer


_PLURALS = {
    "NetworkPolicy": "networkpolicies",
    "RuntimeClass": "runtimeclasses",
    "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
}


def plural(kind: str) -> str:
    return _PLURALS.get(kind, f"{kind.lower()}s")


def collection(thing: Mapping[str, Any]) -> str:
    """Path of the list that an object belongs to."""
    version = thing["apiVersion"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    namespace = thing["metadata"].get("namespace")
    return f"{root}{f'/namespaces/{namespace}' if namespace else ''}/{plural(thing['kind'])}"


def wait_for(
    condition: Callable[[], bool], what: str, seconds: float = DEADLINE_S, pause: float = 0.1
) -> None:
    """Polls until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(pause)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _commands(folder: Path, ports: list[int]) -> Iterator[list[str]]:
    client, peer, secure = ports
    store = f"http://127.0.0.1:{client}"
    yield [
        "etcd",
        f"--data-dir={folder}/etcd",
        "--unsafe-no-fsync",
        f"--listen-client-urls={store}",
        f"--advertise-client-urls={store}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
    ]
    yield [
        "kube-apiserver",
        f"--etcd-servers={store}",
        "--bind-address=127.0.0.1",
        f"--secure-port={secure}",
        f"--cert-dir={folder}/certs",
        f"--token-auth-file={folder}/tokens.csv",
        "--authorization-mode=RBAC",
        "--allow-privileged=true",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={folder}/sa.key",
        f"--service-account-signing-key-file={folder}/sa.key",
        "--service-cluster-ip-range=10.96.0.0/16",
    ]
    yield [
        "kube-controller-manager",
        f"--kubeconfig={folder}/kubeconfig",
        "--leader-elect=false",
        "--secure-port=0",
        f"--controllers={','.join(CONTROLLERS)}",
        f"--service-account-private-key-file={folder}/sa.key",
    ]


@contextmanager
def running(folder: Path) -> Iterator[Api]:
    """An API server whose files lie in a folder; ended, with all that it started, at the end."""
    binaries = program("kube")
    ports = _free_ports(3)
    api = Api(f"https://127.0.0.1:{ports[2]}", folder, secrets.token_hex(16))
    (folder / "tokens.csv").write_text(f'{api.token},admin,admin,"system:masters"\n')
    # It signs the tokens of service accounts; openssl names it on standard error.
    subprocess.run(
        ["openssl", "genrsa", "-out", folder / "sa.key", "2048"], check=True, capture_output=True
    )
    api.write_kubeconfig()
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name, *arguments in _commands(folder, ports):
            if name == "kube-controller-manager":  # it waits for nobody
                wait_for(lambda: _answers(api, "/readyz"), f"not ready, see {folder}")
            with (folder / f"{name}.log").open("wb") as log:
                command = [str(binaries / name), *arguments]
                started.append(subprocess.Popen(command, stdout=log, stderr=log))
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        wait_for(lambda: _answers(api, account), f"no controllers, see {folder}")
        yield api
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(api: Api, path: str) -> bool:
    if not (api.folder / "certs/apiserver.crt").exists():
        return False
    try:
        return api.request("GET", path).ok
    except urllib3.exceptions.HTTPError:
        return False
