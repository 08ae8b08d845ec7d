"""Properties of all structs in frames."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from msgspec import inspect

from mail.address import Address
from mail.frame_struct import FrameStruct
from mail.outcome import Deferred, Failed
from mail.record import Record
from tests.support.builders.records import ALICE, GOLDEN, LATER

_IMMUTABLE = (
    inspect.NoneType,
    inspect.BoolType,
    inspect.IntType,
    inspect.StrType,
    inspect.BytesType,
    inspect.DateTimeType,
    inspect.TimeDeltaType,
    inspect.EnumType,
    inspect.RawType,  # encoded JSON
)


def _field_types(kind: inspect.Type) -> Iterator[inspect.Type]:
    match kind:
        case inspect.StructType():
            for field in kind.fields:
                yield from _field_types(field.type)
        case inspect.UnionType():
            for member in kind.types:
                yield from _field_types(member)
        case inspect.FrozenSetType() | inspect.VarTupleType():
            yield from _field_types(kind.item_type)
        case inspect.TupleType():
            for item in kind.item_types:
                yield from _field_types(item)
        case _:
            yield kind


def test_a_struct_has_immutable_fields_only() -> None:
    """So it is in no reference cycle, and the garbage collector may ignore it."""
    types = {type(found) for kind in FrameStruct.__subclasses__() for found in _field_types(inspect.type_info(kind))}
    assert types <= set(_IMMUTABLE)
    for kind in FrameStruct.__subclasses__():
        assert kind.__struct_config__.frozen
        assert kind.__struct_config__.array_like


@pytest.mark.parametrize("name", GOLDEN)
def test_equal_records_have_equal_hashes(name: str) -> None:
    record: Record = GOLDEN[name]
    copy = msgspec.convert(msgspec.to_builtins(record), type(record))
    assert copy is not record
    assert copy == record
    assert hash(copy) == hash(record)


def test_structs_of_different_classes_are_not_equal() -> None:
    assert Deferred(ALICE, LATER) != Failed(ALICE, LATER)


def test_a_struct_cannot_be_changed() -> None:
    address = Address("alice", "example.test")
    with pytest.raises(AttributeError):
        address.local = "bob"  # type: ignore[misc]
