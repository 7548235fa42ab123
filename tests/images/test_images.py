# SPDX-License-Identifier: Apache-2.0
"""What is in the images, what is not, and that they run on nothing but themselves."""

import re
import tomllib

import pytest

from tests.cluster.images import ROOT
from tests.images.conftest import Image

pytestmark = [pytest.mark.world("images"), pytest.mark.timeout(900)]

MB = 10**6
AGENT_UNPACKED, AGENT_PULLED = 340 * MB, 120 * MB
OPERATOR_UNPACKED, OPERATOR_PULLED = 220 * MB, 60 * MB
PROGRAMS = re.compile(
    r"(^|/)(\w+-linux-gnu-)?(sh|bash|dash|busybox|perl|apt(-get)?|dpkg|pip\d*|gcc(-\d+)?|cc|ld|as"
    r"|clang(-\d+)?|make|curl|wget|su|mount)$"
)


def test_agent_keeps_its_budget(agent: Image):
    assert agent.unpacked <= AGENT_UNPACKED
    assert sum(agent.layers) <= AGENT_PULLED


def test_operator_keeps_its_budget(operator: Image):
    assert operator.unpacked <= OPERATOR_UNPACKED
    assert sum(operator.layers) <= OPERATOR_PULLED


def test_a_new_version_is_a_small_pull(image: Image):
    assert image.layers[-1] < 2 * MB


def test_nothing_to_break_out_with(image: Image):
    assert [name for name in image.names if PROGRAMS.search(name)] == []


def test_nothing_is_left_of_the_build(image: Image):
    left = re.compile(
        r"(^|/)(pip|hatchling)(/|-[\d.]+\.dist-info)|\.(deb|whl|pyi)$|host-ca|pip\.conf"
        r"|^(\./)?(usr/share/(man|locale)/.|var/(lib/apt|cache)/.|src|build|wheel)"
    )
    assert [name for name in image.names if left.search(name)] == []


def test_no_file_belongs_to_somebody_or_raises_rights(image: Image):
    for path in image.files:
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (0, 0), path
        assert not status.st_mode & 0o6002, path


def test_labels_say_what_it_is(image: Image):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = {
        name.removeprefix("org.opencontainers.image."): value
        for name, value in image.config["Labels"].items()
    }
    assert labels["version"] == project["version"]
    assert labels["licenses"] == project["license"]
    assert labels["title"] in {"ktrace-agent", "ktrace-operator"}
    assert labels["base.name"]
    assert labels["revision"]


def test_licences_of_all_packages_are_there(image: Image):
    packages = list((image.root / "var/lib/dpkg/status.d").iterdir())
    assert len(packages) > 10
    for package in packages:
        assert (image.root / "usr/share/doc" / package.name / "copyright").exists(), package.name
    assert list(image.root.rglob("ktrace-*.dist-info/licenses/LICENSE"))


def test_users(agent: Image, operator: Image):
    assert agent.config["User"] == "0:0"
    assert operator.config["User"] == "65532:65532"


def test_each_holds_its_own_room_only(agent: Image, operator: Image):
    def rooms(image: Image) -> set[str]:
        return {path.name for path in image.root.rglob("dist-packages/ktrace_*") if path.is_dir()}

    assert rooms(agent) == {"ktrace_api", "ktrace_agent"}
    assert rooms(operator) == {"ktrace_api", "ktrace_operator"}


def test_agent_is_the_version_that_it_says(agent: Image):
    done = agent.entry("--version")
    assert done.stdout == f"ktrace {agent.config['Labels']['org.opencontainers.image.version']}\n"


def test_agent_knows_what_this_kernel_offers(agent: Image):
    done = agent.entry("doctor")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^Ready", done.stdout, re.MULTILINE)
    assert re.search(r"libbpf +1\.", done.stdout)


def test_agent_finds_the_services_that_it_needs_of_aws(agent: Image):
    code = "import boto3\nfor n in 's3 sts sso sso-oidc'.split(): boto3.client(n, 'eu-west-1')"
    done = agent.run("/usr/bin/python3", "-c", code)
    assert done.returncode == 0, done.stderr


def test_operator_explains_itself(operator: Image):
    done = operator.entry("--help")
    assert done.returncode == 0, done.stderr
    assert "TraceSnapshot" in done.stdout


def test_byte_code_is_there_and_valid(image: Image):
    """The root is read-only: what is not compiled in the image is compiled at each start."""
    done = image.run("/usr/bin/python3", "-v", "-c", "import pydantic")
    assert done.returncode == 0
    loaded = re.findall(r"code object from '([^']+)'", done.stderr)
    assert len(loaded) > 20
    assert [path for path in loaded if not path.endswith(".pyc")] == []
