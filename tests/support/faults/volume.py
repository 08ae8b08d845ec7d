"""A spool of files on a volume that all processes share, and that can be away, for all of them and at once.

The spool is a link: to the folder where the files are, or to none.
"""

from __future__ import annotations

from pathlib import Path


class Volume:
    """In `folder`, which is there."""

    def __init__(self, folder: Path) -> None:
        self._link = folder / "spool"
        (folder / "spool-volume").mkdir(exist_ok=True)
        self.mount()

    def settings(self) -> dict[str, str]:
        """The section [spool] that uses it."""
        return {"url": f"file:{self._link}"}

    def files(self) -> list[Path]:
        """Those with content of messages."""
        return sorted(self._link.glob("[0-9]*/*"))

    def unmount(self) -> None:
        self._point_at("nowhere")

    def mount(self) -> None:
        """Also when it was never away."""
        self._point_at("spool-volume")

    def _point_at(self, name: str) -> None:
        new = self._link.with_name("spool-link")
        new.unlink(missing_ok=True)
        new.symlink_to(name)
        new.replace(self._link)
