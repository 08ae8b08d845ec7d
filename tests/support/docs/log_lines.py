"""Log lines in the code of the product: the message of each line and its keys."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from tests.support.docs.generate import PACKAGES

ROOT = Path(__file__).resolve().parents[3]


def log_keys() -> dict[str, set[str]]:
    """Message of a log line -> its keys; those of `_refuse(...)` in the SMTP session belong to "command refused"."""
    keys: dict[str, set[str]] = defaultdict(set)
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            owner, name = ast.unparse(call.func.value), call.func.attr
            if (owner, name) == ("self", "_refuse"):
                events = ["command refused"]
            elif owner == "logger" and call.args:
                events = _events(call.args[0])
            else:
                continue
            for event in events:
                keys[event].update(_keys(call))
    keys["log lines dropped"] = {"lines"}  # by the writer, not by `logger`
    keys["command refused"] -= {"counted"}  # not logged
    keys["command refused"] |= {"helo", "queue_id", "content_bytes"}  # set in dicts
    return keys


def _events(argument: ast.expr) -> list[str]:
    if isinstance(argument, ast.IfExp):  # "bounced" if ... else "discarded"
        return [*_events(argument.body), *_events(argument.orelse)]
    return [str(argument.value) if isinstance(argument, ast.Constant) else ast.unparse(argument)]


def _keys(call: ast.Call) -> set[str]:
    keys = {keyword.arg for keyword in call.keywords if keyword.arg is not None}
    for keyword in (keyword for keyword in call.keywords if keyword.arg is None):  # **({} if ... else {"dsn": ...})
        dicts = (node for node in ast.walk(keyword.value) if isinstance(node, ast.Dict))
        keys |= {str(key.value) for each in dicts for key in each.keys if _is_text(key)}
    return keys


def _is_text(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
