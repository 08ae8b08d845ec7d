"""docs/reference/doctor.md compared with the code: the table has every line of `eilpost doctor`, with its levels."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from eilpost.http_server import readiness
from mail.log.memory import MemoryLog
from mail.service import Health
from mail.settings import LogSettings

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "reference" / "doctor.md"
PACKAGE = ROOT / "eilpost" / "doctor"
LEVELS = ("OK", "WARN", "FAIL")

# Parts of a line that differ from run to run: HOST:PORT, a name, a number. The suffix "of tenant NAME" is left out.
_VARIABLE = "*"
_TENANT = re.compile(r"^(?:topics\.)?of_tenant\(|^tenant_suffix$")
# Levels that a function computes: `Finding(level, ...)` and `level(...)`.
_COMPUTED = {"topic *": set(LEVELS), "broker *": {"WARN", "FAIL"}, "log": {"OK", "FAIL"}}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions() -> dict[str, Function]:
    """The functions of the package, as "module.function"."""
    found: dict[str, Function] = {}
    for path in sorted(PACKAGE.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, Function):
                found[f"{path.stem}.{node.name}"] = node
    return found


def _text(node: ast.expr) -> str | None:
    """A literal or f-string with `*` for its variable parts; None for another expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.JoinedStr):
        return None
    parts = []
    for part in node.values:
        if isinstance(part, ast.Constant):
            parts.append(str(part.value))
        elif isinstance(part, ast.FormattedValue) and not _TENANT.match(ast.unparse(part.value)):
            parts.append(_VARIABLE)
    return "".join(parts)


def _assigned(function: Function, name: str) -> Iterator[ast.expr]:
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id == name:
                    yield node.value
                elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = zip(target.elts, node.value.elts, strict=True)
                    yield from (value for each, value in pairs if isinstance(each, ast.Name) and each.id == name)


def _levels(function: Function) -> set[str]:
    """The levels of the findings that a function makes about its parameter `subject`."""
    calls = {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
    return {name.upper() for name in calls & {"ok", "warn", "fail"}}


def lines_of_code() -> dict[str, set[str]]:
    """The levels of each line of doctor."""
    functions = _functions()
    helpers: dict[str, tuple[int, Function]] = {}  # functions with a parameter `subject`, and its position
    for name, function in functions.items():
        parameters = [parameter.arg for parameter in function.args.args]
        if "subject" in parameters:
            helpers[name.rpartition(".")[2]] = parameters.index("subject"), function
    lines: dict[str, set[str]] = defaultdict(set)
    for module_and_name, function in functions.items():
        if module_and_name.startswith("finding."):
            continue
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call) and node.args):
            name = ast.unparse(call.func)
            if name in ("ok", "warn", "fail", "level"):
                subject, levels = call.args[0], {name.upper()} & set(LEVELS)
            elif name == "Finding":
                subject, levels = call.args[1], set()
            elif name in helpers:
                position, helper = helpers[name]
                subject, levels = call.args[position], _levels(helper)
            else:
                continue
            choices = list(_assigned(function, subject.id)) if isinstance(subject, ast.Name) else [subject]
            for text in filter(None, map(_text, choices)):
                lines[text] |= levels | _COMPUTED.get(text, set())
    for node in ast.walk(functions["__init__.examine"]):  # a check without an answer is named after its key
        if isinstance(node, ast.Dict):
            for key in filter(None, map(_text, filter(None, node.keys))):
                lines[key].add("FAIL")
    return lines


def lines_of_page() -> dict[str, set[str]]:
    section = PAGE.read_text(encoding="utf-8").partition("### Lines\n")[2].partition("\n#")[0]
    lines = {}
    for name, *cells in re.findall(r"^\| `([^`]+)` \| (.+?) \| (.+?) \| (.+?) \|$", section, re.MULTILINE):
        pattern = re.sub(r"\b(?:HOST:PORT|SECTION\.KEY|PREFIX|NAME|TOPIC|SERVER|ADDRESS|N)\b", _VARIABLE, name)
        lines[pattern] = {level for level, cell in zip(LEVELS, cells, strict=True) if cell != "-"}
    return lines


def test_table_has_every_line_of_doctor_with_its_levels() -> None:
    assert lines_of_page() == lines_of_code()


def test_table_has_every_key_of_readyz() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## Readiness\n")[2]
    keys = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    _, answer = readiness(Health(), MemoryLog(LogSettings()))
    assert set(answer) <= set(keys)
    assert set(keys) - set(answer) == {"warnings", "stopped"}
