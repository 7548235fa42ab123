# SPDX-License-Identifier: Apache-2.0
"""Records in a guest by loader.c: the programs that the agent would choose, without the agent.

The choice is made here, by the agent's own code and the features that the guest reports. So a guest
needs neither Python nor the static file, and a recording takes seconds.
"""

import re
import shlex
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ktrace_agent.kernel import load_errors
from ktrace_agent.kernel.collector import KernelConfig
from ktrace_agent.kernel.hooks import HOOKS, IPV6_ONLY, LEFT, TARGETS
from ktrace_agent.kernel.libbpf import BpfError
from ktrace_agent.kernel.probes import GROWING_MAPS, Choice, choose, object_name, preallocates
from ktrace_agent.kernel.targets import Event, Function, Iterator, Kprobe, RawTracepoint
from ktrace_api.capture import CaptureConfig
from tests.kernels.guest import Guest
from tests.kernels.machine import MACHINES
from tests.kernels.recording import Recording

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "agent/bpf/build"
NOT_LOADED, NOT_ATTACHED = 2, 3
CONFIGS = {"config": False, "config-v1": True}
"""Files in a guest: struct kt_config with cgroup v2 and with v1."""

_CANDIDATES = {
    frozenset(candidate.programs) - IPV6_ONLY: candidate.name
    for hook in HOOKS
    for candidate in hook.candidates
}
_WHEN = dict.fromkeys(LEFT, "end")
_KPROBES = "/sys/bus/event_source/devices/kprobe/type"
_IPV6 = "/proc/net/if_inet6"
_EVENTS = "/sys/kernel/tracing/events"
_UNLOADED = re.compile(r"^libbpf: prog '(\w+)': failed to load", re.MULTILINE)
_REASONS = re.compile(r"^(load|attach) (\w+): (.*)$", re.MULTILINE)

_START = """
: >/tmp/errors
loader record {arguments} >/tmp/recording 2>/tmp/errors &
pid=$!
until grep -q '^READY' /tmp/errors; do
    kill -0 $pid 2>/dev/null || {{ wait $pid; status=$?; cat /tmp/errors >&2; exit $status; }}
    sleep 0.05
done
"""
_STOP = """
kill -INT $pid
wait $pid || exit
cat /tmp/errors >&2
cat /tmp/recording
"""


def build(arch: str, folder: Path) -> Path:
    """Compile loader.c, linked statically."""
    return compiled(arch, "loader.c", folder, "-lbpf", "-lelf", "-lz", "-lzstd")


def compiled(arch: str, source: str, folder: Path, *libraries: str) -> Path:
    """Compile a file of this folder into a static program."""
    machine = MACHINES[arch]
    program = folder / Path(source).stem
    flags = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", *machine.libraries())
    file = Path(__file__).with_name(source)
    subprocess.run([*machine.compiler, *flags, file, "-o", program, *libraries], check=True)
    return program


def objects(arch: str) -> dict[str, Path]:
    """The BPF objects for an architecture, by their path in a guest. Built if they are not."""
    folder = BUILD if arch == "amd64" else BUILD / arch
    names = ("ktrace.bpf.o", "ktrace_basic.bpf.o")
    targets = [str((folder / name).relative_to(ROOT / "agent/bpf")) for name in names]
    command = ["make", "-C", str(ROOT / "agent/bpf"), f"ARCH={arch}", *targets]
    subprocess.run(command, check=True, capture_output=True)
    return {f"etc/{name}": folder / name for name in names}


def configs(folder: Path) -> dict[str, Path]:
    """The settings of a capture of everything, by their path in a guest."""
    files = {}
    for name, cgroup_v1 in CONFIGS.items():
        file = folder / name
        file.write_bytes(bytes(KernelConfig.of(CaptureConfig(node="guest"), cgroup_v1=cgroup_v1)))
        files[f"etc/{name}"] = file
    return files


class GuestFeatures:
    """What a guest's kernel offers, for probes.choose(): asked at once as far as possible."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        guest.run("grep -q tracefs /proc/mounts || mount -t tracefs none /sys/kernel/tracing")
        self._found: dict[str, int | None] = {}
        wanted = filter(None, map(_feature, TARGETS.values()))
        self._ask(f"file:{_KPROBES}", f"file:{_IPV6}", *wanted)

    def tracepoint_args(self, name: str) -> int | None:
        return self._get(f"tracepoint:{name}")

    def function_args(self, name: str) -> int | None:
        return self._get(f"function:{name}")

    def event_id(self, name: str) -> int | None:
        return self._get(f"file:{_EVENTS}/{name}/id")

    def has_struct(self, name: str) -> bool:
        return self._get(f"struct:{name}") is not None

    def has_ipv6(self) -> bool:
        return self._get(f"file:{_IPV6}") is not None

    def has_kprobes(self) -> bool:
        return self._get(f"file:{_KPROBES}") is not None

    def _get(self, feature: str) -> int | None:
        if feature not in self._found:
            self._ask(feature)
        return self._found[feature]

    def _ask(self, *features: str) -> None:
        done = self._guest.run(f"loader features {shlex.join(features)}")
        assert done.status == 0, done
        for line in done.text.splitlines():
            kind, name, value = line.split()
            self._found[f"{kind}:{name}"] = None if value == "-" else int(value)


def _feature(target: object) -> str | None:
    match target:
        case RawTracepoint(name=name):
            return f"tracepoint:{name}"
        case Function(name=name) | Kprobe(name=name):
            return f"function:{name}"
        case Event(name=name):
            return f"file:{_EVENTS}/{name}/id"
        case Iterator(helper=helper) if helper:
            return f"function:{helper}"
    return None


@dataclass(frozen=True)
class Chosen:
    """The programs that a guest's kernel took."""

    choices: tuple[Choice, ...]
    recording: Recording
    truth: str
    """What the workload printed."""

    @property
    def candidates(self) -> dict[str, str]:
        """Hook -> the name of the candidate that serves it, `-` if none does."""
        return {
            one.hook: _CANDIDATES[frozenset(one.programs) - IPV6_ONLY] if one.programs else "-"
            for one in self.choices
        }


def record(
    guest: Guest,
    features: GuestFeatures,
    workload: str,
    forced: Mapping[str, str] | None = None,
    config: str = "config",
) -> Chosen:
    """Record while `workload` runs in the guest. Like the agent, choose again what was refused."""
    unusable: dict[str, str] = {}
    name = object_name(features)
    while True:
        choices = choose(features, refused=unusable, forced=forced)
        programs = dict.fromkeys(one for choice in choices for one in choice.programs)
        arguments = [f"/etc/{name}", f"--config=/etc/{config}"]
        if preallocates(features):
            arguments += [f"--preallocate={one}" for one in GROWING_MAPS]
        arguments += [f"{one}={_target(one)}" for one in programs]
        script = _START.format(arguments=shlex.join(arguments))
        done = guest.run(f"{script}\n{workload} >/tmp/truth || exit 99\n{_STOP}")
        if done.status in (NOT_LOADED, NOT_ATTACHED) and (new := refused(done.errors)):
            assert not new.keys() & unusable.keys(), done.errors
            unusable |= new
            continue
        assert done.status == 0, done.errors
        truth = guest.run("cat /tmp/truth").text
        return Chosen(choices, Recording(done.out, programs), truth)


def refused(errors: str) -> dict[str, str]:
    """Program -> reason, from the loader's messages."""
    found = dict.fromkeys(_UNLOADED.findall(errors), "not loaded")
    for call, name, text in _REASONS.findall(errors):
        log = text.replace("\t", "\n") if call == "load" else ""
        found[name] = load_errors.reason(BpfError(call, 0, log)) if log else text
    return found


def _target(name: str) -> str:
    target = TARGETS[name]
    if not isinstance(target, Iterator):
        return "section"
    over = f":{target.over}" if target.over else ""
    return f"iter{over}@{_WHEN.get(name, 'start')}"


def files(arch: str, folder: Path) -> dict[str, Path]:
    """Everything that a guest needs to record the golden workload, by its path there."""
    return {
        "bin/loader": build(arch, folder),
        "bin/traffic": compiled(arch, "traffic.c", folder),
        **objects(arch),
        **configs(folder),
    }


def refusals(choices: Iterable[Choice]) -> dict[str, str]:
    """Program -> reason, of the candidates that were better than the chosen one."""
    return {one.program: one.reason for choice in choices for one in choice.refused}
