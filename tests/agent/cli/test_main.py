# SPDX-License-Identifier: Apache-2.0
"""The command from outside; the session behind it is a stub that seals a prepared recording."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ktrace_agent.cli import main
from ktrace_agent.cli.options import CAPTURE, OPTIONS
from ktrace_agent.errors import AgentError, PermissionDenied, SinkFailed, UnsupportedKernel
from ktrace_api.capture import CaptureConfig
from ktrace_api.thresholds import Thresholds
from tests.agent.conftest import Session

POD_UID = "6f2c7a0e-1111-4222-8333-444455556666"


def test_bare_ktrace_captures_into_out(ran: Session, capsys: pytest.CaptureFixture[str]):
    assert main.main([]) == 0
    assert len(ran.configs) == 1
    names = sorted(path.name.rsplit(".", 2)[-2] for path in Path("out").iterdir())
    assert names == ["bundle", "events", "events", "node", "summary"]
    assert ran.host_root == Path("/")
    out, err = capsys.readouterr()
    assert "2 events" in out
    assert "Bundle       out/ktrace." in out
    assert "ktrace: recording for 60s on " in err
    assert not any(line.endswith(" ") for line in out.splitlines())
    assert "\x1b" not in out + err


@pytest.mark.parametrize("args", [["--duration=10s"], ["capture", "--duration=10s"]])
def test_capture_is_the_default_command(ran: Session, args: list[str]):
    assert main.main(args) == 0
    assert ran.configs[0].duration.total_seconds() == 10


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (["--dns-only"], True),
        (["--dns-only=true"], True),
        (["--dns-only=false"], False),
        (["--dns-only", "--sample=3"], True),
    ],
)
def test_a_boolean_flag_needs_no_value(ran: Session, args: list[str], wanted: bool):
    assert main.main(args) == 0
    assert ran.configs[0].dns_only is wanted


def test_every_flag_arrives(ran: Session):
    args = [
        "--duration=1m30s", "--dns-only=true", "--ports=80,443", "--with-connect-latency=false",
        "--with-retransmits=false", "--with-security=false", "--sample=5", "--max-events=77",
        "--max-bytes=64MiB", "--node=n7", "--ring-bytes=1MiB", "--max-sockets=99",
        "--max-flows=98", "--out-dir=there/deeper", "--json", "--with-cri=false",
        "--cri-socket=unix:///run/a.sock,/run/b.sock", "--with-conntrack=false", "--host-root=.",
        "--threshold=min_count=7", "--threshold", "lost_share=0.5,udp_drops=9",
    ]  # fmt: skip
    assert main.main(args) == 0
    assert ran.host_root == Path()
    assert ran.configs[0] == CaptureConfig(
        node="n7", duration="90s", events="tcp,udp", dns_only=True, ports=(80, 443), sample=5,
        max_events=77, max_bytes="64MiB", security=False, ring_bytes="1MiB", max_sockets=99,
        max_flows=98, cri="false", cri_sockets=("unix:///run/a.sock", "/run/b.sock"),
        conntrack=False, thresholds=Thresholds(min_count=7, lost_share=0.5, udp_drops=9),
    )  # fmt: skip
    assert len(list(Path("there/deeper").iterdir())) == 5


def test_every_flag_has_a_variable(ran: Session, monkeypatch: pytest.MonkeyPatch):
    values = {
        "DURATION": "5s", "DNS_ONLY": "true", "PORTS": "53", "WITH_CONNECT_LATENCY": "false",
        "WITH_RETRANSMITS": "false", "WITH_SECURITY": "false", "SAMPLE": "2", "MAX_EVENTS": "3",
        "MAX_BYTES": "2MiB", "NODE": "n8", "RING_BYTES": "8KiB", "MAX_SOCKETS": "4",
        "MAX_FLOWS": "5", "OUT_DIR": "elsewhere", "WITH_CRI": "true", "CRI_SOCKET": "/run/a.sock",
        "WITH_CONNTRACK": "false", "HOST_ROOT": "/proc/self/root", "THRESHOLD": "min_count=7",
        "THRESHOLD_FILE": "limits.json", "PODS": f"{'0' * 32},{POD_UID}", "BACKEND": "core",
    }  # fmt: skip
    Path("limits.json").write_text('{"min_count": 6, "udp_drops": 9}')
    local = {"KTRACE_OUT_DIR", "KTRACE_HOST_ROOT", "KTRACE_THRESHOLD", "KTRACE_THRESHOLD_FILE"}
    assert {option.variable for option in CAPTURE} | local == {f"KTRACE_{name}" for name in values}
    for name, value in values.items():
        monkeypatch.setenv(f"KTRACE_{name}", value)
    assert main.main([]) == 0
    assert ran.configs[0] == CaptureConfig(
        node="n8", duration="5s", events="tcp,udp", dns_only=True, ports=(53,), sample=2,
        max_events=3, max_bytes="2MiB", security=False, ring_bytes="8KiB", max_sockets=4,
        max_flows=5, cri="true", cri_sockets=("/run/a.sock",), conntrack=False,
        pods=("0" * 32, POD_UID), thresholds=Thresholds(min_count=7, udp_drops=9),
        backend="core",
    )  # fmt: skip
    assert Path("elsewhere").is_dir()


def test_with_cri_alone_means_true(ran: Session):
    assert main.main(["--with-cri", "--with-conntrack"]) == 0
    assert (ran.configs[0].cri, ran.configs[0].conntrack) == ("true", True)


def test_show_prints_what_the_capture_printed(ran: Session, capsys: pytest.CaptureFixture[str]):
    assert main.main([]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if "Bundle" not in line]
    assert main.main(["show", "out"]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if "Bundle" not in line]
    assert shown == printed
    assert main.main(["show", "out", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["node"]) == (2, ran.configs[0].node)


def test_of_several_captures_in_a_folder_the_newest_is_read(
    ran: Session, capsys: pytest.CaptureFixture[str]
):
    assert main.main(["--node=n1"]) == 0
    assert main.main(["show", "out"]) == 0
    assert "bundles" not in capsys.readouterr().err
    for _ in range(10):  # within one second: they are numbered
        assert main.main(["--node=n1"]) == 0
    capsys.readouterr()
    assert main.main(["show", "out", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["node"] == "n1"
    newest = "out/ktrace.n1.20260124T215754Z-11.bundle.tgz"
    assert err == f"ktrace: out contains 11 bundles; using the newest: {newest}\n"
    assert main.main(["query", "out", "SELECT count(*) AS n FROM rows"]) == 0
    assert capsys.readouterr() == ("n\n2\n", err)
    later = Path("out/ktrace.n1.20260125T000000Z.bundle.tgz")
    later.write_bytes(Path(newest).read_bytes())
    os.utime(later, (0, 0))  # a copy may have any time
    assert main.main(["show", "out"]) == 0
    assert f"using the newest: {later}\n" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ktrace.n2.20260124T215754Z.bundle.tgz", "mine.bundle.tgz"])
def test_what_is_not_of_one_node_has_no_newest(
    ran: Session, capsys: pytest.CaptureFixture[str], name: str
):
    assert main.main(["--node=n1"]) == 0
    (made,) = Path("out").glob("*.bundle.tgz")
    made.with_name(name).write_bytes(made.read_bytes())
    capsys.readouterr()
    assert main.main(["show", "out"]) == 2
    assert "out holds 2 bundles: name one, such as" in capsys.readouterr().err


def test_the_lines_of_the_readme_work_one_after_the_other(
    ran: Session, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    readme = Path(__file__).resolve().parents[3] / "README.md"
    lines = re.findall(r"^(?:sudo )?ktrace (.+)$", readme.read_text(), re.MULTILINE)
    commands = [shlex.split(line, comments=True) for line in lines]
    assert main.main(["--duration=10s", "--out-dir=out"]) == 0  # make run
    asked = [command for command in commands if command[0] != "doctor"]
    assert [command[0] for command in asked].count("show") == 1
    assert len([command for command in asked if command[0].startswith("--")]) == 2
    assert [command for command in asked if main.main(command)] == []


def test_query_answers_in_each_format(ran: Session, capsys: pytest.CaptureFixture[str]):
    assert main.main([]) == 0
    capsys.readouterr()
    question = "SELECT n, comm, NULL AS no FROM rows ORDER BY n"
    assert main.main(["query", "out", question]) == 0
    assert capsys.readouterr().out == "n,comm,no\n0,curl,\n1,curl,\n"
    assert main.main(["query", "out", question, "--format=jsonl"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[1]) == {"n": 1, "comm": "curl", "no": None}
    assert main.main(["query", "out", question, "--format=table"]) == 0
    assert capsys.readouterr().out == "n  comm  no\n0  curl  -\n1  curl  -\n"
    assert main.main(["query", "out", "SELECT * FROM rows", "--format=table"]) == 0
    assert re.search(r"^local +10\.0\.0\.1:40000$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["show", "nothing"], 2, "cannot read nothing"),
        (["show"], 2, "missing argument: BUNDLE"),
        (["show", "pyproject.tgz"], 6, "not a gzip file"),
        (["query", "pyproject.tgz", "SELECT 1"], 6, "not a gzip file"),
        (["query", "pyproject.tgz", "SELECT 1", "--format=xml"], 2, "use table, csv, jsonl"),
    ],
)
def test_what_cannot_be_shown_is_told_in_one_line(
    ran: Session, capsys: pytest.CaptureFixture[str], args: list[str], status: int, said: str
):
    Path("pyproject.tgz").write_text("[project]")
    assert main.main(args) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("TRUE", "true"), (" yes ", "true"), ("0", "false"), ("Off", "false"), ("AUTO", "auto")],
)
def test_with_cri_knows_the_words_of_the_other_flags(ran: Session, text: str, wanted: str):
    assert main.main([f"--with-cri={text}"]) == 0
    assert ran.configs[0].cri == wanted


def test_who_asks_for_help_gets_it(ran: Session, capsys: pytest.CaptureFixture[str]):
    for args in (["--help", "--duration=x"], ["--duration=x", "--help"], ["-h", "--nosuch"]):
        assert main.main(args) == 0
        assert "--duration TIME" in capsys.readouterr().out
    assert main.main(["--version", "--duration=x"]) == 0
    assert capsys.readouterr().out.startswith("ktrace 0.")
    assert ran.configs == []


def test_a_flag_beats_its_variable_and_an_empty_one_is_none(
    ran: Session, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KTRACE_SAMPLE", "7")
    monkeypatch.setenv("KTRACE_DURATION", "")
    assert main.main(["--sample=3"]) == 0
    assert ran.configs[0].sample == 3
    assert ran.configs[0].duration.total_seconds() == 60


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({"KTRACE_NODE": "a", "NODE_NAME": "b"}, "a"),
        ({"NODE_NAME": "b"}, "b"),
        ({}, "the-host"),
    ],
)
def test_the_name_of_the_node(
    ran: Session, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], wanted: str
):
    monkeypatch.setattr("socket.gethostname", lambda: "the-host")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main.main([]) == 0
    assert ran.configs[0].node == wanted


FAILURES = [
    (AgentError("the ring broke"), 1, "AgentError"),
    (PermissionDenied("needs root"), 3, "PermissionDenied"),
    (UnsupportedKernel("no BTF"), 4, "UnsupportedKernel"),
    (SinkFailed("disk is\nfull"), 5, "UploadFailed"),
    (ValueError("a bug"), 1, "AgentError"),
    (KeyboardInterrupt(), 130, "Canceled"),
]


@pytest.mark.parametrize(("error", "status", "reason"), FAILURES)
def test_failures_have_their_status_and_leave_nothing(
    ran: Session,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    reason: str,
):
    ran.then = error
    assert main.main(["--out-dir=new/folder"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("ktrace: ")
    assert " ".join(str(error).split()) in last
    assert list(Path().iterdir()) == []
    assert main.main(["--out-dir=new/folder", "--json"]) == status
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["error"]
    assert found["error"]["reason"] == reason
    assert found["error"]["exit_status"] == status


def test_a_folder_that_was_there_stays_when_the_capture_fails(ran: Session):
    Path("kept").mkdir()
    ran.then = AgentError("x")
    assert main.main(["--out-dir=kept/new"]) == 1
    assert [path.name for path in Path().rglob("*")] == ["kept"]


def test_json_is_the_whole_of_standard_output(ran: Session, capsys: pytest.CaptureFixture[str]):
    assert main.main(["--json", "--node=n1"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert set(found["paths"]) == {"events", "parquet", "summary", "node", "bundle"}
    assert found["verdict"] == "healthy"
    assert found["findings"] == []
    for kind, path in found["paths"].items():
        assert Path(path).is_absolute()
        assert f".{kind}" in Path(path).name
        assert Path(path).is_file()
    assert Path(found["paths"]["bundle"]).stat().st_size == found["bytes"]
    assert len(found["sha256"]) == 64
    assert found["events"] == 2
    assert found["lost"] == 0
    assert found["complete"] is True
    assert found["counts"]["tcp_state"] == 2
    assert found["reason"] == "Completed"
    assert "recording" in err
    assert ran.configs


def test_json_by_its_variable(
    ran: Session, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KTRACE_JSON", "true")
    ran.then = AgentError("x")
    assert main.main([]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["message"] == "x"


def test_help_of_a_query_has_its_examples_as_lines(capsys: pytest.CaptureFixture[str]):
    assert main.main(["query", "--help"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "ktrace query out 'DESCRIBE flows'" in lines
    assert not any("\\b" in line for line in lines)
    (tables,) = (line for line in lines if line.startswith("Tables: "))
    assert tables.endswith("hooks.")


def test_help_teaches(capsys: pytest.CaptureFixture[str]):
    assert main.main(["--help"]) == 0
    out = capsys.readouterr().out
    for option in OPTIONS:
        assert option.flag in out
    for words in ("--dns-only ", "--ports=80,443,6443", "ktrace doctor", "jq", "NODE_NAME"):
        assert words in out
    for status in (0, 1, 2, 3, 4, 5, 6, 7, 130, 141):
        assert re.search(rf"^    {status} +[a-z]", out, re.MULTILINE)


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ktrace 0.")


def test_nothing_heavy_is_imported_at_start():
    """pydantic is: the flags are derived from its models (docs/adr/0015)."""
    heavy = {"numpy", "duckdb", "rich", "isal", "ctypes", "boto3", "grpc"}
    script = f"import sys, ktrace_agent.cli.main; print({heavy!r} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert found.stdout.decode().strip() == "set()"


def test_the_watch_over_a_capture_loads_no_numpy():
    script = (
        "import sys; from ktrace_agent import session; from ktrace_agent.host import counters;"
        "from ktrace_agent.kernel import preflight; from ktrace_agent.view import progress;"
        "from ktrace_agent.cli import json_result, options; options.configure({'node': 'n'});"
        "print({'numpy', 'duckdb', 'rich', 'isal'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert found.stdout.decode().strip() == "set()"


def test_the_reader_of_our_output_may_leave():
    script = "import sys; from ktrace_agent.cli.main import main; sys.exit(main(['--help']))"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", script], check=False, stdout=out, stderr=subprocess.PIPE
        )
    assert done.returncode == 141
    assert done.stderr == b""


def test_who_gives_up_a_delivery_keeps_the_bundle(
    ran: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def give_up(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ktrace_agent.sinks.deliver.deliver", give_up)
    assert main.main(["--sink=s3://traces", "--out-dir=here"]) == 130
    assert "ktrace: upload aborted: the bundle is only in here\n" in capsys.readouterr().err
    assert len(list(Path("here").glob("*.bundle.tgz"))) == 1
