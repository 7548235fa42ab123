# SPDX-License-Identifier: Apache-2.0
"""What went wrong between the agent and S3, in one line that says what to do.

Permanent is what a second request will not change: it is given up after a few tries. Everything
else may pass and is tried until the time is up. Of what a server says only codes are repeated,
never its texts: they may hold what was sent.
"""

import re
from dataclasses import dataclass

from botocore import exceptions as boto

from ktrace_agent.errors import SinkFailed
from ktrace_api.snapshot import S3Output

_PASSING_STATUS = (408, 409, 425, 429)
_PASSING_CODES = (
    "BadDigest",
    "InvalidDigest",
    "NoSuchUpload",  # the parts were swept away: a new upload begins with new ones
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "XAmzContentSHA256Mismatch",
)
_OTHER_REGION = ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException",
                 "PermanentRedirect")  # fmt: skip
_DENIED = (
    "access to {place} is denied ({code});"
    " check the credentials, allow s3:PutObject and s3:GetObject"
)
_EXPIRED = "the credentials for {place} are no longer valid; renew them"
_BUSY = "{server} is busy ({code}); try again later"
_WORDS = {
    "NoSuchBucket": "{place} does not exist; create it, or correct the name",
    "InvalidAccessKeyId": "{server} does not know the access key; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "{server} refuses the signature; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": _EXPIRED,
    "InvalidToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "RequestTimeTooSkewed": "{server} refuses the time of this node; set its clock",
    "ServiceUnavailable": _BUSY,
    "SlowDown": _BUSY,
    "503": _BUSY,
}
"""S3's code -> what it means and what to do."""
_CODE = re.compile(r"[A-Za-z0-9._-]{1,48}")


class S3Failed(SinkFailed):
    """A request or its answer was not what a delivery needs."""

    def __init__(self, message: str, *, permanent: bool, code: str = "") -> None:
        super().__init__(message)
        self.permanent = permanent
        self.code = code
        """S3's own code or the status; empty where no answer came."""


@dataclass(frozen=True, slots=True)
class Place:
    """How a bucket is called in messages."""

    output: S3Output

    @property
    def server(self) -> str:
        """The endpoint, or AWS and the region."""
        return self.output.endpoint or f"S3 ({self.output.region or 'default region'})"

    def __str__(self) -> str:
        return f"bucket {self.output.bucket} at {self.server}"


def explain(error: Exception, place: Place) -> S3Failed:
    """The error of boto3 as ours; an error of another kind is raised again."""
    if isinstance(error, S3Failed):
        return error
    if isinstance(error, boto.ClientError):
        return _answered(error, place)
    if isinstance(error, boto.BotoCoreError):
        return _unanswered(error, place)
    if isinstance(error, RecursionError):  # botocore follows a redirect to nowhere without end
        return S3Failed(_words("PermanentRedirect", 301, place), permanent=True)
    if isinstance(error, OSError):
        return S3Failed(f"the bundle cannot be read: {error.strerror}", permanent=True)
    raise error


def _answered(error: boto.ClientError, place: Place) -> S3Failed:
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    said = str(error.response.get("Error", {}).get("Code", ""))
    code = said if _CODE.fullmatch(said) else str(status)
    passing = status >= 500 or status in _PASSING_STATUS or code in _PASSING_CODES
    return S3Failed(_words(code, status, place), permanent=not passing, code=code)


def _words(code: str, status: int, place: Place) -> str:
    """One line for S3's code."""
    if code in _OTHER_REGION or status in (301, 307):
        text = "{place} is in another region; give its region"
    elif code in _WORDS:
        text = _WORDS[code]
    elif code.startswith("KMS"):
        text = "{place} cannot use its KMS key ({code}); allow it, or correct kmsKeyId"
    elif status in (401, 403):
        text = _DENIED
    elif status >= 500:
        text = "{server} fails with {code}; look at the server"
    else:
        text = "{place} answers {code}; check bucket and endpoint"
    return text.format(place=place, server=place.server, code=code)


def _unanswered(error: boto.BotoCoreError, place: Place) -> S3Failed:
    match error:
        case boto.NoCredentialsError() | boto.CredentialRetrievalError():
            return S3Failed(
                f"there are no credentials for {place}; set AWS_ACCESS_KEY_ID and"
                " AWS_SECRET_ACCESS_KEY, or give the node or service account an identity",
                permanent=isinstance(error, boto.NoCredentialsError),
            )
        case boto.SSLError():
            return S3Failed(
                f"the certificate of {place.server} is not trusted; mend it, or set AWS_CA_BUNDLE",
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
    """urllib3's reason in our words."""
    if "resol" in text.lower():
        return f"the name of {place} cannot be resolved; check the endpoint and DNS"
    if "refused" in text:
        return f"{place} refuses the connection; check the endpoint, start the server"
    return f"{place} cannot be reached; check the network"
