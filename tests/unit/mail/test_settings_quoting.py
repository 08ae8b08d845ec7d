"""Values quoted in the error lines of settings: secrets are masked, long values truncated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mail.settings import Settings, dump
from mail.settings_file import load
from mail.settings_text import render
from tests.support.builders.settings import refused


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "eilpost.toml"


def test_secrets_are_masked(file: Path) -> None:
    file.write_text('[spool]\nurl = "s3://mail"\naccess_key = "me"\nsecret_key = "hush"\n')
    by_file = load(file, {})
    by_variable = load(None, {"EILPOST_SPOOL__ACCESS_KEY": "me", "EILPOST_SPOOL__SECRET_KEY": "hush"})
    for settings in (by_file, by_variable):
        assert settings.spool.secret_key.get_secret_value() == "hush"
        assert dump(settings)["spool"]["secret_key"] == "***"
        assert 'secret_key = "***"' in render(settings)
        assert "hush" not in f"{settings!r} {settings} {render(settings)} {dump(settings)}"
    assert dump(Settings())["spool"]["secret_key"] == ""
    for text in ("[spool]\nsecret_key = 4711", "[spool]\nsecret_key = [4711]"):
        file.write_text(text)
        assert "4711" not in refused(file, {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("delivery.relay", "smtp://user:hush@mail.example.test:587"),
        ("delivery.relay", "user:hush@mail.example.test:587"),
        ("delivery.relay", "smtps://user:hush/hush@hush@mail.example.test:465"),
        ("log.url", "kafka://user:hush,hush@k1:9092,hush@k2:9092"),
        ("log.url", "amqp://user:hush@k1:9092"),
        ("directory.url", "postgresql://user:hush@db/eilpost"),
        ("spool.url", "s3://key:hush@bucket/prefix"),
        ("http.listen", "http://user:hush@127.0.0.1:1"),
        ("resolver.servers", "dns://user:hush@127.0.0.1"),
    ],
)
def test_password_in_a_quoted_value_is_masked(file: Path, key: str, value: str) -> None:
    section, _, name = key.partition(".")
    by_variable = refused(None, {f"EILPOST_{section}__{name}".upper(): value})
    file.write_text(f"[{section}]\n{name} = {json.dumps([value] if name == 'servers' else value)}\n")
    for message in (by_variable, refused(file, {})):
        assert key in message
        assert "***@" in message
        assert "hush" not in message


@pytest.mark.parametrize(
    ("variable", "value", "found"),
    [
        ("EILPOST_INGRESS__RELAY_NETWORKS", "http://u:S3CRET@h", "http://***@h"),
        ("EILPOST_RESOLVER__SERVERS", "[u:S3CRET@h", "***@h"),
        ("EILPOST_LOG__TLS", "u:S3CRET@h", "***@h"),
        ("EILPOST_LOG__SHARDS", "u:S3CRET@h", "***@h"),
        ("EILPOST_NODE__LOG_LEVEL", "u:S3CRET@h", "***@h"),
        ("EILPOST_LOG__URL", "kafka://user:S3CRET%40h:1", "kafka://user:***"),
        ("EILPOST_LOG__URL", "kafka://k1:9092,user:S3CRET%40h:1", "kafka://k1:9092,user:***"),
        ("EILPOST_DELIVERY__RELAY", "smtp://u:S3CRET#h:25", "smtp://u:***"),
        ("EILPOST_DELIVERY__RELAY", "smtp://u:S3?CRET@h:25", "smtp://***"),
        ("EILPOST_SPOOL__URL", "s3://bucket/p?secret=S3CRET", "s3://bucket/p?***"),
        ("EILPOST_SPOOL__URL", "s3://bucket/p?secret=x@S3CRET", "s3://***"),
    ],
)
def test_possible_password_in_a_quoted_value_is_masked(variable: str, value: str, found: str) -> None:
    message = refused(None, {variable: value})
    assert f'"{found}"' in message or f"'{found}'" in message
    assert "S3" not in message
    assert "CRET" not in message


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EILPOST_LOG__URL", "kafka://k1:9092,[::1]:9092,k3"),
        ("EILPOST_LOG__URL", "kafka://k1:99999"),
        ("EILPOST_DELIVERY__RELAY", "smtp://[::1]"),
        ("EILPOST_INGRESS__SMTP_LISTEN", "127.0.0.1:smtp"),
        ("EILPOST_INGRESS__RELAY_NETWORKS", "10.0.0.1/8"),
        ("EILPOST_SPOOL__URL", "s3://bucket/pre//fix"),
    ],
)
def test_value_without_password_is_quoted_completely(variable: str, value: str) -> None:
    assert f'found "{value}"' in refused(None, {variable: value})


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("log", "shards", "9" * 5000), ("router", "queue_lifetime", "9" * 5000 + "s"), ("node", "log_level", "é" * 5000)],
)
def test_long_value_is_truncated(file: Path, section: str, key: str, value: str) -> None:
    file.write_text(f"[{section}]\n{key} = {json.dumps(value)}\n")
    for message in (refused(None, {f"EILPOST_{section}__{key}".upper(): value}), refused(file, {})):
        assert f"{section}.{key}" in message
        assert value[:90] in message
        assert len(message) < len(str(file)) + 250


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 100_000, "0x" + "f" * 5000, "[0x" + "f" * 5000 + "]"])
def test_very_long_number_or_deep_list_is_a_short_error(file: Path, text: str) -> None:
    file.write_text(f"[log]\nshards = {text}\n")
    message = refused(file, {})
    assert message.startswith(f"{file}: ")
    assert len(message) < len(str(file)) + 250
