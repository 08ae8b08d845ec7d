"""TOML reader whose errors are one line with file, line and column. Pure."""

from __future__ import annotations

import re
import tomllib
from typing import Any

_POSITION = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)\Z")
_MAX_KEY_PARTS = 16
_KEY_PART = r"""(?:[\w-]++|"(?:[^"\\\n]++|\\.)*+"?|'[^'\n]*+'?)"""
# The tokens that can contain a dot. Closing quotes are optional, so that the scan is linear in invalid text too.
_TOKEN = re.compile(
    r'''"""(?:[^"\\]++|\\[\s\S]|"{1,2}(?!"))*+"{0,5}'''
    r"""|'''(?:[^']++|'{1,2}(?!'))*+'{0,5}"""
    r"|#[^\n]*+"
    rf"|(?P<long_key>{_KEY_PART}(?:[ \t]*+\.[ \t]*+{_KEY_PART}){{{_MAX_KEY_PARTS}}})"
    rf"|{_KEY_PART}",
    re.ASCII,
)
_END_ADVICE = "the file ends here; complete the value"
_ADVICE = {  # by the first words of tomllib's message
    "Invalid value": 'write text in quotes, like key = "text"',
    "Expected '='": 'write key = "text" or key = 5, or # before a comment',
    "Invalid statement": 'write key = "text" or key = 5, or # before a comment',
    "Cannot": "remove one of the two definitions",
    "Duplicate": "remove one of the two definitions",
}


class TomlError(ValueError):
    """One line that names the file and says what to do."""


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """The tables in `text`; `name` is the file name for errors. Raises TomlError."""
    _check_keys(text, name)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TomlError(f"{name}: {_explain(str(error), text)}") from error
    except ValueError as error:
        raise TomlError(f"{name}: contains a number that is too long; shorten it") from error
    except RecursionError as error:
        raise TomlError(f"{name}: lists or tables are nested too deeply; remove some levels") from error


def _check_keys(text: str, name: str) -> None:
    """Refuse long dotted keys: the time and memory of tomllib grow with the square of their parts."""
    token = next((token for token in _TOKEN.finditer(text) if token["long_key"] is not None), None)
    if token is not None:
        line, column = text.count("\n", 0, token.start()) + 1, token.start() - text.rfind("\n", 0, token.start())
        problem = f"this dotted key has more than {_MAX_KEY_PARTS} parts; write a name with dots in quotes"
        raise TomlError(f"{name}: line {line}, column {column}: {problem}")


def _explain(error: str, text: str) -> str:
    problem, line, column, _ = _POSITION.split(error)
    advice = next((each for words, each in _ADVICE.items() if problem.startswith(words)), "correct this line")
    if line is None:
        lines = text.rstrip().split("\n")
        line, column, advice = str(len(lines)), str(len(lines[-1]) + 1), _END_ADVICE
    return f"line {line}, column {column}: not valid TOML: {problem}; {advice}"
