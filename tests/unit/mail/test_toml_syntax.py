"""Error lines of the TOML reader, and of the two files that it reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from mail.directory import DirectoryUnusable
from mail.directory.toml import parse_directory
from mail.settings_file import load
from mail.settings_section import SettingsError
from mail.toml_syntax import TomlError, parse_toml


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[log]\nurl = x\n",
            'line 2, column 7: not valid TOML: Invalid value; write text in quotes, like key = "text"',
        ),
        ("[log]\r\nurl = x\r\n", "line 2, column 7: not valid TOML: Invalid value; write text in quotes"),
        ("node\n", "line 1, column 5: not valid TOML: Expected '=' after a key"),
        ("=\n", 'line 1, column 1: not valid TOML: Invalid statement; write key = "text"'),
        ("a = 1\na = 2\n", "line 2, column 6: not valid TOML: Cannot overwrite a value; remove one of the two"),
        ("[a]\n[a]\n", "line 2, column 3: not valid TOML: Cannot declare ('a',) twice; remove one of the two"),
        ("x = {a=1, a=2}", "line 1, column 14: not valid TOML: Duplicate inline table key 'a'; remove one of the two"),
        ("x = 'abc\n", """line 1, column 9: not valid TOML: Expected "'"; the file ends here; complete the value"""),
        (
            "a = 1 b = 2",
            "line 1, column 7: not valid TOML: Expected newline or end of document after a statement; correct",
        ),
        ("a = 1\nx = ", "line 2, column 4: not valid TOML: Invalid value; the file ends here; complete the value"),
        ('x = """abc\n\n', "line 1, column 11: not valid TOML: Unterminated string; the file ends here"),
        pytest.param("x = " + "9" * 5000, "contains a number that is too long; shorten it", id="long number"),
        pytest.param("x = " + "[" * 5000, "lists or tables are nested too deeply; remove", id="deep list"),
    ],
)
def test_error_names_file_line_column_and_what_to_do(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(text.encode())
    with pytest.raises(TomlError) as error:
        parse_toml(text, str(file))
    line = str(error.value)
    assert line.startswith(f"{file}: {expected}")
    with pytest.raises(SettingsError) as of_settings:
        load(file, {})
    with pytest.raises(DirectoryUnusable) as of_directory:
        parse_directory(text, str(file))
    assert str(of_settings.value) == str(of_directory.value) == line


def test_tables_are_returned() -> None:
    assert parse_toml('[a]\nb = "c"\n', "x.toml") == {"a": {"b": "c"}}
