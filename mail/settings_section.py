"""Section of the settings: its model, the types of its values, and the error of an invalid one."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, SecretStr
from pydantic.fields import FieldInfo

from mail.masking import MASK
from mail.printable import escape
from mail.units import format_duration, format_size, parse_duration, parse_size

Duration = Annotated[timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration)]
Size = Annotated[int, BeforeValidator(parse_size), PlainSerializer(format_size)]

# A key of this type is masked in `eilpost config show` and in error lines.
Secret = Annotated[SecretStr, PlainSerializer(lambda secret: MASK if secret.get_secret_value() else "")]


def is_secret(field: FieldInfo) -> bool:
    return field.annotation is SecretStr


class SettingsError(Exception):
    """One line that names the key and says what to do. Unprintable characters of the quoted value are escaped."""

    def __init__(self, line: str) -> None:
        super().__init__(escape(line))


class Section(BaseModel):
    """The string below a key is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
