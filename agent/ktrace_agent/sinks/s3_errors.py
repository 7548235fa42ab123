# SPDX-License-Identifier: Apache-2.0
"""Errors between the agent and S3, each as one line with the next step.

A permanent error is one that a second request will not fix: it is given up after a few attempts.
All other errors may be temporary and are retried until the time limit. Messages repeat only the
codes of a server, never its texts, which may contain what was sent.
"""

import re
from dataclasses import dataclass

from botocore import exceptions as boto

from ktrace_agent.errors import SinkFailed
from ktrace_api.snapshot import S3Output

_TEMPORARY_STATUS = (408, 409, 425, 429)
_TEMPORARY_CODES = (
    "BadDigest",
    "InvalidDigest",
    "NoSuchUpload",  # the parts were deleted: a new upload sends them again
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "XAmzContentSHA256Mismatch",
)
_OTHER_REGION = ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException",
                 "PermanentRedirect")  # fmt: skip
_DENIED = (
    "access to {place} is denied ({code});"
    " check the credentials, and allow s3:PutObject and s3:GetObject"
)
_EXPIRED = "the credentials for {place} have expired; renew them"
_BUSY = "{server} is busy ({code}); try again later"
_WORDS = {
    "NoSuchBucket": "{place} does not exist; create it or correct the name",
    "InvalidAccessKeyId": "{server} rejects the access key; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "{server} rejects the signature; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": _EXPIRED,
    "InvalidToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "RequestTimeTooSkewed": "{server} rejects the time of this node; set its clock",
    "ServiceUnavailable": _BUSY,
    "SlowDown": _BUSY,
    "503": _BUSY,
}
"""S3 error code -> meaning and next step."""
_CODE = re.compile(r"[A-Za-z0-9._-]{1,48}")


class S3Failed(SinkFailed):
    """A request to S3 failed, or its response was not the expected one."""

    def __init__(self, message: str, *, permanent: bool, code: str = "") -> None:
        super().__init__(message)
        self.permanent = permanent
        self.code = code
        """S3's error code or the HTTP status; empty without a response."""


@dataclass(frozen=True, slots=True)
class Place:
    """The name of a bucket in messages."""

    output: S3Output

    @property
    def server(self) -> str:
        """Return the endpoint, or S3 with the region."""
        return self.output.endpoint or f"S3 ({self.output.region or 'default region'})"

    def __str__(self) -> str:
        return f"bucket {self.output.bucket} at {self.server}"


def explain(error: Exception, place: Place) -> S3Failed:
    """Convert an error of boto3 into S3Failed; raise other errors again."""
    if isinstance(error, S3Failed):
        return error
    if isinstance(error, boto.ClientError):
        return _answered(error, place)
    if isinstance(error, boto.BotoCoreError):
        return _unanswered(error, place)
    if isinstance(error, RecursionError):  # botocore follows an endless redirect
        return S3Failed(_words("PermanentRedirect", 301, place), permanent=True)
    if isinstance(error, OSError):
        return S3Failed(f"the bundle cannot be read: {error.strerror}", permanent=True)
    raise error


def _answered(error: boto.ClientError, place: Place) -> S3Failed:
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    reported = str(error.response.get("Error", {}).get("Code", ""))
    code = reported if _CODE.fullmatch(reported) else str(status)
    temporary = status >= 500 or status in _TEMPORARY_STATUS or code in _TEMPORARY_CODES
    return S3Failed(_words(code, status, place), permanent=not temporary, code=code)


def _words(code: str, status: int, place: Place) -> str:
    """Return the message for S3's error code."""
    if code in _OTHER_REGION or status in (301, 307):
        text = "{place} is in another region; set its region"
    elif code in _WORDS:
        text = _WORDS[code]
    elif code.startswith("KMS"):
        text = "{place} cannot use its KMS key ({code}); allow it or correct kmsKeyId"
    elif status in (401, 403):
        text = _DENIED
    elif status >= 500:
        text = "{server} fails with {code}; check the server"
    else:
        text = "{place} returns {code}; check bucket and endpoint"
    return text.format(place=place, server=place.server, code=code)


def _unanswered(error: boto.BotoCoreError, place: Place) -> S3Failed:
    match error:
        case boto.NoCredentialsError() | boto.CredentialRetrievalError():
            return S3Failed(
                f"no credentials found for {place}; set AWS_ACCESS_KEY_ID and"
                " AWS_SECRET_ACCESS_KEY, or assign an identity to the node or service account",
                permanent=isinstance(error, boto.NoCredentialsError),
            )
        case boto.SSLError():
            return S3Failed(
                f"the certificate of {place.server} is not trusted; fix it or set AWS_CA_BUNDLE",
                permanent=True,
            )
        case boto.ConnectTimeoutError() | boto.ReadTimeoutError():
            return S3Failed(f"{place} does not answer in time; check the network", permanent=False)
        case boto.EndpointConnectionError() | boto.ProxyConnectionError():
            return S3Failed(_unreachable(str(error.kwargs.get("error")), place), permanent=False)
        case boto.HTTPClientError():
            return S3Failed(f"the connection to {place} broke; check the network", permanent=False)
    return S3Failed(
        f"{place} cannot be used ({type(error).__name__}); check bucket, region and endpoint",
        permanent=True,
    )


def _unreachable(text: str, place: Place) -> str:
    """Return the message for the reason that urllib3 gives."""
    if "resol" in text.lower():
        return f"the name of {place} cannot be resolved; check the endpoint and DNS"
    if "refused" in text:
        return f"{place} refuses the connection; check the endpoint and start the server"
    return f"{place} cannot be reached; check the network"
