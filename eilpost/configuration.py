"""Finds the configuration and shows it: which file, the effective value of every key, and where each came from.

Reading and checking is `mail/settings_file.py`; here is the search order and the view of `eilpost config`.
Next: `mail/settings_file.py`.
"""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eilpost.compose import Plan
from mail.masking import without_url_password
from mail.settings import SettingsError, show
from mail.settings_file import ENVIRONMENT_PREFIX, is_setting, load

VARIABLE = "EILPOST_CONFIG"
DEMO = Path("var/demo/eilpost.toml")
# Whoever names one of these has chosen where mail lies, and needs no warning of defaults.
_CHOSEN = {"EILPOST_LOG__URL", "EILPOST_MAILBOXES__URL"}


def candidates() -> tuple[Path, ...]:
    """Where a configuration is looked for when no --config is given, in this order."""
    return (Path("eilpost.toml"), Path("/etc/eilpost/eilpost.toml"), DEMO)


def find(given: Path | None) -> Path | None:
    """The configuration file: the one given, $EILPOST_CONFIG, or the first candidate that exists. Raises
    SettingsError for a file that was named and does not exist.
    """
    if given is None and (named := os.environ.get(VARIABLE)):
        given = Path(named)
        if not given.exists():
            raise SettingsError(f"{VARIABLE}: {without_url_password(named)}: there is no such file")
    if given is not None:
        return given
    return next((path for path in candidates() if path.exists()), None)


def plan(given: Path | None) -> Plan:
    """Find and read the configuration. Without a file: the defaults and the environment, from the working directory,
    and a line on stderr that says so unless the environment says where mail lies.
    """
    path = find(given)
    settings = load(path)
    if path is None:
        places = ", ".join(str(place) for place in candidates())
        variables = [name for name in sorted(os.environ) if is_setting(name)]
        if not variables:
            raise SettingsError(
                f"no configuration: give --config FILE or {VARIABLE} (looked for {places}); or try `eilpost demo`"
            )
        if not _CHOSEN & set(map(str.upper, variables)):
            _say(
                f"no configuration file (looked for {places}): using the defaults, {', '.join(variables)}, and"
                f" {Path.cwd()}"
            )
    return Plan(settings, path.parent if path is not None else Path())


@dataclass(frozen=True, slots=True)
class Setting:
    section: str
    key: str
    value: Any
    source: str  # "default", the file's name, or the variable's


def effective(given: Path | None) -> Iterator[Setting]:
    """Every key with its effective value and where it came from."""
    path = find(given)
    settings = load(path)
    in_file = tomllib.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    variables = {name.upper(): name for name in os.environ if is_setting(name)}
    for section, keys in show(settings).items():
        for key, value in keys.items():
            variable = variables.get(f"{ENVIRONMENT_PREFIX}{section}__{key}".upper())
            source = variable or (str(path) if key in in_file.get(section, {}) else "default")
            yield Setting(section, key, value, source)


def as_toml(settings: Iterator[Setting]) -> Iterator[str]:
    """The effective settings as TOML that can be read again, each with its source as a comment."""
    section = None
    for each in settings:
        if each.section != section:
            if section is not None:
                yield ""
            section = each.section
            yield f"[{section}]"
        value = json.dumps(each.value, ensure_ascii=False)
        yield f"{each.key} = {value}" + ("" if each.source == "default" else f"  # {each.source}")


def _say(text: str) -> None:
    print(f"eilpost: {text}", file=sys.stderr, flush=True)  # noqa: T201
