"""Journey 14: `eilpost load` accounts for every accepted message of a whole server and reports lost ones.

The negative cases use a server that loses, duplicates, refuses and defers mail and closes connections. The command's
report is compared with that server's own counts.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import supervised
from tests.support.servers.eilpost_process import EILPOST, EilpostProcess
from tests.support.servers.faulty_relay import FaultyRelay, every
from tests.support.servers.ports import free_port, wait_until
from tests.support.servers.postfix import Postfix


@asynccontextmanager
async def started(*options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The running command; it ends with the block."""
    process = await asyncio.create_subprocess_exec(
        *(str(EILPOST), "load", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        process_group=supervised.group(),
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def load(*options: str, status: int = 0) -> dict[str, Any]:
    """Run the command; returns its JSON output. The exit status must be `status`."""
    async with started(*options, "--json") as process:
        out, err = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == status, err.decode()[-2000:] + out.decode()[-2000:]
    result: dict[str, Any] = json.loads(out)
    return result


async def is_sending(process: asyncio.subprocess.Process) -> None:
    assert process.stderr is not None
    assert b"sending to" in await process.stderr.readline()


async def test_load_through_a_whole_server_loses_nothing(tmp_path: Path) -> None:
    sink = free_port()
    settings = {"delivery": {"relay": f"smtp://127.0.0.1:{sink}"}, "router": {"retry_delays": ["300ms"]}}
    with EilpostProcess(tmp_path, settings) as box:
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


async def test_sigterm_ends_the_sending_and_completes_the_accounting(tmp_path: Path) -> None:
    sink = free_port()
    with EilpostProcess(tmp_path, {"delivery": {"relay": f"smtp://127.0.0.1:{sink}"}}) as box:
        options = ("--target", f"127.0.0.1:{box.mx}", "--sink", f"127.0.0.1:{sink}", "--rate", "50")
        async with started(*options, "--duration", "5m", "--settle", "10s", "--json") as process:
            await is_sending(process)
            await asyncio.sleep(2)
            process.terminate()
            out, _ = await asyncio.wait_for(process.communicate(), 60)
    result = json.loads(out)
    assert process.returncode == 0
    assert not result["interrupted"]
    assert 0 < result["accepted"] == result["delivered"] == result["messages"]


@pytest.mark.postfix
async def test_load_through_another_mail_server(tmp_path: Path) -> None:
    """Its own 250s, retries and DSNs are accounted for as well."""
    sink = free_port()
    settings = {"relayhost": f"[127.0.0.1]:{sink}", "minimal_backoff_time": "1s", "queue_run_delay": "1s"}
    postfix = Postfix(settings)
    await asyncio.to_thread(postfix.__enter__)
    try:
        result = await load(
            *("--target", f"127.0.0.1:{postfix.port}", "--sink", f"127.0.0.1:{sink}", "--rate", "50"),
            *("--messages", "100", "--failing", "10%", "--deferring", "5%", "--settle", "30s"),
        )
    finally:
        await asyncio.to_thread(postfix.stop)
    assert result["accepted"] == 100
    assert (result["delivered"], result["bounced"]) == (90, 10)
    assert 4 <= result["sink_deferrals"] <= 6
    assert result["duplicates"] == result["damaged"] == result["lost"] == 0


def through(relay: FaultyRelay, sink: int, messages: int, *more: str) -> list[str]:
    return [
        *("--target", f"127.0.0.1:{relay.port}", "--sink", f"127.0.0.1:{sink}", "--rate", "0"),
        *("--messages", str(messages), "--size", "1kB", "--settle", "2s", *more),
    ]


async def test_lost_mail_is_detected_and_listed() -> None:
    sink = free_port()
    async with FaultyRelay(sink, lose=every(100)) as relay:
        result = await load(*through(relay, sink, 500), status=1)
    assert result["accepted"] == 500
    assert result["delivered"] == 495
    assert result["lost"] == 5
    assert sorted(lost["id"] for lost in result["open"]) == sorted(relay.lost)
    assert all(lost["queue_id"].startswith("Q") for lost in result["open"])


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_exit_status_reports_lost_mail_without_a_reader(stream: str) -> None:
    """`eilpost load --json | head` in a script with pipefail."""
    sink = free_port()
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": asyncio.subprocess.DEVNULL, "stderr": asyncio.subprocess.DEVNULL} | {stream: writer}
    try:
        async with FaultyRelay(sink, lose=every(10)) as relay:
            process = await asyncio.create_subprocess_exec(
                *(str(EILPOST), "load", "--json", *through(relay, sink, 20)),
                process_group=supervised.group(),
                **streams,
            )
            assert await asyncio.wait_for(process.wait(), 60) == 1
    finally:
        os.close(writer)


async def test_duplicates_and_damaged_content_are_counted() -> None:
    sink = free_port()
    async with FaultyRelay(sink, copy=every(50)) as relay:
        result = await load(*through(relay, sink, 500))
        assert result["duplicates"] == 10
        assert sorted(result["duplicate_ids"]) == sorted(relay.copied)
        assert (result["delivered"], result["lost"]) == (500, 0)
    async with FaultyRelay(sink, damage=every(50)) as relay:
        result = await load(*through(relay, sink, 100), status=1)
        assert (result["damaged"], result["lost"]) == (2, 0)


async def test_refused_and_deferred_mail_is_counted() -> None:
    sink = free_port()
    faults = {"refuse": every(20), "refuse_recipient": every(31), "defer_recipient": every(7), "defer": every(23)}
    async with FaultyRelay(sink, **faults) as relay:
        result = await load(*through(relay, sink, 500), status=1)  # 5xx for valid mail
    done = relay.fault_counts
    assert min(done.values()) > 5
    assert result["refused"] == done["refuse"] + done["refuse_recipient"]
    assert {each["text"]: each["count"] for each in result["refusals"]} == {
        "dot: 554 5.6.0 Message refused": done["refuse"],
        "RCPT: 550 5.7.1 Recipient refused": done["refuse_recipient"],
    }
    assert result["retried"] == done["defer"] + done["defer_recipient"]
    assert result["accepted"] == result["delivered"] == 500 - result["refused"]
    # A 4xx after the dot leaves a copy that may arrive too; one refused at its second attempt is not a duplicate.
    assert result["resent_after_dot"] == done["defer"]
    assert result["duplicates"] == result["duplicates_resent"] <= done["defer"]
    assert result["unsent"] == 0


async def test_deferred_mail_alone_does_not_fail_the_load() -> None:
    sink = free_port()
    async with FaultyRelay(sink, defer_recipient=every(7)) as relay:
        result = await load(*through(relay, sink, 100))
    assert result["retried"] == relay.fault_counts["defer_recipient"] > 5


async def test_messages_without_an_accepting_target_fail_the_load() -> None:
    """The server replies 451 to every recipient after the tenth."""
    sink = free_port()
    async with (
        FaultyRelay(sink, defer_recipient=lambda number: number > 10) as relay,
        started(*through(relay, sink, 20)) as process,
    ):
        out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert re.search(r"^unsent +10", out.decode(), re.MULTILINE)
    assert re.search(r"^lost +0$", out.decode(), re.MULTILINE)
    assert "no target accepted 10 messages until the end" in err.decode().splitlines()[-1]


async def test_closed_connections_leave_doubt_or_are_retried() -> None:
    sink = free_port()
    faults = {"hang_up": every(25), "hang_up_recipient": every(17), "hang_up_greeting": every(5)}
    async with FaultyRelay(sink, **faults) as relay:
        result = await load(*through(relay, sink, 500))
    done = relay.fault_counts
    assert min(done.values()) > 5
    assert result["in_doubt"] == done["hang_up"]
    assert result["in_doubt_settled"] == (done["hang_up"] + 1) // 2
    assert result["connections_lost"] == sum(done.values())
    assert result["accepted"] == result["delivered"] == 500 - result["in_doubt"]
    assert result["duplicates"] == result["lost"] == result["unsent"] == 0


async def test_unreachable_target_is_skipped() -> None:
    sink, nobody = free_port(), free_port()
    async with FaultyRelay(sink) as relay:
        result = await load("--target", f"127.0.0.1:{nobody}", *through(relay, sink, 200, "--per-connection", "10"))
    assert result["accepted"] == result["delivered"] == 200
    assert result["connections_refused"] > 0


@pytest.mark.parametrize(
    "signals", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]], ids=["SIGINT", "SIGTERM twice"]
)
async def test_interrupted_load_prints_its_partial_result(signals: list[signal.Signals]) -> None:
    sink = free_port()
    async with (
        FaultyRelay(sink, lose=every(2)) as relay,
        started(
            *("--target", f"127.0.0.1:{relay.port}", "--sink", f"127.0.0.1:{sink}"),
            *("--rate", "200", "--duration", "1h", "--size", "1kB"),
        ) as process,
    ):
        await wait_until(lambda: relay.fault_counts["lose"] > 20, what="mail at the server")
        for number in signals:
            process.send_signal(number)
            await asyncio.sleep(0.5)
        out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 130, err
    text = out.decode()
    accepted, unfinished = (
        int(re.findall(rf"^{name} +([0-9,]+)", text, re.MULTILINE)[0].replace(",", ""))
        for name in ("accepted", "unfinished")
    )
    assert accepted >= 40
    assert unfinished >= 20
    assert "lost " not in text.replace("0 lost", "")
    assert text.count("unfinished") > 1  # one line for each id


async def test_sink_does_not_relay() -> None:
    sink = free_port()
    async with FaultyRelay(sink, lose=every(1)) as relay, started(*through(relay, sink, 3)) as process:
        out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    assert re.search(r"^lost +3", out.decode(), re.MULTILINE)
    assert "delivery.relay" in err.decode().splitlines()[-1]
