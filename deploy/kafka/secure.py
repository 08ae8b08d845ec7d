"""Certificate authority, certificates and user of the secured listeners, created once in the cluster's folder.

SECURE is SASL_SSL with PLAIN and SCRAM-SHA-256 for one user; a client may also present the client certificate. TLS has
no authentication, and LOGIN (SCRAM-SHA-512 only) has no encryption. The `openssl` command creates the files, which only
this user can read and which are never committed.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.kafka.jars import BrokerError

USER = "eilpost"
_DAYS = "365"


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """Credentials and trust of a client of the secured listener. All files are PEM."""

    user: str
    password: str
    ca: Path
    client_certificate: Path
    client_key: Path
    _broker: Path

    def settings(self) -> Mapping[str, str]:
        """The server.properties of the secured listeners."""
        listener = "listener.name.secure"
        login = "org.apache.kafka.common.security"
        tls = {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self._broker),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.ca),
            "ssl.client.auth": "requested",
        }
        return {
            f"{listener}.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256",
            "listener.name.login.sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.login.scram-sha-512.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
            f"{listener}.plain.sasl.jaas.config": f"{login}.plain.PlainLoginModule required "
            f'user_{self.user}="{self.password}";',
            f"{listener}.scram-sha-256.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
            **{f"listener.name.{name}.{key}": value for name in ("secure", "tls") for key, value in tls.items()},
        }


def load_or_create(folder: Path) -> ClientCredentials:
    """Load the credentials in `folder`, or create them. Raises BrokerError."""
    password = folder / "password"
    if not password.exists():
        _make(folder)
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(18))
    return ClientCredentials(
        user=USER,
        password=password.read_text(),
        ca=folder / "ca.pem",
        client_certificate=folder / "client.pem",
        client_key=folder / "client.key",
        _broker=folder / "broker-with-key.pem",
    )


def _make(folder: Path) -> None:
    if shutil.which("openssl") is None:
        raise BrokerError("a secured listener needs the openssl command (apt-get install openssl)")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _openssl(
        folder,
        *("req", "-x509", *_new_key("ca"), "-out", "ca.pem", "-days", _DAYS, "-subj", "/CN=eilpost development CA"),
    )
    _create_signed(
        folder, "broker", "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n"
    )
    _create_signed(folder, "client", "extendedKeyUsage=clientAuth\n")
    (folder / "broker-with-key.pem").write_bytes(
        (folder / "broker.key").read_bytes() + (folder / "broker.pem").read_bytes()
    )


def _create_signed(folder: Path, name: str, extensions: str) -> None:
    (folder / f"{name}.ext").write_text(extensions)
    _openssl(folder, "req", *_new_key(name), "-out", f"{name}.csr", "-subj", f"/CN={name}")
    authority = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", f"{name}.ext")
    _openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", "-days", _DAYS, *authority)


def _new_key(name: str) -> tuple[str, ...]:
    return ("-newkey", "rsa:2048", "-nodes", "-sha256", "-keyout", f"{name}.key")


def _openssl(folder: Path, *arguments: str) -> None:
    openssl = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if openssl.returncode != 0:
        raise BrokerError(f"openssl {arguments[0]}: {openssl.stderr.strip()[-500:]}")
