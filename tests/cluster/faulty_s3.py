# SPDX-License-Identifier: Apache-2.0
"""What lies between an agent and S3, or stands in its place, each at a port of its own.

    faulty_s3.py ADDRESS S3PORT KIND=PORT...

KIND is `relay` (all is well), `reset` (the line breaks in the middle of an upload), `error` (500
to everything) or `nobucket` (404 to everything).
"""

import asyncio
import re
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

CHUNK = 1 << 14
RESET_AFTER = 3000
"""Bytes to the server: more than the head of a request, less than a bundle."""
RST_ON_CLOSE = b"\1\0\0\0\0\0\0\0"
ANSWERS = {
    "error": (500, "InternalError"),
    "nobucket": (404, "NoSuchBucket"),
}

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answering(status: int, code: str) -> Handler:
    """Says this to each request, after the whole of it."""
    body = f"<Error><Code>{code}</Code><Message>said by a test</Message></Error>"
    head = f"HTTP/1.1 {status} Said\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = re.search(r"^content-length: *(\d+)", request, re.MULTILINE | re.IGNORECASE)
        if length and not re.search(r"^expect:", request, re.MULTILINE | re.IGNORECASE):
            await reader.readexactly(int(length[1]))
        writer.write((head if request.startswith("HEAD") else head + body).encode())
        await writer.drain()

    return handle


def relaying(address: str, port: int, limit: int | None) -> Handler:
    """Carries to S3; after `limit` bytes of one connection it is reset."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(address, port)
        back = asyncio.ensure_future(_copy(far_reader, writer))
        passed = 0
        while data := await reader.read(CHUNK):
            passed += len(data)
            if limit is not None and passed > limit:
                connection = writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_ON_CLOSE)
                break
            far_writer.write(data)
            await far_writer.drain()
        far_writer.close()
        back.cancel()

    return handle


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()


async def main(address: str, s3_port: int, faults: dict[str, int]) -> None:
    def closing(handler: Handler) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError, asyncio.IncompleteReadError):
                await handler(reader, writer)
            writer.close()

        return handle

    handlers = {kind: answering(*answer) for kind, answer in ANSWERS.items()}
    handlers |= {
        "relay": relaying(address, s3_port, None),
        "reset": relaying(address, s3_port, RESET_AFTER),
    }
    servers = [
        await asyncio.start_server(closing(handlers[kind]), address, port)
        for kind, port in faults.items()
    ]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    given = dict(word.split("=") for word in sys.argv[3:])
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), {kind: int(p) for kind, p in given.items()}))
