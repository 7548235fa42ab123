# SPDX-License-Identifier: Apache-2.0
"""The prose of the project is plain English: it uses none of the banned words.

Checked are comments, docstrings and texts of Python, comments of C, and the whole text of charts,
scripts and docs, but for `code` in backticks. A phrase may span a line break.
"""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

BANNED = {
    "told": "reported, written, returned",
    "held against": "compared with",
    "lets? go|letting go": "released, removed",
    "rescued": "counted elsewhere",
    "witness(?:es|ed)?": "reference counters, processes",
    "nobody": "no process, no user, unknown",
    "whom": "name the subject",
    "(?:there )?(?:is|are|was|were) no (?!longer|more|less|fewer)": "is not a (but: there is no)",
    "what came of": "result",
    "made where (?:it is|they are) missing": "created if missing",
    "an? (?:last |first |second |new |closer )?look": "dump, poll, read",
    "look(?:s|ed) at": "reads, checks, examines",
    "talks?": "exchange, connection",
    "stock": "inventory",
    "sent again": "retransmitted",
    "(?:no|more|enough|free|less|find|finds|found|needs?|takes?|leaves?|has|have|had|its|their)"
    " room|room (?:for|left|in memory|on the disk)": "space, limit",
}
"""Banned phrase (a regular expression) -> what to write instead."""

ALLOWED: dict[tuple[str, str], str] = {
    ("docs/accuracy.md", "nobody"): "name of a scene of the lab",
}
"""(File, phrase as it is written there) -> why it is right there."""

FILES = (
    *("api/**/*.py", "agent/**/*.py", "operator/**/*.py", "examples/**/*.py", "scripts/*.py"),
    *("agent/bpf/*.[ch]", "agent/bpf/*/*.[ch]", "scripts/*.c", "hatch_build.py"),
    *("charts/**/*.yaml", "charts/**/*.tpl", "charts/**/NOTES.txt", "charts/**/*.json"),
    *("crds/*.yaml", "deploy/**/*.yaml", "examples/**/*.yaml", "docs/**/*.md", "*.md"),
    *("scripts/*.sh", ".ci/run", "Makefile", "agent/bpf/Makefile", "Dockerfile.*"),
    *("pyproject.toml", "tests/conftest.py"),
)
BANNED_RE = re.compile(
    "|".join(rf"\b(?:{phrase})\b" for phrase in BANNED).replace(" ", r"\s+"), re.IGNORECASE
)
CODE = re.compile(r"`[^`\n]+`")
C_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
LITERAL = re.compile(r"^[a-zA-Z]*(\"\"\"|'''|\"|')(.*?)\1$", re.DOTALL)
MARKER = re.compile(r"^[ \t]*(?:#|\*|//)+", re.MULTILINE)


def files() -> list[Path]:
    found = {path for pattern in FILES for path in ROOT.glob(pattern)}
    return sorted(path for path in found if path.is_file() and "build" not in path.parts)


def in_lines(parts: Iterator[tuple[int, str]], count: int) -> str:
    """Texts at the lines on which they begin; all other lines are empty."""
    lines = [""] * (count + 1)
    for first, text in parts:
        for number, line in enumerate(text.split("\n"), first):
            lines[number - 1] += f" {line}"
    return "\n".join(lines)


def python_prose(text: str) -> Iterator[tuple[int, str]]:
    """Comments, docstrings and those strings that are more than one word."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "COMMENT":
            yield token.start[0], token.string.lstrip("#")
        elif kind in ("STRING", "FSTRING_MIDDLE"):
            literal = LITERAL.match(token.string)
            content = literal[2] if literal else token.string
            if " " in content.strip() or "\n" in content:
                yield token.start[0], content


def prose(path: Path) -> str:
    """The prose of a file, each word on its own line of the file."""
    text = path.read_text()
    count = text.count("\n") + 1
    if path.suffix == ".py":
        text = in_lines(python_prose(text), count)
    elif path.suffix in {".c", ".h"}:
        comments = C_COMMENT.finditer(text)
        text = in_lines(((text.count("\n", 0, m.start()) + 1, m[0]) for m in comments), count)
    return CODE.sub("", MARKER.sub("", text))


def banned_in(path: Path) -> list[tuple[int, str]]:
    """Line and phrase of every banned phrase that is not allowed there."""
    text, name = prose(path), str(path.relative_to(ROOT))
    found = ((match.start(), " ".join(match[0].split())) for match in BANNED_RE.finditer(text))
    return [
        (text.count("\n", 0, start) + 1, phrase)
        for start, phrase in found
        if (name, phrase) not in ALLOWED and not phrase.lower().startswith("there ")
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('"""Is told\nto nobody."""\n', [(1, "told"), (2, "nobody")]),
        ("x = 1  # held\n# against it\n", [(1, "held against")]),
        ('x = f"{y} was sent again"\n', [(1, "sent again")]),
        ('stock = "stock"\n# `stock` is a name, it is no longer used\n', []),
        ("# Whom\n", [(1, "Whom")]),
        ("# It is no\n# word, there is no word, it is no longer one.\n", [(1, "is no")]),
    ],
)
def test_a_banned_word_is_found_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, found: list[tuple[int, str]]
):
    monkeypatch.setattr("tests.test_words.ROOT", tmp_path)
    path = tmp_path / "some.py"
    path.write_text(text)
    assert banned_in(path) == found


def test_no_banned_words():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {phrase}"
        for path in files()
        for line, phrase in banned_in(path)
    ]
    assert not found, f"{len(found)} banned words:\n" + "\n".join(found)


def test_every_exception_is_used():
    for name, phrase in ALLOWED:
        assert phrase in " ".join(prose(ROOT / name).split()), (name, phrase)
