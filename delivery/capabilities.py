"""Capabilities of a server from its EHLO reply (RFC 5321 section 4.1.1.1). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Capabilities:
    """EHLO keywords in upper case with their parameters. Empty for a server that supports only HELO."""

    keywords: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, lines: Sequence[bytes]) -> Capabilities:
        """Parse the lines of an EHLO reply; the first line is the greeting and has no keyword."""
        keywords = {}
        for line in lines[1:]:
            # Some old servers send "SIZE=1000" and "AUTH=LOGIN".
            word, _, parameters = line.decode("ascii", "replace").strip().replace("=", " ", 1).partition(" ")
            if word:
                keywords[word.upper()] = parameters.strip()
        return cls(keywords)

    @property
    def pipelining(self) -> bool:
        return "PIPELINING" in self.keywords  # RFC 2920

    @property
    def eight_bit_mime(self) -> bool:
        return "8BITMIME" in self.keywords  # RFC 6152

    @property
    def smtputf8(self) -> bool:
        return "SMTPUTF8" in self.keywords  # RFC 6531

    @property
    def size(self) -> bool:
        return "SIZE" in self.keywords  # RFC 1870

    @property
    def max_size(self) -> int | None:
        """Maximum message size in octets; None if not announced or unlimited (RFC 1870 section 4: 0)."""
        text = self.keywords.get("SIZE", "")
        return (int(text) or None) if text.isdecimal() and len(text) <= 20 else None
