"""Loading of settings, and the error lines for invalid ones."""

from __future__ import annotations

import os
import tomllib
from datetime import timedelta
from pathlib import Path

import pytest

from mail.log.topics import ALL_TOPICS, tenant_prefix
from mail.settings import Settings, dump
from mail.settings_file import load
from mail.settings_text import default_toml, render
from mail.settings_values import PREFIX_MAX
from tests.support.builders.settings import refused


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "eilpost.toml"


def test_settings_file_must_be_a_regular_file(file: Path) -> None:
    os.mkfifo(file)
    assert refused(file, {}) == f"{file}: cannot be read: is not a regular file"
    assert refused(Path("/dev/zero"), {}) == "/dev/zero: cannot be read: is not a regular file"
    assert refused(Path("/"), {}) == "/: cannot be read: is not a regular file; name the file in it"


def test_settings_file_is_at_most_64_mib(file: Path) -> None:
    file.touch()
    os.truncate(file, (64 << 20) + 1)
    assert refused(file, {}) == f"{file}: cannot be read: is larger than 64 MiB"


def test_settings_file_may_be_a_symbolic_link(file: Path) -> None:
    file.with_name("real.toml").write_text('[node]\nhostname = "mx.example.test"\n')
    file.symlink_to("real.toml")
    assert load(file, {}).node.hostname == "mx.example.test"


def test_default_toml_equals_the_defaults(file: Path) -> None:
    file.write_text(default_toml())
    assert load(file, {}) == Settings() == load(None, {})


def test_every_key_has_a_description() -> None:
    lines = default_toml().splitlines()
    keys = [number for number, line in enumerate(lines) if line and not line.startswith("#")]
    assert len(keys) == sum(1 + len(values) for values in dump(Settings()).values())
    for number in keys:
        assert lines[number - 1].startswith("# "), lines[number]


def test_rendered_settings_are_parsed_back(file: Path) -> None:
    file.write_text(
        '[router]\nretry_delays = ["90s", "1h"]\n[node]\nhostname = "mx.example.test"\n[ingress]\nvrfy = true\n'
    )
    settings = load(
        file, {"EILPOST_INGRESS__MAX_MESSAGE_SIZE": "1MB", "EILPOST_RESOLVER__SERVERS": "127.0.0.1:5353,::1"}
    )
    assert settings.router.retry_delays == [timedelta(seconds=90), timedelta(hours=1)]
    assert settings.ingress.max_message_size == 1_000_000
    assert settings.resolver.servers == ["127.0.0.1:5353", "::1"]
    file.write_text(render(settings))
    assert load(file, {}) == settings


def test_environment_overrides_single_keys_of_the_file(file: Path) -> None:
    file.write_text('[log]\nurl = "embedded:a.db"\nshards = 2\n')
    settings = load(
        file,
        {
            "EILPOST_LOG__URL": "memory:",
            "eilpost_log__delivery_shards": "3",
            "EILPOST_INGRESS__VRFY": "yes",
            "EILPOST_ROUTER__RETRY_DELAYS": '["1m"]',
            "EILPOST_INGRESS__SMTP_LISTEN": "",
            "EILPOST_TEST_KAFKA": "127.0.0.1:9092",
            "HOME": "/nowhere",
        },
    )
    assert settings.log.url == "memory:"
    assert (settings.log.shards, settings.log.delivery_shards) == (2, 3)
    assert settings.ingress.vrfy
    assert settings.ingress.smtp_listen == ""
    assert settings.router.retry_delays == [timedelta(minutes=1)]


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("[log]\nurl = x\n", "", "line 2, column 7: not valid TOML"),
        ("[ingres]\n", "", "there is no section [ingres]; did you mean ingress?"),
        ("[xyz]\n", "", "the sections are node, log,"),
        ('smtp_listen = "127.0.0.1:25"', "smtp_listen", "it is a key of [ingress]"),
        ('log = "x"', "log", "write [log]"),
        ('[ingress]\nmax_mesage_size = "1MiB"', "ingress.max_mesage_size", "did you mean max_message_size?"),
        (
            '[ingress]\nqueue_lifetime = "5d"',
            "ingress.queue_lifetime",
            "there is no such key; [router] has a key of this name",
        ),
        ('[ingress]\ntls_cert = "x"', "ingress.tls_cert", "there is no such key; [log] has a key of this name"),
        ("[ingress]\nxyz = 1", "ingress.xyz", "[ingress] has smtp_listen,"),
        ("[ingress]\nmax_message_size = 3", "ingress.max_message_size", "a size has a unit"),
        ('[ingress]\nmax_message_size = "3"', "ingress.max_message_size", "a size with its unit"),
        ("[router]\nqueue_lifetime = 5.5", "router.queue_lifetime", "a time has a unit"),
        ('[router]\nqueue_lifetime = "5 days"', "router.queue_lifetime", "a time with its unit"),
        ('[router]\nretry_delays = ["1m", 5]', "router.retry_delays[1]", "a time with its unit"),
        ('[router]\nretry_delays = "1m"', "router.retry_delays", "a list is expected"),
        ("[router]\nretry_delays = []", "router.retry_delays", "at least one time"),
        ('[ingress]\nmax_message_size = "0B"', "ingress.max_message_size", 'at least "64KiB" is expected'),
        ('[ingress]\nmax_message_size = "63KiB"', "ingress.max_message_size", 'at least "64KiB" is expected'),
        ('[delivery]\nmax_in_flight_bytes = "0B"', "delivery.max_in_flight_bytes", 'at least "1B" is expected'),
        ('[router]\nmax_active_bytes_per_site = "0B"', "router.max_active_bytes_per_site", 'at least "1B" is expected'),
        ('[router]\nretry_delays = ["0s"]', "router.retry_delays", "more than 0s is expected"),
        (
            '[router]\nmax_active_deliveries_per_site = "5"',
            "router.max_active_deliveries_per_site",
            "a whole number without quotes",
        ),
        ("[router]\nmax_active_deliveries_per_site = 0", "router.max_active_deliveries_per_site", "at least 1"),
        ("[log]\nshards = 5000", "log.shards", "at most 1024"),
        ('[log]\nmin_free_disk = "99999999999999999999999GiB"', "log.min_free_disk", "at most 1024TiB"),
        ('[spool]\nretention = "999999999d"', "spool.retention", "at most 36500d"),
        ('[log]\nurl = "embedded:a\\u0000b"', "log.url", r'found "embedded:a\x00b"'),
        ('[ingress]\nsmtp_listen = "a\\nb"', "ingress.smtp_listen", r'found "a\nb"'),
        ('[ingress]\n"a\\nb" = 1', r"ingress.a\nb", "there is no such key"),
        ('["a\\nb"]', "there is no section", r"[a\nb]"),
        ("[ingress]\nvrfy = 1", "ingress.vrfy", "true or false"),
        ("[node]\nhostname = 5", "node.hostname", "a string is expected"),
        ('[node]\nhostname = "a b"', "node.hostname", "a host name"),
        ('[node]\nlog_level = "loud"', "node.log_level", "debug, info"),
        ('[node]\nlog_format = "xml"', "node.log_format", "auto, json"),
        ('[ingress]\nsmtp_listen = "2525"', "ingress.smtp_listen", '"HOST:PORT" is expected'),
        ('[ingress]\nsmtp_listen = "127.0.0.1:99999"', "ingress.smtp_listen", '"HOST:PORT" is expected'),
        ('[http]\nlisten = "::1:25"', "http.listen", '"HOST:PORT" is expected'),
        (
            "[mailstore]\npop3_listen = 2110",
            "mailstore.pop3_listen: found 2110",
            '"HOST:PORT" is expected, like "127.0.0.1:2110"',
        ),
        ("[http]\nlisten = []", "http.listen", '"HOST:PORT" is expected, like "127.0.0.1:2525"'),
        ('[mailstore]\npop3_listen = "x"', "mailstore.pop3_listen", '"HOST:PORT" is expected'),
        ('[ingress]\nrelay_networks = ["10.0.0.1/8"]', "ingress.relay_networks", "has host bits set"),
        ('[ingress]\nrelay_networks = ["0.0.0.0/0"]', "ingress.relay_networks", "an open relay"),
        ('[ingress]\nrelay_networks = ["0.0.0.0/1", "128.0.0.0/1"]', "ingress.relay_networks", "of /8 or longer"),
        ('[ingress]\nrelay_networks = ["2000::/3"]', "ingress.relay_networks", "of /16 or longer"),
        ('[resolver]\nservers = ["dns.example.test:53"]', "resolver.servers", "an IP address with a port"),
        ('[delivery]\nrelay = "10.0.0.1:25"', "delivery.relay", '"smtp://HOST:PORT"'),
        ('[delivery]\nrelay = "smtp://10.0.0.1:0"', "delivery.relay", "from 1 to 65535"),
        ('[delivery]\nsource_addresses = ["out.example.test"]', "delivery.source_addresses", "an IPv4 or IPv6 address"),
        ('[delivery]\nsource_addresses = ["0.0.0.0"]', "delivery.source_addresses", "an IPv4 or IPv6 address"),
        ('[delivery]\nsource_addresses = ["::ffff:192.0.2.1"]', "delivery.source_addresses", "an IPv4 or IPv6 address"),
        (
            '[delivery]\nsource_addresses = ["2001:db8::1", "2001:DB8:0::1"]',
            "delivery.source_addresses",
            "is listed twice",
        ),
        ('[delivery]\nown_addresses = ["mx"]', "delivery.own_addresses", "an IPv4 or IPv6 address is expected"),
        ('[delivery]\nehlo_name = "not a name"', "delivery.ehlo_name", "a host name is expected"),
        ('[log]\nurl = "oracle:x"', "log.url", '"embedded:FILE" or "kafka://HOST:PORT,..." or "memory:"'),
        ('[log]\nurl = "kafka:h1:9092"', "log.url", 'like "kafka://h1:9092,h2:9092"'),
        ('[log]\nurl = "kafka://h1:9092,h2"', "log.url", '"h2" is not HOST:PORT'),
        ('[log]\nurl = "kafka://h1:0"', "log.url", '"h1:0" is not HOST:PORT'),
        ('[log]\nsasl_mechanism = "PLAIN"', "log.sasl_username", "needs both"),
        ('[log]\nsasl_username = "eilpost"', "log.sasl_mechanism", "without a mechanism"),
        ('[log]\nsasl_mechanism = "GSSAPI"', "log.sasl_mechanism", "'SCRAM-SHA-256'"),
        ('[log]\nsession_timeout = "2s"', "log.session_timeout", 'at least "6s"'),
        ('[log]\nsession_timeout = "10m"', "log.session_timeout", 'at most "1m" is expected'),
        (
            '[log]\nprefix = "mail:"',
            "log.prefix",
            "letters, digits, '.', '_' and '-' are expected (Kafka topic names), not ':'",
        ),
        ('[log]\nprefix = "mäil."', "log.prefix", "not 'ä'"),
        (
            f'[log]\nprefix = "{"m" * 175}"',
            "log.prefix",
            "at most 174 characters are expected (Kafka topic names), not 175",
        ),
        (
            '[log]\nurl = "kafka://h1:9092"\n[spool]\nmax_inline_size = "5MiB"',
            "spool.max_inline_size",
            "on Kafka at most",
        ),
        ('[log]\nurl = "embedded:"', "log.url", "a path is missing"),
        ('[spool]\nurl = "var/spool"', "spool.url", '"file:DIRECTORY"'),
        ('[spool]\nurl = "s3:/mail"', "spool.url", '"s3://BUCKET/PREFIX" is expected'),
        ('[spool]\nurl = "s3://mail/../x"', "spool.url", "no dot after a slash"),
        ('[spool]\nurl = "s3://mail"\nsecret_key = "hush"', "spool.access_key", "is missing"),
        ('[spool]\nurl = "s3://mail"\nendpoint = "http://store:9000"', "spool.endpoint", "spool.allow_http = true"),
        ("[spool]\nsecret_key = 4711", "spool.secret_key: found ***", "a string is expected"),
        ('[spool]\nsecret_key = "***"', "spool.secret_key", "a masked secret"),
        ('[spool]\nretention = "5d"', "spool.retention", "longer than router.queue_lifetime"),
        ('[router]\nqueue_lifetime = "8d"', "spool.retention", "longer than router.queue_lifetime"),
        ('[ingress]\nmax_message_size = "1GiB"', "ingress.max_message_size", "increase ingress.max_in_flight_bytes"),
    ],
)
def test_invalid_settings_file_is_a_one_line_error(file: Path, text: str, key: str, expected: str) -> None:
    file.write_text(text)
    message = refused(file, {})
    assert message.startswith(f"{file}: {key}")
    assert expected in message


def test_longest_prefix_tenant_and_topic_fit_in_a_topic_name() -> None:
    settings = load(None, {"EILPOST_LOG__PREFIX": "m" * PREFIX_MAX, "EILPOST_LOG__SESSION_TIMEOUT": "1m"})
    longest = max(len(tenant_prefix(settings.log.prefix, "t" * 64) + topic.name) for topic in ALL_TOPICS)
    assert longest == 249  # org.apache.kafka.common.internals.Topic
    assert load(None, {"EILPOST_LOG__PREFIX": ""}).log.prefix == ""


_NUMBERS = [
    (section, key)
    for section, table in ((name, type(value)) for name, value in Settings())
    for key, field in table.model_fields.items()
    if field.annotation is int and not isinstance(dump(Settings())[section][key], str)
]


@pytest.mark.parametrize(("section", "key"), _NUMBERS)
def test_every_number_has_bounds(file: Path, section: str, key: str) -> None:
    file.write_text(f"[{section}]\n{key} = 99999999999999999999999\n")
    assert "at most" in refused(file, {})
    name = f"EILPOST_{section}__{key}".upper()
    most = refused(None, {name: "99999999999999999999999"}).rpartition("at most ")[2].removesuffix(" is expected")
    assert f" to {most}.\n{key} = " in default_toml()


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("EILPOST_LOGS__URL", "x", "did you mean log?"),
        ("EILPOST_LOG__URI", "x", "did you mean url?"),
        ("EILPOST_LOG__SHARDS", "many", "log.shards: 'many' is not a whole number"),
        ("EILPOST_INGRESS__VRFY", "perhaps", "ingress.vrfy: 'perhaps' is neither true nor false"),
        ("EILPOST_INGRESS__MAX_MESSAGE_SIZE", "3", "a size with its unit"),
        ("EILPOST_ROUTER__RETRY_DELAYS", "[1m", "is not a list"),
        ("EILPOST_ROUTER__RETRY_DELAYS", "[" * 100_000, "is not a list"),
        ("EILPOST_LOG__URL", "embedded:/", "log.url: found"),
        ("EILPOST_LOG__URL", "embedded:.", "a file is missing"),
        ("EILPOST_ROUTER__QUEUE_LIFETIME", "5", "router.queue_lifetime"),
        ("EILPOST_LOG__URL", "oracle:", "log.url"),
    ],
)
def test_invalid_variable_is_named_in_one_line(variable: str, value: str, expected: str) -> None:
    message = refused(None, {variable: value})
    assert message.startswith(f"environment variable {variable}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("EILPOST_INGRESS_MX", "did you mean EILPOST_INGRESS__SMTP_LISTEN?"),
        ("EILPOST_INGRESS_SMTP_LISTEN", "did you mean EILPOST_INGRESS__SMTP_LISTEN?"),
        ("EILPOST_NODE_HOSTNAME", "did you mean EILPOST_NODE__HOSTNAME?"),
        ("eilpost_mailbox_url", "did you mean EILPOST_MAILBOXES__URL?"),
        ("EILPOST_LOGURL", "did you mean EILPOST_LOG__URL?"),
        ("EILPOST_HTTP_BACKEND", "a setting is EILPOST_SECTION__KEY"),
    ],
)
def test_misspelt_variable_isrefused(variable: str, expected: str) -> None:
    message = refused(None, {variable: "x"})
    assert message == f"environment variable {variable}: is not a setting; {expected}"


def test_two_variables_of_one_setting_arerefused() -> None:
    message = refused(None, {"EILPOST_LOG__URL": "memory:", "eilpost_log__url": "embedded:log.db"})
    assert message == (
        "environment variable EILPOST_LOG__URL and eilpost_log__url: differ in case only; remove one of them"
    )


@pytest.mark.parametrize("variable", ["eilpost_config", "EILPOST_Debug"])
def test_variable_that_is_read_in_capitals_only_is_refused_in_another_case(variable: str) -> None:
    expected = f"environment variable {variable}: is not read; did you mean {variable.upper()}?"
    assert refused(None, {variable: "x"}) == expected
    assert refused(None, {variable: "x", variable.upper(): "x"}) == expected


def test_variables_of_kubernetes_and_other_programs_are_ignored() -> None:
    services = {}
    for service in ("EILPOST", "EILPOST_DELIVERY", "EILPOST_LOG", "EILPOST_INGRESS__SMTP_LISTEN"):
        services |= {
            f"{service}_SERVICE_HOST": "10.96.0.7",
            f"{service}_SERVICE_PORT": "25",
            f"{service}_SERVICE_PORT_SMTP": "25",
            f"{service}_PORT": "tcp://10.96.0.7:25",
            f"{service}_PORT_2525_TCP": "tcp://10.96.0.7:2525",
            f"{service}_PORT_2525_TCP_PROTO": "tcp",
            f"{service}_PORT_2525_TCP_PORT": "2525",
            f"{service}_PORT_2525_TCP_ADDR": "10.96.0.7",
        }
    others = {"EILPOST_FOO": "1", "EILPOST_CONFIG": "x", "EILPOST_DEBUG": "1", "EILPOST_TEST_KAFKA": "x", "HOME": "/"}
    assert load(None, services | others) == Settings()
    assert load(None, services | others | {"EILPOST_DELIVERY__MX_PORT": "26"}).delivery.mx_port == 26
    assert "did you mean" in refused(None, {"EILPOST_DELIVERY_PORT": "26"})  # a number is no address of a Service


def test_largest_private_networks_are_allowed_as_relay_networks(file: Path) -> None:
    file.write_text('[ingress]\nrelay_networks = ["10.0.0.0/8", "fc00::/7", "fe80::/10"]\n')
    assert load(file, {}).ingress.relay_networks == ["10.0.0.0/8", "fc00::/7", "fe80::/10"]


def test_number_of_further_errors_is_reported(file: Path) -> None:
    file.write_text('[ingress]\nsmtp_listen = "x"\n[http]\nlisten = "y"\n')
    assert refused(file, {}).endswith("(and 1 more)")


def test_unreadable_settings_files_arerefused(tmp_path: Path) -> None:
    assert "there is no such file" in refused(tmp_path / "none.toml", {})
    assert "cannot be read" in refused(tmp_path, {})
    (tmp_path / "latin.toml").write_bytes(b'[node]\nhostname = "\xfc"')
    assert "is not UTF-8" in refused(tmp_path / "latin.toml", {})


def test_settings_model_does_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "EILPOST_LOG__URL", "memory:")
    assert Settings().log.url == "embedded:var/log.db"
    assert load(None).log.url == "memory:"


def test_published_keys_keep_their_names() -> None:
    text = default_toml()
    values = tomllib.loads(text)
    for section, key in [
        ("node", "hostname"), ("log", "url"), ("spool", "url"), ("spool", "max_inline_size"), ("directory", "url"),
        ("mailboxes", "url"), ("resolver", "servers"), ("ingress", "smtp_listen"), ("ingress", "relay_networks"),
        ("ingress", "max_message_size"), ("ingress", "sender_domain_must_resolve"), ("router", "queue_lifetime"),
        ("router", "retry_delays"), ("delivery", "relay"), ("mailstore", "pop3_listen"), ("http", "listen"),
    ]:  # fmt: skip
        assert key in values[section]


def test_sizes_that_may_be_zero(tmp_path: Path) -> None:
    file = tmp_path / "eilpost.toml"
    file.write_text('[log]\nmin_free_disk = "0B"\n[spool]\nmax_inline_size = "0B"\n')
    settings = load(file, {})
    assert (settings.log.min_free_disk, settings.spool.max_inline_size) == (0, 0)


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "eilpost.toml"
    file.write_bytes(b'\xef\xbb\xbf[node]\nhostname = "mx.example.test"\n')
    assert load(file, {}).node.hostname == "mx.example.test"
