"""Error lines of the TOML reader, and of the two files that it reads."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from eilpost.configuration import effective_settings
from mail.directory import DirectoryUnusable
from mail.directory.file import load as load_directory
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


_DOTS = ".".join("abcdefghijklmnopqrst")  # 20 parts


@pytest.mark.parametrize(
    ("text", "position"),
    [
        pytest.param(f"{_DOTS} = 1\n", "line 1, column 1", id="key"),
        pytest.param(f"[a]\r\n\r\n  {_DOTS} = 1\r\n", "line 3, column 3", id="indented key"),
        pytest.param(f"[{_DOTS}]\n", "line 1, column 2", id="header"),
        pytest.param(f"[[{_DOTS}]]\n", "line 1, column 3", id="header of an array"),
        pytest.param(f"x = {{a = 1, {_DOTS} = 1}}\n", "line 1, column 13", id="key of an inline table"),
        pytest.param(_DOTS.replace(".", " \t. ") + " = 1\n", "line 1, column 1", id="spaces around the dots"),
        pytest.param(r""""a\"b".'c".'.""" * 9 + "d = 1\n", "line 1, column 1", id="quoted parts"),
        pytest.param(f'x = """a""\\""""""\n{_DOTS} = 1\n', "line 2, column 1", id="after a multi-line string"),
        pytest.param(f"x = '''a\\'''''\n{_DOTS} = 1\n", "line 2, column 1", id="after a multi-line literal string"),
        pytest.param(f'# it\'s """\n{_DOTS} = 1\n', "line 2, column 1", id="after a comment with quotes"),
        pytest.param("[domains]\na" + ".a" * 40_000 + "=1", "line 2, column 1", id="40,000 parts"),
    ],
)
def test_long_dotted_key_is_refused(text: str, position: str) -> None:
    with pytest.raises(TomlError) as error:
        parse_toml(text, "x.toml")
    expected = "this dotted key has more than 16 parts; write a name with dots in quotes"
    assert str(error.value) == f"x.toml: {position}: {expected}"


@pytest.mark.parametrize(
    "text",
    [
        f'x = "{_DOTS}"',
        f"x = '{_DOTS}'",
        f'x = "\\"{_DOTS}\\\\"',
        f'x = """\n{_DOTS} = "1"\n[{_DOTS}]\n\\"""{_DOTS}"""""',
        f"x = '''\n{_DOTS} = '1'\n[{_DOTS}]\n\\'{_DOTS}'''''",
        f"\"{_DOTS}\".'{_DOTS}'.x = 1",
        f'["{_DOTS}"]\nx = [\'{_DOTS}\', """{_DOTS}""", "", \'\']\n',
        f"x = 1 # {_DOTS} = 1\n# {_DOTS}",
        "a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p = 1",  # 16 parts
        "x = [" + "1.5, 1979-05-27T00:32:00.999, " * 20 + "]",
        "a.b.c = 1.5\n" + "".join(f"d{number}.e.f = 1.5\n" for number in range(20)),
    ],
)
def test_dots_elsewhere_are_not_a_long_key(text: str) -> None:
    assert parse_toml(text, "x.toml") == tomllib.loads(text)


@pytest.mark.parametrize("string", ['"' + r"\"" * 200_000, '"""' + r"\"" "" * 200_000, "'''" + "'' " * 200_000])
def test_unterminated_string_is_scanned_once(string: str) -> None:
    with pytest.raises(TomlError, match="not valid TOML"):
        parse_toml(f"x = {string}", "x.toml")


def test_byte_order_mark_at_the_start_is_ignored(tmp_path: Path) -> None:
    """toml-lang/toml issue 437: a TOML file is a UTF-8 document, which may start with one."""
    file = tmp_path / "x.toml"
    file.write_text('[node]\nhostname = "mx.example.test"\n', encoding="utf-8-sig")
    assert load(file, {}).node.hostname == "mx.example.test"
    tables = effective_settings(file)
    sources = {(section, key): one["source"] for section, keys in tables.items() for key, one in keys.items()}
    assert sources["node", "hostname"] == str(file)
    file.write_text('[domains."example.test"]\n', encoding="utf-8-sig")
    assert list(load_directory(file)[0].domains) == ["example.test"]
    file.write_text('\n\ufeff[domains."example.test"]\n', encoding="utf-8")
    with pytest.raises(DirectoryUnusable, match="line 2, column 1: not valid TOML"):
        load_directory(file)
