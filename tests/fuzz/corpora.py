r"""Corpora: the inputs that a target starts with, one Python bytes literal a line in `corpus/TARGET.txt`.

An input that failed once is added there with the mend, so it is tried at every test run.
"""

from __future__ import annotations

import ast
from hashlib import sha1
from pathlib import Path

_CORPORA = Path(__file__).parent / "corpus"
_GOLDEN = Path(__file__).parents[1] / "golden"


def inputs(target: str) -> list[bytes]:
    """The inputs of a target; of `frames` also the golden files."""
    lines = (_CORPORA / f"{target}.txt").read_text(encoding="ascii").splitlines()
    literals = [ast.literal_eval(line) for line in lines if line and not line.startswith("#")]
    golden = sorted(_GOLDEN.glob("version-*/*.frame")) if target == "frames" else []
    return literals + [path.read_bytes() for path in golden]


def write(target: str, folder: Path) -> None:
    """Add the inputs to libFuzzer's folder, one file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in inputs(target):
        (folder / sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)
