"""Container images for tests: eilpost's image, built from `deploy/Dockerfile` on the base image's substitute.

Other tests use `image()`: its `tag` is the name and its `archive` the cached `docker save` file. It is built once for
each state of the product, the lock files and the Dockerfile.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.support.containers import debian, engine
from tests.support.containers.engine import Engine, EngineError

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = "deploy/Dockerfile"
_KEPT = {"eilpost-*.tar": 6, "python-*.tar": 2}  # cached archives

_failure: list[str] = []


@dataclass(frozen=True, slots=True)
class Image:
    """An image name with the `docker save` archive of the image."""

    tag: str
    archive: Path

    def load_into(self, running: Engine) -> str:
        """Load it into an engine; returns its name."""
        if not running.has(self.tag):
            running.docker("load", "--quiet", "--input", str(self.archive), timeout=300)
        return self.tag


def why_missing() -> str | None:
    """The reason why images cannot be built and run here; None if they can."""
    return _failure[0] if _failure else engine.why_missing()


def prepare() -> None:
    """Build what takes longer than a test's time limit. After a failure `why_missing` returns the reason."""
    if why_missing() is None:
        try:
            image()
        except EngineError as error:
            _failure.append(f"the image could not be built: {error}")


@functools.cache
def image() -> Image:
    """eilpost's image from this tree: its name and archive. Raises EngineError."""
    digest = _digest(debian.archive().name.encode(), _sources())
    made = Image(f"eilpost.test/eilpost:{digest}", debian.IMAGES / f"eilpost-{digest}.tar")
    save(made, lambda running: _build(running, made.tag))
    made.archive.touch()
    debian.archive().touch()
    for pattern, kept in _KEPT.items():
        for old in sorted(debian.IMAGES.glob(pattern), key=lambda path: path.stat().st_mtime)[:-kept]:
            old.unlink(missing_ok=True)
    return made


def base_image(running: Engine) -> str:
    """Load the base image's substitute into this engine; returns its name."""
    path = debian.archive()
    tag = f"eilpost.test/python:{path.stem}"
    if not running.has(tag):
        environment = ["PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]
        environment.append(f"SSL_CERT_FILE={debian.CERTIFICATES}")  # uv brings its own certificates otherwise
        changes = [f"--change=ENV {variable}" for variable in environment]
        running.docker("import", *changes, '--change=CMD ["python3"]', str(path), tag, timeout=300)
    return tag


def _index_arguments() -> list[str]:
    """Build arguments for the package index that this machine configures for pip or uv."""
    index = os.environ.get("PIP_INDEX_URL") or os.environ.get("UV_DEFAULT_INDEX")
    return [f"--build-arg={name}={index}" for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX")] if index else []


def save(made: Image, build: Callable[[Engine], None]) -> None:
    """Build an image in this run's engine and write its archive, unless it is cached."""
    if made.archive.exists():
        return
    with made.archive.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.archive.exists():
            print(f"\nBuilding the image {made.tag} ...", file=sys.stderr, flush=True)
            began = time.monotonic()
            running = engine.shared()
            build(running)
            part = made.archive.with_suffix(".part")
            running.docker("save", "--output", str(part), made.tag, timeout=300)
            part.rename(made.archive)
            size = made.archive.stat().st_size / 1e6
            print(f"{made.tag}: {size:.0f} MB, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def _sources() -> list[Path]:
    """The source files of the image, as listed in `deploy/Dockerfile.dockerignore`, and the Dockerfile."""
    listed = (ROOT / f"{DOCKERFILE}.dockerignore").read_text().splitlines()
    found = [ROOT / DOCKERFILE]
    for name in (line[1:] for line in listed if line.startswith("!")):
        path = ROOT / name
        found += [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return sorted(file for file in found if file.suffix != ".pyc")


def _digest(start: bytes, files: Iterable[Path]) -> str:
    digest = hashlib.sha256(start)
    for file in files:
        digest.update(f"\0{file.relative_to(ROOT)}\0{file.stat().st_mode & 0o111:o}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _build(running: Engine, tag: str) -> None:
    """Build from a copy of the sources: the classic builder does not read `Dockerfile.dockerignore`."""
    with tempfile.TemporaryDirectory(prefix="eilpost-image-") as folder:
        for file in _sources():
            copy = Path(folder) / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copy)
        options = [f"--build-arg=PYTHON_IMAGE={base_image(running)}", *_index_arguments()]
        running.build(Path(folder), tag, *options, dockerfile=DOCKERFILE)
