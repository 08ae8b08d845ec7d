"""The shell commands of a page, as the test of docs/kubernetes.md runs them."""

from __future__ import annotations

import subprocess

from tests.support.docs.shell_blocks import script, shell_blocks

PAGE = """
# A page

```sh
GREETING=hello
```

```yaml
not: run
```

```sh
echo "$GREETING"
%s
```
"""


def _run(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-s"], input=script(PAGE % command), capture_output=True, text=True, timeout=30)


def test_blocks_marked_sh_are_found() -> None:
    assert len(shell_blocks(PAGE % "true")) == 2


def test_blocks_share_one_shell() -> None:
    done = _run("true")
    assert done.returncode == 0
    assert done.stdout == "### block 1\n### block 2\nhello\n"


def test_the_first_command_that_fails_ends_it() -> None:
    done = _run("false; echo reached")
    assert done.returncode == 1
    assert "reached" not in done.stdout
