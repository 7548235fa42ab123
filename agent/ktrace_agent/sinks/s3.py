# SPDX-License-Identifier: Apache-2.0
"""A folder in a bucket as a destination: files are uploaded, verified, and never overwritten.

boto3 uploads from the file, large files in parts, with a SHA-256 that the server checks. Then the
server's checksum is compared with that of the file. If the server keeps no checksum, the object is
read back. Only then is a file delivered.

Attempts continue until the time limit, even while the server is down. Errors that a retry cannot
fix are given up after three attempts.
"""

import base64
import hashlib
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import boto3
from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.config import Config
from s3transfer.subscribers import BaseSubscriber

from ktrace_agent.sinks import s3_credentials
from ktrace_agent.sinks.parcel import Budget, Parcel, composite_sha256
from ktrace_agent.sinks.s3_errors import Place, S3Failed, explain
from ktrace_api.assignment import S3Target

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client
    from types_boto3_s3.type_defs import HeadObjectOutputTypeDef

PART_BYTES = 16 * 2**20
"""Files up to this size are uploaded in one request, larger ones in parts of this size."""
PERMANENT_TRIES = 3
_SENDERS = 2
_MIN_LEFT_S = 0.5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
_HASH = "ktrace-sha256"
_TAKEN = ("412", "PreconditionFailed")
_NO_CONDITIONS = ("501", "NotImplemented")

Say = Callable[[str], None]


class S3:
    """One folder of a bucket. Raises S3Failed with one line that names bucket and endpoint."""

    def __init__(self, target: S3Target, budget: Budget, say: Say) -> None:
        self._target, self._output = target, target.output
        self._place = Place(target.output)
        self._budget, self._say = budget, say
        self._conditional = True
        """Whether the server supports If-None-Match."""
        self._why: S3Failed | None = None
        """Error of the last failed request."""
        self._client = self._connect(os.environ)

    def deliver(self, parcels: Sequence[Parcel]) -> None:
        """Deliver all files in this order; each is verified before the next one starts."""
        for parcel in parcels:
            self._say(f"sending {parcel.name} to {self._place}")
            self._send_until_there(parcel)

    def _connect(self, environ: Mapping[str, str]) -> "S3Client":
        session = boto3.Session(**s3_credentials.from_environment(environ))  # type: ignore[arg-type]
        patience = min(30.0, max(2.0, self._budget.seconds / 10))
        try:
            client = session.client(
                "s3",
                region_name=self._output.region or session.region_name or "us-east-1",
                endpoint_url=self._output.endpoint or None,
                config=Config(  # type: ignore[call-arg]
                    connect_timeout=min(5.0, patience),
                    read_timeout=patience,
                    retries={"mode": "standard", "total_max_attempts": 2},
                    s3={"addressing_style": "path" if self._output.path_style else "auto"},
                    # Only the endpoint of the target is allowed, never one from a variable.
                    ignore_configured_endpoint_urls=True,
                ),
            )
        except Exception as error:
            raise explain(error, self._place) from error
        client.meta.events.register("before-send.s3", self._check_time)
        for name in ("PutObject", "CompleteMultipartUpload"):
            client.meta.events.register(f"before-parameter-build.s3.{name}", self._only_if_new)
        return client

    def _check_time(self, **_: Any) -> None:
        """Raise if time is up. Runs before every request, including retries of botocore."""
        if not self._budget.left:
            raise self._too_late()

    def _only_if_new(self, params: dict[str, Any], **_: Any) -> None:
        if self._conditional:
            params["IfNoneMatch"] = "*"

    def _too_late(self) -> S3Failed:
        why = self._why or f"{self._place} is too slow"
        return S3Failed(f"{why} (gave up after {self._budget.seconds:g} s)", permanent=True)

    def _send_until_there(self, parcel: Parcel) -> None:
        """Retry with growing random pauses (full jitter) until the file is verified.

        Raises S3Failed after PERMANENT_TRIES where a retry cannot help, else when time is up.
        """
        longest, attempt = _FIRST_PAUSE_S, 0
        while True:
            attempt += 1
            try:
                self._try(parcel)
            except S3Failed as error:
                if error.permanent and (attempt >= PERMANENT_TRIES or not self._budget.left):
                    raise
                if not error.permanent and self._budget.left < _MIN_LEFT_S:
                    raise self._too_late() from error
                # Shorter near the end, so that the last attempt uses the remaining time.
                pause = min(random.uniform(0, longest), self._budget.left / 2)  # noqa: S311
                self._say(f"{error}; retrying in {pause:.1f} s")
            else:
                return
            time.sleep(pause)
            longest = min(2 * longest, _LONGEST_PAUSE_S)

    def _try(self, parcel: Parcel) -> None:
        try:
            if not self._is_there(parcel):
                self._send(parcel)
                self._verify(parcel, self._head(parcel))
        except S3Failed:
            raise
        except Exception as error:
            self._why = explain(error, self._place)
            raise self._why from error

    def _key(self, parcel: Parcel) -> str:
        return f"{self._target.folder}/{parcel.name}"

    def _head(self, parcel: Parcel) -> "HeadObjectOutputTypeDef":
        return self._client.head_object(
            Bucket=self._output.bucket, Key=self._key(parcel), ChecksumMode="ENABLED"
        )

    def _is_there(self, parcel: Parcel) -> bool:
        """Return whether an earlier attempt arrived although its response was lost.

        Raises S3Failed if the key holds other content. A refusal is ignored: without the right to
        list the bucket a missing key gives 403, and the response to HEAD has no body with the
        reason. The upload itself reports such errors.
        """
        try:
            head = self._head(parcel)
        except Exception as error:
            failed = explain(error, self._place)
            if failed.code and failed.permanent:
                return False
            raise
        self._verify(parcel, head, taken=True)
        return True

    def _send(self, parcel: Parcel) -> None:
        extra: dict[str, Any] = {
            "ChecksumAlgorithm": "SHA256",
            "Metadata": {_HASH: parcel.sha256},
        }
        if self._output.kms_key_id:
            extra |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self._output.kms_key_id}
        config = TransferConfig(
            multipart_threshold=PART_BYTES + 1,
            multipart_chunksize=PART_BYTES,
            max_concurrency=_SENDERS,
            preferred_transfer_client="classic",
        )
        try:
            with create_transfer_manager(self._client, config) as transfer:
                upload = partial(transfer.upload, str(parcel.path), self._output.bucket)
                upload(self._key(parcel), extra, [_Clock(self._check_time)]).result()
        except Exception as error:
            failed = explain(error, self._place)
            if failed.code in _NO_CONDITIONS and self._conditional:
                self._conditional = False
                self._send(parcel)
            elif failed.code not in _TAKEN:  # a file that exists already is compared next
                raise

    def _verify(
        self, parcel: Parcel, head: "HeadObjectOutputTypeDef", *, taken: bool = False
    ) -> None:
        """Raise S3Failed if the bucket does not hold exactly this file."""
        claimed = head.get("Metadata", {}).get(_HASH, parcel.sha256 if not taken else "")
        if parcel.same_as(head["ContentLength"], claimed) and self._holds(parcel, head):
            return
        key = self._key(parcel)
        if taken:
            raise S3Failed(
                f"{key} already exists in {self._place} with other content; it was not overwritten",
                permanent=True,
            )
        raise S3Failed(
            f"{key} in {self._place} differs from the file that was sent; check proxies on the way",
            permanent=True,
        )

    def _holds(self, parcel: Parcel, head: "HeadObjectOutputTypeDef") -> bool:
        """Compare by the server's checksum, or else by reading the object back."""
        digest, _, parts = head.get("ChecksumSHA256", "").partition("-")
        if digest and not parts:
            return digest == _base64(bytes.fromhex(parcel.sha256))
        if digest:
            found, count = composite_sha256(parcel.path, PART_BYTES)
            if str(count) == parts:
                return digest == _base64(found)
        return self._read_back(parcel) == parcel.sha256

    def _read_back(self, parcel: Parcel) -> str:
        body = self._client.get_object(Bucket=self._output.bucket, Key=self._key(parcel))["Body"]
        found = hashlib.sha256()
        for data in body.iter_chunks(1 << 20):
            self._check_time()
            found.update(data)
        return found.hexdigest()


class _Clock(BaseSubscriber):
    """Checks the time limit during a request: one part may take long on a slow link."""

    def __init__(self, check: Callable[[], None]) -> None:
        super().__init__()
        self._check = check

    def on_progress(self, future: object, bytes_transferred: int, **_: Any) -> None:
        del future, bytes_transferred
        self._check()


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
