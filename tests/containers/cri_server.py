# SPDX-License-Identifier: Apache-2.0
"""Servers in place of a runtime: a gRPC server with arbitrary answers, or one without gRPC."""

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import grpc

Reply = bytes | Callable[[], bytes] | grpc.StatusCode


class Service(grpc.GenericRpcHandler):
    """Any bytes, errors or pauses for the methods of RuntimeService."""

    def __init__(self, replies: Mapping[str, Reply], api: str) -> None:
        self.replies, self._api = dict(replies), api
        self.asked: list[str] = []

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        service, _, method = handler_call_details.method[1:].partition("/")
        if service != f"runtime.{self._api}.RuntimeService" or method not in self.replies:
            return None
        self.asked.append(method)
        return grpc.unary_unary_rpc_method_handler(self._answer(self.replies[method]))

    @staticmethod
    def _answer(reply: Reply) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if isinstance(reply, grpc.StatusCode):
                context.abort(reply, "no\x1b[31m reason\n")
            return reply() if callable(reply) else reply

        return answer


@contextmanager
def serve(path: Path, replies: Mapping[str, Reply], api: str = "v1") -> Iterator[Service]:
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, options=[("grpc.max_send_message_length", -1)])
        service = Service(replies, api)
        server.add_generic_rpc_handlers((service,))
        server.add_insecure_port(f"unix://{quote(str(path))}")
        server.start()
        yield service
        server.stop(0).wait()


@contextmanager
def listen(path: Path, job: Callable[[socket.socket], None]) -> Iterator[None]:
    """A listener that passes each connection to `job`, without gRPC."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        kept: list[socket.socket] = []

        def run() -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                kept.append(connection)
                try:
                    job(connection)
                except OSError:
                    continue

        thread = threading.Thread(target=run)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in kept:
            connection.close()
