# SPDX-License-Identifier: Apache-2.0
"""Delivers a sealed bundle to its destination.

Sinks are imported only here: boto3 alone takes 30 MB of memory, which a capture does not need.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ktrace_agent.errors import SinkFailed
from ktrace_agent.sinks.parcel import Budget, Parcel
from ktrace_api.assignment import S3Target, VolumeTarget
from ktrace_api.result import Delivered

if TYPE_CHECKING:
    from ktrace_agent.bundle.seal import Sealed

UPLOAD_SECONDS = 300
"""Default time limit of a delivery with all its attempts."""


def deliver(
    sealed: "Sealed",
    target: S3Target | VolumeTarget,
    seconds: float,
    say: Callable[[str], None],
) -> Delivered:
    """Deliver all files of the bundle to `target`, the archive last, and verify each there.

    Raises SinkFailed that names the destination and the bundle, which stays on this node.
    """
    parcels = _parcels(sealed)
    budget = Budget(seconds)
    try:
        if isinstance(target, S3Target):
            from ktrace_agent.sinks.s3 import S3

            S3(target, budget, say).deliver(parcels)
        else:
            from ktrace_agent.sinks.volume import Volume

            Volume(target, say).deliver(parcels)
    except SinkFailed as error:
        raise SinkFailed(f"{error}; the bundle is in {sealed.bundle.parent}") from error
    folder = target.folder.rpartition("/")[2]
    return Delivered(
        path=f"{folder}/{sealed.bundle.name}", bytes=sealed.bytes, sha256=sealed.sha256
    )


def place(target: S3Target | VolumeTarget) -> str:
    """Return the folder of `target` as a user writes it."""
    if isinstance(target, S3Target):
        return f"s3://{target.output.bucket}/{target.folder}"
    return f"{target.mount}/{target.folder}"


def _parcels(sealed: "Sealed") -> list[Parcel]:
    """Return the single files, with the hashes of the manifest, then the archive."""
    known = {file.name: file for file in sealed.manifest.files}
    beside = [known[path.name] for path in sealed.paths[:-1]]
    parcels = [
        Parcel(path, file.bytes, file.sha256)
        for path, file in zip(sealed.paths, beside, strict=False)
    ]
    return [*parcels, Parcel(sealed.bundle, sealed.bytes, sealed.sha256)]
