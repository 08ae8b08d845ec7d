"""Search order of the configuration file, and the effective settings with their sources for `eilpost config`."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eilpost.terminal import print_message
from eilpost.wiring import ProcessConfig
from mail.masking import without_url_password
from mail.settings import dump
from mail.settings_file import is_setting, load, variable_name
from mail.settings_section import SettingsError

CONFIG_VARIABLE = "EILPOST_CONFIG"
SEARCH_PATH = (Path("eilpost.toml"), Path("/etc/eilpost/eilpost.toml"), Path("var/demo/eilpost.toml"))
# With one of these the storage is chosen explicitly, and no warning about defaults is printed.
_STORAGE_VARIABLES = {"EILPOST_LOG__URL", "EILPOST_MAILBOXES__URL"}


def find(explicit_path: Path | None) -> Path | None:
    """The given file, $EILPOST_CONFIG, or the first existing file of `SEARCH_PATH`. Raises SettingsError when
    $EILPOST_CONFIG does not exist.
    """
    if explicit_path is None and (named := os.environ.get(CONFIG_VARIABLE)):
        explicit_path = Path(named)
        if not explicit_path.exists():
            raise SettingsError(f"{CONFIG_VARIABLE}: {without_url_password(named)}: there is no such file")
    if explicit_path is not None:
        return explicit_path
    return next((path for path in SEARCH_PATH if path.exists()), None)


def load_process_config(explicit_path: Path | None) -> ProcessConfig:
    """Find and read the configuration. Without a file, defaults and environment are used with the working directory,
    and a warning is printed unless the environment names the storage.
    """
    path = find(explicit_path)
    settings = load(path)
    if path is None:
        searched = ", ".join(str(place) for place in SEARCH_PATH)
        variables = [name for name in sorted(os.environ) if is_setting(name)]
        if not variables:
            raise SettingsError(
                f"no configuration file: use --config FILE or {CONFIG_VARIABLE} (searched "
                f"{searched}); or try `eilpost demo`"
            )
        if not _STORAGE_VARIABLES & set(map(str.upper, variables)):
            print_message(
                f"no configuration file (searched {searched}): using the defaults, {', '.join(variables)}, and"
                f" {Path.cwd()}"
            )
    return ProcessConfig(settings, path.parent if path is not None else Path())


def effective_settings(explicit_path: Path | None) -> dict[str, dict[str, dict[str, Any]]]:
    """The value and the source of every key, by section: "default", or the name of the file or variable."""
    path = find(explicit_path)
    settings = load(path)
    in_file = tomllib.loads(path.read_text(encoding="utf-8-sig")) if path is not None else {}
    variables = {name.upper(): name for name in os.environ if is_setting(name)}

    def source(section: str, key: str) -> str:
        variable = variables.get(variable_name(f"{section}.{key}"))
        return variable or (str(path) if key in in_file.get(section, {}) else "default")

    return {
        section: {key: {"value": value, "source": source(section, key)} for key, value in keys.items()}
        for section, keys in dump(settings).items()
    }


def as_toml(tables: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The effective settings as valid TOML, each with its source as a comment."""
    lines: list[str] = []
    for section, keys in tables.items():
        lines += ["", f"[{section}]"] if lines else [f"[{section}]"]
        for key, setting in keys.items():
            value, source = json.dumps(setting["value"], ensure_ascii=False), setting["source"]
            lines.append(f"{key} = {value}" + ("" if source == "default" else f"  # {source}"))
    return "\n".join(lines)
