# SPDX-License-Identifier: Apache-2.0
"""Certificates of old clusters are taken, those of strangers are not."""

import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kopf
import kubernetes.client
import pytest

from ktrace_operator.errors import Unavailable
from ktrace_operator.kube import tls
from ktrace_operator.kube.client import Kube
from ktrace_operator.kube.rate_limit import TokenBucket
from ktrace_operator.kube.transport import Transport
from tests.cluster.pki import Authority

DEFAULT = ssl.create_default_context


@pytest.fixture(autouse=True)
def strict_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is since Python 3.13."""

    def strict(*arguments: Any, **options: Any) -> ssl.SSLContext:
        context = DEFAULT(*arguments, **options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)


class Nothing(http.server.BaseHTTPRequestHandler):
    """There is no object here."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """It puts no key identifiers into what it signs."""
    return Authority(tmp_path / "ours", identified=False)


@pytest.fixture
def server(authority: Authority) -> Iterator[str]:
    pair = authority.issue("server", "server", addresses=("127.0.0.1",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nothing) as listening:
        listening.socket = context.wrap_socket(listening.socket, server_side=True)
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"https://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()
        thread.join()


def kube(url: str, ca: Path) -> Kube:
    configuration = kubernetes.client.Configuration()
    configuration.host, configuration.ssl_ca_cert = url, str(ca)
    configuration.retries = False
    return Kube(Transport(tls.open_client(configuration), TokenBucket(10, 10)))


def test_a_certificate_without_key_identifiers_is_taken(server: str, authority: Authority):
    assert kube(server, authority.certificate).node("a") is None
    plain = DEFAULT(cafile=str(authority.certificate))
    plain.verify_flags |= ssl.VERIFY_X509_STRICT
    address = server.removeprefix("https://127.0.0.1:")
    with (
        socket.create_connection(("127.0.0.1", int(address)), 5) as raw,
        pytest.raises(ssl.SSLCertVerificationError, match="Key Identifier"),
    ):
        plain.wrap_socket(raw, server_hostname="127.0.0.1")


def test_a_stranger_is_refused_in_one_line(server: str, tmp_path: Path):
    stranger = Authority(tmp_path / "stranger")
    with pytest.raises(Unavailable, match="certificate verify failed") as refused:
        kube(server, stranger.certificate).node("a")
    assert "\n" not in str(refused.value)


def test_the_name_is_still_checked(server: str, authority: Authority):
    elsewhere = server.replace("127.0.0.1", "localhost")
    with pytest.raises(Unavailable, match="certificate"):
        kube(elsewhere, authority.certificate).node("a")


def test_kopf_gets_the_same_check(monkeypatch: pytest.MonkeyPatch, authority: Authority):
    found = kopf.ConnectionInfo(server="https://api", ca_path=authority.certificate, token="t")
    assert found.as_ssl_context().verify_flags & ssl.VERIFY_X509_STRICT
    monkeypatch.setattr(kopf, "login_via_client", lambda **_: found)
    given = tls.login()
    assert given is not None
    assert (given.server, given.token) == ("https://api", "t")
    context = given.as_ssl_context()
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
