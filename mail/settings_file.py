"""Loader of the settings: TOML file, environment variables, validation.

Every error is one line that names the file or the variable, the key, the value found and the value expected.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, get_origin

from pydantic import BeforeValidator, ValidationError
from pydantic.fields import FieldInfo

from mail import endpoint
from mail.logging_setup import FORMATS, LEVELS
from mail.masking import MASK, masked, without_url_password
from mail.regular_file import read_regular
from mail.settings import Settings
from mail.settings_renamed import RENAMED
from mail.settings_section import Section, SettingsError, is_secret
from mail.settings_values import (
    SCHEMES,
    adapter_url,
    host_name,
    name_server,
    normalize_ip,
    own_address,
    relay_network,
    source_address,
    topic_prefix,
)
from mail.spool import bucket_url
from mail.toml_syntax import TomlError, parse_toml
from mail.units import format_duration, format_size, parse_duration, parse_size

ENVIRONMENT_PREFIX = "EILPOST_"
_READ_IN_CAPITALS = ("EILPOST_CONFIG", "EILPOST_DEBUG")
_OTHER_PROGRAMS = (*_READ_IN_CAPITALS, "EILPOST_TEST_", "EILPOST_BENCH", "EILPOST_KAFKA_")
# Kubernetes sets these in every pod for a Service named eilpost or eilpost-delivery.
_KUBERNETES_SERVICE = re.compile(r"_SERVICE_(HOST|PORT)(_\w+)?\Z|_PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?\Z")
_KUBERNETES_SERVICE_PORT = re.compile(r"(tcp|udp|sctp)://")

_SECTIONS: Mapping[str, type[Section]] = {
    name: info.annotation
    for name, info in Settings.model_fields.items()
    if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
}

_Key = tuple[str, str]
_FIELDS: Mapping[_Key, FieldInfo] = {
    (section, key): field for section, table in _SECTIONS.items() for key, field in table.model_fields.items()
}
_INLINE_ON_KAFKA = 4 << 20  # a broker holds several copies of a record in memory
# Brokers accept 6 s to 30 min (group.min.session.timeout.ms, group.max.session.timeout.ms of Kafka 4). The maximum here
# is shorter because the mail of a killed process is not processed for this time.
_SESSION_SECONDS = 6.0, 60.0


def load(path: Path | None, environment: Mapping[str, str] | None = None) -> Settings:
    """The effective settings: defaults, the file at `path` (None: no file), the environment. Raises SettingsError."""
    values = _read(path) if path is not None else {}
    file_name = str(path) if path is not None else "settings"
    sources: dict[_Key, str] = {}
    _check_keys(values, file_name)
    environment = os.environ if environment is None else environment
    for variable, section, key, value in _variables(environment):
        if (section, key) in sources:
            raise SettingsError(f"{sources[section, key]} and {variable}: differ in case only; remove one of them")
        values.setdefault(section, {})[key] = value
        sources[section, key] = f"environment variable {variable}"
    if misspelt := next(_misspelt(environment), ""):
        raise SettingsError(misspelt)

    def name(section: str, key: str) -> str:
        return f"{sources.get((section, key), file_name)}: {section}.{key}"

    problems = list(_numbers_without_unit(values, name))
    if not problems:
        try:
            settings = Settings.model_validate(values, strict=True)
        except ValidationError as error:
            problems = [_explain(line, name) for line in error.errors()]
        else:
            problems = list(_cross_checks(settings, name))
    if problems:
        raise SettingsError(problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""))
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        text = read_regular(path)[0].decode("utf-8-sig")
    except FileNotFoundError as error:
        name = without_url_password(str(path))
        raise SettingsError(f"{name}: there is no such file; create it or name another one with --config") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        hint = "; name the file in it" if path.is_dir() else ""
        raise SettingsError(f"{path}: cannot be read: {error.strerror}{hint}") from error
    try:
        return parse_toml(text, str(path))
    except TomlError as error:
        raise SettingsError(str(error)) from error


def _check_keys(values: Mapping[str, Any], file_name: str) -> None:
    """Raise SettingsError for the first unknown section or key of the file."""
    for section, keys in values.items():
        table = _SECTIONS.get(section)
        if table is None:
            raise SettingsError(f"{file_name}: {_unknown_section(section, keys)}")
        if not isinstance(keys, dict):
            raise SettingsError(f"{file_name}: {section} is a section: write [{section}] with its keys below")
        for key in keys:
            if key not in table.model_fields:
                raise SettingsError(f"{file_name}: {section}.{key}: {_unknown_key(section, key)}")


def _unknown_section(section: str, keys: object) -> str:
    what = f"there is no section [{section}]" if isinstance(keys, dict) else f"{section}: there is no such key here"
    sections = [name for name, table in _SECTIONS.items() if section in table.model_fields]
    if sections and not isinstance(keys, dict):
        return f"{what}; it is a key of [{'] or ['.join(sections)}]"
    return what + (_suggestion(section, _SECTIONS) or f"; the sections are {', '.join(_SECTIONS)}")


def _unknown_key(section: str, key: str, name: Callable[[str], str] = str) -> str:
    if new := RENAMED.get(f"{section}.{key}"):
        return f"is now called {name(new)}: rename it"
    hint = _suggestion(key, _SECTIONS[section].model_fields)
    sections = [f"[{other}]" for other, table in _SECTIONS.items() if key in table.model_fields]
    if not hint and sections:
        hint = f"; {' and '.join(sections)} {'has' if len(sections) == 1 else 'have'} a key of this name"
    return "there is no such key" + (hint or f"; [{section}] has {', '.join(_SECTIONS[section].model_fields)}")


def _suggestion(word: str, known: Mapping[str, object]) -> str:
    matches = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return f"; did you mean {matches[0]}?" if matches else ""


def _variables(environment: Mapping[str, str]) -> Iterator[tuple[str, str, str, Any]]:
    """Environment variables with a double underscore, as (variable, section, key, value)."""
    for variable, text in sorted(environment.items()):
        if not is_setting(variable) or _is_kubernetes_service(variable, text):
            continue
        section, _, key = variable[len(ENVIRONMENT_PREFIX) :].lower().partition("__")
        where = f"environment variable {variable}"
        table = _SECTIONS.get(section)
        if table is None:
            raise SettingsError(f"{where}: {_unknown_section(section, {})}")
        if key not in table.model_fields:
            raise SettingsError(f"{where}: {_unknown_key(section, key, variable_name)}")
        yield variable, section, key, _from_text(text, table.model_fields[key], f"{where}: {section}.{key}")


def variable_name(setting: str) -> str:
    """`EILPOST_LOG__URL` of `log.url`."""
    return ENVIRONMENT_PREFIX + setting.replace(".", "__").upper()


def is_setting(variable: str) -> bool:
    """Whether the environment variable is read as a setting: `EILPOST_LOG__URL`."""
    return variable.upper().startswith(ENVIRONMENT_PREFIX) and "__" in variable


def _is_kubernetes_service(variable: str, text: str) -> bool:
    name = variable.upper()
    return bool(_KUBERNETES_SERVICE.search(name) or (name.endswith("_PORT") and _KUBERNETES_SERVICE_PORT.match(text)))


def _misspelt(environment: Mapping[str, str]) -> Iterator[str]:
    """An error line for each variable that is probably a misspelt setting: it has one underscore and begins with the
    name of a section or resembles a setting (`EILPOST_LOG_URL`), or is `eilpost_config`. Other EILPOST_ variables are
    ignored.
    """
    known = RENAMED | {name: name for name in map(".".join, _FIELDS)}
    names = {variable_name(former).removeprefix(ENVIRONMENT_PREFIX): setting for former, setting in known.items()}
    sections = tuple(f"{section}_".upper() for section in _SECTIONS)
    for variable, text in sorted(environment.items()):
        name = variable.upper()
        if name in _READ_IN_CAPITALS and variable != name:
            yield f"environment variable {variable}: is not read; did you mean {name}?"
        if not name.startswith(ENVIRONMENT_PREFIX) or "__" in name or name.startswith(_OTHER_PROGRAMS):
            continue
        if _is_kubernetes_service(name, text):
            continue
        rest = name.removeprefix(ENVIRONMENT_PREFIX)
        matches = difflib.get_close_matches(rest, names, n=1, cutoff=0.8)
        if matches or rest.startswith(sections):
            hint = (
                f"did you mean {variable_name(names[matches[0]])}?" if matches else "a setting is EILPOST_SECTION__KEY"
            )
            yield f"environment variable {variable}: is not a setting; {hint}"


def _from_text(text: str, field: FieldInfo, where: str) -> Any:
    """The text of a variable as the value that TOML would give; a list is JSON or separated by commas."""
    if get_origin(field.annotation) is list:
        if not text.startswith("["):
            return [part.strip() for part in text.split(",") if part.strip()]
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SettingsError(f'{where}: {masked(text)!r} is not a list; write a,b or ["a", "b"]') from error
    if field.annotation is bool:
        word = text.strip().lower()
        if word not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
            raise SettingsError(f"{where}: {masked(text)!r} is neither true nor false")
        return word in ("true", "1", "yes", "on")
    if field.annotation is int and not _has_unit(field, parse_size):
        try:
            return int(text)
        except ValueError as error:
            raise SettingsError(f"{where}: {masked(text)!r} is not a whole number") from error
    return text


def _has_unit(field: FieldInfo, parse: Callable[[object], object]) -> bool:
    return any(isinstance(part, BeforeValidator) and part.func is parse for part in field.metadata)


def _numbers_without_unit(values: Mapping[str, Mapping[str, Any]], name: Callable[[str, str], str]) -> Iterator[str]:
    for section, keys in values.items():
        for key, value in keys.items():
            field = _FIELDS[section, key]
            if isinstance(value, int | float) and _has_unit(field, parse_size):
                yield f'{name(section, key)}: found {masked(value)}; a size has a unit, like "256KiB" or "25MiB"'
            if isinstance(value, int | float) and _has_unit(field, parse_duration):
                yield f'{name(section, key)}: found {masked(value)}; a time has a unit, like "30s", "5m" or "5d"'


def _explain(line: Any, name: Callable[[str, str], str]) -> str:
    """One validation error of pydantic as an error line."""
    section, key, *index = (*map(str, line["loc"]), "", "")[:3]
    where = name(section, key) + "".join(f"[{part}]" for part in index if part)
    found = MASK if (section, key) in _SECRETS else _quoted(line["input"])
    expected = _EXPECTATIONS.get(line["type"])
    if line["type"] == "string_type" and key.endswith("listen"):
        port = line["input"] if type(line["input"]) is int and 0 < line["input"] < 65536 else 2525
        expected = f'"HOST:PORT" is expected, like "127.0.0.1:{port}"'
    if expected is not None:
        return f"{where}: found {found}; {expected.format_map(line.get('ctx', {}))}"
    return f"{where}: found {found}; {line['msg'].removeprefix('Value error, ')}"


def _quoted(value: object) -> str:
    return json.dumps(masked(value), ensure_ascii=False) if isinstance(value, str) else masked(value)


_EXPECTATIONS = {
    "string_type": 'a string is expected, like "..."',
    "int_type": "a whole number without quotes is expected",
    "bool_type": "true or false without quotes is expected",
    "list_type": 'a list is expected, like ["...", "..."]',
    "greater_than_equal": "at least {ge} is expected",
    "less_than_equal": "at most {le} is expected",
}


def _cross_checks(settings: Settings, name: Callable[[str, str], str]) -> Iterator[str]:
    """Checks of values and of combinations of keys that a type cannot express."""

    def check(section: str, key: str, value: str, parse: Callable[[str], object]) -> Iterator[str]:
        try:
            parse(value)
        except ValueError as error:
            yield f'{name(section, key)}: found "{masked(value)}"; {error}'

    yield from check("node", "hostname", settings.node.hostname, host_name)
    for key, value, known in (
        ("log_level", settings.node.log_level, LEVELS),
        ("log_format", settings.node.log_format, FORMATS),
    ):
        if value not in known:
            yield f'{name("node", key)}: found "{masked(value)}"; one of {", ".join(known)} is expected'
    for section, schemes in SCHEMES.items():
        yield from check(section, "url", getattr(settings, section).url, lambda url, s=schemes: adapter_url(url, s))  # type: ignore[misc]
    for section, key in (("ingress", "smtp_listen"), ("mailstore", "pop3_listen"), ("http", "listen")):
        value = getattr(getattr(settings, section), key)
        if value:
            yield from check(section, key, value, endpoint.parse)
    for server in settings.resolver.servers:
        yield from check("resolver", "servers", server, name_server)
    for network in settings.ingress.relay_networks:
        yield from check("ingress", "relay_networks", network, relay_network)
    if settings.delivery.relay:
        yield from check("delivery", "relay", settings.delivery.relay, endpoint.parse_relay)
    if settings.delivery.ehlo_name:
        yield from check("delivery", "ehlo_name", settings.delivery.ehlo_name, host_name)
    for own in settings.delivery.own_addresses:
        yield from check("delivery", "own_addresses", own, own_address)
    sources = settings.delivery.source_addresses
    for source in sources:
        yield from check("delivery", "source_addresses", source, source_address)
    if doubled := next((one for one in sources if [*map(normalize_ip, sources)].count(normalize_ip(one)) > 1), None):
        yield f'{name("delivery", "source_addresses")}: "{masked(doubled)}" is listed twice; list each address once'
    for key, fault in bucket_url.setting_errors(settings.spool):
        yield f"{name('spool', key)}: {fault}"
    for section, key in _SECRETS:
        if getattr(getattr(settings, section), key).get_secret_value() == MASK:
            yield f"{name(section, key)}: found {MASK}, which is a masked secret; the secret itself is expected"
    if not settings.router.retry_delays:
        yield f'{name("router", "retry_delays")}: found an empty list; at least one time is expected, like ["5m"]'
    for section, table in settings:
        for key, value in table:
            for time in value if isinstance(value, list) else [value]:
                if time == timedelta(0) and (section, key) != ("node", "drain_timeout"):  # a drain of 0s is allowed
                    yield f'{name(section, key)}: found "0s"; more than 0s is expected'
    for section, key in _SIZES:
        least = _LEAST_SIZE.get((section, key), 1)
        if (size := getattr(getattr(settings, section), key)) < least:
            yield f'{name(section, key)}: found "{format_size(size)}"; at least "{format_size(least)}" is expected'
    if settings.spool.retention <= settings.router.queue_lifetime:
        found, lifetime = format_duration(settings.spool.retention), format_duration(settings.router.queue_lifetime)
        yield (
            f'{name("spool", "retention")}: found "{found}"; longer than router.queue_lifetime ("{lifetime}") is '
            "expected, else queued mail would lose its content"
        )
    if settings.log.sasl_mechanism and not (settings.log.sasl_username and settings.log.sasl_password):
        yield f"{name('log', 'sasl_username')}, log.sasl_password: log.sasl_mechanism needs both"
    if settings.log.sasl_username and not settings.log.sasl_mechanism:
        yield (
            f"{name('log', 'sasl_mechanism')}: log.sasl_username is set without a mechanism; set PLAIN,"
            " SCRAM-SHA-256 or SCRAM-SHA-512, or remove log.sasl_username"
        )
    yield from check("log", "prefix", settings.log.prefix, topic_prefix)
    session_seconds = settings.log.session_timeout.total_seconds()
    if session_seconds < _SESSION_SECONDS[0]:
        yield f'{name("log", "session_timeout")}: at least "6s" is expected: brokers refuse shorter times'
    if session_seconds > _SESSION_SECONDS[1]:
        found = format_duration(settings.log.session_timeout)
        yield (
            f'{name("log", "session_timeout")}: found "{found}"; at most "1m" is expected: the mail of a killed'
            " process is not processed for this time"
        )
    if settings.log.url.startswith("kafka:") and settings.spool.max_inline_size > _INLINE_ON_KAFKA:
        yield (
            f'{name("spool", "max_inline_size")}: found "{format_size(settings.spool.max_inline_size)}"; on Kafka at '
            f'most "{format_size(_INLINE_ON_KAFKA)}" is expected; larger content goes to the spool'
        )
    if settings.spool.max_inline_size > settings.ingress.max_in_flight_bytes:
        yield f"{name('spool', 'max_inline_size')}: is larger than ingress.max_in_flight_bytes; set a smaller value"
    if settings.ingress.max_message_size > settings.ingress.max_in_flight_bytes:
        yield (
            f"{name('ingress', 'max_message_size')}: is larger than ingress.max_in_flight_bytes, so a message of this "
            "size could never be accepted; increase ingress.max_in_flight_bytes"
        )


_ZERO_ALLOWED = {("log", "min_free_disk"), ("spool", "max_inline_size")}  # no check; all content goes to the spool
_LEAST_SIZE = {("ingress", "max_message_size"): 64 << 10}  # RFC 5321 section 4.5.3.1.7

_SIZES = [
    (section, key)
    for section, table in _SECTIONS.items()
    for key, field in table.model_fields.items()
    if _has_unit(field, parse_size) and (section, key) not in _ZERO_ALLOWED
]

_SECRETS = [name for name, field in _FIELDS.items() if is_secret(field)]
