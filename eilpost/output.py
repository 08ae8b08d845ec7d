"""Text output of CLI commands, with colours on a terminal. Lines are not wrapped or cut; rich is loaded on a terminal
only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TextIO


class Output:
    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._print = _colour_printer(self._stream) if self._stream.isatty() else self._plain

    def write(self, *parts: tuple[str, str]) -> None:
        """Write one line of (text, style) parts. Control characters become `?`, because replies of remote servers could
        contain escape sequences.
        """
        clean = [("".join(c if c.isprintable() else "?" for c in text), style) for text, style in parts]
        self._print(clean)

    def _plain(self, parts: Sequence[tuple[str, str]]) -> None:
        self._stream.write("".join(text for text, _ in parts).rstrip() + "\n")
        self._stream.flush()


def _colour_printer(out: TextIO) -> Callable[[Sequence[tuple[str, str]]], None]:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=out, highlight=False)
    return lambda parts: console.print(Text.assemble(*parts), soft_wrap=True)
