"""TOML reader whose errors are one line with file, line and column. Pure."""

from __future__ import annotations

import re
import tomllib
from typing import Any

_POSITION = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)\Z")
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
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TomlError(f"{name}: {_explain(str(error), text)}") from error
    except ValueError as error:
        raise TomlError(f"{name}: contains a number that is too long; shorten it") from error
    except RecursionError as error:
        raise TomlError(f"{name}: lists or tables are nested too deeply; remove some levels") from error


def _explain(error: str, text: str) -> str:
    problem, line, column, _ = _POSITION.split(error)
    advice = next((each for words, each in _ADVICE.items() if problem.startswith(words)), "correct this line")
    if line is None:
        lines = text.rstrip().split("\n")
        line, column, advice = str(len(lines)), str(len(lines[-1]) + 1), _END_ADVICE
    return f"line {line}, column {column}: not valid TOML: {problem}; {advice}"
