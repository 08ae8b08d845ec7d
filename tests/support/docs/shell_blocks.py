"""The shell commands of a documentation page as one script. Pure."""

from __future__ import annotations

import re

_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shell_blocks(page: str) -> list[str]:
    """Blocks marked `sh`, in page order."""
    return _BLOCK.findall(page)


def script(page: str) -> str:
    """All blocks in one shell that stops at the first failing command; the number of each block is printed first."""
    blocks = (f"echo '### block {number}'\n{block}" for number, block in enumerate(shell_blocks(page), 1))
    return "set -eu -o pipefail\nexec 2>&1\n" + "\n".join(blocks)
