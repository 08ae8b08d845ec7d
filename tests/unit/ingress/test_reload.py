"""A directory that is read again while somebody is connected: the session stays, and knows the new world."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from mail.directory.file import FileDirectory
from tests.support.ingressing import Running
from tests.support.onebox import directory_toml


async def test_a_session_stays_open_across_a_reload(tmp_path: Path) -> None:
    path = tmp_path / "directory.toml"
    path.write_text(directory_toml(("alice",)))
    directory = FileDirectory(path, look_every=timedelta(hours=1))
    await directory.start()
    world = Running(directory=directory)
    await world.start()
    try:
        client = await world.connect()
        await client.begin(recipient="alice@example.test")
        path.write_text(directory_toml(("alice", "bob")))  # between the 354 and the dot
        assert not await directory.look()  # seen once; twice the same means that it has come to rest
        assert await directory.look()
        client.send(b"Subject: one\r\n\r\n")
        assert (await client.say(".")).startswith("250 2.0.0 Ok: queued")
        assert (await client.say("MAIL FROM:<alice@example.test>")).startswith("250")
        assert (await client.say("RCPT TO:<bob@example.test>")).startswith("250")
        path.write_text(directory_toml(("alice",)))  # in the middle of a transaction
        await directory.look()
        assert await directory.look()
        assert (await client.say("RCPT TO:<bob@example.test>")).startswith("550 5.1.1")
        assert (await client.say("DATA")).startswith("354")  # who was taken stays taken: the router has the last word
        client.send(b"Subject: two\r\n\r\n")
        assert (await client.say(".")).startswith("250")
        assert (await client.say("QUIT")).startswith("221")
    finally:
        await world.close()
        await directory.close()
    assert len(world.log.accepted) == 2
