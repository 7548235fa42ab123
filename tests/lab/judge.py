# SPDX-License-Identifier: Apache-2.0
"""Compares what ktrace reported about a scene with what is true."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.lab.scene import Played, Scene, Subject

LOUD = ("warning", "critical")
Said = dict[str, Any]
"""A finding, as summary.json has it."""


@dataclass(frozen=True)
class Outcome:
    """The judgement of one scene in one capture; picklable, and all that reports need."""

    scene: str
    about: str
    incident: bool
    background: bool
    expected: tuple[str, ...]
    found: tuple[str, ...] = ()
    """Expected ids with the true subject."""
    also: tuple[str, ...] = ()
    """Other ids that are true of it."""
    false: tuple[str, ...] = ()
    """Ids at warning or above that are not true of it."""
    verdict: str = "-"
    verdict_true: bool = False
    wrong: tuple[str, ...] = ()
    """All that is not as it should be, in words."""
    seconds: float = 0.0
    skipped: str = ""
    failed: str = ""
    """The scene itself did not happen as described."""

    @property
    def missed(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.expected) - set(self.found)))

    @property
    def good(self) -> bool:
        return not (self.wrong or self.failed)


def loud(summary: dict[str, Any]) -> list[Said]:
    """Findings at warning or above."""
    return [one for one in summary["findings"] if one["severity"] in LOUD]


def names(said: Said, wanted: Subject) -> bool:
    """True if the finding names the subject and no other one."""
    subject = said["subject"]
    if wanted.tgid is not None and subject["tgid"] != wanted.tgid:
        return False
    if wanted.perhaps is not None and subject["tgid"] not in ("-", wanted.perhaps):
        return False
    if wanted.netns is not None and subject["netns"] != wanted.netns:
        return False
    host = wanted.peer.rsplit(":", 1)[0].strip("[]")
    return not wanted.peer or subject["peer"] in (wanted.peer, host)


def foreign(played: Played) -> list[Said]:
    """What ktrace found in network namespaces that are not the lab's: somebody else's trouble."""
    scenes: list[Scene] = [*played.scenes, *([played.backdrop] if played.backdrop else [])]
    own: set[int | str] = {"-"}
    own.update(*(scene.places() for scene in scenes))
    return [one for one in loud(played.capture.summary) if one["subject"]["netns"] not in own]


def brief(said: Said) -> str:
    """A finding in one line."""
    who = said["subject"]
    return (
        f"{said['id']} ({said['severity']}) tgid {who['tgid']} {who['comm']} peer {who['peer']} "
        f"netns {who['netns']} {said['counts']} {said['evidence']['numbers']}"
    )


def judge(played: Played) -> list[Outcome]:
    """One outcome a scene. With several in a capture all of them must be healthy."""
    summary = played.capture.summary
    if len(played.scenes) == 1:
        return [_judge(played, played.scenes[0], loud(summary))]
    left = loud(summary)
    outcomes = []
    for number, scene in enumerate(played.scenes):
        last = number == len(played.scenes) - 1
        own = [one for one in left if last or one["subject"]["netns"] in scene.places()]
        left = [one for one in left if one not in own]
        outcomes.append(_judge(played, scene, own))
    return outcomes


def _judge(played: Played, scene: Scene, said: Sequence[Said]) -> Outcome:
    wanted, wrong = scene.expected, list[str]()
    found, also, false = set[str](), set[str](), list[str]()
    for one in said:
        elsewhere = one["subject"]["netns"] not in ("-", *scene.places())
        blames = one["subject"]["peer"] in scene.subject.blameless
        if one["id"] in wanted.findings and names(one, scene.subject):
            found.add(one["id"])
        elif one["id"] in wanted.findings | wanted.also and not elsewhere and not blames:
            also.add(one["id"])
        else:
            false.append(one["id"])
            wrong.append(f"false: {brief(one)}")
    for name in sorted(wanted.findings - found):
        as_other = [brief(one) for one in said if one["id"] == name]
        wrong.append(f"missed: {name}; with another subject: {as_other or 'no'}")
    verdict = played.capture.summary["verdict"]
    if verdict["verdict"] not in wanted.verdicts:
        wrong.append(f"verdict {verdict}, expected {' or '.join(sorted(wanted.verdicts))}")
    return Outcome(
        scene=scene.name(),
        about=scene.about,
        incident=scene.incident(),
        background=played.backdrop is not None,
        expected=tuple(sorted(wanted.findings)),
        found=tuple(sorted(found)),
        also=tuple(sorted(also)),
        false=tuple(false),
        verdict=verdict["verdict"],
        verdict_true=verdict["verdict"] in wanted.verdicts,
        wrong=tuple(wrong),
        seconds=played.seconds / len(played.scenes),
    )
