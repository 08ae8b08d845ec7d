"""Lint of the prose: module docstrings, banned words, names of loggers, length of the README."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("mail", "ingress", "router", "delivery", "mailstore", "eilpost")
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
)
# The journey of docs/development.md: only these docstrings name the next file.
JOURNEY = frozenset(
    ("ingress/session.py", "ingress/accept.py", "router/decide.py", "delivery/worker.py", "mailstore/maildir.py")
)

_BANNED = re.compile(rf"\b(?:{'|'.join(BANNED)})\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_LOGGER = re.compile(r"^(\w+) = (?:structlog|logging)\.get_?[lL]ogger\(", re.MULTILINE)


def sentence_count(docstring: str) -> int:
    """Sentences. Abbreviations and code end none; the tag "Pure.", "Source: ..." and "Next: ..." are none."""
    text = re.sub(r"`[^`]*`", "code", docstring).replace("e.g.", "eg").replace("i.e.", "ie")
    text = re.sub(r"\bPure\.|\b(?:Source|Next): .*", "", text, flags=re.DOTALL)
    return len(_SENTENCE_END.findall(text))


def banned_words(text: str) -> list[str]:
    """The banned words in prose; text in backticks does not count."""
    return [match.lower() for match in _BANNED.findall(re.sub(r"`[^`\n]*`", "", text))]


def _prose(source: str) -> str:
    """The docstrings and comments of a Python file."""
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, nodes)]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return "\n\n".join([*docstrings, *comments])


def _modules() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def _pages() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), ROOT / "helm" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_every_module_docstring_is_present_and_short() -> None:
    wrong = {}
    for name, source in _modules():
        docstring = ast.get_docstring(ast.parse(source))
        if source.strip() and (docstring is None or sentence_count(docstring) > DOCSTRING_SENTENCES_MAX):
            wrong[name] = "no docstring" if docstring is None else f"{sentence_count(docstring)} sentences"
    assert wrong == {}


def test_only_the_files_of_the_journey_name_the_next_file() -> None:
    named = {name for name, source in _modules() if re.search(r"\bNext: ", ast.get_docstring(ast.parse(source)) or "")}
    assert named <= JOURNEY


def test_every_logger_is_called_logger() -> None:
    names = {name: found for name, source in _modules() if (found := set(_LOGGER.findall(source)))}
    assert {name: found for name, found in names.items() if found != {"logger"}} == {}


def test_docstrings_and_comments_have_no_banned_word() -> None:
    found = {name: words for name, source in _modules() if (words := banned_words(_prose(source)))}
    assert found == {}


@pytest.mark.parametrize("page", _pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_no_banned_word(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert banned_words(text) == []


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= README_LINES_MAX


def test_sentences_are_counted_and_banned_words_are_found() -> None:
    docstring = "Parser of `a. b.` files (RFC 5321 section 4.1.1). It reads, e.g. lines. Version 1.2 only! Pure."
    assert sentence_count(docstring) == 3
    assert banned_words("The broker was Told. `told` Foretold") == ["told"]
