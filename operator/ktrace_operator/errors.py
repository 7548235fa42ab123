# SPDX-License-Identifier: Apache-2.0
"""Every way in which the operator can fail to do a thing.

OperatorError
├── UsageError         an argument or the settings are wrong: exit 2
├── LeaseLost          another replica may lead: exit 3, nothing more is written
└── ApiError           what the API server answered
    ├── NotFound         404
    ├── AlreadyExists    409 to a create
    ├── Conflict         409 or a failed test: somebody else wrote; read again
    ├── Expired          410: the list's continuation is too old; list again
    ├── Denied           400, 401, 403, 422: the same request will be refused again
    ├── Throttled        429: later
    └── Unavailable      5xx, timeout, no connection: later
"""


class OperatorError(Exception):
    """Base of all: the message is one line."""

    exit_status = 1


class UsageError(OperatorError):
    """An argument, a variable or the settings file is wrong; the message names it."""

    exit_status = 2


class LeaseLost(OperatorError):
    """This replica does not lead any more, or cannot prove it for as long as a write may take."""

    exit_status = 3


class ApiError(OperatorError):
    """An answer that is not the one that was hoped for."""

    def __init__(self, message: str, status: int = 0, retry_after: float | None = None) -> None:
        super().__init__(" ".join(message.split())[:512])
        self.status = status
        """HTTP status; 0 where there was no answer."""
        self.retry_after = retry_after
        """Seconds that the server asks us to wait."""


class NotFound(ApiError):
    """There is no such object."""


class AlreadyExists(ApiError):
    """An object of this name is there already."""


class Conflict(ApiError):
    """The object is not any more what we believed it to be."""


class Expired(ApiError):
    """What a list began with is no longer kept."""


class Denied(ApiError):
    """Authorization, admission, quota or validation refused."""

    @property
    def namespace_terminating(self) -> bool:
        """The namespace is being deleted: there is nothing left to do in it."""
        return "because it is being terminated" in str(self)

    @property
    def quota(self) -> bool:
        """A ResourceQuota is used up, which others may free again."""
        return "exceeded quota" in str(self)


class Throttled(ApiError):
    """Too many requests."""


class Unavailable(ApiError):
    """The server cannot be reached, or cannot answer now. A write may or may not have happened."""
