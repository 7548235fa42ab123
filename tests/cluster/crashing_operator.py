# SPDX-License-Identifier: Apache-2.0
"""The operator's own process, which exits right after its Nth write to the API server.

    python -m tests.cluster.crashing_operator N run --settings=FILE

Everything but the client's connection is the shipped program. The exit is os._exit(): no handler
runs, no thread ends, nothing is flushed, as with SIGKILL.
"""

import os
import sys
import threading
from typing import Any
from unittest.mock import patch

from kubernetes import client as kubernetes_client

from ktrace_operator import main
from ktrace_operator.kube.transport import connect
from ktrace_operator.serve import run, uninstall

CRASH_STATUS = 86


class Countdown:
    """Exits the process when the given number of writes has succeeded."""

    def __init__(self, writes: int) -> None:
        self._left = writes
        self._lock = threading.Lock()

    def count(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                os._exit(CRASH_STATUS)

    def over(self, client: kubernetes_client.ApiClient) -> kubernetes_client.ApiClient:
        """The same client, whose successful writes are counted."""
        send = client.call_api

        def counted(method: str, *arguments: Any, **options: Any) -> Any:
            answer = send(method, *arguments, **options)
            if method != "GET" and 200 <= answer.status < 300:
                self.count()
            return answer

        client.call_api = counted  # type: ignore[method-assign]
        return client


def entry(writes: int, arguments: list[str]) -> None:
    """Runs the console script with a client that counts."""
    countdown = Countdown(writes)

    def counting(pool: int) -> kubernetes_client.ApiClient:
        return countdown.over(connect(pool))

    sys.argv = ["ktrace-operator", *arguments]
    with patch.object(run, "connect", counting), patch.object(uninstall, "connect", counting):
        main.entry()


if __name__ == "__main__":
    entry(int(sys.argv[1]), sys.argv[2:])
