"""Plays tests/smtp_sessions/*.txt against a running server: client lines (C:) and expected replies (S:).

A file begins with directives (`set KEY = VALUE` for [ingress], `log down|full|fails`), then lines: `C:` is sent with
CRLF, `R:` is sent raw with Python escapes, `S:` is the expected next line ("..." at its end: any rest), `X` is the end
of the connection, `ACCEPTED n` is the number of messages accepted so far. `#` begins a comment.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mail.log import Down, Full, LogUnavailable
from tests.support.servers.ingress import running_ingress

FILES = sorted((Path(__file__).parents[2] / "smtp_sessions").glob("*.txt"))


def test_session_files_exist() -> None:
    assert len(FILES) >= 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
async def test_smtp_session(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    settings = {}
    states = []
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "set":
            key, _, value = rest.partition(" = ")
            settings[key] = json.loads(value)
        elif word == "log":
            states.append(rest)
    async with running_ingress(**settings) as server:
        for state in states:
            if state == "down":
                server.log.current_condition = Down("test")
            elif state == "full":
                server.log.current_condition = Full("test")
            else:
                server.log.error = LogUnavailable("test")
        client = await server.connect()
        for number, line in enumerate(lines):
            word, _, rest = line.partition(" ")
            where = f"{path.name}: {line!r} (step {number})"
            match word:
                case "C:":
                    client.send(rest.encode() + b"\r\n")
                case "R:":
                    client.send(rest.encode().decode("unicode_escape").encode("latin-1"))
                case "S:":
                    received = await client.read_line()
                    assert received.endswith("\r\n"), where
                    if rest.endswith("..."):
                        assert received.startswith(rest[:-3]), where
                    else:
                        assert received[:-2] == rest, where
                case "X":
                    assert await client.read_to_end() == b"", where
                case "ACCEPTED":
                    assert len(server.log.accepted) == int(rest), where
                case "set" | "log":
                    pass
                case _:
                    raise AssertionError(f"{where}: unknown directive")
