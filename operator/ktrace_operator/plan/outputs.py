# SPDX-License-Identifier: Apache-2.0
"""Chooses the output of a snapshot and checks that its author may use it."""

import fnmatch
from dataclasses import dataclass

from ktrace_api.assignment import snapshot_folder
from ktrace_api.kubeobject import ObjectMeta
from ktrace_api.names import LABEL_CREDENTIALS, ConditionReason
from ktrace_api.snapshot import Output, SnapshotSpec
from ktrace_operator.objects import Claim, Secret
from ktrace_operator.plan.targets import Refusal
from ktrace_operator.settings import OutputSettings, endpoint_allowed


def choose_output(spec: SnapshotSpec, settings: OutputSettings) -> Output | Refusal:
    """The spec's output if it is allowed; the chart's default if the spec has none."""
    if spec.output is None:
        if settings.default is None:
            text = "spec.output is not set and the chart has no output.default"
            return Refusal(ConditionReason.NO_OUTPUT, text)
        return settings.default
    if (s3 := spec.output.s3) is not None:
        if not endpoint_allowed(s3.endpoint, settings.s3.allowed_endpoints):
            return _not_listed("endpoint", s3.endpoint, "allowedEndpoints")
        if not any(fnmatch.fnmatchcase(s3.bucket, one) for one in settings.s3.allowed_buckets):
            return _not_listed("bucket", s3.bucket, "allowedBuckets")
    elif not settings.allow_pvc:
        return _denied("spec.output.pvc is not allowed: the chart's output.allowPvc is false")
    return spec.output


def _not_listed(field: str, value: str, setting: str) -> Refusal:
    return _denied(f"spec.output.s3.{field} {value} is not in the chart's output.s3.{setting}")


def _denied(message: str) -> Refusal:
    return Refusal(ConditionReason.POLICY_DENIED, message)


@dataclass(frozen=True, slots=True)
class Missing:
    """An object that an output needs and that is not usable yet."""

    reason: ConditionReason
    """Reason of the refusal once the start limit is reached."""
    message: str


def check_output(
    output: Output, secret: Secret | None, claim: Claim | None, nodes: int
) -> Missing | None:
    """Why agents on `nodes` nodes cannot use the output yet; None if they can."""
    if output.s3 is not None and (name := output.s3.credentials_secret):
        if secret is None:
            return Missing(ConditionReason.CREDENTIALS_UNUSABLE, f"Secret {name} does not exist")
        if not secret.usable:
            text = f"Secret {name} does not have the label {LABEL_CREDENTIALS}=true"
            return Missing(ConditionReason.CREDENTIALS_UNUSABLE, text)
    if output.pvc is not None:
        problem = _claim_problem(output.pvc.claim_name, claim, nodes)
        return Missing(ConditionReason.CLAIM_UNUSABLE, problem) if problem else None
    return None


def _claim_problem(name: str, claim: Claim | None, nodes: int) -> str | None:
    what = f"PersistentVolumeClaim {name}"
    if claim is None:
        return f"{what} does not exist"
    if claim.deleting or claim.phase == "Lost":
        return f"{what} is {'being deleted' if claim.deleting else 'lost'}"
    modes = ", ".join(claim.access_modes) or "no access mode"
    if nodes > 1 and "ReadWriteMany" not in claim.access_modes:
        return f"{what} has {modes}; {nodes} nodes require ReadWriteMany"
    if not any(mode.startswith("ReadWrite") for mode in claim.access_modes):
        return f"{what} has {modes}, which is not writable"
    return None


def status_path(output: Output, metadata: ObjectMeta) -> str:
    """`status.path`: the folder of all bundles, with a trailing slash."""
    folder = snapshot_folder(metadata.namespace, metadata.name, metadata.uid)
    if output.s3 is not None:
        parts = [f"s3://{output.s3.bucket}", output.s3.prefix, folder]
    else:
        assert output.pvc is not None
        parts = [f"pvc://{output.pvc.claim_name}", output.pvc.sub_path, folder]
    return "/".join(part for part in parts if part) + "/"
