# SPDX-License-Identifier: Apache-2.0
"""Whose socket it is: the process that last acted on it by connect, listen, accept, send or
receive; before any such act in the capture, the process that held it at the start; a child
that nobody accepted belongs to its listener's owner. Softirq's bystanders are never blamed.
"""

import array
import os
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.bpf import syscalls
from tests.bpf.captures import Capture, Row, hidden_init
from tests.bpf.conftest import Begin
from tests.bpf.namespaces import Pair
from tests.bpf.tcp_jobs import (
    CLIENT_STATES,
    SERVER_STATES,
    V4,
    listener,
    reset_on_close,
    serve,
    states,
    take,
    visit,
)
from tests.bpf.workers import Job, Line, Worker, fork

pytestmark = pytest.mark.world("bpf")

PORT = 7301
NOBODY, OTHER = 65534, 1234


@pytest.fixture
def far_cpu(pair: Pair) -> Iterator[None]:
    """Receive packet steering: softirq runs on any CPU, upon whatever process is there."""
    script = (
        "mount -t sysfs sysfs /sys && for f in /sys/class/net/*/queues/rx-0/rps_cpus;"
        " do printf %x {} > $f; done"
    )
    for mask in ("$(( (1 << $(nproc)) - 1 ))", "0"):
        for namespace in (pair.client, pair.server):
            namespace.run("unshare", "--mount", "sh", "-ec", script.format(mask))
        if mask != "0":
            yield


def tcp() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


def of_socket(capture: Capture, cookie: int) -> list[Row]:
    return [row for row in capture.rows if row["sock"] == f"{cookie:#x}"]


def owners(rows: list[Row]) -> list[Any]:
    return [row["tgid"] for row in rows]


@pytest.mark.usefixtures("far_cpu")
def test_thousand_connections(capture: Begin, pair: Pair) -> None:
    """Four processes a side, users of their own; at least 99.5 % known, none wrong."""
    each, sides = 251, 4
    with capture() as one:
        servers = [
            pair.server.start(serve(V4, PORT + i, each, 10, 20), uid=OTHER + i)
            for i in range(sides)
        ]
        for server in servers:
            server.hear()
        clients = [
            pair.client.start(visit(V4, PORT + i, each, 10, 20), uid=NOBODY - i)
            for i in range(sides)
        ]
        for worker in (*clients, *servers):
            worker.result()
        pair.wait_quiet()
    wrong = unknown = total = 0
    for namespace, workers, uid, step in (
        (pair.client, clients, NOBODY, -1),
        (pair.server, servers, OTHER, 1),
    ):
        true_of = {PORT + i: (worker.tgid, uid + i * step) for i, worker in enumerate(workers)}
        for row in one.of(net=namespace.inode):
            ends = [int(end.rpartition(":")[2]) for end in row["tuple"].split(" -> ") if end != "-"]
            port = next(end for end in ends if end in true_of)
            total += 1
            if row["tgid"] == "-":
                unknown += 1
            elif (row["tgid"], row["uid"]) != true_of[port]:
                wrong += 1
            else:
                assert (row["gid"], row["ppid"]) == (row["uid"], os.getpid())
    expected = sides * (each * 11 + 2)
    if hidden_init():
        assert expected * 0.98 <= total <= expected
    else:
        assert total == expected
    assert wrong == 0
    assert unknown <= total * 0.005


def accept_some(server: socket.socket, stopped: Callable[[], bool]) -> list[int]:
    """Accept and serve until told to stop; cookies of what was accepted."""
    cookies: list[int] = []
    server.settimeout(0.01)
    while True:
        try:
            connection, _ = server.accept()
        except (TimeoutError, BlockingIOError):
            if stopped():
                return cookies
            continue
        connection.settimeout(None)
        with connection:
            take(connection, 10)
            connection.sendall(b"r" * 20)
            assert connection.recv(1) == b""
            cookies.append(syscalls.cookie(connection))


def check_accepted(one: Capture, accepted: dict[int, list[int]], count: int) -> None:
    """All states of every child belong to the process that accepted it."""
    assert sum(map(len, accepted.values())) == count
    assert sum(bool(cookies) for cookies in accepted.values()) > 1
    for tgid, cookies in accepted.items():
        for cookie in cookies:
            rows = of_socket(one, cookie)
            assert states(rows) == SERVER_STATES
            assert owners(rows) == [tgid] * len(SERVER_STATES)
            assert {row["owner_source"] for row in rows} == {"accept"}


def drive(pair: Pair, workers: list[Worker], port: int, count: int) -> None:
    """Visits from several processes at once, so that every server process gets some."""
    visits = [pair.client.start(visit(V4, port, count // 4, 10, 20)) for _ in range(4)]
    for worker in visits:
        worker.result()
    pair.wait_quiet()
    for worker in workers:
        worker.say("stop")


def test_reuseport(capture: Begin, pair: Pair) -> None:
    """Four processes listen at one port, each with a socket of its own."""

    def job(line: Line) -> list[int]:
        with tcp() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            server.bind(("0.0.0.0", PORT))
            server.listen(128)
            line.say("ready")
            return accept_some(server, line.spoken_to)

    with capture() as one:
        workers = [pair.server.start(job) for _ in range(4)]
        for worker in workers:
            worker.hear()
        drive(pair, workers, PORT, 212)
        accepted = {worker.tgid: worker.result() for worker in workers}
    check_accepted(one, accepted, 212)


def test_prefork(capture: Begin, pair: Pair) -> None:
    """Four processes accept from one listener that their parent made."""

    def job(line: Line) -> dict[int, list[int]]:
        server = listener(V4, PORT)
        crew = []
        for _ in range(4):
            mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            crew.append((fork(partial(_prefork_child, server, theirs)), mine))
        line.say("ready")
        line.hear()
        accepted = {}
        for tgid, mine in crew:
            mine.send(b"stop")
            cookies = array.array("Q", mine.recv(65536))
            accepted[tgid] = list(cookies)[1:]
            os.waitpid(tgid, 0)
        return accepted

    with capture() as one:
        worker = pair.server.start(job)
        worker.hear()
        drive(pair, [worker], PORT, 212)
        accepted = worker.result()
    check_accepted(one, accepted, 212)


def _prefork_child(server: socket.socket, control: socket.socket) -> None:
    def stopped() -> bool:
        try:
            return bool(control.recv(16, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return False

    cookies = accept_some(server, stopped)
    control.send(array.array("Q", [0, *cookies]).tobytes())


def test_never_accepted(capture: Begin, pair: Pair) -> None:
    """What waits in the backlog belongs to the listener's owner, also when it goes."""

    def job(line: Line) -> int:
        with listener(V4, PORT) as server:
            line.say("ready")
            line.hear()
            return syscalls.cookie(server)

    def knock(line: Line) -> None:
        socks = [tcp() for _ in range(13)]
        for sock in socks:
            sock.connect((V4.server, PORT))
        line.say("done")
        line.hear()

    with capture() as one:
        server = pair.server.start(job)
        server.hear()
        client = pair.client.start(knock)
        client.hear()
        server.say("close")
        cookie = server.result()
        client.say("close")
        client.result()
        pair.wait_quiet()
    rows = [
        row for row in one.of("tcp_state", net=pair.server.inode) if row["sock"] != f"{cookie:#x}"
    ]
    assert len({row["sock"] for row in rows}) == 13
    assert set(owners(rows)) == {server.tgid}
    assert {row["owner_source"] for row in rows} == {"listener"}


def test_before_the_capture(capture: Begin, pair: Pair) -> None:
    """Sockets from before belong to who holds them, until someone acts."""

    def hold(line: Line) -> list[int]:
        with listener(V4, PORT) as server:
            line.say("ready")
            held = [server.accept()[0] for _ in range(7)]
            line.say("accepted")
            line.hear()
            for sock in held:
                assert sock.recv(1) == b""
            cookies = [syscalls.cookie(sock) for sock in held]
            for sock in held:
                sock.close()
            return cookies

    def visit_early(line: Line) -> list[int]:
        socks = [tcp() for _ in range(7)]
        for sock in socks:
            sock.connect((V4.server, PORT))
        line.say("connected")
        line.hear()
        cookies = [syscalls.cookie(sock) for sock in socks]
        for sock in socks:
            sock.close()
        return cookies

    server = pair.server.start(hold)
    server.hear()
    client = pair.client.start(visit_early)
    client.hear()
    server.hear()
    with capture() as one:
        client.say("close")
        server.say("close")
        visits, held = client.result(), server.result()
        pair.wait_quiet()
    for cookie in visits:
        rows = of_socket(one, cookie)
        assert states(rows) == CLIENT_STATES[2:]
        assert owners(rows) == [client.tgid] * 3
        assert {row["owner_source"] for row in rows} == {"inventory"}
        assert rows[0]["state_us"] == "-"
    for cookie in held:
        rows = of_socket(one, cookie)
        assert states(rows) == SERVER_STATES[2:]
        assert owners(rows) == [server.tgid] * 3
        # recv() of the end of the stream carries nothing but is an act all the same.
        assert {row["owner_source"] for row in rows} <= {"inventory", "process"}
    stock = one.summary["stock_start"]["owners"]
    found = {owner["tgid"]: owner["states"] for owner in stock}
    assert found[client.tgid] == {"ESTABLISHED": 7}
    assert found[server.tgid] == {"ESTABLISHED": 7, "LISTEN": 1}


def inherit(send: bool, close_first: bool) -> Job:
    """Connect, fork, perhaps send in the child; the last to close ends the connection."""

    def job(line: Line) -> tuple[int, int]:
        sock = tcp()
        sock.connect((V4.server, PORT))
        cookie = syscalls.cookie(sock)
        line.say("connected")
        line.hear()
        ours, theirs = socket.socketpair()

        def use() -> None:
            theirs.recv(1)
            if send:
                sock.send(b"x")
            sock.close()

        child = fork(use)
        if close_first:
            sock.close()
        ours.send(b"g")
        os.waitpid(child, 0)
        sock.close()
        return cookie, child

    return job


def discard(line: Line) -> None:
    """Accept and read to the end, one connection after the other."""
    with listener(V4, PORT) as server:
        line.say("ready")
        while True:
            with server.accept()[0] as connection:
                while connection.recv(100):
                    pass


@pytest.fixture
def sink(pair: Pair) -> Any:
    worker = pair.server.start(discard)
    worker.hear()
    yield
    worker.kill()


@pytest.mark.usefixtures("sink")
@pytest.mark.parametrize("close_first", [True, False], ids=["closed", "kept"])
@pytest.mark.parametrize("send", [True, False], ids=["sent", "idle"])
def test_inherited(capture: Begin, pair: Pair, send: bool, close_first: bool) -> None:
    with capture() as one:
        worker = pair.client.start(inherit(send, close_first))
        worker.hear()
        worker.say("fork")
        cookie, child = worker.result()
        pair.wait_quiet()
    rows = [row for row in of_socket(one, cookie) if row["type"] == "tcp_state"]
    assert states(rows) == CLIENT_STATES
    last = child if send else worker.tgid
    assert owners(rows) == [worker.tgid] * 2 + [last] * 3


@pytest.mark.usefixtures("sink")
def test_inherited_before(capture: Begin, pair: Pair) -> None:
    """Held by parent and child at the start: the parent's, the child's once it sends."""
    ran: dict[bool, tuple[Worker, int, int]] = {}

    def job(send: bool) -> Job:
        def both(line: Line) -> tuple[int, int]:
            sock = tcp()
            sock.connect((V4.server, PORT))
            ours, theirs = socket.socketpair()

            def use() -> None:
                theirs.recv(1)
                if send:
                    sock.send(b"x")

            child = fork(use)
            line.say("forked")
            line.hear()
            ours.send(b"g")
            os.waitpid(child, 0)
            cookie = syscalls.cookie(sock)
            sock.close()
            return cookie, child

        return both

    # The sink serves one connection at a time: the second waits in its backlog meanwhile.
    workers = {send: pair.client.start(job(send)) for send in (True, False)}
    for worker in workers.values():
        worker.hear()
    with capture() as one:
        for send, worker in workers.items():
            worker.say("go")
            ran[send] = (worker, *worker.result())
        pair.wait_quiet()
    for send, (worker, cookie, child) in ran.items():
        rows = of_socket(one, cookie)
        assert states(rows) == CLIENT_STATES[2:]
        assert owners(rows) == [child if send else worker.tgid] * 3


@pytest.mark.usefixtures("sink")
@pytest.mark.parametrize("use", [True, False], ids=["used", "only-held"])
def test_passed(capture: Begin, pair: Pair, use: bool) -> None:
    """Over a unix socket: the receiver owns the socket once it uses it."""
    path = f"\0ktrace-test-{os.getpid()}"

    def take_over(line: Line) -> int:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.bind(path)
            server.listen()
            line.say("ready")
            with server.accept()[0] as connection:
                _, fds, _, _ = socket.recv_fds(connection, 1, 1)
            with socket.socket(fileno=fds[0]) as sock:
                if use:
                    sock.send(b"x")
                line.say("taken")
                line.hear()
                return syscalls.cookie(sock)

    def give(line: Line) -> None:
        with tcp() as sock, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            sock.connect((V4.server, PORT))
            channel.connect(path)
            socket.send_fds(channel, [b"x"], [sock.fileno()])

    with capture() as one:
        taker = pair.client.start(take_over)
        taker.hear()
        giver = pair.client.start(give)
        giver.result()
        taker.hear()
        taker.say("close")
        cookie = taker.result()
        pair.wait_quiet()
    rows = [row for row in of_socket(one, cookie) if row["type"] == "tcp_state"]
    assert states(rows) == CLIENT_STATES
    assert owners(rows) == [giver.tgid] * 2 + [taker.tgid if use else giver.tgid] * 3


@pytest.mark.usefixtures("sink")
def test_threads(capture: Begin, pair: Pair) -> None:
    """pid is the thread's, tgid the process's."""

    def job(line: Line) -> dict[int, int]:
        seen = {}

        def connect() -> None:
            with tcp() as sock:
                sock.connect((V4.server, PORT))
                seen[syscalls.cookie(sock)] = threading.get_native_id()

        for _ in range(5):
            thread = threading.Thread(target=connect)
            thread.start()
            thread.join()
        return seen

    with capture() as one:
        worker = pair.client.start(job, comm="kt threads")
        seen = worker.result()
        pair.wait_quiet()
    assert len(set(seen.values())) == 5
    for cookie, tid in seen.items():
        rows = of_socket(one, cookie)
        assert {(row["pid"], row["tgid"]) for row in rows} == {(tid, worker.tgid)}


@pytest.mark.usefixtures("sink")
def test_facts_of_the_process(capture: Begin, pair: Pair) -> None:
    """Namespaces, capabilities, seccomp, ids and name of a process in a container's place."""

    def job(line: Line) -> dict[str, Any]:
        syscalls.unshare(syscalls.CLONE_NEWPID | syscalls.CLONE_NEWNS)
        ours, theirs = socket.socketpair()

        def visit_and_wait() -> None:
            syscalls.prctl(syscalls.PR_SET_NAME, b"kt \xff odd name")
            syscalls.filter_nothing()
            os.setresgid(4321, 4321, 4321)
            os.setresuid(1234, 1234, 1234)
            with tcp() as sock:
                sock.connect((V4.server, PORT))
                theirs.send(b"c")
                theirs.recv(1)

        child = fork(visit_and_wait)
        ours.recv(1)
        status = Path(f"/proc/{child}/status").read_text(errors="replace")
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        spaces = {
            name: Path(f"/proc/{child}/ns/{name}").stat().st_ino
            for name in ("net", "mnt", "pid", "user")
        }
        ours.send(b"e")
        os.waitpid(child, 0)
        return {"child": child, "status": fields, "ns": spaces}

    with capture() as one:
        worker = pair.client.start(job)
        truth = worker.result()
        pair.wait_quiet()
    rows = one.of(tgid=truth["child"])
    assert {row["type"] for row in rows} == {"tcp_state", "connect"}
    caps = int(truth["status"]["CapEff"], 16)
    for row in rows:
        assert row["ns"] == truth["ns"]
        assert row["ns"]["pid"] != Path("/proc/self/ns/pid").stat().st_ino
        assert row["sec"] == {
            "seccomp_mode": int(truth["status"]["Seccomp"]),
            "caps_eff": f"0x{caps >> 32:08x}_{caps & 0xFFFFFFFF:08x}",
        }
        assert (row["uid"], row["gid"], row["ppid"]) == (1234, 4321, worker.tgid)
        assert row["comm"] == "kt � odd name"
    assert int(truth["status"]["Seccomp"]) == 2


@pytest.mark.usefixtures("sink")
def test_security_off(capture: Begin, pair: Pair) -> None:
    with capture("--with-security=false") as one:
        worker = pair.client.start(visit_once)
        worker.result()
        pair.wait_quiet()
    rows = one.of(tgid=worker.tgid)
    assert rows
    assert all(row["sec"] == {"seccomp_mode": "-", "caps_eff": "-"} for row in rows)


def visit_once(line: Line) -> None:
    with tcp() as sock:
        sock.connect((V4.server, PORT))


def test_short_lived(capture: Begin, pair: Pair) -> None:
    """Processes of some milliseconds: every one known, with its cgroup."""
    count = 101

    def come_and_go() -> None:
        with tcp() as sock:
            reset_on_close(sock)
            sock.connect((V4.server, PORT))

    def swarm(line: Line) -> list[int]:
        tgids = []
        for _ in range(count):
            tgids.append(fork(come_and_go))
            os.waitpid(tgids[-1], 0)
        return tgids

    def count_in(line: Line) -> None:
        with listener(V4, PORT) as server:
            line.say("ready")
            for _ in range(count):
                server.accept()[0].close()

    with capture() as one:
        server = pair.server.start(count_in)
        server.hear()
        tgids = pair.client.call(swarm)
        server.result()
        pair.wait_quiet()
    for tgid in tgids:
        rows = one.of("connect", tgid=tgid)
        assert [row["result"] for row in rows] == ["established"]
        assert isinstance(rows[0]["cgroup_id"], int)
    paths = one.node["cgroups"]
    assert {str(row["cgroup_id"]) for row in one.of(net=pair.client.inode)} <= set(paths)
