"""30: `eilpost load` tries a whole server: every message it accepted is delivered or bounced, and the command says so.

The negative cases run against a server that breaks its promises on purpose: it loses mail, sends copies, refuses,
defers, and closes connections. What the command reports is compared with what that server really did.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.support.onebox import EILPOST, OneBox
from tests.support.ports import free_port


async def load(*options: str, status: int = 0) -> dict[str, Any]:
    """Run the command; its JSON. The exit status has to be `status`."""
    process = await asyncio.create_subprocess_exec(
        str(EILPOST), "load", *options, "--json", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == status, err.decode()[-2000:] + out.decode()[-2000:]
    result: dict[str, Any] = json.loads(out)
    return result


async def test_a_whole_server_under_load(tmp_path: Path) -> None:
    sink = free_port()
    settings = {"delivery": {"relay": f"smtp://127.0.0.1:{sink}"}, "router": {"retry": ["300ms"]}}
    with OneBox(tmp_path, settings) as box:
        result = await load(
            *("--target", f"127.0.0.1:{box.mx}", "--sink", f"127.0.0.1:{sink}", "--rate", "200", "--messages", "600"),
            *("--size", "2kB:90,300kB:10", "--recipients", "2", "--failing", "10%", "--deferring", "10%"),
            *("--settle", "20s", "--per-connection", "10"),
        )
        assert box.stop() == 0
    assert result["accepted"] == 1200
    assert result["delivered"] + result["bounced"] == 1200
    assert 110 <= result["bounced"] <= 130
    assert 110 <= result["sink_deferrals"] <= 130
    assert result["lost"] == result["duplicates"] == result["damaged"] == result["foreign"] == 0
    assert result["end_to_end_seconds"]["p50"] > 0


async def test_sigterm_ends_the_sending_and_all_is_accounted_for(tmp_path: Path) -> None:
    sink = free_port()
    with OneBox(tmp_path, {"delivery": {"relay": f"smtp://127.0.0.1:{sink}"}}) as box:
        options = ("--target", f"127.0.0.1:{box.mx}", "--sink", f"127.0.0.1:{sink}", "--rate", "50")
        process = await asyncio.create_subprocess_exec(
            *(str(EILPOST), "load", *options, "--duration", "5m", "--settle", "10s", "--json"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        await asyncio.sleep(3)
        process.terminate()
        out, _ = await asyncio.wait_for(process.communicate(), 60)
    result = json.loads(out)
    assert process.returncode == 0
    assert not result["interrupted"]
    assert 0 < result["accepted"] == result["delivered"] == result["messages"]
