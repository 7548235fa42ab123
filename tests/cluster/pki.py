# SPDX-License-Identifier: Apache-2.0
"""Certificates and kubeconfigs of one cluster: a CA of its own, a key for each component."""

import base64
import datetime as dt
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFE = dt.timedelta(days=30)
SKEW = dt.timedelta(hours=1)


@dataclass(frozen=True)
class Pair:
    """Paths of a certificate and its key, both PEM."""

    certificate: Path
    key: Path


_SIGNS = x509.KeyUsage(
    digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
    key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
    decipher_only=False,
)  # fmt: skip


class Authority:
    """The cluster's CA; everything it signs lies in one folder.

    RFC 5280 asks for key identifiers, and Python from 3.13 on insists; CAs of old clusters put
    none in (`identified=False`).
    """

    def __init__(self, folder: Path, *, identified: bool = True) -> None:
        self.folder, self._identified = folder, identified
        folder.mkdir(mode=0o700)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ktrace-test-ca")])
        certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_SIGNS, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.pair = self._write("ca", certificate, self._key)
        self.certificate = self.pair.certificate

    def issue(self, file: str, name: str, group: str = "", addresses: tuple[str, ...] = ()) -> Pair:
        """A certificate for user `name` of `group`, also a server's if it has addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        if group:
            subject.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
        builder = self._builder(x509.Name(subject), key.public_key()).add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.CLIENT_AUTH]
                + ([ExtendedKeyUsageOID.SERVER_AUTH] if addresses else [])
            ),
            critical=False,
        )
        if addresses:
            names = x509.SubjectAlternativeName([_general_name(one) for one in addresses])
            builder = builder.add_extension(names, critical=False)
        return self._write(file, builder.sign(self._key, hashes.SHA256()), key)

    def token_key(self) -> Path:
        """The private key that signs the tokens of service accounts."""
        key = ec.generate_private_key(ec.SECP256R1())
        return _private(self.folder / "service-accounts.key", _pem(key))

    def kubeconfig(self, file: Path, server: str, pair: Pair) -> Path:
        """A kubeconfig with all certificates inside, readable by its owner only."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "ktrace",
            "contexts": [{"name": "ktrace", "context": {"cluster": "ktrace", "user": "ktrace"}}],
            "clusters": [
                {
                    "name": "ktrace",
                    "cluster": {
                        "server": server,
                        "certificate-authority-data": _base64(self.certificate),
                    },
                }
            ],
            "users": [
                {
                    "name": "ktrace",
                    "user": {
                        "client-certificate-data": _base64(pair.certificate),
                        "client-key-data": _base64(pair.key),
                    },
                }
            ],
        }
        return _private(file, yaml.safe_dump(content).encode())

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(now + LIFE)
        )
        if not self._identified:
            return builder
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key), critical=False
        ).add_extension(issuer, critical=False)

    def _write(self, file: str, one: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
        certificate = self.folder / f"{file}.crt"
        certificate.write_bytes(one.public_bytes(serialization.Encoding.PEM))
        return Pair(certificate, _private(self.folder / f"{file}.key", _pem(key)))


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def _private(path: Path, content: bytes) -> Path:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    return path


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
