"""Files of other programs: the line ends of the wire, however they are cut into parts, without reading them twice."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstore import foreign
from mailstore.foreign import ForeignFiles, wire_size


def _wire(content: bytes) -> bytes:
    return content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


@given(
    st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"x", b"yy"]), max_size=30).map(b"".join),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=8),
    st.integers(1, 7),
    st.integers(1, 9),
)
def test_any_part_at_any_time(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, asked: list[tuple[int, int]], chunk: int, step: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "foreign"
    path.write_bytes(content)
    wire, files = _wire(content), ForeignFiles()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreign, "CHUNK_OCTETS", chunk)
        assert wire_size(path) == len(wire)
        assert files.read(path, 0, None) == wire
        for start, limit in asked:
            assert files.read(path, start, limit) == wire[start : start + limit]
        in_turn = b"".join(files.read(path, start, step) for start in range(0, len(wire), step))
        assert in_turn == wire


def test_a_large_file_is_read_once_and_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "1000000000.M1P1.host:2,S"
    path.write_bytes(b"a line\n" * 300_000)
    read = 0

    class Counting(io.FileIO):
        def read(self, octets: int | None = -1, /) -> bytes:
            nonlocal read
            data = super().read(octets)
            read += len(data)
            return data

    monkeypatch.setattr(foreign, "open", Counting, raising=False)
    files, start = ForeignFiles(), 0
    while part := files.read(path, start, 64 * 1024):
        start += len(part)
    assert start == 300_000 * 8
    assert read < 3 * path.stat().st_size


def test_what_is_remembered_of_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "_PLACES_MAX", 3)
    files = ForeignFiles()
    for number in range(10):
        (tmp_path / str(number)).write_bytes(b"x\n")
        assert files.read(tmp_path / str(number), 0, 2) == b"x\r"
    assert len(files._places) == 3
    assert files.read(tmp_path / "0", 2, 2) == b"\n"
