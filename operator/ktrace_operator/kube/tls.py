# SPDX-License-Identifier: Apache-2.0
"""Verifies the API server's certificate as strictly as Go clients do.

Since Python 3.13, default contexts also reject certificates that violate the format of RFC 5280,
such as those of a cluster CA from before 2020 without an authority key identifier. kubectl and the
kubelet accept them. Issuer, host name and validity period are still verified.
"""

import dataclasses
import ssl
from typing import Any

import kopf
from kubernetes import client as kubernetes_client


def _as_go(context: ssl.SSLContext) -> ssl.SSLContext:
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def open_client(configuration: kubernetes_client.Configuration) -> kubernetes_client.ApiClient:
    """A client of `kubernetes` with our TLS context, for which its configuration has no field."""
    client = kubernetes_client.ApiClient(configuration)
    if configuration.verify_ssl and configuration.host.startswith("https"):
        context = _as_go(ssl.create_default_context(cafile=configuration.ssl_ca_cert))
        client.rest_client.pool_manager.connection_pool_kw["ssl_context"] = context
    return client


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Connection(kopf.ConnectionInfo):
    def as_ssl_context(self) -> ssl.SSLContext:
        return _as_go(super().as_ssl_context())


def login(**arguments: Any) -> kopf.ConnectionInfo | None:
    """Login handler of kopf: the credentials that `kubernetes` finds, with our TLS context."""
    found = kopf.login_via_client(**arguments)
    if found is None:
        return None
    fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    return _Connection(**fields)
