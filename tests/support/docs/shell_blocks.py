"""The shell commands of a page of the documentation, as one script. Pure."""

from __future__ import annotations

import re

_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shell_blocks(page: str) -> list[str]:
    """The blocks marked `sh`, in the page's order."""
    return _BLOCK.findall(page)


def script(page: str) -> str:
    """All blocks in one shell, which ends at the first command that fails; each block is announced by its number."""
    blocks = (f"echo '### block {number}'\n{block}" for number, block in enumerate(shell_blocks(page), 1))
    return "set -eu -o pipefail\nexec 2>&1\n" + "\n".join(blocks)
