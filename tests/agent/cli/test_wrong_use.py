# SPDX-License-Identifier: Apache-2.0
"""Wrong flags, variables and folders: one line that names them, nothing recorded or written."""

import json
from pathlib import Path

import pytest

from ktrace_agent.cli import main
from ktrace_agent.cli.options import JSON, OPTIONS
from tests.agent.cli.test_options import BY_PARAMETER, WRONG
from tests.agent.conftest import Session


def test_a_host_root_that_is_not_there_is_wrong_use(
    ran: Session, capsys: pytest.CaptureFixture[str]
):
    assert main.main(["--host-root=/nowhere"]) == 2
    assert '--host-root: invalid directory "/nowhere": use the directory' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value", "status", "expected"),
    [
        ("KTRACE_JSON", "perhaps", 2, '--json (from KTRACE_JSON): invalid boolean "perhaps"'),
        ("KTRACE_OUT_DIR", "file", 5, "--out-dir (from KTRACE_OUT_DIR): cannot write to file"),
        (
            "KTRACE_HOST_ROOT",
            "/no",
            2,
            '--host-root (from KTRACE_HOST_ROOT): invalid directory "/no"',
        ),
        ("KTRACE_WITH_CRI", "si", 2, '--with-cri (from KTRACE_WITH_CRI): invalid value "si"'),
    ],
)
def test_a_wrong_variable_is_named(
    ran: Session,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    status: int,
    expected: str,
):
    Path("file").write_text("mine")
    monkeypatch.setenv(variable, value)
    assert main.main([]) == status
    assert capsys.readouterr().err.startswith(f"ktrace: {expected}")
    assert ran.configs == []


def test_blanks_around_a_variable_are_ignored(
    ran: Session, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KTRACE_JSON", " true")
    assert main.main(["--nonsense"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["exit_status"] == 2
    for text in ("min_count=2, critical_count=3", "min_count=2 critical_count = 3 ,udp_drops=4"):
        monkeypatch.setenv("KTRACE_THRESHOLD", text)
        assert main.main([]) == 0
        limits = ran.configs[-1].thresholds
        assert (limits.min_count, limits.critical_count) == (2, 3)
    assert limits.udp_drops == 4


@pytest.mark.parametrize("folder", ["file", "file/below", "file/a/b", "dangling", "dangling/x"])
def test_a_folder_that_cannot_be_one_is_refused(
    ran: Session, capsys: pytest.CaptureFixture[str], folder: str
):
    Path("file").write_text("mine")
    Path("dangling").symlink_to("nowhere")
    assert main.main([f"--out-dir={folder}"]) == 5
    assert f"cannot write to {folder} (Not a directory)" in capsys.readouterr().err
    assert ran.configs == []


EMPTY = tuple(option.flag for option in OPTIONS if option is not JSON)


@pytest.mark.parametrize("value", ["", " ", "\t\n"])
@pytest.mark.parametrize("flag", EMPTY)
def test_an_empty_value_is_an_error(
    ran: Session, capsys: pytest.CaptureFixture[str], flag: str, value: str
):
    """Such as --ports="$PORTS" of a script that never set it: it would record everything."""
    for args in ([f"{flag}={value}"], [flag, value]):
        assert main.main(args) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"ktrace: {flag}: empty value: use ")
        assert line.count("\n") == 1
    assert ran.configs == []
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("flag", EMPTY)
def test_an_empty_variable_is_ignored_and_a_blank_one_is_an_error(
    ran: Session,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flag: str,
):
    variable = "KTRACE_" + flag.removeprefix("--").replace("-", "_").upper()
    monkeypatch.setenv(variable, "")
    assert main.main(["--duration=1s"]) == 0
    capsys.readouterr()
    monkeypatch.setenv(variable, " ")
    assert main.main([]) == 2
    assert capsys.readouterr().err.startswith(f"ktrace: {flag} (from {variable}): empty value")
    assert len(ran.configs) == 1


def test_an_empty_name_of_a_bundle_is_not_this_folder(
    ran: Session, capsys: pytest.CaptureFixture[str]
):
    assert main.main(["--out-dir=."]) == 0
    capsys.readouterr()
    for args in (["show", ""], ["query", " ", "SELECT 1"]):
        assert main.main(args) == 2
        line = capsys.readouterr().err
        assert line.startswith("ktrace: BUNDLE: empty value: use a bundle.tgz")


@pytest.mark.parametrize(
    ("how", "name", "value"),
    [("flag", name, value) for name, value in WRONG]
    + [("variable", name, value) for name, value in WRONG if value],  # an empty one is ignored
)
def test_a_wrong_value_ends_with_2_and_writes_nothing(
    ran: Session,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
    name: str,
    value: str,
):
    flag = BY_PARAMETER[name]
    args = []
    if how == "flag":
        args = [f"{flag.flag}={value}"]
    else:
        monkeypatch.setenv(flag.variable, value)
    assert main.main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    source = f" (from {flag.variable})" if how == "variable" else ""
    assert err.startswith(f"ktrace: {flag.flag}{source}: ")
    assert flag.accepts in err
    assert ran.configs == []
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--prots=80"], "unknown flag: --prots. Did you mean --ports?"),
        (["--quite"], "unknown flag: --quite. See 'ktrace --help'."),
        (["-o", "x"], "unknown flag: -o. See 'ktrace --help'."),
        (["--ports"], "--ports: missing value: use up to 64 port numbers"),
        (["--out-dir"], "--out-dir: missing value: use a writable directory"),
        (["doctr"], "unknown command: doctr. Did you mean doctor?"),
        (["capture", "now"], "unexpected extra argument (now)"),
        (["--json=perhaps"], '--json: invalid boolean "perhaps": use true or false'),
        (["doctor", "--duration=5s"], "unknown flag: --duration. See 'ktrace doctor --help'."),
        (["--json=-1"], '--json: invalid boolean "-1": use true or false'),
        (["--dns-only=-1"], '--dns-only: invalid boolean "-1": use true or false'),
        (["--with-cri=-x"], '--with-cri: invalid value "-x": use auto, true or false'),
        (["doctor", "--json=-1"], '--json: invalid boolean "-1": use true or false'),
        (["doctor", "--dns-only=-1"], "unknown flag: --dns-only"),
    ],
)
def test_wrong_use_is_reported_in_one_line(
    ran: Session, capsys: pytest.CaptureFixture[str], args: list[str], expected: str
):
    assert main.main(args) == 2
    out, err = capsys.readouterr()
    message = json.loads(out)["error"]["message"] if out else err
    assert expected in message
    assert ran.configs == []
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("args", [["--duration=0", "--json"], ["--json", "--nonsense"]])
def test_wrong_use_with_json_is_one_document(
    ran: Session, capsys: pytest.CaptureFixture[str], args: list[str]
):
    assert main.main(args) == 2
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert found["error"]["reason"] == "ProtocolError"
    assert found["error"]["exit_status"] == 2
    assert args[0].split("=")[0] in found["error"]["message"] or "--nonsense" in out
    assert ran.configs == []


@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/ktrace", "/sys/kernel"])
def test_an_unusable_out_dir_is_found_before_the_session(
    ran: Session, capsys: pytest.CaptureFixture[str], folder: str
):
    Path("file").write_text("mine")
    assert main.main([f"--out-dir={folder}"]) == 5
    err = capsys.readouterr().err
    assert err.startswith(f"ktrace: --out-dir: cannot write to {folder} (")
    assert err.count("\n") == 1
    assert ran.configs == []
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_a_wrong_sink_is_reported_before_anything_is_recorded(
    ran: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("KTRACE_SINK", "s3://Not-A-Bucket")
    assert main.main([]) == 2
    line = capsys.readouterr().err
    assert line.startswith("ktrace: invalid --sink (from KTRACE_SINK): invalid bucket")
    assert line.count("\n") == 1
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA EXAMPLE")
    assert main.main(["--sink=s3://traces"]) == 5
    assert capsys.readouterr().err.startswith("ktrace: AWS_ACCESS_KEY_ID contains white space")
    assert ran.configs == []
