"""Launcher files for clusters: Kubernetes (Deployment, LeaderWorkerSet where a replica spans nodes), Dynamo, Slurm.

The multi-node start is TensorRT-LLM's own: trtllm-llmapi-launch under MPI, one rank a GPU. On Slurm srun starts the ranks,
as NVIDIA/TensorRT-LLM examples/llm-api/llm_mgmn_trtllm_serve.sh @ 0bd88711 does. On Kubernetes mpirun reaches the workers
by ssh with a key pair from a Secret, as Dynamo's operator sets it up (ai-dynamo/dynamo
deploy/operator/internal/dynamo/backend_trtllm.go @ 015d780b).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advisor.executor.emitting.settings import comment, yaml_text
from advisor.executor.emitting.site import CHECKPOINT, PORT, Site
from advisor.types import Plan

SSH_PORT = 2222
CONFIG_FOLDER = "/etc/serving"
MODEL_FOLDER = "/models/" + CHECKPOINT
DRAFT_FOLDER = "/models/draft"
_START_MINUTES = 60


def model_in_pod(site: Site) -> str:
    """Where a container finds the model: the hub id, or the folder of the mounted volume."""
    return MODEL_FOLDER if site.local else site.model


def plan_in_pod(plan: Plan, site: Site) -> Plan:
    """A plan with its draft model where a container finds it: the hub id, or a folder of the mounted volume."""
    speculation = plan.deployment.speculation
    if not site.local_draft or speculation is None:
        return plan
    moved = plan.deployment.model_copy(update={"speculation": speculation.model_copy(update={"draft_model": DRAFT_FOLDER})})
    return plan.model_copy(update={"deployment": moved})


def kubernetes(site: Site, image: str, command: Sequence[str], files: Mapping[str, str], head: Sequence[str]) -> str:
    """A ConfigMap with the engine's files, what runs the replicas, and a Service. `command` is one replica's."""
    documents = [_config_map(site, files)]
    if site.spans_nodes:
        documents.append(_leader_worker_set(site, image, command, bool(files)))
        selector = {"leaderworkerset.sigs.k8s.io/name": site.slug, "role": "leader"}
    else:
        documents.append(_deployment(site, image, command, bool(files)))
        selector = {"app": site.slug}
    port = {"name": "http", "port": PORT, "targetPort": PORT}
    documents.append(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": f"{site.slug}-http"},
            "spec": {"selector": selector, "ports": [port]},
        }
    )
    notes = [*head, *_needs(site)]
    if site.spans_nodes:
        notes += [
            "needs: the LeaderWorkerSet controller; an image with mpirun and sshd; a Secret mpi-ssh-key with private.key and",
            "private.key.pub (ssh-keygen -t ed25519 -N '' -f private.key)",
        ]
    return _document(documents[0 if files else 1 :], notes)


def dynamo(site: Site, image: str, config: str, files: Mapping[str, str], head: Sequence[str]) -> str:
    """A Dynamo graph deployment: a frontend and the replicas as workers, several nodes each where a replica needs them."""
    worker: dict[str, Any] = {
        "componentType": "worker",
        "replicas": site.replicas,
        "envFromSecret": "hf-token-secret",
        "resources": {"limits": {"gpu": str(site.gpus_per_node)}},
        "extraPodSpec": {
            "volumes": _volumes(site, True),
            "mainContainer": {
                "image": image,
                "command": ["python3", "-m", "dynamo.trtllm"],
                "args": [
                    *("--model-path", _literal(model_in_pod(site))),
                    *("--served-model-name", _literal(site.served_name)),
                    *("--extra-engine-args", f"{CONFIG_FOLDER}/{config}"),
                ],
                "volumeMounts": _mounts(site, True),
            },
        },
    }
    if site.spans_nodes:
        worker["multinode"] = {"nodeCount": site.nodes}
    frontend = {
        "componentType": "frontend",
        "replicas": 1,
        "extraPodSpec": {"mainContainer": {"image": image}},
    }
    graph = {
        "apiVersion": "nvidia.com/v1alpha1",
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": site.slug},
        "spec": {"backendFramework": "trtllm", "services": {"Frontend": frontend, "Worker": worker}},
    }
    notes = [*head, *_needs(site), "needs: Dynamo's operator; a Secret hf-token-secret with HF_TOKEN"]
    return _document([_config_map(site, files), graph], notes)


def slurm(site: Site, command: str, head: Sequence[str]) -> str:
    """A batch script: one task a GPU; `command` is one replica's, already quoted. Account and partition go to sbatch."""
    return "\n".join(
        [
            "#!/bin/bash",
            f"#SBATCH --job-name={site.slug}",
            f"#SBATCH --nodes={site.nodes}",
            f"#SBATCH --ntasks-per-node={site.gpus_per_node}",
            f"#SBATCH --gpus-per-node={site.gpus_per_node}",
            *([f"#SBATCH --array=0-{site.replicas - 1}"] if site.replicas > 1 else []),
            *(f"# {comment(line)}" for line in head),
            "# start: sbatch -A ACCOUNT -p PARTITION -t HOURS:00:00 slurm.sh",
            "# with a container (pyxis): CONTAINER=IMAGE sbatch … slurm.sh",
            "# a model that is not on a shared file system is downloaded by each node: fetch it first where nodes are offline",
            "set -euo pipefail",
            'cd "${SLURM_SUBMIT_DIR:-.}"',
            "container=()",
            'if [[ -n "${CONTAINER:-}" ]]; then',
            '  container=(--container-image="$CONTAINER" --container-mounts="$PWD:$PWD" --container-workdir="$PWD")',
            "fi",
            'srun --mpi=pmix ${container[@]+"${container[@]}"} \\',
            f"  trtllm-llmapi-launch {command}",
            "",
        ]
    )


def _document(documents: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
    head = "".join(f"# {comment(line)}\n" for line in notes)
    return head + "---\n".join(yaml_text(document) for document in documents)


def _needs(site: Site) -> list[str]:
    folders = [f"the checkpoint in its folder {CHECKPOINT}"] if site.local else []
    folders += ["the draft model in its folder draft"] if site.local_draft else []
    needs = [] if site.local else ["needs: for a gated model, a Secret hf-token-secret with HF_TOKEN"]
    if folders:
        needs.append(f"needs: a PersistentVolumeClaim {site.slug} with {' and '.join(folders)}, readable from every node")
    return needs


def _config_map(site: Site, files: Mapping[str, str]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"{site.slug}-engine"}, "data": dict(files)}


def _volumes(site: Site, files: bool) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    if files:
        volumes.append({"name": "engine", "configMap": {"name": f"{site.slug}-engine"}})
    if site.local or site.local_draft:
        volumes.append({"name": "models", "persistentVolumeClaim": {"claimName": site.slug, "readOnly": True}})
    return volumes


def _mounts(site: Site, files: bool) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [{"name": "shm", "mountPath": "/dev/shm"}]
    if files:
        mounts.append({"name": "engine", "mountPath": CONFIG_FOLDER, "readOnly": True})
    if site.local or site.local_draft:
        mounts.append({"name": "models", "mountPath": "/models", "readOnly": True})
    return mounts


def _container(site: Site, image: str, command: Sequence[str], files: bool) -> dict[str, Any]:
    health = {"httpGet": {"path": "/health", "port": PORT}}
    token = {
        "name": "HF_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": "hf-token-secret", "key": "HF_TOKEN", "optional": True}},
    }
    return {
        "name": "server",
        "image": image,
        "command": [_literal(part) for part in command],
        "env": [token],
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {"limits": {"nvidia.com/gpu": site.gpus_per_node}},
        "startupProbe": {**health, "periodSeconds": 10, "failureThreshold": 6 * _START_MINUTES},
        "readinessProbe": {**health, "periodSeconds": 5},
        "livenessProbe": {**health, "periodSeconds": 30, "failureThreshold": 4},
        "volumeMounts": _mounts(site, files),
    }


def _deployment(site: Site, image: str, command: Sequence[str], files: bool) -> dict[str, Any]:
    labels = {"app": site.slug}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": site.slug, "labels": labels},
        "spec": {
            "replicas": site.replicas,
            "selector": {"matchLabels": labels},
            "strategy": {"type": "Recreate"},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [_container(site, image, command, files)], "volumes": _volumes(site, files)},
            },
        },
    }


def _literal(part: str) -> str:
    """An argument that Kubernetes leaves as it is: $(NAME) would be replaced by a variable."""
    return part.replace("$(", "$$(")


def _leader_worker_set(site: Site, image: str, command: Sequence[str], files: bool) -> dict[str, Any]:
    leader = _container(site, image, ["bash", "-c", _leader_script(site), "leader", *command], files)
    worker = _container(site, image, ["bash", "-c", _worker_script()], files)
    for probe in ("startupProbe", "livenessProbe"):
        del worker[probe]
    worker["readinessProbe"] = {"tcpSocket": {"port": SSH_PORT}, "periodSeconds": 5}
    worker["ports"] = [{"name": "ssh", "containerPort": SSH_PORT}]
    for container in (leader, worker):
        container["volumeMounts"].append({"name": "ssh", "mountPath": "/ssh-key", "readOnly": True})
        container["env"].append({"name": "OMPI_MCA_orte_keep_fqdn_hostnames", "value": "1"})
    volumes = [*_volumes(site, files), {"name": "ssh", "secret": {"secretName": "mpi-ssh-key"}}]

    def pod(container: Mapping[str, Any], role: str) -> dict[str, Any]:
        return {"metadata": {"labels": {"role": role}}, "spec": {"containers": [container], "volumes": volumes}}

    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": site.slug},
        "spec": {
            "replicas": site.replicas,
            "leaderWorkerTemplate": {
                "size": site.nodes,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": pod(leader, "leader"),
                "workerTemplate": pod(worker, "worker"),
            },
        },
    }


_KEYS = (
    'mkdir -p "$HOME/.ssh"',
    'install -m 600 /ssh-key/private.key "$HOME/.ssh/id_key"',
    'install -m 600 /ssh-key/private.key.pub "$HOME/.ssh/authorized_keys"',
)


def _leader_script(site: Site) -> str:
    """Waits for the workers' names, then starts one rank a GPU; the replica's command comes as its arguments."""
    return "\n".join(
        [
            "set -euo pipefail",
            *_KEYS,
            'first="${LWS_LEADER_ADDRESS%%.*}" rest="${LWS_LEADER_ADDRESS#*.}"',
            f'hosts="$LWS_LEADER_ADDRESS:{site.gpus_per_node}"',
            f"for i in $(seq 1 {site.nodes - 1}); do",
            '  worker="$first-$i.$rest"',
            f'  until timeout 2 bash -c "exec 3<>/dev/tcp/$worker/{SSH_PORT}" 2>/dev/null; do sleep 2; done',
            f'  hosts="$hosts,$worker:{site.gpus_per_node}"',
            "done",
            f'exec mpirun --allow-run-as-root -n {site.ranks} -H "$hosts" --mca pml ob1 \\',
            f'  --mca plm_rsh_args "-p {SSH_PORT} -o StrictHostKeyChecking=no -i $HOME/.ssh/id_key" \\',
            '  -x PATH -x LD_LIBRARY_PATH -x HF_TOKEN trtllm-llmapi-launch "$@"',
            "",
        ]
    )


def _worker_script() -> str:
    """An sshd that takes only the Secret's key."""
    return "\n".join(
        [
            "set -euo pipefail",
            *_KEYS,
            'mkdir -p /run/sshd "$HOME/.ssh/host"',
            'ssh-keygen -q -t ed25519 -N "" -f "$HOME/.ssh/host/key"',
            f'exec /usr/sbin/sshd -D -e -p {SSH_PORT} -h "$HOME/.ssh/host/key" -o PasswordAuthentication=no \\',
            '  -o StrictModes=no -o PermitRootLogin=prohibit-password -o AuthorizedKeysFile="$HOME/.ssh/authorized_keys"',
            "",
        ]
    )
