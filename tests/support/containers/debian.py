"""Substitute for the image `python:3.13-slim`, for machines without access to an image registry.

The root file system is a minimal Debian by debootstrap in this machine's release, with this machine's Python in
/usr/local and its CA certificates. The archive is built once and cached.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.support.containers.engine import CACHE, EngineError

IMAGES = CACHE / "images"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_PREFERRED = "3.13"  # the version in the Dockerfile
_PACKAGES = ("ca-certificates", "netbase", "tzdata", "wget")
_RECIPE = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
_LEFT_OUT = shutil.ignore_patterns(
    *(
        "test",
        "tests",
        "idlelib",
        "tkinter",
        "turtledemo",
        "config-3*",
        "__pycache__",
        "*.a",
        "_tkinter*",
        "site-packages",
    )
)
_EMPTIED = ("var/cache/apt", "var/lib/apt/lists", "var/log", "usr/share/doc", "usr/share/man", "usr/share/locale")


def suite() -> str:
    """This machine's Debian release, whose libraries fit programs copied from here."""
    return platform.freedesktop_os_release()["VERSION_CODENAME"]


def archive() -> Path:
    """The root file system, built if it is not cached."""
    prefix, version = _python()
    path = IMAGES / f"python-{version}-{suite()}-{_RECIPE}.tar"
    if path.exists():
        return path
    IMAGES.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock, tempfile.TemporaryDirectory(dir=IMAGES) as folder:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            print(
                f"\nMaking a base image with Debian {suite()} and Python {version} (once, 2 min) ...",
                file=sys.stderr,
                flush=True,
            )
            root = Path(folder) / "root"
            _debootstrap(root, packages_of(_programs(prefix), without=prefix))
            _copy_python(prefix, root / "usr/local")
            _shell("chroot", str(root), "ldconfig")
            for name in _EMPTIED:
                shutil.rmtree(root / name, ignore_errors=True)
                (root / name).mkdir(parents=True)
            made = Path(folder) / "root.tar"
            left_out = [f"--exclude=./{name}/*" for name in ("proc", "sys", "dev")]
            _shell("tar", "--numeric-owner", "-C", str(root), *left_out, "-cf", str(made), ".")
            made.rename(path)
    return path


def libraries(programs: Iterable[Path]) -> set[Path]:
    """The shared libraries that these programs load on this machine."""
    found = set()
    for program in programs:
        output = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
        found |= {Path(line.split()[2]) for line in output.splitlines() if " => /" in line}
    return found


def packages_of(programs: Iterable[Path], *, without: Path) -> set[str]:
    """Debian packages with the libraries of these programs, except those in the folder `without`."""
    packages = set()
    for library in libraries(programs):
        if library.is_relative_to(without):
            continue
        output = subprocess.run(["dpkg", "--search", f"*/{library.name}"], capture_output=True, text=True, check=False)
        packages |= {line.partition(":")[0] for line in output.stdout.splitlines() if line.endswith(f"/{library.name}")}
    return packages


def _python() -> tuple[Path, str]:
    """Folder and version of the Python for the image: the preferred version, else the running one."""
    ask = "import sys, platform; print(sys.base_prefix, platform.python_version())"
    named = f"python{_PREFERRED}"
    installed = sorted(Path(sys.base_prefix).parent.glob(f"{_PREFERRED}.*/bin/{named}"))  # layout of pyenv
    for program in (named, *installed, sys.executable):
        with contextlib.suppress(OSError):
            done = subprocess.run([program, "-IS", "-c", ask], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                prefix, version = done.stdout.split()
                return Path(prefix), version
    raise EngineError("no Python was found for the base image")


def _programs(prefix: Path) -> list[Path]:
    modules = [path for path in prefix.glob("lib/python3.*/lib-dynload/*.so") if "_tkinter" not in path.name]
    return [Path(os.path.realpath(next(prefix.glob("bin/python3.[0-9]*[0-9]")))), *modules]


def _debootstrap(root: Path, packages: set[str]) -> None:
    include = ",".join(sorted({*_PACKAGES, *packages} - {"libc6", "libgcc-s1"}))
    _shell("debootstrap", "--variant=minbase", f"--include={include}", suite(), str(root), timeout=1200)
    shutil.copyfile(os.environ.get("SSL_CERT_FILE") or CERTIFICATES, root / CERTIFICATES[1:])


def _copy_python(prefix: Path, target: Path) -> None:
    (standard,) = prefix.glob("lib/python3.*/os.py")
    folder = standard.parent
    shutil.copytree(folder, target / "lib" / folder.name, ignore=_LEFT_OUT, symlinks=True)
    site = target / "lib" / folder.name / "site-packages"
    site.mkdir()
    for package in folder.glob("site-packages/pip*"):
        shutil.copytree(package, site / package.name, ignore=_LEFT_OUT)
    for library in prefix.glob("lib/libpython3*.so*"):
        shutil.copy2(library, target / "lib", follow_symlinks=False)
    binary = target / "bin" / folder.name
    shutil.copy2(prefix / "bin" / folder.name, binary)
    for name in ("python", "python3"):
        (target / "bin" / name).symlink_to(folder.name)
    for name in ("pip", "pip3"):
        script = target / "bin" / name
        script.write_text(
            "#!/usr/local/bin/python3\nimport sys\nfrom pip._internal.cli.main import main\nsys.exit(main())\n"
        )
        script.chmod(0o755)


def _shell(*command: str, timeout: float = 300) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)
    if done.returncode != 0:
        raise EngineError(f"{' '.join(command)}: {(done.stderr + done.stdout).strip()[-2000:]}")
