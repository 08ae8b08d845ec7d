"""Lint of all text that people write: module docstrings, banned words and names, loggers, length of the README."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("mail", "ingress", "router", "delivery", "mailstore", "eilpost")
FOLDERS = (*PACKAGES, "deploy", "helm", "tests", "docs", ".ci")
SUFFIXES = frozenset((".py", ".md", ".toml", ".yaml", ".yml", ".tpl", ".txt", ".go", ".xml", ".service", ".svg"))
NAMES = frozenset((".importlinter", "Makefile", "Dockerfile", "run"))  # files without a suffix
README_LINES_MAX = 130
DOCSTRING_SENTENCES_MAX = 4

# Old-fashioned, private or personifying words, as regular expressions. docs/glossary.md has the terms to use.
BANNED = (
    r"of late",
    r"anew",
    r"whoever",
    r"lest",
    r"in hand",
    r"at work",
    r"takes? in",
    r"that (?:is|are) there",
    r"so many",
    r"so long as",
    r"told",
    r"heard",
    r"looked at",
    r"go(?:es)? on",
    r"carr(?:y|ies|ied|ying)",
    r"beside",
    r"in one breath",
    r"in charge of",
    r"never here",
    r"mended?",
    r"mishaps?",
    r"tend(?:s|ed|ing)? (?:a|the|its) shard",
    r"put aside",
    r"mak(?:es?|ing) known",
    r"holds? up",
    r"the roof",
    r"ground floor",
    r"knows? nothing",
)
# Names that docs/glossary.md has replaced: no module, class, function, parameter or variable has one.
OLD_NAME = re.compile(
    r"""_* (?:
    apart | asjson | carriage | carrier | carrying | chore | chosen | committing | conversation | crowd | door | fine
    | happening | hearing | hole | in_?hand | intake | judge | lane | leftover | lookout | maildrop | making | mark
    | mishap | mortal | obey | onebox | outbox | owning | paper | plainfile | portion | presence | probing | producing
    | putaside | reaching | seat | severed | speaks | storeroom | story | stranger | tall(?:y|ie) | tend | told | took
    | transacting | tried
    ) s? _*""",
    re.IGNORECASE | re.VERBOSE,
)
# The journey of docs/development.md: only these docstrings name the next file.
JOURNEY = frozenset(
    (
        "ingress/session.py",
        "ingress/accept.py",
        "router/decide.py",
        "delivery/worker.py",
        "mailstore/maildir/__init__.py",
    )
)

_BANNED = re.compile(rf"\b(?:{'|'.join(BANNED)})\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_TAG = re.compile(r"\b(?:Pure|No I/O)\.(?=\s|$)|\b(?:Source|Next): .*?[.!?](?=\s|$)", re.DOTALL)
_LOGGER = re.compile(r"^(\w+) = (?:structlog|logging)\.get_?[lL]ogger\(", re.MULTILINE)
_CODE_BLOCK = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def sentence_count(docstring: str) -> int:
    """Sentences. Code ends none, nor do abbreviations, "Pure.", "No I/O." and a sentence after "Source:" or "Next:"."""
    text = re.sub(r"`[^`]*`", "code", docstring).replace("e.g.", "eg").replace("i.e.", "ie")
    return len(_SENTENCE_END.findall(_TAG.sub("", text)))


def banned_words(text: str) -> list[str]:
    """The banned words in prose; text in backticks does not count."""
    return [match.lower() for match in _BANNED.findall(re.sub(r"`[^`\n]*`", "", text))]


def old_names(tree: ast.Module) -> list[str]:
    """The definitions of a module (classes, functions, parameters, variables) that have an old name."""
    names: list[str] = []
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.append(name)
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                names.append(name)
            case ast.alias(asname=str(name)):
                names.append(name)
    return [name for name in names if OLD_NAME.fullmatch(name)]


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _prose(path: Path) -> str:
    """The text of a file, names and strings included; of a page without its code blocks."""
    source = path.read_text(encoding="utf-8")
    return _CODE_BLOCK.sub("", source) if path.suffix == ".md" else source


def _files() -> Iterator[Path]:
    """All files of the project that people write, this one aside: it has to name the banned words."""
    folders = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))]
    for path in [*sorted(ROOT.iterdir()), *folders]:
        if path.is_file() and (path.suffix in SUFFIXES or path.name in NAMES) and path != Path(__file__):
            yield path


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield _name(path), path


def test_every_module_docstring_is_present_and_short() -> None:
    wrong = {}
    for name, path in _modules():
        docstring = ast.get_docstring(_tree(path))
        if _tree(path).body and (docstring is None or sentence_count(docstring) > DOCSTRING_SENTENCES_MAX):
            wrong[name] = "no docstring" if docstring is None else f"{sentence_count(docstring)} sentences"
    assert wrong == {}


def test_files_that_docstrings_name_exist() -> None:
    python = [path for path in _files() if path.suffix == ".py"]
    names = [_name(path) for path in python]
    wrong = {}
    for path in python:
        docstrings = "\n".join(
            ast.get_docstring(node) or ""
            for node in ast.walk(_tree(path))
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        )
        named = set(re.findall(r"`([\w/]+\.py)`", docstrings))
        if missing := sorted(file for file in named if not any(f"/{name}".endswith(f"/{file}") for name in names)):
            wrong[_name(path)] = missing
    assert wrong == {}


def test_only_the_files_of_the_journey_name_the_next_file() -> None:
    named = {name for name, path in _modules() if re.search(r"\bNext: ", ast.get_docstring(_tree(path)) or "")}
    assert named <= JOURNEY


def test_every_logger_is_called_logger() -> None:
    names = {name: found for name, path in _modules() if (found := set(_LOGGER.findall(path.read_text("utf-8"))))}
    assert {name: found for name, found in names.items() if found != {"logger"}} == {}


def test_no_file_has_a_banned_word() -> None:
    assert {_name(path): words for path in _files() if (words := banned_words(_prose(path)))} == {}


def test_no_definition_has_an_old_name() -> None:
    python = [path for path in _files() if path.suffix == ".py"]
    assert [_name(path) for path in python if OLD_NAME.fullmatch(path.stem)] == []
    assert {_name(path): names for path in python if (names := old_names(_tree(path)))} == {}


def test_journeys_have_numbers_of_their_own() -> None:
    files = sorted((ROOT / "tests" / "journeys").glob("test_*.py"))
    numbers = [int(path.name.split("_")[1]) for path in files]
    assert len(set(numbers)) == len(files)
    docstrings = [ast.get_docstring(_tree(path)) or "" for path in files]
    assert [text for text, n in zip(docstrings, numbers, strict=True) if not text.startswith(f"Journey {n}: ")] == []


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= README_LINES_MAX


def test_sentences_are_counted_and_banned_words_are_found() -> None:
    docstring = (
        "Parser of `a. b.` files (RFC 5321 section 4.1.1). It reads, e.g. lines. Version 1.2 only! Pure. No I/O."
    )
    assert sentence_count(docstring) == 3
    assert sentence_count("Parser. Source: RFC 5321\nsection 4. It reads lines. Next: `a.py`. Pure. And more.") == 3
    assert banned_words("The broker was Told. `told` Foretold") == ["told"]


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def f(took): ...", ["took"]),
        ("class Door: ...", ["Door"]),
        ("import x as _tally", ["_tally"]),
        ("self.marks = marks", ["marks"]),
        ("a = took(outdoor)", []),
    ],
)
def test_old_names_of_definitions_are_found(source: str, names: list[str]) -> None:
    assert old_names(ast.parse(source)) == names


def test_no_module_has_the_name_of_a_standard_one() -> None:
    modules = [path for folder in (*PACKAGES, "deploy", "tests") for path in (ROOT / folder).rglob("*.py")]
    named = {path.stem for path in modules} | {path.parent.name for path in modules}
    assert {name for name in named if not name.startswith("__")} & sys.stdlib_module_names == set()


def test_every_handler_of_all_errors_says_why() -> None:
    """`except Exception` stands only where a task, a thread or a callback ends."""
    handler = re.compile(r"^ *except Exception\b(?!.*  # ).*$", re.MULTILINE)
    assert {name: found for name, path in _modules() if (found := handler.findall(path.read_text("utf-8")))} == {}
