"""Settings that are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from mail.settings_file import load
from mail.settings_section import SettingsError


def refused(path: Path | None, environment: Mapping[str, str]) -> str:
    """Load settings; the one line with which they are refused."""
    with pytest.raises(SettingsError) as caught:
        load(path, environment)
    message = str(caught.value)
    assert "\n" not in message
    return message
