# SPDX-License-Identifier: Apache-2.0
"""Values that administrators set, by what they want."""

from typing import Any

S3 = {"bucket": "bundles", "prefix": "ktrace", "region": "eu-central-1"}
DIGEST = f"sha256:{'ab' * 32}"

SCENARIOS: dict[str, dict[str, Any]] = {
    "default": {},
    "one-replica": {"operator": {"replicas": 1}},
    "agents-namespace-is-there": {"namespaces": {"agents": {"name": "tracing", "create": False}}},
    "namespace-goes-with-the-chart": {"namespaces": {"agents": {"keep": False}}},
    "few-snapshots": {"namespaces": {"agents": {"maxSnapshots": 200}}},
    "s3-by-default": {"output": {"default": {"s3": S3}}},
    "s3-with-a-server-of-ones-own": {
        "output": {
            "default": {
                "s3": {
                    "bucket": "bundles",
                    "endpoint": "https://minio.storage.example:9000",
                    "pathStyle": True,
                    "credentialsSecret": "minio",
                }
            },
            "s3": {
                "allowedEndpoints": ["https://*.s3.example.com", "http://seaweed.example:8333"],
                "allowedBuckets": ["team-*", "shared"],
            },
            "allowPvc": False,
        }
    },
    "claim-by-default": {
        "output": {"default": {"pvc": {"claimName": "bundles", "subPath": "ktrace"}}}
    },
    "service-monitor": {
        "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}}
    },
    "no-metrics-service": {"metrics": {"service": {"enabled": False}}},
    "further-namespaces": {
        "namespaces": {"extra": ["kube-system", "network-team"]},
        "podTargets": {"namespaces": ["shop", "billing"]},
    },
    "pods-of-all-namespaces": {"podTargets": {"namespaces": ["*"]}},
    "private-registry": {
        "image": {
            "registry": "registry.example.com:5000/platform/",
            "pullPolicy": "Always",
            "pullSecrets": ["registry"],
        },
        "operator": {"image": {"repository": "ktrace-operator", "digest": DIGEST}},
        "agent": {"image": {"repository": "mirrors/ktrace-agent", "tag": "1.2.3"}},
    },
    "registry-in-each-repository": {
        "image": {"registry": ""},
        "operator": {"image": {"repository": "registry.example.com/one/ktrace-operator"}},
        "agent": {"image": {"repository": "registry.example.com/two/ktrace-agent"}},
    },
    "placed": {
        "operator": {
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "DoNotSchedule",
                    "labelSelector": {"matchLabels": {"app.kubernetes.io/component": "operator"}},
                }
            ],
            "priorityClassName": "system-cluster-critical",
            "podAnnotations": {"example.com/team": "network"},
            "podLabels": {"example.com/tier": "platform"},
            "serviceAccount": {"annotations": {"example.com/owner": "network"}},
        }
    },
    "agents-tuned": {
        "agent": {
            "resources": {
                "requests": {"memory": "1Gi", "cpu": 1},
                "limits": {"memory": "1Gi", "ephemeral-storage": "8Gi"},
            },
            "priorityClassName": "system-node-critical",
            "platforms": ["linux/amd64", "linux/arm64"],
            "criSockets": ["/run/k3s/containerd/containerd.sock"],
            "terminationGraceSeconds": 300,
            "serviceAccount": {
                "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}
            },
        }
    },
    "few-capabilities": {"agent": {"privileged": False}},
    "low-ceilings": {
        "limits": {
            "maxNodes": 7,
            "maxDuration": "90s",
            "parallelism": 3,
            "startSeconds": 60,
            "uploadSeconds": 120,
            "busySeconds": 30,
        }
    },
    "without-policies": {"policies": {"enabled": False}, "rbac": {"aggregate": False}},
    "without-network-policy": {"networkPolicy": {"enabled": False}, "release": {"enabled": False}},
    "other-name": {"fullnameOverride": "snapshots"},
    "verbose": {"operator": {"logLevel": "debug", "logFormat": "text", "writesPerSecond": 7.5}},
}
