"""A strict checker for the Kubernetes and KubeRay documents in cluster/: what they may say, and nothing else.

It knows the fields that those files use, of ray.io/v1 as KubeRay 1.5 to 1.7 define them and of Kubernetes 1.31. An
unknown field, a wrong type, a value outside an enumeration and a missing required field are errors, which name the
place; the API server itself ignores some of them in silence. A field that a file comes to use is added here, from the
API's reference.

A schema is: a type; a set of allowed values; a compiled pattern for strings; [schema] for a list; {name: schema} for an
object, where "name!" is required; Free(schema) for an object with any keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
VERSION = re.compile(r"\d+\.\d+\.\d+")
IMAGE = re.compile(r"[a-z0-9][-a-z0-9./]*:[A-Za-z0-9_][-A-Za-z0-9_.]*(@sha256:[0-9a-f]{64})?")


@dataclass(frozen=True)
class Free:
    """An object whose keys are the user's."""

    values: Any
    keys: re.Pattern[str] = re.compile(r"[-A-Za-z0-9_./]+")


@dataclass(frozen=True)
class OneOf:
    """A value that may have several forms."""

    forms: tuple[Any, ...]


LABELS = Free(LABEL)
AMOUNT = OneOf((QUANTITY, int))
RESOURCES = {"cpu": AMOUNT, "memory": AMOUNT, "nvidia.com/gpu": int}
PORT = OneOf((int, NAME))
METADATA = {"name!": NAME, "labels": LABELS, "annotations": Free(str)}
POD_METADATA = {"labels!": LABELS, "annotations": Free(str)}
SELECTOR = {"matchLabels": LABELS}
KEY_OF_SECRET = {"secretKeyRef!": {"name!": NAME, "key!": Free.keys}}
ENVIRONMENT = [{"name!": re.compile(r"[A-Z][A-Z0-9_]*"), "value": str, "valueFrom": KEY_OF_SECRET}]
POD_SECURITY = {
    "runAsNonRoot": bool,
    "runAsUser": int,
    "runAsGroup": int,
    "fsGroup": int,
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
    "seccompProfile": {"type!": {"RuntimeDefault", "Unconfined", "Localhost"}},
}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": bool,
    "readOnlyRootFilesystem": bool,
    "capabilities": {"add": [str], "drop": [str]},
}
PROBE = {
    "httpGet": {"path!": str, "port!": PORT},
    "exec": {"command!": [str]},
    "initialDelaySeconds": int,
    "periodSeconds": int,
    "failureThreshold": int,
}
CONTAINER = {
    "name!": NAME,
    "image!": IMAGE,
    "command": [str],
    "args": [str],
    "ports": [{"name!": NAME, "containerPort!": int, "protocol": {"TCP", "UDP"}}],
    "env": ENVIRONMENT,
    "envFrom": [{"secretRef!": {"name!": NAME}}],
    "securityContext": CONTAINER_SECURITY,
    "resources": {"requests": RESOURCES, "limits": RESOURCES},
    "startupProbe": PROBE,
    "readinessProbe": PROBE,
    "livenessProbe": PROBE,
    "volumeMounts": [{"name!": NAME, "mountPath!": re.compile(r"/[-A-Za-z0-9/._]*"), "readOnly": bool}],
}
POD = {
    "containers!": [CONTAINER],
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "automountServiceAccountToken": bool,
    "terminationGracePeriodSeconds": int,
    "securityContext": POD_SECURITY,
    "nodeSelector": LABELS,
    "tolerations": [
        {
            "key": str,
            "operator": {"Exists", "Equal"},
            "value": str,
            "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
        }
    ],
    "volumes": [
        {
            "name!": NAME,
            "persistentVolumeClaim": {"claimName!": NAME, "readOnly": bool},
            "emptyDir": {"medium": {"Memory", ""}, "sizeLimit": AMOUNT},
        }
    ],
}
TEMPLATE = {"metadata!": POD_METADATA, "spec!": POD}

RAY_CLUSTER = {
    "rayVersion!": VERSION,  # KubeRay demands it with a token
    "authOptions": {"mode!": {"token", "disabled"}},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {
        "version": {"v1", "v2"},
        "idleTimeoutSeconds": int,
        "upscalingMode": {"Default", "Aggressive", "Conservative"},
        "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
        "securityContext": CONTAINER_SECURITY,
        "resources": CONTAINER["resources"],
        "env": ENVIRONMENT,
    },
    "headGroupSpec!": {
        "serviceType": {"ClusterIP", "NodePort", "LoadBalancer"},
        "rayStartParams!": Free(str),
        "template!": TEMPLATE,
    },
    "workerGroupSpecs": [
        {
            "groupName!": NAME,
            "replicas": int,
            "minReplicas!": int,
            "maxReplicas!": int,
            "idleTimeoutSeconds": int,
            "numOfHosts": int,
            "rayStartParams!": Free(str),
            "template!": TEMPLATE,
        }
    ],
}
RAY_JOB = {
    "entrypoint!": str,
    "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
    "backoffLimit": int,
    "activeDeadlineSeconds": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "runtimeEnvYAML": str,
    "metadata": Free(str),
    "suspend": bool,
    "submitterPodTemplate": TEMPLATE,
    "submitterConfig": {"backoffLimit": int},
    "entrypointNumCpus": float,
    "rayClusterSpec!": RAY_CLUSTER,
}
PEER = {"podSelector": SELECTOR, "namespaceSelector": SELECTOR}
POLICY_PORTS = [{"protocol": {"TCP", "UDP"}, "port": PORT}]
NETWORK_POLICY = {
    "podSelector!": SELECTOR,
    "policyTypes!": [{"Ingress", "Egress"}],
    "ingress": [{"from": [PEER], "ports": POLICY_PORTS}],
    "egress": [{"to": [PEER], "ports": POLICY_PORTS}],
}
CLAIM = {
    "accessModes!": [{"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"}],
    "storageClassName": str,
    "resources!": {"requests!": {"storage!": AMOUNT}},
}
SERVICE = {
    "type": {"ClusterIP", "NodePort", "LoadBalancer"},
    "clusterIP": {"None"},
    "selector!": LABELS,
    "ports!": [{"name!": NAME, "port!": int, "targetPort": PORT, "protocol": {"TCP", "UDP"}}],
}
WORKLOAD = {"replicas": int, "selector!": {"matchLabels!": LABELS}, "template!": TEMPLATE}
STATEFUL = {**WORKLOAD, "serviceName!": NAME, "volumeClaimTemplates": [{"metadata!": METADATA, "spec!": CLAIM}]}

SPECS = {
    ("ray.io/v1", "RayCluster"): RAY_CLUSTER,
    ("ray.io/v1", "RayJob"): RAY_JOB,
    ("networking.k8s.io/v1", "NetworkPolicy"): NETWORK_POLICY,
    ("apps/v1", "Deployment"): {**WORKLOAD, "strategy": {"type!": {"Recreate", "RollingUpdate"}}},
    ("apps/v1", "StatefulSet"): STATEFUL,
    ("v1", "Service"): SERVICE,
    ("v1", "PersistentVolumeClaim"): CLAIM,
}


def problems(document: Any) -> list[str]:
    """What is wrong with one document, each with the path to it; empty if nothing is."""
    if not isinstance(document, dict):
        return ["a document must be an object"]
    spec = SPECS.get((str(document.get("apiVersion")), str(document.get("kind"))))
    if spec is None:
        return [f"apiVersion {document.get('apiVersion')!r} has no kind {document.get('kind')!r}"]
    return _compare({"apiVersion!": str, "kind!": str, "metadata!": METADATA, "spec!": spec}, document, "")


def _compare(schema: Any, value: Any, path: str) -> list[str]:
    if isinstance(schema, OneOf):
        found = [_compare(form, value, path) for form in schema.forms]
        return [] if any(not each for each in found) else found[0]
    if isinstance(schema, Free):
        if not isinstance(value, dict):
            return [f"{path}: {value!r} is not an object"]
        wrong = [f"{path}.{key}: not a key" for key in value if not schema.keys.fullmatch(str(key))]
        return wrong + [each for key, item in value.items() for each in _compare(schema.values, item, f"{path}.{key}")]
    if isinstance(schema, dict):
        return _compare_object(schema, value, path)
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{path}: {value!r} is not a list"]
        return [each for i, item in enumerate(value) for each in _compare(schema[0], item, f"{path}[{i}]")]
    if isinstance(schema, set):
        return [] if isinstance(value, str) and value in schema else [f"{path}: {value!r} is not of {sorted(schema)}"]
    if isinstance(schema, re.Pattern):
        matches = isinstance(value, str) and schema.fullmatch(value)
        return [] if matches else [f"{path}: {value!r} does not have the form {schema.pattern}"]
    if schema is float:
        fits = type(value) in (int, float)
    else:
        fits = type(value) is schema and (schema is not int or value >= 0)
    return [] if fits else [f"{path}: {value!r} is not of type {schema.__name__}"]


def _compare_object(schema: dict[str, Any], value: Any, path: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{path}: {value!r} is not an object"]
    known = {name.rstrip("!"): each for name, each in schema.items()}
    missing = [
        f"{path}.{name[:-1]}: is required" for name in schema if name.endswith("!") and name.rstrip("!") not in value
    ]
    unknown = [f"{path}.{name}: unknown field" for name in value if name not in known]
    deeper = [each for name in value if name in known for each in _compare(known[name], value[name], f"{path}.{name}")]
    return [*missing, *unknown, *deeper]
