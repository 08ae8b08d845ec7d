"""Adapters are chosen by URL; an invalid URL is one line that names the key."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from eilpost import process, wiring
from eilpost.wiring import ProcessConfig
from mail.log.embedded import EmbeddedLog
from mail.log.memory import MemoryLog
from mail.route import RelayProtocol, ToRelay
from mail.settings_file import load
from mail.settings_section import SettingsError
from mail.spool.object_spool import ObjectSpool
from mailstore.maildir import Maildir


def _process_config(base: Path, **environment: str) -> ProcessConfig:
    return ProcessConfig(load(None, {f"EILPOST_{key}": value for key, value in environment.items()}), base)


def test_scheme_selects_the_adapter(tmp_path: Path) -> None:
    assert isinstance(wiring.make_log(_process_config(tmp_path)), EmbeddedLog)
    assert isinstance(wiring.make_log(_process_config(tmp_path, LOG__URL="memory:")), MemoryLog)


def test_s3_url_is_an_object_spool(tmp_path: Path) -> None:
    keys = {"SPOOL__ACCESS_KEY": "me", "SPOOL__SECRET_KEY": "aHVzaA=="}
    for url in ("s3://mail/spool", "az://mail"):
        assert isinstance(wiring.make_spool(_process_config(tmp_path, SPOOL__URL=url, **keys)), ObjectSpool)
    assert isinstance(wiring.make_spool(_process_config(tmp_path, SPOOL__URL="gs://mail/spool")), ObjectSpool)


def test_object_spool_without_its_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mail.spool.object_spool", raising=False)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(SettingsError, match=r'^spool\.url = "s3://mail": needs the package obstore: pip install'):
        wiring.make_spool(_process_config(tmp_path, SPOOL__URL="s3://mail"))


def test_relative_paths_start_at_the_configuration_folder(tmp_path: Path) -> None:
    assert wiring.directory_path(_process_config(tmp_path)) == tmp_path / "directory.toml"
    assert wiring.directory_path(_process_config(tmp_path, DIRECTORY__URL="file:/etc/d.toml")) == Path("/etc/d.toml")


@pytest.mark.parametrize("url", ["nonsense", "", "postgresql://h", "embedded"])
@pytest.mark.parametrize("section", ["LOG", "SPOOL", "DIRECTORY", "MAILBOXES"])
def test_unknown_scheme_is_one_line(tmp_path: Path, section: str, url: str) -> None:
    with pytest.raises(SettingsError, match=rf'{section.lower()}\.url: found "{url}"; ".*" is expected$'):
        _process_config(tmp_path, **{f"{section}__URL": url})


@pytest.mark.parametrize("make", [wiring.make_log, wiring.make_history])
def test_url_without_a_path_is_one_line(tmp_path: Path, make: Callable[[ProcessConfig], object]) -> None:
    process_config = _process_config(tmp_path, LOG__URL="embedded://log.db")
    with pytest.raises(SettingsError, match=r'^log\.url = "embedded://log\.db": a path is missing after "embedded:"$'):
        make(process_config)


def test_unusable_mail_folder_is_an_error_at_start(tmp_path: Path) -> None:
    (tmp_path / "mail").touch()
    with pytest.raises(SettingsError, match=r"^mailboxes\.url: .*mail: File exists"):
        wiring.make_mailboxes(_process_config(tmp_path, MAILBOXES__URL="maildir:mail"))
    wiring.make_mailboxes(_process_config(tmp_path, MAILBOXES__URL="maildir:deep/mail"))
    assert (tmp_path / "deep" / "mail").is_dir()


@pytest.mark.parametrize(("lifetime", "days"), [("5d", 14), ("30d", 60)])
def test_mailbox_remembers_delivery_ids_longer_than_mail_is_queued(tmp_path: Path, lifetime: str, days: int) -> None:
    boxes = wiring.make_mailboxes(_process_config(tmp_path, ROUTER__QUEUE_LIFETIME=lifetime, SPOOL__RETENTION="40d"))
    assert isinstance(boxes, Maildir)
    assert boxes.retention == timedelta(days=days)


def test_relay_is_a_route(tmp_path: Path) -> None:
    assert wiring.relay_route(_process_config(tmp_path).settings) is None
    settings = _process_config(tmp_path, DELIVERY__RELAY="lmtp://127.0.0.1:24").settings
    assert wiring.relay_route(settings) == ToRelay("127.0.0.1", 24, RelayProtocol.LMTP)


def test_every_role_can_be_built_from_its_ports(tmp_path: Path) -> None:
    process_config = _process_config(tmp_path, LOG__URL="memory:", SPOOL__URL="memory:", MAILBOXES__URL="memory:")
    ports = {
        "log": wiring.make_log(process_config),
        "spool": wiring.make_spool(process_config),
        "directory": wiring.make_directory(process_config),
        "resolver": wiring.make_resolver(process_config),
        "mailboxes": wiring.make_mailboxes(process_config),
    }
    names = [wiring.make_role(name, process_config, **ports).name for name in wiring.ROLES]  # type: ignore[arg-type]
    assert [name.partition(".")[0] for name in names] == list(wiring.ROLES)


def test_role_alone_on_an_embedded_log_gives_the_reason(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"only one process can open this log.*eilpost up.*Kafka"):
        process.run_role("router", _process_config(tmp_path))
    with pytest.raises(SettingsError, match=r"ingress\.smtp_listen is empty"):
        process.run_role("ingress", _process_config(tmp_path, LOG__URL="kafka://127.0.0.1:1", INGRESS__SMTP_LISTEN=""))
    with pytest.raises(SettingsError, match="would get no mail"):
        process.run_mailstore(_process_config(tmp_path, MAILBOXES__URL="memory:"))
