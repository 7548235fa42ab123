# SPDX-License-Identifier: Apache-2.0
"""Wrong flags, variables and folders: one line that names them, nothing recorded or written."""

import json
from pathlib import Path

import pytest

from ktrace_agent.cli import main
from ktrace_agent.cli.options import BY_PARAMETER
from tests.agent.cli.test_options import WRONG
from tests.agent.conftest import Session


def test_a_host_root_that_is_not_there_is_wrong_use(
    ran: Session, capsys: pytest.CaptureFixture[str]
):
    assert main.main(["--host-root=/nowhere"]) == 2
    assert "--host-root: '/nowhere' is not accepted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value", "status", "said"),
    [
        ("KTRACE_JSON", "perhaps", 2, "--json (from KTRACE_JSON): 'perhaps' is not accepted"),
        ("KTRACE_OUT_DIR", "file", 5, "--out-dir (from KTRACE_OUT_DIR): cannot write into file"),
        ("KTRACE_HOST_ROOT", "/no", 2, "--host-root (from KTRACE_HOST_ROOT): '/no' is not"),
        ("KTRACE_WITH_CRI", "si", 2, "--with-cri (from KTRACE_WITH_CRI): 'si' is not accepted"),
    ],
)
def test_a_wrong_variable_is_named(
    ran: Session,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    status: int,
    said: str,
):
    Path("file").write_text("mine")
    monkeypatch.setenv(variable, value)
    assert main.main([]) == status
    assert capsys.readouterr().err.startswith(f"ktrace: {said}")
    assert ran.configs == []


def test_blanks_around_a_variable_are_no_part_of_it(
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
def test_a_folder_that_cannot_be_one_is_told_so(
    ran: Session, capsys: pytest.CaptureFixture[str], folder: str
):
    Path("file").write_text("mine")
    Path("dangling").symlink_to("nowhere")
    assert main.main([f"--out-dir={folder}"]) == 5
    assert f"cannot write into {folder} (Not a directory)" in capsys.readouterr().err
    assert ran.configs == []


EMPTY = {
    "--duration": "a time from 1s",
    "--ports": "at most 64 port numbers",
    "--pods": "at most 256 UIDs of pods",
    "--cri-socket": "at most 8 absolute paths",
    "--out-dir": "a folder",
    "--sink": "s3://BUCKET/PREFIX",
    "--host-root": "the folder where the host's / is mounted",
    "--threshold-file": "a file",
    "--threshold": "NAME=VALUE",
}


@pytest.mark.parametrize("value", ["", " ", "\t\n"])
@pytest.mark.parametrize("flag", EMPTY)
def test_an_empty_value_is_no_wish(
    ran: Session, capsys: pytest.CaptureFixture[str], flag: str, value: str
):
    """Such as --ports="$PORTS" of a script that never set it: it would record everything."""
    for args in ([f"{flag}={value}"], [flag, value]):
        assert main.main(args) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"ktrace: {flag}: '")
        assert f"is not accepted; give {EMPTY[flag]}" in line
        assert line.count("\n") == 1
    assert ran.configs == []
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("flag", EMPTY)
def test_an_empty_variable_is_none_and_blanks_are_no_wish(
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
    assert capsys.readouterr().err.startswith(f"ktrace: {flag} (from {variable}): ' ' is not")
    assert len(ran.configs) == 1


def test_an_empty_name_of_a_bundle_is_not_this_folder(
    ran: Session, capsys: pytest.CaptureFixture[str]
):
    assert main.main(["--out-dir=."]) == 0
    capsys.readouterr()
    for args in (["show", ""], ["query", " ", "SELECT 1"]):
        assert main.main(args) == 2
        assert "BUNDLE: '" in (line := capsys.readouterr().err)
        assert "is not accepted; give a bundle.tgz" in line


@pytest.mark.parametrize(
    ("how", "name", "value"),
    [("flag", name, value) for name, value in WRONG]
    + [("variable", name, value) for name, value in WRONG if value],  # an empty one is none
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
        args = [f"{flag.name}={value}"]
    else:
        monkeypatch.setenv(flag.variable, value)
    assert main.main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    source = f" (from {flag.variable})" if how == "variable" else ""
    assert err.startswith(f"ktrace: {flag.name}{source}: ")
    assert flag.accepts in err
    assert ran.configs == []
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--prots=80"], "--prots: there is no such flag; did you mean --ports?"),
        (["--nonsense"], "--nonsense: there is no such flag"),
        (["--ports"], "--ports: a value is missing; give at most 64 port numbers"),
        (["--out-dir"], "--out-dir: a value is missing"),
        (["doctr"], "doctr"),
        (["capture", "now"], "unexpected extra argument (now)"),
        (["--json=perhaps"], "--json: 'perhaps' is not accepted; give true or false"),
        (["doctor", "--duration=5s"], "--duration: there is no such flag"),
        (["--json=-1"], "--json: '-1' is not accepted; give true or false"),
        (["--dns-only=-1"], "--dns-only: '-1' is not accepted; give true or false"),
        (["--with-cri=-x"], "--with-cri: '-x' is not accepted; give auto, true or false"),
        (["doctor", "--json=-1"], "--json: '-1' is not accepted; give true or false"),
        (["doctor", "--dns-only=-1"], "--dns-only: there is no such flag"),
    ],
)
def test_wrong_use_is_told_in_one_line(
    ran: Session, capsys: pytest.CaptureFixture[str], args: list[str], said: str
):
    assert main.main(args) == 2
    out, err = capsys.readouterr()
    told = out + err
    assert said in told
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
    assert err.startswith(f"ktrace: --out-dir: cannot write into {folder} (")
    assert err.count("\n") == 1
    assert ran.configs == []
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_a_wrong_sink_is_told_before_anything_is_recorded(
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
