"""What a process takes from the machine it runs on: open files enough, and nothing that others may read."""

from __future__ import annotations

from pathlib import Path

from tests.support.onebox import EILPOST, OneBox


def test_it_may_open_what_its_limits_allow_and_makes_nothing_others_read(tmp_path: Path) -> None:
    poor = ("bash", "-c", 'ulimit -Sn 128; umask 000; exec "$0" "$@"', str(EILPOST), "up")
    with OneBox(tmp_path / "home", {"ingress": {"max_connections": 700}}, command=poor) as box:
        limits = Path(f"/proc/{box.pid}/limits").read_text().splitlines()
        soft = next(line.split()[3] for line in limits if line.startswith("Max open files"))
        assert int(soft) >= 700 + 500 + 500
        made = [path for path in box.home.rglob("*") if path.name not in ("eilpost.toml", "directory.toml", "output")]
        assert {path.name for path in made} >= {"log.db", "spool", "mail"}
        assert {oct(path.stat().st_mode & 0o077) for path in made} == {"0o0"}
