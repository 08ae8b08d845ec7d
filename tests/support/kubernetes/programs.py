"""Programs of the test cluster: Kubernetes, helm and KEDA built with Go, containerd and network tools from Debian.

The versions belong together: all use client-go 0.34. A changed `node/go.mod` needs a new `_NODE` version.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.support.golang import GoProgram

KUBERNETES_VERSION, HELM_VERSION, KEDA_VERSION = "v1.34.4", "v3.19.4", "v2.19.0"
CNI_PLUGINS = Path("/usr/lib/cni")

_SOURCE = Path(__file__).resolve().parent / "node"
_NODE = f"{KUBERNETES_VERSION}-1"
# Without gitVersion the API server reports v0.0.0, which the chart's `kubeVersion` refuses.
_VERSION_FLAGS = " ".join(
    f"-X {package}.git{key}={value}"
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    for key, value in (("Version", KUBERNETES_VERSION), ("Major", "1"), ("Minor", "34"))
)
_HELM_FLAGS = f"-X helm.sh/helm/v3/internal/version.version={HELM_VERSION} {_VERSION_FLAGS}"

NODE = GoProgram("kubernetes-node", ".", _NODE, _SOURCE, flags=("-ldflags", f"-s -w {_VERSION_FLAGS}"), minutes=8)
PAUSE = GoProgram("pause", "./pause", "1", _SOURCE, flags=("-ldflags", "-s -w"), minutes=1)
HELM = GoProgram(
    "helm", "helm.sh/helm/v3/cmd/helm", HELM_VERSION, _SOURCE, flags=("-ldflags", f"-s -w {_HELM_FLAGS}"), minutes=3
)
_KEDA = "github.com/kedacore/keda/v2"
KEDA_OPERATOR = GoProgram(
    "keda-operator", "./cmd/operator", KEDA_VERSION, module=_KEDA, flags=("-ldflags", "-s -w"), minutes=7
)
KEDA_ADAPTER = GoProgram(
    "keda-adapter", "./cmd/adapter", KEDA_VERSION, module=_KEDA, flags=("-ldflags", "-s -w"), minutes=3
)
KUBE_ROUTER = GoProgram(
    "kube-router",
    "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router",
    "v2.1.0",
    flags=("-ldflags", "-s -w"),
    minutes=4,
)
_BUILT = (NODE, PAUSE, HELM)
_KEDA_PROGRAMS = (KEDA_OPERATOR, KEDA_ADAPTER)

# The command that shows whether a package is installed: its Debian package.
_DEBIAN = {
    "containerd": "containerd",
    "runc": "runc",
    "nft": "nftables",
    "conntrack": "conntrack",
    "ipset": "ipset",
    "iptables": "iptables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "curl": "curl",
    str(CNI_PLUGINS / "bridge"): "containernetworking-plugins",
}


def why_missing() -> str | None:
    """The reason why no cluster can run here, as text; None if one can."""
    return _why_not_on_this_machine() or _why_not_built(_BUILT)


def prepare() -> None:
    """Build what is missing."""
    _build(_BUILT)


def why_no_keda() -> str | None:
    return _why_not_built(_KEDA_PROGRAMS)


def prepare_keda() -> None:
    _build(_KEDA_PROGRAMS)


def _why_not_built(programs: Iterable[GoProgram]) -> str | None:
    return next((why for program in programs if (why := program.why_missing())), None)


def _build(programs: Iterable[GoProgram]) -> None:
    for program in programs:
        program.prepare()


@functools.cache
def _why_not_on_this_machine() -> str | None:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "a one-node Kubernetes needs Linux and root, for namespaces, mounts and cgroups (run the tests as root)"
    if not os.access("/sys/fs/cgroup", os.W_OK):
        return "the cgroup file system cannot be written to (in a container: run it privileged)"
    packages = [package for command, package in _DEBIAN.items() if not shutil.which(command)]
    if packages:
        return f"Debian's {', '.join(packages)} are not installed (apt-get install {' '.join(packages)})"
    folder = tempfile.gettempdir()
    found = subprocess.run(["findmnt", "--noheadings", "--output=FSTYPE", "--target", folder], capture_output=True)
    if found.stdout.strip() == b"overlay":
        return (
            f"{folder} lies on an overlay file system, which cannot hold layers of images (set TMPDIR to another one)"
        )
    return None
