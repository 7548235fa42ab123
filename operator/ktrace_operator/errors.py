# SPDX-License-Identifier: Apache-2.0
"""Errors of the operator.

OperatorError
├── UsageError         wrong argument or setting: exit 2
├── LeaseLost          another replica may be the leader: exit 3, no further write
└── ApiError           the API server's response, or none
    ├── NotFound         404
    ├── AlreadyExists    409 to a create
    ├── Conflict         409 or a failed JSON patch test: another client wrote; read again
    ├── Expired          410: the list's continue token is too old; list again
    ├── Denied           400, 401, 403, 422: a retry of the same request fails too
    ├── Throttled        429: retry later
    └── Unavailable      5xx, timeout, no connection: retry later
"""


class OperatorError(Exception):
    """Base class. The message is one line."""

    exit_status = 1


class UsageError(OperatorError):
    """An argument, a variable or the settings file is wrong. The message names it."""

    exit_status = 2


class LeaseLost(OperatorError):
    """This replica is no longer the leader."""

    exit_status = 3


class ApiError(OperatorError):
    """A request to the API server failed."""

    def __init__(self, message: str, status: int = 0, retry_after: float | None = None) -> None:
        super().__init__(" ".join(message.split())[:512])
        self.status = status
        """HTTP status; 0 without a response."""
        self.retry_after = retry_after
        """Seconds of the Retry-After header."""


class NotFound(ApiError):
    """The object does not exist."""


class AlreadyExists(ApiError):
    """An object of this name exists already."""


class Conflict(ApiError):
    """The object has changed since it was read."""


class Expired(ApiError):
    """The API server no longer has the version that a list started with."""


class Denied(ApiError):
    """Authorization, admission, quota or validation refused the request."""

    @property
    def namespace_terminating(self) -> bool:
        """Whether the namespace is being deleted, so that no object can be created in it."""
        return "because it is being terminated" in str(self)

    @property
    def quota(self) -> bool:
        """Whether a ResourceQuota is used up, which may pass."""
        return "exceeded quota" in str(self)


class Throttled(ApiError):
    """Too many requests."""


class Unavailable(ApiError):
    """The server cannot be reached or cannot respond now. A write may or may not have happened."""
