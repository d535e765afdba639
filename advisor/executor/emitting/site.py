"""What a plan needs of the machines: which checkpoint, how many GPUs a replica, on how many nodes."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from advisor.errors import NotPossible
from advisor.types import Deployment, Plan, Profile

CHECKPOINT = "checkpoint"
"""the folder beside the serving files that `advise apply` puts a quantized checkpoint into"""
FOLDERS = ("/", "./", "../")
"""how a folder begins, as no hub id does"""
HOST = "127.0.0.1"
PORT = 8000


@dataclass(frozen=True)
class Site:
    """Where and what to serve."""

    model: str
    """hub id or folder, as the engine takes it"""
    model_note: str
    """which checkpoint that is"""
    local: bool
    """a folder, not a hub id"""
    served_name: str
    slug: str
    """a name that Kubernetes and file systems take"""
    ranks: int
    """GPUs of one replica"""
    nodes: int
    """nodes of one replica"""
    gpus_per_node: int
    """GPUs that one replica uses on a node"""
    replicas: int
    local_draft: bool = False
    """the plan speculates with a draft model in a folder"""

    @property
    def spans_nodes(self) -> bool:
        """Whether one replica needs more than one node."""
        return self.nodes > 1


def site_of(plan: Plan, profile: Profile, *, made: bool = False) -> Site:
    """The site of a plan; made: `advise apply` put a checkpoint beside the files.

    Raises NotPossible when a replica's GPUs do not fill whole nodes.
    """
    deployment, model = plan.deployment, profile.model
    ranks = deployment.tensor_parallel * deployment.pipeline_parallel
    nodes = math.ceil(ranks / profile.gpu.gpus_per_node)
    if ranks % nodes:
        raise NotPossible(
            f"{ranks} GPUs of one replica do not divide over {nodes} nodes of {profile.gpu.gpus_per_node}",
            where="tensor_parallel x pipeline_parallel",
            hint="choose a size that fills whole nodes",
        )
    last = re.split(r"[/\\]", (model.folder or "").rstrip("/\\"))[-1]
    name = model.name if last in ("", ".", "..") else last
    found = _checkpoint(plan, profile, made)
    draft = deployment.speculation.draft_model if deployment.speculation is not None else None
    return Site(
        model=found[0],
        model_note=found[1],
        local=found[0].startswith(FOLDERS),
        served_name=name,
        slug=_slug(name),
        ranks=ranks,
        nodes=nodes,
        gpus_per_node=ranks // nodes,
        replicas=deployment.replicas,
        local_draft=draft is not None and draft.startswith(FOLDERS),
    )


def seen_from(folder: Path, profile: Profile) -> Profile:
    """The profile for files that are written into a folder and start there: a model's folder that was given from where the
    user stands is given from that folder."""
    model = profile.model
    if model.folder is None or Path(model.folder).is_absolute():
        return profile
    near = os.path.relpath(model.folder, folder)
    return profile.model_copy(update={"model": model.model_copy(update={"folder": near})})


def switch_off(deployment: Deployment) -> int | None:
    """Requests at one engine above which speculation no longer pays; None: no such number.

    The plan's number is of all replicas, an engine's is of one, and with attention data parallelism of one rank.
    """
    if deployment.speculation is None or deployment.speculation.max_concurrency is None:
        return None
    engines = deployment.replicas * (deployment.tensor_parallel if deployment.attention_dp else 1)
    return max(1, deployment.speculation.max_concurrency // engines)


def tokenizer_of(checkpoint: Path, profile: Profile) -> tuple[str, ...]:
    """The option for a checkpoint that has no tokenizer of its own yet: the model's. Both engines spell it alike."""
    if profile.model.folder is None or (checkpoint / "tokenizer_config.json").exists():
        return ()
    return ("--tokenizer", profile.model.folder)


def quantized_as(profile: Profile) -> str:
    """The weight format that the checkpoint has as it is."""
    quantized = profile.model.quantized
    return "bf16" if quantized is None else quantized.weights or quantized.method


def _slug(name: str) -> str:
    """Letters, digits and "-", a letter first (RFC 1035), short enough for the names made from it."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (words if words[:1].isalpha() else f"model-{words}")[:40].strip("-")


def _checkpoint(plan: Plan, profile: Profile, made: bool) -> tuple[str, str]:
    """The model argument, and in words which checkpoint it is: no engine argument sets the format of weights."""
    model, weights = profile.model, plan.deployment.weights
    if made:
        return (
            "./" + CHECKPOINT,
            f"{model.name}, weights {weights}, KV cache {plan.deployment.kv_cache}: made by `advise apply`",
        )
    if weights == quantized_as(profile):
        source = model.folder or model.name
        if model.folder is not None and not source.startswith(FOLDERS):
            source = "./" + source
        return source, f"the checkpoint as it is ({weights})"
    return (
        "./" + CHECKPOINT,
        f"{model.name} in {weights}: made by `advise apply` into {CHECKPOINT}/, or put a published {weights} checkpoint there",
    )
