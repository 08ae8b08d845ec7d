"""Base class of records and their parts, as frames contain them (`mail/log/codec.py`)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct

Instant = Annotated[datetime, Meta(tz=True)]
Size = Annotated[int, Meta(ge=0)]  # bytes


class FrameStruct(Struct, frozen=True, array_like=True, gc=False):
    """A frame contains a struct as a JSON array: the tag, if its class has one, then the fields in their order.

    Readers ignore surplus items and use the defaults of missing ones. So a field may be appended with a default; every
    other change of a field or tag needs a new version of the frame. The garbage collector may ignore a
    struct: its fields are immutable, so it is in no reference cycle. A subclass repeats `frozen=True` for mypy, which
    does not see that msgspec inherits it.
    """
