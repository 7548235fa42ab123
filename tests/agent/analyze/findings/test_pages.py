# SPDX-License-Identifier: Apache-2.0
"""Ids, pages, tests and verdict cover the same findings."""

import re
from pathlib import Path
from string import Formatter

import pytest

from ktrace_agent.analyze import verdict
from ktrace_agent.analyze.titles import TITLES
from ktrace_api.finding import Cause, FindingId, Verdict

ROOT = Path(__file__).parents[4]
PAGES = ROOT / "docs/findings"
SECTIONS = ["How it is decided", "What would prove it wrong", "What to do", "Example"]


def test_every_id_has_a_page_and_every_page_an_id():
    assert {page.stem for page in PAGES.glob("*.md")} == set(FindingId)


@pytest.mark.parametrize("name", FindingId)
def test_page(name: FindingId):
    text = (PAGES / f"{name}.md").read_text()
    assert text.startswith(f"# {name}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    causes = {match for match in re.findall(r"`(\w+)`", text) if match in set(Cause)}
    assert causes, "the page says what it points to"


def pattern(template: str) -> str:
    """A regular expression for the titles that a template can give."""
    return "".join(
        re.escape(text) + (".+?" if field else "")
        for text, field, _, _ in Formatter().parse(template)
    )


@pytest.mark.parametrize("name", FindingId)
def test_the_examples_of_a_page_are_titles_of_its_finding(name: FindingId):
    examples = re.findall(r"^`([^`]+)`$", (PAGES / f"{name}.md").read_text(), re.MULTILINE)
    assert examples
    patterns = [pattern(template) for template in TITLES[name].values()]
    for example in examples:
        assert any(re.fullmatch(one, example) for one in patterns), example


@pytest.mark.parametrize("name", FindingId)
def test_every_id_is_made_by_a_family_and_has_a_test(name: FindingId):
    families = (ROOT / "agent/ktrace_agent/analyze/findings").glob("*.py")
    assert any(f"FindingId.{name}" in family.read_text() for family in families)
    tests = Path(__file__).parents[1].rglob("test_*.py")
    assert any(f'"{name}"' in test.read_text() for test in tests)


def test_nothing_explains_itself_or_what_explains_it():
    for cause, follows in verdict.EXPLAINS.items():
        assert cause not in follows
        for one in follows:
            assert cause not in verdict.EXPLAINS.get(one, frozenset())


def test_a_verdict_without_findings():
    assert verdict.judge([], 10) == Verdict(
        verdict=Cause.HEALTHY, why="No problems found in 10 events."
    )
    assert verdict.judge([], 0).verdict == Cause.UNKNOWN
