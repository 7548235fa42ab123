# SPDX-License-Identifier: Apache-2.0
"""A stolen token of the operator or of an agent, and how to get one.

The API server is a real one, with the chart's roles and policies; there are no nodes. What a
running operator and real agents make of it is in tests/cluster.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from ktrace_operator.plan.privileges import security_context
from tests.chart.apiserver import Api, User
from tests.chart.helm import NAMESPACE, Thing
from tests.chart.people import (
    AGENT,
    AGENTS,
    MALLORY,
    OPERATOR,
    PODS,
    RELEASE,
    RUNTIME,
    SHOP,
    accepted,
    agent,
    pod,
    refused,
)

pytestmark = pytest.mark.world("chart")


def _container(change: dict[str, Any]) -> Callable[[Thing], None]:
    return lambda thing: thing["spec"]["containers"][0].update(change)


def _spec(change: dict[str, Any]) -> Callable[[Thing], None]:
    return lambda thing: thing["spec"].update(change)


def _volume(volume: dict[str, Any], **mount: Any) -> Callable[[Thing], None]:
    def change(thing: Thing) -> None:
        thing["spec"]["volumes"].append({"name": "more", **volume})
        mounts = thing["spec"]["containers"][0]["volumeMounts"]
        mounts.append({"name": "more", "mountPath": "/more"} | mount)

    return change


def _env(*entries: dict[str, Any]) -> Callable[[Thing], None]:
    return lambda thing: thing["spec"]["containers"][0]["env"].extend(entries)


PROGRAMS = "/usr/lib/python3"


def _plain(name: str, value: str) -> Callable[[Thing], None]:
    return _env({"name": name, "value": value})


def _mount(number: int, **change: Any) -> Callable[[Thing], None]:
    """A change of a mount; the first is /run of the host, the last the folder to work in."""
    return lambda thing: thing["spec"]["containers"][0]["volumeMounts"][number].update(change)


def _over(volume: dict[str, Any], **mount: Any) -> Callable[[Thing], None]:
    """A volume in place of files of the image."""
    return _volume(volume, readOnly=True, mountPath=PROGRAMS, **mount)


def _security(change: dict[str, Any]) -> Callable[[Thing], None]:
    return lambda thing: thing["spec"]["containers"][0]["securityContext"].update(change)


def _annotated(key: str, value: str = "x") -> Callable[[Thing], None]:
    return lambda thing: thing["metadata"].update(annotations={key: value})


def _of(kind: str, uid: str = "16d1be55-4d13-4e2e-b4bd-89861e542501") -> Callable[[Thing], None]:
    return lambda thing: thing["metadata"]["ownerReferences"][0].update(kind=kind, uid=uid)


def _block_device(thing: Thing) -> None:
    claim = {"persistentVolumeClaim": {"claimName": "disk"}}
    thing["spec"]["volumes"].append({"name": "disk", **claim})
    device = {"name": "disk", "devicePath": "/dev/disk"}
    thing["spec"]["containers"][0]["volumeDevices"] = [device]


def _device_of_a_driver(thing: Thing) -> None:
    thing["spec"]["resourceClaims"] = [{"name": "gpu", "resourceClaimName": "gpu"}]
    thing["spec"]["containers"][0]["resources"]["claims"] = [{"name": "gpu"}]


ELSEWHERE = "/host/var/lib/kubelet/pods/1/volumes/kubernetes.io~empty-dir/x"
"""A folder of any other pod of the node; its owner writes what he likes there."""
SHELL: dict[str, Any] = {"exec": {"command": ["sh"]}}
TOKEN = {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}
CLOUD = {"serviceAccountToken": {"path": "token", "audience": "sts.amazonaws.com"}}
WHOLE: dict[str, Any] = {"secretRef": {"name": "keys"}}
FORGED: dict[str, Callable[[Thing], None]] = {
    "image": _container({"image": "evil"}),
    "command": _container({"command": ["sh"]}),
    "args": _container({"args": ["--evil"]}),
    "hook": _container({"lifecycle": {"preStop": {"exec": {"command": ["sh"]}}}}),
    "name": _container({"name": "shell"}),
    "whole-secret": _container({"envFrom": [WHOLE]}),
    "liveness": _container({"livenessProbe": SHELL}),
    "readiness": _container({"readinessProbe": SHELL}),
    "startup": _container({"startupProbe": SHELL}),
    "probe-of-a-server": _container({"livenessProbe": {"httpGet": {"port": 80}}}),
    "started": _container({"lifecycle": {"postStart": SHELL}}),
    "folder": _container({"workingDir": ELSEWHERE}),
    "stdin": _container({"stdin": True, "tty": True}),
    "port": _container({"ports": [{"containerPort": 80, "hostPort": 80}]}),
    "seccomp-file": _security({"seccompProfile": {"type": "Localhost", "localhostProfile": "x"}}),
    "apparmor": _security({"appArmorProfile": {"type": "Localhost", "localhostProfile": "x"}}),
    "seccomp": _security({"seccompProfile": {"type": "Unconfined"}}),
    "capability": _security({"capabilities": {"add": ["SYS_MODULE"]}}),
    "not-privileged": _security({"privileged": False}),
    "context-of-the-other-value": _container(
        {"securityContext": security_context(privileged=False)}
    ),
    "other-user": _security({"runAsUser": 1}),
    "writable-image": _security({"readOnlyRootFilesystem": False}),
    "device-of-a-driver": _device_of_a_driver,
    "sysctl": _spec({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
    "hosts-file": _spec({"hostAliases": [{"ip": "192.0.2.1", "hostnames": ["s3.example.com"]}]}),
    "name-server": _spec({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.1"]}}),
    "hostname": _spec({"hostname": "s3"}),
    "runtime": _spec({"runtimeClassName": RUNTIME}),
    "variables-of-services": _spec({"enableServiceLinks": True}),
    "runtimes-device": _annotated("devices.nri.io/container.agent"),
    "runtimes-limit": _annotated("ulimits.nri.containerd.io/container.agent"),
    "runtimes-other": _annotated("devices.nri.io"),
    "runtimes-own": _annotated("run.oci.handler"),
    "runtimes-profile": _annotated(
        "container.apparmor.security.beta.kubernetes.io/agent", "localhost/x"
    ),
    "second-container": lambda thing: thing["spec"]["containers"].append(
        {"name": "b", "image": "ktrace-agent:0.1.0"}
    ),
    "init-container": _spec({"initContainers": [{"name": "b", "image": "evil"}]}),
    "preload": _env({"name": "LD_PRELOAD", "value": "/host/run/evil.so"}),
    "pythonpath": _env({"name": "PYTHONPATH", "value": "/host/run"}),
    "libraries": _plain("KTRACE_BPF_DIR", ELSEWHERE),
    "result-elsewhere": _plain("KTRACE_TERMINATION_LOG", "/host/run/x"),
    "other-host": _plain("KTRACE_HOST_ROOT", ELSEWHERE),
    "other-folder": _plain("TMPDIR", ELSEWHERE),
    "aws-program": _plain("AWS_CONFIG_FILE", f"{ELSEWHERE}/config"),
    "aws-program-too": _plain("AWS_SHARED_CREDENTIALS_FILE", f"{ELSEWHERE}/credentials"),
    "aws-models": _plain("AWS_DATA_PATH", ELSEWHERE),
    "aws-authority": _plain("AWS_CA_BUNDLE", f"{ELSEWHERE}/ca"),
    "aws-server": _plain("AWS_ENDPOINT_URL_STS", "https://evil.example"),
    "aws-profile": _plain("AWS_PROFILE", "x"),
    "aws-key-in-clear": _plain("AWS_SECRET_ACCESS_KEY", "x"),
    "anothers-identity": _plain("AWS_WEB_IDENTITY_TOKEN_FILE", f"{ELSEWHERE}/token"),
    "anothers-identity-by-a-detour": _plain(
        "AWS_WEB_IDENTITY_TOKEN_FILE", f"/var/run/secrets/../../..{ELSEWHERE}/token"
    ),
    "anothers-identity-by-a-variable": _plain(
        "AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/secrets/$(NODE_NAME)"
    ),
    "anothers-token-sent": _plain("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", f"{ELSEWHERE}/token"),
    "token-sent-elsewhere": _plain("AWS_CONTAINER_CREDENTIALS_FULL_URI", "https://evil.example/"),
    "name-of-anything": _env(
        {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    ),
    "assignment-of-a-secret": _env(
        {
            "name": "KTRACE_CAPTURE",
            "valueFrom": {"secretKeyRef": {"name": "keys", "key": "KTRACE_CAPTURE"}},
        }
    ),
    "other-key": _env(
        {
            "name": "AWS_SESSION_TOKEN",
            "valueFrom": {"secretKeyRef": {"name": "keys", "key": "password"}},
        }
    ),
    "config-map": _env(
        {
            "name": "AWS_SESSION_TOKEN",
            "valueFrom": {"configMapKeyRef": {"name": "a", "key": "AWS_SESSION_TOKEN"}},
        }
    ),
    "host-root": _volume({"hostPath": {"path": "/"}}, readOnly=True),
    "host-etc": _volume({"hostPath": {"path": "/etc"}}, readOnly=True),
    "host-below": _volume({"hostPath": {"path": "/run/credentials"}}, readOnly=True),
    "host-writable": _volume({"hostPath": {"path": "/run"}}),
    "first-mount-writable": _mount(0, readOnly=False),
    "mount-spreads": _mount(0, mountPropagation="Bidirectional"),
    "host-over-programs": _mount(0, mountPath=PROGRAMS),
    "more-host-over-programs": _over({"hostPath": {"path": "/var/lib/kubelet"}}),
    "a-pods-folder-over-programs": _over(
        {"hostPath": {"path": "/var/lib/kubelet"}}, subPath="pods/1/volumes/x"
    ),
    "a-pods-folder-as-the-hosts": _mount(2, subPath="pods/1/volumes/x"),
    "claim-over-programs": _over({"persistentVolumeClaim": {"claimName": "disk"}}),
    "token-over-programs": _over({"projected": {"sources": [CLOUD]}}),
    "work-over-programs": _mount(-1, mountPath=PROGRAMS),
    "folder-by-a-variable": _mount(-1, subPathExpr="$(NODE_NAME)"),
    "message-over-programs": _container({"terminationMessagePath": f"{PROGRAMS}/site.py"}),
    "block-device": _block_device,
    "secret-volume": _volume({"secret": {"secretName": "keys"}}),
    "token-volume": _volume({"projected": {"sources": [TOKEN]}}),
    "token": _spec({"automountServiceAccountToken": True}),
    "account": _spec({"serviceAccountName": "default"}),
    "ipc": _spec({"hostIPC": True}),
    "no-deadline": _spec({"activeDeadlineSeconds": None}),
    "restarts": _spec({"restartPolicy": "Always"}),
    "no-owner": lambda thing: thing["metadata"].pop("ownerReferences"),
    "owned-by-a-pod": _of("Pod"),
    "owned-by-another": _of("TraceSnapshot"),
}


@pytest.mark.parametrize("name", FORGED)
def test_the_operators_token_makes_only_agents(api: Api, mine: Thing, name: str):
    asked = copy.deepcopy(agent(mine))
    accepted(api.create(asked, user=OPERATOR, dry_run=True))
    FORGED[name](asked)
    answer = api.create(asked, user=OPERATOR, dry_run=True)
    refused(answer, "ValidatingAdmissionPolicy 'ktrace-agents'")


def test_what_an_agent_has_no_use_for_is_refused_by_name(api: Api, mine: Thing):
    asked = agent(mine)
    _container({"startupProbe": SHELL, "workingDir": ELSEWHERE})(asked)
    _spec({"hostname": "s3"})(asked)
    answer = api.create(asked, user=OPERATOR, dry_run=True)
    refused(
        answer,
        "not permitted in an agent: spec.hostname",
        "containers[0].startupProbe",
        "workingDir",
    )


def test_no_runtime_is_told_anything_later(api: Api, mine: Thing):
    made = accepted(api.create(agent(mine), user=OPERATOR))
    path = f"{PODS}/{made['metadata']['name']}"
    for annotations, taken in (({"a": "b"}, True), ({"devices.nri.io/pod": "x"}, False)):
        change = {"metadata": {"annotations": annotations}}
        answer = api.patch(path, change, user=OPERATOR, dry_run=True)
        assert answer.ok is taken, answer.message


@pytest.mark.parametrize(
    "output",
    [
        {"s3": {"bucket": "shared", "credentialsSecret": "keys", "kmsKeyId": "alias/x"}},
        {"pvc": {"claimName": "bundles"}},
        {"pvc": {"claimName": "bundles", "subPath": "a/b"}},
    ],
    ids=str,
)
def test_every_agent_of_the_operators_is_taken(api: Api, mine: Thing, output: dict[str, Any]):
    asked = agent(mine | {"spec": mine["spec"] | {"output": output}})
    accepted(api.create(asked, user=OPERATOR, dry_run=True))


SECRETS = "/var/run/secrets"
IDENTITIES: dict[str, tuple[str, dict[str, str]]] = {
    "role-of-the-account": (
        f"{SECRETS}/eks.amazonaws.com/serviceaccount",
        {
            "AWS_STS_REGIONAL_ENDPOINTS": "regional",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_REGION": "eu-central-1",
            "AWS_ROLE_ARN": "arn:aws-us-gov:iam::123456789012:role/a/b_c+d=e,f.g@h-i",
            "AWS_WEB_IDENTITY_TOKEN_FILE": f"{SECRETS}/eks.amazonaws.com/serviceaccount/token",
        },
    ),
    "role-of-the-pod": (
        f"{SECRETS}/pods.eks.amazonaws.com/serviceaccount",
        {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1/credentials",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": (
                f"{SECRETS}/pods.eks.amazonaws.com/serviceaccount/eks-pod-identity-token"
            ),
        },
    ),
    "role-of-the-pod-by-ipv6": (
        f"{SECRETS}/pods.eks.amazonaws.com/serviceaccount",
        {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://[fd00:ec2::23]/v1/credentials"},
    ),
}
"""What the webhooks of EKS add to a pod: where a token is mounted, and variables."""


@pytest.mark.parametrize("name", IDENTITIES)
def test_an_identity_of_a_cloud_may_be_added(api: Api, mine: Thing, name: str):
    path, variables = IDENTITIES[name]
    asked = agent(mine)
    _volume({"projected": {"sources": [CLOUD]}}, readOnly=True, mountPath=path)(asked)
    for variable, value in variables.items():
        _plain(variable, value)(asked)
    accepted(api.create(asked, user=OPERATOR, dry_run=True))


def test_what_clusters_add_to_a_pod_may_be_added(api: Api, mine: Thing):
    asked = agent(mine)
    _spec(
        {
            "imagePullSecrets": [{"name": "registry"}],
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "priorityClassName": "system-node-critical",
            "readinessGates": [{"conditionType": "example.com/known"}],
            "schedulerName": "other",
            "securityContext": {"seLinuxOptions": {"level": "s0:c1,c2"}},
        }
    )(asked)
    _container({"resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}]})(asked)
    _annotated("example.com/scanned")(asked)
    accepted(api.create(asked, user=OPERATOR, dry_run=True))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/secrets"),
        ("GET", f"/api/v1/namespaces/{AGENTS}/secrets"),
        ("GET", "/api/v1/namespaces/kube-system/secrets/any"),
        ("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/any"),
        ("GET", "/api/v1/pods"),
        ("GET", "/api/v1/nodes/node-a/proxy/"),
        ("PATCH", "/api/v1/nodes/node-a"),
        ("GET", f"{PODS}/any/log"),
        ("POST", f"/apis/ktrace.io/v1alpha1/namespaces/{AGENTS}/tracesnapshots"),
        ("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"),
        (
            "DELETE",
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/ktrace-agents",
        ),
        ("POST", f"/api/v1/namespaces/{NAMESPACE}/pods"),
        ("POST", "/api/v1/namespaces/kube-system/pods"),
        ("POST", f"/api/v1/namespaces/{AGENTS}/serviceaccounts/default/token"),
        ("GET", f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/another"),
        ("GET", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/any"),
    ],
)
def test_the_operators_token_opens_nothing_else(api: Api, method: str, path: str):
    bodies: dict[str, object] = {"POST": {}, "PATCH": {}}
    answer = api.request(
        method,
        path,
        bodies.get(method),
        user=OPERATOR,
        content_type="application/merge-patch+json" if method == "PATCH" else "application/json",
    )
    assert answer.status == 403, answer
    assert "cannot" in answer.message


def test_a_pod_of_another_kind_is_none_of_the_operators(api: Api):
    refused(api.create(pod(), user=OPERATOR), "not other pods")


@pytest.mark.parametrize("user", [OPERATOR, RELEASE])
@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"containers": [{"name": "main", "image": "evil"}]}},
        {
            "metadata": {"labels": {"app.kubernetes.io/managed-by": "ktrace-operator"}},
            "spec": {"containers": [{"name": "main", "image": "evil"}]},
        },
        {"metadata": {"annotations": {"a": "b"}}},
    ],
    ids=["image", "image-of-an-agent", "annotation"],
)
def test_a_pod_that_somebody_else_made_is_not_changed(api: Api, user: User, change: dict[str, Any]):
    reader = accepted(api.create(pod(), user=MALLORY))
    path = f"{PODS}/{reader['metadata']['name']}"
    kind = "application/strategic-merge-patch+json"
    answer = api.request("PATCH", path, change, user=user, content_type=kind)
    refused(answer, "ValidatingAdmissionPolicy 'ktrace-agents'")


@pytest.mark.parametrize("user", [AGENT, User.account(SHOP, "default")])
def test_the_agents_account_can_do_nothing(api: Api, user: User):
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": AGENTS},
    }
    path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    answer = api.request("POST", path, review, user=user)
    groups = {
        group for rule in answer.body["status"]["resourceRules"] for group in rule["apiGroups"]
    }
    assert groups <= {"authorization.k8s.io", "authentication.k8s.io"}


def test_a_tenant_does_not_give_themselves_the_operators_rights(api: Api):
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "mine", "namespace": AGENTS},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "Role",
            "name": "ktrace-operator",
        },
        "subjects": [{"kind": "User", "name": MALLORY.name}],
    }
    refused(api.create(binding, user=MALLORY), "ktrace.io")


def test_a_tenant_gets_no_token_of_the_operators(api: Api):
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/ktrace-operator/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    refused(api.request("POST", path, request, user=MALLORY), "cannot create")
