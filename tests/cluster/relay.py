# SPDX-License-Identifier: Apache-2.0
"""Carries connections from a socket that it was handed to an address of its own network namespace.

    relay.py DESCRIPTOR ADDRESS PORT

The listening socket stays in the network namespace that it was made in: the host reaches a
cluster through its own loopback and needs no link to it.
"""

import asyncio
import socket
import sys
from contextlib import suppress

CHUNK = 1 << 16


async def serve(listener: socket.socket, address: str, port: int) -> None:
    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(address, port)
        except OSError:
            writer.transport.abort()  # the near side sees a reset, as if nobody listened
            return
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        for end in (writer, far_writer):
            end.close()

    server = await asyncio.start_server(carry, sock=listener)
    await server.serve_forever()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        return
    writer.transport.abort()


if __name__ == "__main__":
    asyncio.run(serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], int(sys.argv[3])))
