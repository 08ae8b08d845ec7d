"""A directory reload during a session: the session stays open and uses the new directory."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from mail.directory.file import FileDirectory
from tests.support.servers.eilpost_process import directory_toml
from tests.support.servers.ingress import RunningIngress


async def test_session_stays_open_across_a_directory_reload(tmp_path: Path) -> None:
    path = tmp_path / "directory.toml"
    path.write_text(directory_toml(("alice",)))
    directory = FileDirectory(path, poll_interval=timedelta(hours=1))
    await directory.start()
    server = RunningIngress(directory=directory)
    await server.start()
    try:
        client = await server.connect()
        await client.start_data(recipient="alice@example.test")
        path.write_text(directory_toml(("alice", "bob")))  # between the 354 and the final dot
        assert not await directory.poll()  # a change is loaded after two equal polls
        assert await directory.poll()
        client.send(b"Subject: one\r\n\r\n")
        assert (await client.command(".")).startswith("250 2.0.0 Ok: queued")
        assert (await client.command("MAIL FROM:<alice@example.test>")).startswith("250")
        assert (await client.command("RCPT TO:<bob@example.test>")).startswith("250")
        path.write_text(directory_toml(("alice",)))  # in the middle of a transaction
        await directory.poll()
        assert await directory.poll()
        assert (await client.command("RCPT TO:<bob@example.test>")).startswith("550 5.1.1")
        # The accepted recipient stays: the router decides about it.
        assert (await client.command("DATA")).startswith("354")
        client.send(b"Subject: two\r\n\r\n")
        assert (await client.command(".")).startswith("250")
        assert (await client.command("QUIT")).startswith("221")
    finally:
        await server.close()
        await directory.close()
    assert len(server.log.accepted) == 2
