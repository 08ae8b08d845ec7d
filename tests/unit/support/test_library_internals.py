"""Private attributes of libraries, and patches of libraries, stand in the compat modules only; each workaround there
names its upstream issue and the condition for its removal. ruff's SLF001 finds private attributes of other objects.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("mail", "ingress", "router", "delivery", "mailstore", "eilpost")
COMPAT = ("ingress/aiosmtpd_compat.py", "mail/log/kafka/aiokafka_compat/**")
FILES = [path.relative_to(ROOT).as_posix() for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
COMPAT_FILES = [path for path in FILES if path.startswith(tuple(pattern.removesuffix("**") for pattern in COMPAT))]
OTHER_FILES = [path for path in FILES if path not in COMPAT_FILES]


def _parse(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@cache
def _source_names(cls: type) -> frozenset[str]:
    """Private methods, class attributes and attributes of `self` in the source of the class."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):  # a built-in class
        return frozenset()
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    names |= {node.attr for node in attributes if ast.unparse(node.value) in ("self", "cls")}
    return frozenset(filter(_is_private, names))


def inherited_private_names(cls: type) -> set[str]:
    """Private names of a library's base class that the class uses, overrides or shadows."""
    libraries = [base for base in cls.__mro__[1:] if base.__module__.partition(".")[0] not in PACKAGES]
    return {name for base in libraries for name in _source_names(cls) & (_source_names(base) | vars(base).keys())}


def hidden_access(tree: ast.Module) -> Iterator[str]:
    """Assignments to attributes of imported modules and classes of libraries, and private names in `getattr`."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {
        (alias.asname or alias.name).partition(".")[0]
        for node in imports
        for alias in node.names
        if (node.module or "" if isinstance(node, ast.ImportFrom) else alias.name).partition(".")[0] not in PACKAGES
    }
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Attribute() as target]) if ast.unparse(target).partition(".")[0] in imported:
                yield ast.unparse(node)
            case ast.Call(func=ast.Name("getattr" | "setattr"), args=[_, ast.Constant(str(name)), *_]):
                if _is_private(name):
                    yield ast.unparse(node)


def test_ruff_forbids_private_attributes_outside_the_compat_modules() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    assert "SLF" in lint["select"]
    ignored = [
        path for path, rules in lint["per-file-ignores"].items() if any(rule.startswith("SLF") for rule in rules)
    ]
    assert ignored == [*COMPAT, "tests/**"]
    assert not [path for path in FILES if "SLF001" in (ROOT / path).read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", OTHER_FILES)
def test_no_module_uses_private_names_of_a_library_in_another_way(path: str) -> None:
    tree = _parse(path)
    assert list(hidden_access(tree)) == []
    if not any(isinstance(node, ast.ClassDef) and node.bases for node in tree.body):
        return
    module = importlib.import_module(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    classes = [
        value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__
    ]
    assert {cls.__name__: names for cls in classes if (names := inherited_private_names(cls))} == {}


@pytest.mark.parametrize("path", COMPAT_FILES)
def test_each_workaround_names_its_upstream_issue_and_the_condition_for_its_removal(path: str) -> None:
    for node in _parse(path).body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or _is_private(node.name):
            continue
        attributes = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
        if path.endswith("patches.py") or any(map(_is_private, attributes)):
            docstring = ast.get_docstring(node) or ""
            assert "Upstream: " in docstring, node.name
            assert "Remove " in docstring, node.name


def test_private_names_of_a_base_class_are_found() -> None:
    class Connection(SMTP):
        async def close(self) -> None:
            await self._writer.drain()

    assert inherited_private_names(Connection) == {"_writer"}


@pytest.mark.parametrize("code", ["client.Request = None", "C.send = None", "getattr(consumer, '_coordinator', None)"])
def test_patches_and_names_in_strings_are_found(code: str) -> None:
    imports = "from aiokafka import client\nfrom aiokafka.conn import AIOKafkaConnection as C\n"
    assert len(list(hidden_access(ast.parse(imports + code)))) == 1
