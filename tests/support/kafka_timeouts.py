"""Other time-outs of the Kafka log for one test."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest


def set_timeouts(monkeypatch: pytest.MonkeyPatch, **changes: float) -> None:
    """Replace these fields of TIMEOUTS in every module that uses it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("mail.log.kafka") and hasattr(module, "TIMEOUTS"):
            monkeypatch.setattr(module, "TIMEOUTS", replace(module.TIMEOUTS, **changes))
