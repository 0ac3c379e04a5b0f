"""The files in cluster/: what they declare is allowed, and what they refer to is there."""

from __future__ import annotations

import copy
import functools
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from cluster_schema import problems

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
KUBERNETES = ("rayjob-pretrain.yaml", "rayjob-sweep.yaml", "raycluster.yaml", "mlflow.yaml")
RAY_UP = ("ray-up-onprem.yaml", "ray-up-aws.yaml")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IN_IMAGE = "/opt/beatray/"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def claim_of_readme() -> dict[str, Any]:
    block = re.search(r"```yaml\n(.*?)```", (CLUSTER / "README.md").read_text(), re.DOTALL)
    assert block
    return dict(yaml.safe_load(block[1]))


ALL = [(name, document) for name in KUBERNETES for document in documents(name)] + [("README.md", claim_of_readme())]


def walk(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every place of a document and what stands there."""
    yield path, content
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from walk(value, (*path, key))


def found(content: Any, key: str) -> list[Any]:
    return [value for path, value in walk(content) if path and path[-1] == key]


def at(content: Any, path: tuple[Any, ...]) -> Any:
    return functools.reduce(lambda inner, key: inner[key], path, content)


# --- the checker


@pytest.mark.parametrize(("name", "document"), ALL, ids=[f"{name}:{document['kind']}" for name, document in ALL])
def test_documents_are_allowed(name: str, document: dict[str, Any]) -> None:
    assert problems(document) == []


FREE = ("labels", "matchLabels", "annotations", "rayStartParams")


@pytest.mark.parametrize(("name", "document"), ALL, ids=[f"{name}:{document['kind']}" for name, document in ALL])
def test_the_checker_finds_every_misspelt_key_and_wrong_type(name: str, document: dict[str, Any]) -> None:
    changed = copy.deepcopy(document)
    tried = 0
    for path, value in list(walk(changed)):
        if not path or any(part in FREE for part in path[:-1]):
            continue
        if document["kind"] == "Service" and "selector" in path[:-1]:
            continue  # labels, without a matchLabels around them
        inner, key = at(changed, path[:-1]), path[-1]
        where = ".".join(map(str, path))
        if isinstance(key, str):
            inner[f"{key}s"] = inner.pop(key)
            assert problems(changed), f"{name}: {where}s is not noticed"
            inner[key] = inner.pop(f"{key}s")
            tried += 1
        for wrong in (["x"], {"x": 1}, None, *(["many words"] if isinstance(value, int) else [])):  # bool is an int
            if type(wrong) is not type(value):
                inner[key] = wrong
                assert problems(changed), f"{name}: {where}={wrong!r} is not noticed"
                tried += 1
        inner[key] = value
    assert changed == document and tried > 30


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens", "is not of ['disabled', 'token']"),
        (("spec", "rayClusterSpec", "rayVersion"), "2.60", "rayVersion: '2.60' does not have the form"),
        (("spec", "submissionMode"), "K8SJobMode", "submissionMode"),
        (("spec", "backoffLimit"), -1, "backoffLimit: -1 is not of type int"),
        (("spec", "ttlSecondsAfterFinished"), True, "True is not of type int"),
        (("metadata", "name"), "Beatray_Pretrain", "metadata.name"),
        (("kind",), "RayJobs", "no kind 'RayJobs'"),
        (("apiVersion",), "ray.io/v1alpha1", "'ray.io/v1alpha1'"),
    ],
)
def test_the_checker_names_the_place(path: tuple[str, ...], value: Any, named: str) -> None:
    document = documents("rayjob-pretrain.yaml")[0]
    at(document, path[:-1])[path[-1]] = value
    assert any(named in each for each in problems(document)), problems(document)


@pytest.mark.parametrize(
    "path",
    [
        ("spec", "entrypoint"),
        ("spec", "rayClusterSpec"),
        ("spec", "rayClusterSpec", "headGroupSpec"),
        ("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams"),
        ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplicas"),
        ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "groupName"),
        ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "image"),
    ],
)
def test_the_checker_misses_what_is_required(path: tuple[Any, ...]) -> None:
    document = documents("rayjob-pretrain.yaml")[0]
    del at(document, path[:-1])[path[-1]]
    assert any(each.endswith(f"{path[-1]}: is required") for each in problems(document))


# --- what the documents say together


def pods() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every pod template: (file, its labels, its spec)."""
    templates = [(n, t) for n, d in ALL for key in ("template", "submitterPodTemplate") for t in found(d, key)]
    return [(name, template["metadata"]["labels"], template["spec"]) for name, template in templates]


def test_ray_is_the_pinned_version_everywhere() -> None:
    requirement = next(r for r in PROJECT["dependencies"] if r.startswith("ray["))
    range_of = SpecifierSet(requirement.partition("]")[2])
    assert len(range_of) == 2
    for name in KUBERNETES[:3]:
        versions = {value for document in documents(name) for value in found(document, "rayVersion")}
        assert len(versions) == 1 and (version := versions.pop()) in range_of, (name, versions)
        images = {value for document in documents(name) for value in found(document, "image")}
        assert images == {f"beatray:ray-{version}"}
        assert f"ARG RAY_VERSION={version}" in (CLUSTER / "Dockerfile").read_text()
        for other in ("README.md", "Dockerfile", "ray-up-aws.yaml"):
            mentioned = set(
                re.findall(r"(?:ray(?:\[default\])?==|beatray:ray-)(\d+\.\d+\.\d+)", (CLUSTER / other).read_text())
            )
            assert mentioned == {version}, (other, mentioned)


def test_mlflow_is_a_version_that_the_package_allows() -> None:
    from packaging.requirements import Requirement

    allowed = Requirement(next(r for r in PROJECT["dependencies"] if r.startswith("mlflow"))).specifier
    version = re.search(r"ARG MLFLOW_VERSION=(\S+)", (CLUSTER / "Dockerfile").read_text())
    assert version and version[1] in allowed and version[1] not in Requirement("mlflow<3.10").specifier
    images = [image for document in documents("mlflow.yaml") for image in found(document, "image")]
    assert f"beatray-mlflow:{version[1].rpartition('.')[0]}" in images


def test_pods_have_no_privileges_and_bounded_resources() -> None:
    assert len(pods()) == 10
    for name, _, spec in pods():
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            where = f"{name}: {container['name']}"
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }, where
            resources = container["resources"]
            for kind in ("cpu", "memory"):
                assert kind in resources["limits"] and kind in resources["requests"], where
            assert resources["requests"].get("nvidia.com/gpu") == resources["limits"].get("nvidia.com/gpu"), where
            mounted = {mount["name"] for mount in container.get("volumeMounts", ())}
            volumes = {volume["name"] for volume in spec.get("volumes", ())}
            claims = {
                claim["metadata"]["name"]
                for d in documents(name)
                for c in found(d, "volumeClaimTemplates")
                for claim in c
            }
            assert mounted <= volumes | claims, f"{where} mounts what is not there"


@pytest.mark.parametrize("name", KUBERNETES[:3])
def test_ray_clusters(name: str) -> None:
    document, policy = documents(name)
    cluster = document["spec"].get("rayClusterSpec", document["spec"])
    assert cluster["authOptions"] == {"mode": "token"}
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0" and head["rayStartParams"]["num-gpus"] == "0"
    assert cluster["enableInTreeAutoscaling"] and cluster["autoscalerOptions"]["idleTimeoutSeconds"] > 0
    (workers,) = cluster["workerGroupSpecs"]
    assert 1 <= workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    assert workers["minReplicas"] < workers["maxReplicas"]
    gpu = workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert gpu == 1 and workers["template"]["spec"]["tolerations"]
    for template in (head["template"], workers["template"]):
        pod, container = template["spec"], template["spec"]["containers"][0]
        memory = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}["/dev/shm"]
        (shared,) = (volume for volume in pod["volumes"] if volume["name"] == memory)
        assert shared["emptyDir"]["medium"] == "Memory"
        environment = {entry["name"]: entry for entry in container["env"]}
        drain = int(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]["value"])
        assert drain < pod["terminationGracePeriodSeconds"], "killed before Ray has finished draining"
        assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]["value"]) >= 60
        assert "secretKeyRef" in environment["MLFLOW_TRACKING_PASSWORD"]["valueFrom"]
        assert not [entry for entry in container["env"] if "RAY_AUTH" in entry["name"]], "KubeRay sets the token"
        selected = policy["spec"]["podSelector"]["matchLabels"]
        assert selected.items() <= template["metadata"]["labels"].items(), "the policy does not cover this pod"
        assert not [key for key in template["metadata"]["labels"] if key.startswith("ray.io/")]
    opened = [rule for rule in policy["spec"]["ingress"] if "ports" not in rule]
    assert [peer["podSelector"]["matchLabels"] for rule in opened for peer in rule["from"]] == [selected]
    assert all(rule.get("from") for rule in policy["spec"]["ingress"]), "a rule without peers lets everyone in"
    if document["kind"] == "RayJob":
        job = document["spec"]
        assert job["shutdownAfterJobFinishes"] and job["activeDeadlineSeconds"] > 0 and job["backoffLimit"] > 0
        submitter = job["submitterPodTemplate"]
        assert submitter["spec"]["restartPolicy"] == "Never"
        allowed = [peer["podSelector"]["matchLabels"] for rule in policy["spec"]["ingress"] for peer in rule["from"]]
        assert submitter["metadata"]["labels"] in allowed
        args = job["entrypoint"].split()
        workers_arg = next(arg for arg in args if arg.startswith("train.workers="))
        assert int(workers_arg.partition("=")[2]) <= workers["minReplicas"]


def test_rays_own_options_are_spelt_right() -> None:
    from ray.scripts.scripts import cli

    options = {option.removeprefix("--") for p in cli.commands["start"].params for option in p.opts}
    given = {key for _, d in ALL for params in found(d, "rayStartParams") for key in params}
    assert given and given <= options, given - options


def test_selectors_secrets_and_ports_of_mlflow() -> None:
    all_documents = documents("mlflow.yaml")
    labels = [labels for name, labels, _ in pods() if name == "mlflow.yaml"]
    ports = {
        port["name"]
        for document in all_documents
        for c in found(document, "containers")
        for each in c
        for port in each["ports"]
    }
    for document in all_documents:
        selector = document["spec"].get("selector") or document["spec"]["podSelector"]
        selected = selector.get("matchLabels", selector)
        assert sum(selected.items() <= each.items() for each in labels) == 1, (document["metadata"], selected)
        if document["kind"] == "Service":
            assert {port["targetPort"] for port in document["spec"]["ports"]} <= ports
        if document["kind"] == "NetworkPolicy":
            assert document["spec"]["policyTypes"] == ["Ingress", "Egress"]
            assert all(rule.get("from") for rule in document["spec"]["ingress"])
    ray = {tuple(sorted(labels.items())) for name, labels, _ in pods() if name in KUBERNETES[:3]}
    (policy,) = (d for d in all_documents if d["kind"] == "NetworkPolicy" and d["metadata"]["name"] == "beatray-mlflow")
    (peer,) = policy["spec"]["ingress"][0]["from"]
    assert tuple(sorted(peer["podSelector"]["matchLabels"].items())) in ray
    server = next(
        c for d in all_documents if d["kind"] == "Deployment" for c in d["spec"]["template"]["spec"]["containers"]
    )
    command = server["args"][0]
    assert "--app-name basic-auth" in command and "--serve-artifacts" in command
    assert "*" not in command.partition("--allowed-hosts")[2]
    secret = {entry["name"] for entry in server["env"] if "valueFrom" in entry}
    assert {"MLFLOW_FLASK_SERVER_SECRET_KEY", "MLFLOW_AUTH_ADMIN_PASSWORD", "POSTGRES_PASSWORD"} <= secret


def test_secrets_and_claims_are_explained_and_never_written_down() -> None:
    readme = (CLUSTER / "README.md").read_text()
    for name, document in ALL:
        for reference in found(document, "secretKeyRef"):
            made = re.search(rf"create secret generic {reference['name']} (.*?)\nkubectl", readme, re.DOTALL)
            assert made and f"--from-literal={reference['key']}=" in made[1], (name, reference)
        for claim in found(document, "claimName"):
            assert claim == claim_of_readme()["metadata"]["name"], (name, claim)
        for entry in (each for entries in found(document, "env") for each in entries):
            if re.search("PASSWORD|SECRET|KEY$|TOKEN$", entry["name"]):
                assert "value" not in entry, f"{name}: {entry['name']} is written down"


# --- ray up


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_up_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import jsonschema
    import ray
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.chdir(ROOT)
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    config = documents(name)[0]
    jsonschema.validate(config, schema)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    for key in config:
        misspelt = {(f"{each}s" if each == key else each): value for each, value in config.items()}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(misspelt, schema)
    for start in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in start[-1]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert "--num-cpus=0" in config["head_start_ray_commands"][-1]
    tokens = [(there, here) for there, here in config["file_mounts"].items() if "token" in there]
    assert len(tokens) == 1 and tokens[0][0].endswith("/.ray/auth_token") and tokens[0][1] == "~/.ray/auth_token"
    for here in config["file_mounts"].values():
        assert here.startswith("~") or (ROOT / here).exists(), here
    if name == "ray-up-aws.yaml":
        spot = prepared["available_node_types"]["gpu"]["node_config"]["InstanceMarketOptions"]
        assert spot == {"MarketType": "spot"}


# --- the image


def test_the_image_has_what_the_jobs_need_and_no_root() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    assert [stage.split()[2] for stage in stages] == ["base", "mlflow", "ray"], (
        "the nodes' image must be the last stage"
    )
    assert re.search(r"^ARG BASE_IMAGE=[a-z]+:\d+\.\d+\.\d+-\S+$", text, re.MULTILINE), "the base is not pinned"
    for stage in stages[1:]:
        assert re.search(r"^USER 1000:1000$", stage, re.MULTILINE), "runs as root"
        assert stage.rindex("USER ") > stage.rindex("RUN ")
    copied = re.findall(r"^COPY (\S+)", text, re.MULTILINE)
    kept = {line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == set(copied) and all((ROOT / name).exists() for name in copied)
    assert f"WORKDIR {IN_IMAGE.rstrip('/')}\n" in text


def test_the_image_installs_the_packages_dependencies() -> None:
    text = re.sub(r"\\\n\s*", "", (CLUSTER / "Dockerfile").read_text())
    printed = []
    for code in re.findall(r'python -c "([^"]+)"', text):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        printed.append(done.stdout.splitlines())
    mlflow, dependencies = printed
    assert dependencies == PROJECT["dependencies"] + PROJECT["optional-dependencies"]["formats"]
    assert mlflow == [r.replace("mlflow", "mlflow[auth]") for r in PROJECT["dependencies"] if r.startswith("mlflow")]


def test_the_script_is_valid_shell() -> None:
    subprocess.run(["bash", "-n", str(CLUSTER / "local.sh")], check=True)
    assert (CLUSTER / "local.sh").stat().st_mode & 0o111, "local.sh is not executable"


def test_no_registry_or_address_of_anyone() -> None:
    for path in CLUSTER.iterdir():
        text = path.read_text()
        assert not re.search(r"(?<![\w.])(ghcr\.io|gcr\.io|docker\.io|quay\.io|public\.ecr)", text), path.name
        for address in re.findall(r"(?<![\d.])(\d{1,3}(?:\.\d{1,3}){3})(?![\d.])", text):
            assert address.startswith(("127.", "0.0.0.0", "192.0.2.")), f"{path.name}: {address}"
