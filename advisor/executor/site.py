"""What a plan needs of the machines: which checkpoint, how many GPUs a replica, on how many nodes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from advisor.errors import NotPossible
from advisor.types import Plan, Profile

CHECKPOINT = "checkpoint"
"""the folder beside the serving files that `advise apply` puts a quantized checkpoint into"""
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

    @property
    def spans_nodes(self) -> bool:
        """Whether one replica needs more than one node."""
        return self.nodes > 1


def site_of(plan: Plan, profile: Profile) -> Site:
    """The site of a plan. Raises NotPossible when a replica's GPUs do not fill whole nodes."""
    deployment, model = plan.deployment, profile.model
    ranks = deployment.tensor_parallel * deployment.pipeline_parallel
    nodes = math.ceil(ranks / profile.gpu.gpus_per_node)
    if ranks % nodes:
        raise NotPossible(
            f"{ranks} GPUs of one replica do not divide over {nodes} nodes of {profile.gpu.gpus_per_node}",
            where="tensor_parallel x pipeline_parallel",
            hint="choose a size that fills whole nodes",
        )
    name = model.name if model.folder is None else re.split(r"[/\\]", model.folder.rstrip("/\\"))[-1] or model.name
    found = _checkpoint(plan, profile)
    return Site(
        model=found[0],
        model_note=found[1],
        local=found[0].startswith(("/", "./", "../")),
        served_name=name,
        slug=_slug(name),
        ranks=ranks,
        nodes=nodes,
        gpus_per_node=ranks // nodes,
        replicas=deployment.replicas,
    )


def quantized_as(profile: Profile) -> str:
    """The weight format that the checkpoint has as it is."""
    quantized = profile.model.quantized
    return "bf16" if quantized is None else quantized.weights or quantized.method


def _slug(name: str) -> str:
    """Letters, digits and "-", a letter first (RFC 1035), short enough for the names made from it."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (words if words[:1].isalpha() else f"model-{words}")[:40].strip("-")


def _checkpoint(plan: Plan, profile: Profile) -> tuple[str, str]:
    """The model argument, and in words which checkpoint it is: no engine argument sets the format of weights."""
    model, weights = profile.model, plan.deployment.weights
    if weights == quantized_as(profile):
        source = model.folder or model.name
        if model.folder is not None and not source.startswith(("/", "./", "../")):
            source = "./" + source
        return source, f"the checkpoint as it is ({weights})"
    return (
        "./" + CHECKPOINT,
        f"{model.name} in {weights}: made by `advise apply` into {CHECKPOINT}/, or put a published {weights} checkpoint there",
    )
