"""SMTP sink for the compose tests instead of Mailpit: `tests.support.faults.accounting.Sink` on eilpost's image.

SMTP on 1025. HTTP on 8025 answers every request with the received messages: a JSON list of [id, recipient, copies].
"""

from __future__ import annotations

import asyncio
import json

from tests.support.faults.accounting import Sink


async def main() -> None:
    async with Sink(port=1025, hosts=("0.0.0.0",)) as sink:

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            taken = json.dumps([[*key, copies] for key, copies in sink.taken.items()]).encode()
            writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + taken)
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(answer, "0.0.0.0", 8025) as server:
            await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
