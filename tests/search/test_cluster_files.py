"""The files in cluster/, checked without one: against schemas, and Slurm's script with commands of the test's own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from search import config
from tests import runs

FOLDER = runs.ROOT / "cluster"


def read(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / name).read_text()))


def words_of(command: str) -> config.Config:
    """The settings of a search in a file, which are refused here if a search would refuse them."""
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "search.run"]
    return config.parse(words[3:])


def test_ray_takes_the_clusters_file() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    told = read("aws.yaml")
    jsonschema.validate(told, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(told | {"worker": 1}, schema)
    assert told["head_node_type"] in told["available_node_types"]
    assert told["available_node_types"]["head"]["resources"] == {"CPU": 0}
    for commands in (told["head_start_ray_commands"], told["worker_start_ray_commands"]):
        assert commands[-1].startswith("export RAY_AUTH_MODE=token; ")
    assert "/home/ubuntu/.ray/auth_token" in told["file_mounts"]
    assert "--dashboard-host=127.0.0.1" in told["head_start_ray_commands"][-1]


def typed(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, **more}


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return typed("object", required=required, properties=properties, additionalProperties=False)


# What the file uses of KubeRay's RayJob (ray.io/v1), by the names and types of its CRD, and of Kubernetes' pods.
QUANTITIES = typed("object", additionalProperties=typed("string", pattern=r"^[0-9.]+([KMGT]i?|m)?$"))
ENV = closed(
    ["name"],
    name=typed("string"),
    value=typed("string"),
    valueFrom=closed(["secretKeyRef"], secretKeyRef=closed(["name", "key"], name=typed("string"), key=typed("string"))),
)
CONTAINER = closed(
    ["name", "image"],
    name=typed("string"),
    image=typed("string"),
    workingDir=typed("string"),
    env=typed("array", items=ENV),
    resources=closed([], requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=typed(
        "array", items=closed(["name", "mountPath"], name=typed("string"), mountPath=typed("string", pattern="^/"))
    ),
)
CLAIM = closed(["claimName"], claimName=typed("string"))
POD = closed(
    ["containers"],
    containers=typed("array", items=CONTAINER, minItems=1),
    volumes=typed("array", items=closed(["name"], name=typed("string"), persistentVolumeClaim=CLAIM)),
)
GROUP = {
    "rayStartParams": typed("object", additionalProperties=typed("string")),
    "template": closed(["spec"], spec=POD),
}
COUNT = typed("integer", minimum=0)
WORKERS = closed(
    ["groupName", "maxReplicas", "minReplicas", "template"],
    groupName=typed("string"),
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    **GROUP,
)
CLUSTER = closed(
    ["headGroupSpec"],
    rayVersion=typed("string"),
    authOptions=closed([], mode={"enum": ["token", "disabled"]}, secretName=typed("string")),
    headGroupSpec=closed(["template"], serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]}, **GROUP),
    workerGroupSpecs=typed("array", items=WORKERS),
)
RAYJOB = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed(["name"], name=typed("string", pattern="^[a-z0-9-]{1,47}$")),
    spec=closed(
        [],
        entrypoint=typed("string"),
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        shutdownAfterJobFinishes=typed("boolean"),
        ttlSecondsAfterFinished=COUNT,
        backoffLimit=COUNT,
        rayClusterSpec=CLUSTER,
    ),
)


def test_kuberay_takes_the_jobs_file() -> None:
    told = read("rayjob.yaml")
    jsonschema.validate(told, RAYJOB)
    cluster = told["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == ray.__version__
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    settings = words_of(told["spec"]["entrypoint"])
    assert settings.address == "auto" and settings.storage == "postgresql+psycopg://smskd@postgres/smskd"
    assert all(str(place).startswith("/shared/") for place in (settings.store, settings.folder))


# Instead of Slurm's and Ray's commands: each notes its words, and whether it has the token.
SHIM = """#!/bin/bash
echo "$(basename "$0") $* ${RAY_AUTH_MODE:-} ${#RAY_AUTH_TOKEN}" >> "$NOTES"
case "$(basename "$0")" in
  scontrol) printf 'node1\\nnode2\\n' ;;
  srun) shift 3; trap 'kill $(jobs -p)' TERM; SLURM_PROCID=0 "$@" & SLURM_PROCID=1 "$@" & wait ;;
  sleep) exec /bin/sleep 0.05 ;;
  ray) if [ "$2" = --block ]; then exec /bin/sleep 60; fi ;;
  python) if [ "$1" = -c ]; then exec "$PYTHON" "$@"; fi
    if [ -n "${WAITS:-}" ]; then trap 'exit 130' TERM; : > "$WAITS"; while :; do /bin/sleep 0.05; done; fi
    /bin/sleep 1; exit 3 ;;
esac
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job of two nodes, in a checkout whose commands are shims."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("scontrol", "srun", "sleep", "ray", "python"):
        shim = tmp_path / ".venv" / "bin" / name
        shim.write_text(SHIM)
        shim.chmod(0o700)
    told = {"SUBMIT_DIR": str(tmp_path), "JOB_NODELIST": "node[1-2]", "JOB_ID": "7", "CPUS_ON_NODE": "8", "NNODES": "2"}
    here = {"NOTES": str(tmp_path / "notes"), "PYTHON": sys.executable}
    return os.environ | {f"SLURM_{key}": value for key, value in told.items()} | here


def test_slurms_script_starts_a_cluster_and_a_search_on_it(tmp_path: Path, slurm: dict[str, str]) -> None:
    script = str(FOLDER / "slurm.sh")
    subprocess.run(["bash", "-n", script], check=True)
    done = subprocess.run(["bash", script, "space=weighting", "seeds=2"], env=slurm, timeout=60)
    assert done.returncode == 3  # the search's
    notes = (tmp_path / "notes").read_text().splitlines()
    started = sorted(line for line in notes if line.startswith("ray start"))
    assert started == [
        "ray start --block --address=node1:20007 --num-cpus=8 --num-gpus=0 token 64",
        "ray start --block --head --port=20007 --num-cpus=8 --num-gpus=0 --include-dashboard=false token 64",
    ]
    (searched,) = [line for line in notes if line.startswith("python -m")]
    assert searched == "python -m search.run address=node1:20007 space=weighting seeds=2 token 64"
    assert words_of(searched.removesuffix(" token 64")).address == "node1:20007"


def test_slurms_signal_reaches_the_search(tmp_path: Path, slurm: dict[str, str]) -> None:
    waits = tmp_path / "waits"
    job = subprocess.Popen(["bash", str(FOLDER / "slurm.sh")], env=slurm | {"WAITS": str(waits)})
    while not waits.exists():
        assert job.poll() is None
    job.terminate()
    assert job.wait(30) == 130
