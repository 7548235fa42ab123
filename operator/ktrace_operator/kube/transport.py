# SPDX-License-Identifier: Apache-2.0
"""HTTP requests to the API server: timeouts, rate limit, error classes. client.py builds them.

`kubernetes` provides connections and credentials (kubeconfig, service account, token rotation).
Objects stay plain JSON, because its generated models cost memory and drop unknown fields.
"""

import http
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, cast

import urllib3
from kubernetes import client as kubernetes_client
from kubernetes import config as kubernetes_config

from ktrace_operator import metrics
from ktrace_operator.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    Denied,
    Expired,
    NotFound,
    Throttled,
    Unavailable,
    UsageError,
)
from ktrace_operator.kube.rate_limit import TokenBucket
from ktrace_operator.kube.tls import open_client
from ktrace_operator.timeouts import CONNECT_SECONDS, LONGEST_WRITE_SECONDS, WRITE_SECONDS

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""Accept header with which the API server returns the metadata only."""
METADATA_LIST = METADATA_ONLY.replace("PartialObjectMetadata", "PartialObjectMetadataList")

READ_SECONDS = 30.0


def connect(pool: int) -> kubernetes_client.ApiClient:
    """A client that uses the service account, or else the kubeconfig.

    Raises UsageError if there is neither.
    """
    configuration = kubernetes_client.Configuration()
    try:
        kubernetes_config.load_incluster_config(  # type: ignore[no-untyped-call]
            client_configuration=configuration
        )
    except kubernetes_config.ConfigException:
        try:
            kubernetes_config.load_kube_config(  # type: ignore[no-untyped-call]
                # The library's default is the variable's value at import time.
                os.environ.get("KUBECONFIG"),
                client_configuration=configuration,
            )
        except (kubernetes_config.ConfigException, OSError) as error:
            raise UsageError(
                f"no cluster: found neither a service account nor a usable kubeconfig ({error})"
            ) from error
    configuration.connection_pool_maxsize = pool
    configuration.retries = False
    return open_client(configuration)


class Transport:
    """Sends requests, one at a time per thread. Raises the subclasses of ApiError."""

    def __init__(
        self,
        client: kubernetes_client.ApiClient,
        bucket: TokenBucket,
        may_write: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        """may_write(seconds) must raise Unavailable if a write of that many seconds is not safe."""
        self._client, self._bucket, self._may_write = client, bucket, may_write

    def read(
        self,
        path: str,
        query: Mapping[str, str] | None = None,
        accept: str = JSON,
        timeout: float = READ_SECONDS,
    ) -> dict[str, Any]:
        """Sends a GET request."""
        return self._send("GET", path, query=query, accept=accept, timeout=timeout)

    def write(
        self, method: str, path: str, body: object, content_type: str = JSON
    ) -> dict[str, Any]:
        """Sends POST, PUT, PATCH or DELETE, rate limited and only while this replica leads."""
        self._bucket.take()
        self._may_write(LONGEST_WRITE_SECONDS)
        return self.write_unfenced(method, path, body, content_type)

    def write_unfenced(
        self, method: str, path: str, body: object, content_type: str = JSON
    ) -> dict[str, Any]:
        """Like write(), but without rate limit and fence: for the Lease itself."""
        return self._send(method, path, body=body, content_type=content_type, timeout=WRITE_SECONDS)

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = JSON,
        accept: str = JSON,
        timeout: float,
    ) -> dict[str, Any]:
        request = self._client.param_serialize(
            method=method,
            resource_path=path,
            query_params=list((query or {}).items()),
            header_params={"Accept": accept, "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        with metrics.request_timer(method):
            try:
                answer = self._client.call_api(
                    *request, _request_timeout=(CONNECT_SECONDS, timeout)
                )
                content = answer.read() or b"{}"  # type: ignore[no-untyped-call]
            except kubernetes_client.ApiException as error:  # the library's form of a TLS error
                metrics.requests.labels("<error>", method).inc()
                raise Unavailable(f"{method} {path}: {error.reason}") from error
            except (urllib3.exceptions.HTTPError, OSError) as error:
                metrics.requests.labels("<error>", method).inc()
                raise Unavailable(f"{method} {path}: {error}") from error
        metrics.requests.labels(str(answer.status), method).inc()
        if 200 <= answer.status < 300:
            return cast("dict[str, Any]", _object(content, f"{method} {path}"))
        raise _refusal(answer.status, content, answer.headers, method, path, content_type)


def _object(content: bytes, what: str) -> object:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise Unavailable(f"{what}: the response is not JSON") from error
    if not isinstance(found, dict):
        raise Unavailable(f"{what}: the response is not a JSON object")
    return found


def _refusal(
    status: int,
    content: bytes,
    headers: Mapping[str, str],
    method: str,
    path: str,
    content_type: str,
) -> ApiError:
    """The error for an error response (a metav1.Status). `content_type` is the request's."""
    try:
        answer = json.loads(content)
        message, reason = str(answer["message"]), str(answer.get("reason", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        message, reason = http.HTTPStatus(status).phrase if status in _KNOWN else "", ""
    retry_after = headers.get("Retry-After", "")
    kind = _kind(status, reason, method, content_type)
    seconds = float(retry_after) if retry_after.isdecimal() else None
    return kind(f"{method} {path}: {status}: {message}", status, seconds)


_KNOWN = frozenset(int(one) for one in http.HTTPStatus)


def _kind(status: int, reason: str, method: str, content_type: str) -> type[ApiError]:
    if status == 409:
        return AlreadyExists if reason == "AlreadyExists" else Conflict
    if status == 422 and content_type == JSON_PATCH:
        return Conflict  # a test operation failed; for other requests, 422 is permanent
    if status == 403 and reason == "" and method == "GET":
        return Unavailable  # from a proxy: an API server always gives a reason
    exact: dict[int, type[ApiError]] = {404: NotFound, 410: Expired, 429: Throttled}
    if status in exact:
        return exact[status]
    return Denied if 400 <= status < 500 else Unavailable
