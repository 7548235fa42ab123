# SPDX-License-Identifier: Apache-2.0
"""A guest in QEMU without KVM: another kernel, an initramfs, commands in and their results out.

The kernel's console is the first serial port and goes to a file. Commands run over the second.
QEMU and its temporary folder end with this process, even by SIGKILL.
Nothing waits for a time: a guest is ready when its init reports it, a command is done when its
status arrives. A deadline ends a guest that hangs.
"""

import base64
import re
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.kernels import initramfs
from tests.kernels.machine import MACHINES
from tests.kernels.packages import Kernel

MEMORY_MIB = 2048
BOOT_S = 180.0
"""A boot takes 5 s on an idle host; one with many jobs takes a minute."""
COMMAND_S = 600.0
CONSOLE_LINES = 60

# Under TCG on a loaded host a CPU stands still for seconds: no sign of a fault.
_APPEND = (
    "loglevel=6",
    "oops=panic",
    "panic=-1",
    "nokaslr",
    "nosoftlockup",
    "rcupdate.rcu_cpu_stall_suppress=1",
)

_TROUBLE = re.compile(
    r"BUG:|kernel BUG at|Oops|Kernel panic|WARNING:|general protection fault"
    r"|cut here|stack segment|refcount_t:|list_(add|del) corruption|UBSAN:|kmemleak:"
    r"|INFO: task \S+ blocked|Out of memory"
)


class GuestFailed(Exception):
    """A guest did not start, died, hung, or its kernel reported a fault; shows its console."""


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    status: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        return self.out.decode(errors="replace")

    @property
    def errors(self) -> str:
        return self.err.decode(errors="replace")


def trouble(console: str) -> list[str]:
    """Lines of a console that report a fault of the kernel: panics, oopses, BUG and WARN."""
    return [line.strip() for line in console.splitlines() if _TROUBLE.search(line)]


@contextmanager
def guest(
    kernel: Kernel,
    files: Mapping[str, Path],
    *append: str,
    memory_mib: int = MEMORY_MIB,
) -> Iterator["Guest"]:
    """A running guest with `files` (path in it -> source) and `append` on its command line.

    Raises GuestFailed: if it does not boot twice in a row, dies, hangs, or if its kernel
    reported a fault by the end.
    """
    machine = MACHINES[kernel.arch]
    with _folder() as folder:
        image = folder / "initramfs"
        initramfs.write(image, machine.busybox(), files)
        command = [
            "setpriv", "--pdeathsig", "KILL", "nice",
            machine.qemu, "-accel", "tcg,thread=multi", "-smp", "2", "-m", str(memory_mib),
            "-nodefaults", "-display", "none", "-no-reboot",
            "-kernel", str(kernel.vmlinuz), "-initrd", str(image),
            "-append", " ".join((*machine.append, *_APPEND, *append)),
            "-chardev", f"socket,id=commands,path={folder / 'commands'},server=on,wait=off",
            "-serial", f"file:{folder / 'console'}",
            *machine.options,
        ]  # fmt: skip
        running = _booted(command, folder)
        try:
            yield running
            running.check()
        finally:
            running.end()


@contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder that is removed even if this process is killed.

    The shell waits for the end of its input, which is that of this process at the latest. It has a
    session of its own, so that a signal to the group of this process spares it.
    """
    with tempfile.TemporaryDirectory(prefix="ktrace-guest-") as name:
        command = ["sh", "-c", 'read -r _; rm -rf "$1"', "sh", name]
        cleaner = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        try:
            yield Path(name)
        finally:
            cleaner.communicate()


def _booted(command: Sequence[str], folder: Path) -> "Guest":
    """A guest whose init is ready.

    One boot in 35 dies early by a race of multi-threaded TCG (text_poke), so there is a second.
    """
    for attempt in (1, 2):
        one = Guest(command, folder)
        try:
            one.wait_ready(BOOT_S)
        except GuestFailed:
            one.end()
            if attempt == 2:
                raise
        except BaseException:
            one.end()
            raise
        else:
            break
    return one


class Guest:
    """One QEMU process; use guest() to get it."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self.folder = folder
        self._console = folder / "console"
        self._console.write_bytes(b"")
        (folder / "commands").unlink(missing_ok=True)
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._port = socket.socket(socket.AF_UNIX)
        self._path = str(folder / "commands")
        self._unread = b""
        self.boot_s = 0.0
        """Seconds from the start of QEMU to the first command."""

    @property
    def pid(self) -> int:
        """Of QEMU."""
        return self._process.pid

    @property
    def console(self) -> str:
        """What the kernel printed so far."""
        return self._console.read_text(errors="replace").replace("\r", "")

    @property
    def ended(self) -> bool:
        """Whether QEMU has ended."""
        return self._process.poll() is not None

    def wait_ready(self, seconds: float) -> None:
        """Wait for init. Raises GuestFailed."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(FileNotFoundError, ConnectionRefusedError):
                self._port.connect(self._path)
                break
            if self._process.poll() is not None:
                assert self._process.stdout
                output = self._process.stdout.read().decode(errors="replace")
                raise GuestFailed(f"QEMU did not start: {output}")
            self._expire(deadline, "QEMU opened no serial port")
            time.sleep(0.02)
        while self._line(deadline, "the guest did not reach init") != b"READY":
            pass
        self.boot_s = time.monotonic() - self._started

    def run(self, script: str, seconds: float = COMMAND_S) -> Done:
        """Run a shell script in the guest and wait for its end.

        Raises GuestFailed if the guest dies meanwhile, or after `seconds`.
        """
        deadline = time.monotonic() + seconds
        what = f"the guest did not end this in {seconds:.0f} s: {script.strip()[:200]}"
        self._port.sendall(base64.b64encode(script.encode()) + b"\n")
        status, out, err = (int(word) for word in self._line(deadline, what).split())
        return Done(status, self._read(out, deadline, what), self._read(err, deadline, what))

    def check(self) -> None:
        """Raise GuestFailed if the kernel reported a fault."""
        if found := trouble(self.console):
            raise GuestFailed(self._report(f"the kernel reported a fault: {found[0]}"))

    def end(self) -> None:
        """End QEMU. Idempotent."""
        self._port.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()

    def _line(self, deadline: float, what: str) -> bytes:
        while b"\n" not in self._unread:
            self._receive(deadline, what)
        line, _, self._unread = self._unread.partition(b"\n")
        return line.strip(b"\r")

    def _read(self, size: int, deadline: float, what: str) -> bytes:
        while len(self._unread) < size:
            self._receive(deadline, what)
        found, self._unread = self._unread[:size], self._unread[size:]
        return found

    def _receive(self, deadline: float, what: str) -> None:
        ready, _, _ = select.select([self._port], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            self._expire(deadline, what)
            return
        try:
            part = self._port.recv(1 << 16)
        except ConnectionError:
            part = b""
        if not part:
            found = trouble(self.console)
            raise GuestFailed(self._report(f"the guest died: {found[0] if found else self._end()}"))
        self._unread += part

    def _end(self) -> str:
        """QEMU's exit status and messages, for a death without a reason on the console."""
        output, _ = self._process.communicate()
        return f"QEMU ended with status {self._process.returncode}: {output.decode()!r}"

    def _expire(self, deadline: float, what: str) -> None:
        if time.monotonic() >= deadline:
            raise GuestFailed(self._report(what))

    def _report(self, what: str) -> str:
        """`what`, and the console from the first fault on, else its end."""
        lines = self.console.splitlines()
        faults = [number for number, line in enumerate(lines) if _TROUBLE.search(line)]
        shown = lines[faults[0] :][:CONSOLE_LINES] if faults else lines[-CONSOLE_LINES:]
        return "\n".join((what, "--- its console ---", *shown))
