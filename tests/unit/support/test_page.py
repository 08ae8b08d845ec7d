"""Extraction and running of a page's shell commands, as used for docs/kubernetes.md."""

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


def test_blocks_in_a_list_lose_its_indentation() -> None:
    page = "1. First\n\n   ```sh\n   if true; then\n     echo\n   fi\n   ```\n"
    assert shell_blocks(page) == ["if true; then\n  echo\nfi\n"]


def test_first_failing_command_ends_the_script() -> None:
    done = _run("false; echo reached")
    assert done.returncode == 1
    assert "reached" not in done.stdout
