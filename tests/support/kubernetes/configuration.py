"""Configuration files and command lines of the cluster's components. Pure, except `write`.

Every address is fixed, because each cluster has its own network. Pods have addresses in 10.244.0.0/24, Services in
10.96.0.0/16. `HOST` is the address of the node, and of processes outside the cluster; `OUTSIDE` is another machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.kubernetes.namespaces import HOST

NODE = "node1"
OUTSIDE = "10.123.0.2"
SERVER = f"https://{HOST}:6443"
PAUSE_IMAGE = "eilpost.test/pause:1"
SERVICES = "10.96.0.0/16"
_PODS, _FIRST_SERVICE = "10.244.0.0/24", "10.96.0.1"
_PROXY_USERS = ("kube-controller-manager", "kube-scheduler", "kube-proxy")

API_SERVER_NAMES = ("127.0.0.1", HOST, _FIRST_SERVICE, "localhost", "kubernetes.default.svc")
USERS: Mapping[str, tuple[str, Sequence[str]]] = {  # certificate: (user, groups)
    "admin": ("admin", ("system:masters",)),
    "kubelet": (f"system:node:{NODE}", ("system:nodes",)),
    **{name: (f"system:{name}", ()) for name in _PROXY_USERS},
}


@dataclass(frozen=True, slots=True)
class Layout:
    """File locations of one cluster. Short names, because the path of a Unix socket has at most 107 characters."""

    folder: Path
    cgroup: str

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def conf(self) -> Path:
        return self.folder / "conf"

    @property
    def containerd_socket(self) -> Path:
        return self.folder / "containerd.sock"

    def kubeconfig(self, user: str) -> Path:
        return self.keys / f"{user}.kubeconfig"


def write(at: Layout) -> None:
    (at.conf / "cni").mkdir(parents=True)
    (at.conf / "containerd.toml").write_text(_containerd(at))
    (at.conf / "cni" / "10-pods.conflist").write_text(json.dumps(_pod_network(at), indent=1))
    (at.conf / "kubelet.yaml").write_text(json.dumps(_kubelet(at), indent=1))
    (at.conf / "kube-proxy.yaml").write_text(json.dumps(_kube_proxy(at), indent=1))
    (at.conf / "Corefile").write_text(_coredns(at))


def _containerd(at: Layout) -> str:
    return f"""\
version = 2
root = "{at.folder}/containerd"
state = "/run/containerd-state"
[grpc]
address = "{at.containerd_socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{at.folder}/containerd-opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
disable_apparmor = true
restrict_oom_score_adj = true  # root may lack CAP_SYS_RESOURCE, and then no score can be lowered
cni = {{bin_dir = "/usr/lib/cni", conf_dir = "{at.conf}/cni"}}
"""


def _pod_network(at: Layout) -> dict[str, Any]:
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": _PODS}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": f"{at.folder}/addresses",
    }
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "ipMasq": False,
        "ipam": addresses,
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, ports]}


def _kubelet(at: Layout) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{at.containerd_socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": at.cgroup,
        "failSwapOn": False,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{at.keys}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{at.keys}/kubelet.crt",
        "tlsPrivateKeyFile": f"{at.keys}/kubelet.key",
        "clusterDNS": [HOST],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "podCIDR": _PODS,
        "podLogsDir": f"{at.folder}/pods",
        "volumePluginDir": f"{at.folder}/plugins",
        "maxOpenFiles": 20_000,
        "evictionHard": {  # ignore a full disk of the machine
            "memory.available": "200Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        "serializeImagePulls": False,
    }


def _kube_proxy(at: Layout) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(at.kubeconfig("kube-proxy"))},
        "clusterCIDR": _PODS,
        "hostnameOverride": NODE,
        "nftables": {"syncPeriod": "30s", "minSyncPeriod": "100ms"},
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def _coredns(at: Layout) -> str:
    return f"""\
cluster.local:53 10.in-addr.arpa:53 {{
    cache 2
    kubernetes cluster.local 10.in-addr.arpa {{
        kubeconfig {at.kubeconfig("admin")}
    }}
}}
.:53 {{
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""


def etcd(at: Layout) -> list[str]:
    return ["etcd", f"--data-dir={at.folder}/etcd", "--unsafe-no-fsync", "--log-level=warn"]


def api_server(at: Layout) -> list[str]:
    keys = at.keys
    return [
        "kube-apiserver",
        "--etcd-servers=http://127.0.0.1:2379",
        f"--advertise-address={HOST}",
        f"--service-cluster-ip-range={SERVICES}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",
        "--enable-aggregator-routing",
        f"--tls-cert-file={keys}/apiserver.crt",
        f"--tls-private-key-file={keys}/apiserver.key",
        f"--client-ca-file={keys}/ca.crt",
        f"--service-account-key-file={keys}/tokens.pub",
        f"--service-account-signing-key-file={keys}/tokens.key",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--kubelet-client-certificate={keys}/admin.crt",
        f"--kubelet-client-key={keys}/admin.key",
        f"--kubelet-certificate-authority={keys}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={keys}/ca.crt",
        "--requestheader-allowed-names=front-proxy",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={keys}/front-proxy.crt",
        f"--proxy-client-key-file={keys}/front-proxy.key",
    ]


def delegated(at: Layout, user: str) -> list[str]:
    """Options of a server that delegates authentication to the API server."""
    config = at.kubeconfig(user)
    return [f"--{use}kubeconfig={config}" for use in ("", "authentication-", "authorization-")]


def controller_manager(at: Layout) -> list[str]:
    """Autoscaling polls more often and uses samples of younger pods than by default, to keep tests short."""
    return [
        "kube-controller-manager",
        *delegated(at, "kube-controller-manager"),
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--use-service-account-credentials",
        f"--root-ca-file={at.keys}/ca.crt",
        f"--service-account-private-key-file={at.keys}/tokens.key",
        "--horizontal-pod-autoscaler-sync-period=2s",
        "--horizontal-pod-autoscaler-cpu-initialization-period=20s",
        "--horizontal-pod-autoscaler-initial-readiness-delay=5s",
    ]


def scheduler(at: Layout) -> list[str]:
    return [
        "kube-scheduler",
        *delegated(at, "kube-scheduler"),
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
    ]


def kubelet(at: Layout) -> list[str]:
    return [
        "kubelet",
        f"--config={at.conf}/kubelet.yaml",
        f"--kubeconfig={at.kubeconfig('kubelet')}",
        f"--root-dir={at.folder}/kubelet",
        f"--cert-dir={at.folder}/kubelet-certificates",
        f"--hostname-override={NODE}",
        f"--node-ip={HOST}",
    ]


def kube_proxy(at: Layout) -> list[str]:
    return ["kube-proxy", f"--config={at.conf}/kube-proxy.yaml"]


def coredns(at: Layout) -> list[str]:
    return ["coredns", "-conf", f"{at.conf}/Corefile"]


def metrics_server(at: Layout) -> list[str]:
    return [
        "metrics-server",
        *delegated(at, "admin"),
        "--secure-port=4443",
        f"--cert-dir={at.folder}/metrics-server",
        f"--kubelet-certificate-authority={at.keys}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        "--metric-resolution=10s",
        "--kubelet-request-timeout=5s",
    ]
