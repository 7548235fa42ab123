# SPDX-License-Identifier: Apache-2.0
"""The command: one clear line for what is wrong, and an exit status that says which kind."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from syrupy.assertion import SnapshotAssertion

from ktrace_operator.main import main
from ktrace_operator.settings import Settings, endpoint_allowed, load
from tests.cluster.crashing_operator import CRASH_STATUS
from tests.operator.kube.http_server import Server, page

GOOD: dict[str, Any] = {"namespaces": ["agents"], "agent": {"image": "example/agent:1"}}


def written(folder: Path, content: object) -> str:
    path = folder / "settings.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: [", "settings.yaml"),
        ("", "the file"),
        ({"agent": {"image": "x"}}, "namespaces"),
        (GOOD | {"namespaces": ["Not_A_Name"]}, "namespaces.0"),
        (GOOD | {"limits": {"maxNodes": 0}}, "limits.maxNodes"),
        (GOOD | {"limits": {"maxDuration": "for ever"}}, "limits.maxDuration"),
        (GOOD | {"colour": "blue"}, "colour"),
        (GOOD | {"output": {"default": {"s3": {"bucket": "b b"}}}}, "output.default.s3.bucket"),
        (GOOD | {"lease": {"durationSeconds": 8}}, "lease: Value error, durationSeconds"),
        (GOOD | {"lease": {"durationSeconds": 12}}, "at least 13, renewSeconds + 8"),
        (GOOD | {"lease": {"durationSeconds": 30, "renewSeconds": 30}}, "durationSeconds"),
        (
            GOOD | {"output": {"s3": {"allowedEndpoints": ["https://s3.example.com:70000"]}}},
            "output.s3.allowedEndpoints.0",
        ),
        (
            GOOD | {"output": {"s3": {"allowedEndpoints": ["https://[::1"]}}},
            "output.s3.allowedEndpoints.0",
        ),
    ],
)
def test_wrong_settings_are_one_line_that_names_the_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object, says: str
):
    assert main(["run", "--settings", written(tmp_path, content)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert says in error


def test_no_settings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("KTRACE_SETTINGS", raising=False)
    assert main(["run"]) == 2
    assert "--settings" in capsys.readouterr().err


def test_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["release", "--settings", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err


def test_no_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert main(["release", "--settings", written(tmp_path, GOOD)]) == 2
    assert "no cluster" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [[], ["run"], ["release"]], ids=["ktrace-operator", "run", "release"]
)
def test_help(
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    snapshot: SnapshotAssertion,
):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("KTRACE_SETTINGS", raising=False)
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == snapshot


def test_settings_have_defaults_and_camel_case(tmp_path: Path):
    found = load(Path(written(tmp_path, GOOD | {"writesPerSecond": 7})))
    assert found == Settings.model_validate(GOOD | {"writes_per_second": 7})


@pytest.mark.parametrize(
    ("endpoint", "allowed", "good"),
    [
        ("", (), True),
        ("https://s3.example", ("https://s3.example",), True),
        ("https://s3.example:443", ("https://s3.example",), True),
        ("http://s3.example", ("https://s3.example",), False),
        ("https://s3.example:8443", ("https://s3.example",), False),
        ("https://a.s3.example", ("https://*.s3.example",), True),
        ("https://a.b.s3.example", ("https://*.s3.example",), False),
        ("http://169.254.169.254", ("https://*.s3.example",), False),
        ("https://s3.example.evil", ("https://s3.example",), False),
        ("https://s3.example:70000", ("https://s3.example",), False),
        ("https://s3.example", ("https://s3.example:70000", "https://s3.example"), True),
        ("https://s3.example:0", ("https://s3.example",), False),
        ("https://[::1", ("https://[::1",), False),
        ("https://s3.example", ("https://[::1", "https://s3.example"), True),
    ],
)
def test_endpoints(endpoint: str, allowed: tuple[str, ...], good: bool):
    assert endpoint_allowed(endpoint, allowed) is good


def kubeconfig(folder: Path, url: str) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "users": [{"name": "test", "user": {"token": "not-a-secret"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


AGENT = {
    "metadata": {
        "namespace": "agents",
        "name": "pod",
        "uid": "u",
        "creationTimestamp": "2026-01-24T21:57:54Z",
        "finalizers": ["ktrace.io/collect"],
    }
}
AGENT_PATH = "/api/v1/namespaces/agents/pods/pod"
LET_GO = [("DELETE", AGENT_PATH), ("PATCH", AGENT_PATH)]
"""What ends it and then lets it go."""


def changes(server: Server) -> list[tuple[str, str]]:
    """Method and path of all that was asked for and not only read."""
    return [(one[0], one[1]) for one in server.asked if one[0] != "GET"]


def test_release_ends_and_lets_go_of_every_agent(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, server.url)))
    server.answer = lambda method, path, _query: (
        (200, {"items": [AGENT]}, {})
        if method == "GET" and path.endswith("/pods")
        else (200, {}, {})
    )
    settings = GOOD | {"lease": {"enabled": False}}
    assert main(["release", "--settings", written(tmp_path, settings)]) == 0
    assert changes(server) == LET_GO


def test_release_lets_go_in_all_namespaces_though_one_is_closed(
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, server.url)))
    refusal = {"kind": "Status", "reason": "Forbidden", "message": "pods is forbidden"}
    server.answer = lambda method, path, _query: (
        (403, refusal, {})
        if "/team-a/" in path
        else (200, {"items": [AGENT] if method == "GET" else []}, {})
    )
    settings = GOOD | {"lease": {"enabled": False}, "namespaces": ["team-a", "agents"]}
    assert main(["release", "--settings", written(tmp_path, settings)]) == 1
    assert "team-a" in capsys.readouterr().err, "what was not done is said"
    assert changes(server) == LET_GO


@pytest.mark.parametrize(
    ("writes", "status", "made"),
    [(1, CRASH_STATUS, LET_GO[:1]), (2, CRASH_STATUS, LET_GO), (3, 0, LET_GO)],
)
def test_the_crash_tests_program_exits_right_after_its_nth_write(
    tmp_path: Path, server: Server, writes: int, status: int, made: list[tuple[str, str]]
):
    server.answer = lambda method, _path, _query: (
        200,
        {"items": [AGENT] if method == "GET" else []},
        {},
    )
    settings = written(tmp_path, GOOD | {"lease": {"enabled": False}})
    program = [sys.executable, "-m", "tests.cluster.crashing_operator", str(writes)]
    done = subprocess.run(
        [*program, "release", "--settings", settings],
        env=os.environ | {"KUBECONFIG": str(kubeconfig(tmp_path, server.url))},
        check=False,
    )
    assert done.returncode == status
    assert changes(server) == made


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_a_replica_that_waits_ends_at_once_on_sigterm(tmp_path: Path, server: Server):
    held = {
        "metadata": {"resourceVersion": "1"},
        "spec": {"holderIdentity": "another", "renewTime": "t", "leaseDurationSeconds": 3600},
    }
    server.answer = lambda _method, path, _query: (
        (200, held, {}) if "/leases/" in path else page([])
    )
    settings = GOOD | {"metricsPort": free_port(), "probePort": free_port()}
    command = "import sys; from ktrace_operator.main import entry; entry()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "run", "--settings", written(tmp_path, settings)],
        env=os.environ | {"KUBECONFIG": str(kubeconfig(tmp_path, server.url))},
    )
    try:
        for _ in range(600):
            if server.asked:
                break
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
    assert {one[0] for one in server.asked} == {"GET"}, "who waits writes nothing"
