# SPDX-License-Identifier: Apache-2.0
"""The repository keeps its own promises: versions, licences, lock, help, docs."""

import operator
import re
import subprocess
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import ktrace_api
from ktrace_agent.cli.options import OPTIONS

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCE_FOLDERS = (
    "api",
    "agent",
    "operator",
    "tests",
    "bench",
    "scripts",
    "examples",
    "deploy",
    ".ci",
    ".devcontainer",
)
DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
DOCKERFILES = sorted(ROOT.glob("Dockerfile.*"))
LOCKS = sorted(ROOT.glob("requirements/*.lock"))
TARGETS = re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
INTERNAL_TARGETS = {"setup", "setup-test", "setup-cluster", "setup-kernels"}


def source_files() -> list[Path]:
    found = [*ROOT.glob("*.py"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    found += [*DOCKERFILES, ROOT / ".dockerignore"]
    for folder in SOURCE_FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            wanted = path.suffix in {".py", ".c", ".h", ".sh", ".yaml"} or path.name in {
                "Dockerfile",
                "Makefile",
                "run",
            }
            if wanted and path.is_file() and "build" not in path.relative_to(ROOT).parts:
                found.append(path)
    return found


def test_version_is_one() -> None:
    version = PYPROJECT["project"]["version"]
    assert ktrace_api.__version__ == version
    assert metadata.version("ktrace") == version
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"The version under work is {version}." in changelog or f"## [{version}]" in changelog


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_image_has_the_version_and_a_base_that_can_be_chosen(path: Path) -> None:
    text = path.read_text()
    assert f"ARG VERSION={PYPROJECT['project']['version']}\n" in text
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert set(bases) == {"scratch", "${BASE}"}
    assert bases[-1] == "scratch"


def test_no_package_shadows_operator() -> None:
    assert operator.__file__ is not None
    assert Path(operator.__file__).parent == Path(sysconfig.get_path("stdlib"))
    roots = [ROOT / folder for folder in ("api", "agent", "operator", "tests")]
    for folder in [*roots, *(ROOT / "tests").iterdir()]:
        assert not (folder / "__init__.py").exists()


def test_every_source_file_names_its_licence() -> None:
    files = source_files()
    assert len(files) > 20
    for path in files:
        head = "\n".join(path.read_text().splitlines()[:2])
        assert "SPDX-License-Identifier: " in head, path
    for name in re.findall(r"[\w.-]+", PYPROJECT["project"]["license"].replace(" AND ", " ")):
        assert (ROOT / "LICENSES" / f"{name}.txt").exists() or name == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_lock_has_hashes_and_no_addresses(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text
    assert "--index-url" not in text
    assert "--find-links" not in text
    entries = re.split(r"\n(?=[a-z0-9])", text.strip())
    assert len(entries) > 5
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry


def test_locks_agree_and_cover_the_metadata() -> None:
    pins = [
        dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", path.read_text(), re.MULTILINE))
        for path in LOCKS
    ]
    agent, dev, operator_pins = pins
    assert agent.items() <= dev.items()
    assert operator_pins.items() <= dev.items()
    extras = PYPROJECT["project"]["optional-dependencies"]
    for requirement in [*PYPROJECT["project"]["dependencies"], *extras["agent"]]:
        assert re.split(r"[<>=]", requirement)[0] in agent
    for requirement in extras["operator"]:
        assert re.split(r"[<>=]", requirement)[0] in operator_pins
    for requirement in extras["dev"]:
        assert re.split(r"[<>=\[]", requirement)[0] in dev


def test_help_lists_every_target() -> None:
    done = subprocess.run(
        ["make", "-C", ROOT, "--no-print-directory", "help"],
        check=True,
        capture_output=True,
        text=True,
    )
    listed = [line.split()[0] for line in done.stdout.splitlines()]
    assert set(listed) == set(TARGETS) - INTERNAL_TARGETS


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_docs_link_to_what_is_there(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target
    for target in re.findall(r"(?:^|`)(?:sudo )?make ([a-z0-9-]+)", path.read_text(), re.MULTILINE):
        assert target in TARGETS, target


def test_decisions_are_numbered_once() -> None:
    paths = sorted((ROOT / "docs/adr").glob("*.md"))
    numbers = [path.name[:4] for path in paths]
    assert len(set(numbers)) == len(numbers)
    for path in paths[1:]:
        assert path.read_text().startswith(f"# {path.name[:4]}. "), path


def test_readme_table_has_exactly_the_flags_that_there_are() -> None:
    done = subprocess.run(
        [ROOT / ".venv/bin/ktrace", "--help"], check=True, capture_output=True, text=True
    )
    known = set(re.findall(r"--[a-z][a-z-]+", done.stdout)) - {"--help", "--version"}
    readme = (ROOT / "README.md").read_text()
    rows = [
        f"| `{one.flag}` | {one.default or 'none'} | {one.accepts} | {linked(one.help)} |"
        for one in OPTIONS
    ]
    assert [line for line in readme.splitlines() if line.startswith("| `--")] == rows
    assert {one.flag for one in OPTIONS} == known
    # A line of another program may have our name among its arguments.
    ours = re.sub(r"^(helm|kubectl) .*", "", readme, flags=re.MULTILINE)
    named = set(re.findall(r"ktrace[^\n`]*?(--[a-z-]+)", ours))
    assert named <= known | {"--version"}


def linked(text: str) -> str:
    """A text with the pages that it names as links."""
    return re.sub(r"docs/[a-z]+\.md", r"[\g<0>](\g<0>)", text)


def test_no_absolute_paths_of_a_machine() -> None:
    for path in [*source_files(), *DOCS]:
        text = path.read_text()
        for folder in ("home", "root", "work"):
            assert f"/{folder}/" not in text, path


def modules_without_own_test() -> list[str]:
    """Modules without tests/<source>/<room>/test_<module>.py."""
    found = []
    for source in ("api", "agent", "operator"):
        base = ROOT / source / f"ktrace_{source}"
        for path in sorted(base.rglob("*.py")):
            inside = path.relative_to(base)
            own = ROOT / "tests" / source / inside.with_name(f"test_{path.name}")
            if path.name != "__init__.py" and not own.exists():
                found.append(str(path.relative_to(ROOT)))
    return found


def test_a_module_has_a_test_of_its_name_or_is_listed_with_one() -> None:
    listed = tomllib.loads((ROOT / "tests/covered_by.toml").read_text())
    assert sorted(listed) == sorted(modules_without_own_test())
    assert list(listed) == sorted(listed)
    for module, test in listed.items():
        assert (ROOT / test).exists(), f"{module} is listed with {test}"
