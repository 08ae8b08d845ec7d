"""Shared spool volume that can be unmounted for all processes at once.

The spool path is a symbolic link to the folder with the files, or to a missing one.
"""

from __future__ import annotations

from pathlib import Path


class Volume:
    """The volume in the existing folder `folder`."""

    def __init__(self, folder: Path) -> None:
        self._link = folder / "spool"
        (folder / "spool-volume").mkdir(exist_ok=True)
        self.mount()

    def settings(self) -> dict[str, str]:
        """The section [spool] that uses it."""
        return {"url": f"file:{self._link}"}

    def files(self) -> list[Path]:
        """Files with message content."""
        return sorted(self._link.glob("[0-9]*/*"))

    def unmount(self) -> None:
        self._point_at("nowhere")

    def mount(self) -> None:
        """Mount; no effect if mounted."""
        self._point_at("spool-volume")

    def _point_at(self, name: str) -> None:
        new = self._link.with_name("spool-link")
        new.unlink(missing_ok=True)
        new.symlink_to(name)
        new.replace(self._link)
