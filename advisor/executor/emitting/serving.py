"""Serving files from a plan: texts only, nothing is written or started here."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from advisor.errors import NotPossible
from advisor.executor.emitting import manifests, trtllm, vllm
from advisor.executor.emitting.settings import comment
from advisor.executor.emitting.site import HOST, PORT, Site, site_of
from advisor.types import Plan, Profile

TRTLLM_IMAGE = "nvcr.io/nvidia/tensorrt-llm/release"
DYNAMO_IMAGE = "nvcr.io/nvidia/ai-dynamo/tensorrtllm-runtime"
DYNAMO_TAG = "1.3.1"
"""Dynamo's own version (ai-dynamo/dynamo examples/backends/trtllm/deploy/agg-with-config.yaml @ 04521f47)"""
VLLM_IMAGE = "vllm/vllm-openai"


def write_serving(plan: Plan, profile: Profile, *, made: bool = False) -> dict[str, str]:
    """The files that serve a plan with its profile's engine: file name -> text. made: with the checkpoint of `advise apply`
    beside them; otherwise the model as it is serves where its weights are in the plan's format.

    TensorRT-LLM: the LLM API YAML (checked against the arguments of that version), kubernetes.yaml, dynamo.yaml, slurm.sh,
    and unless a replica spans nodes serve.sh, bench.sh and llm_api.py. vLLM: serve.sh and kubernetes.yaml. serve.sh listens
    on loopback unless HOST is set. Pure: the same plan gives the same texts.
    Raises NotPossible for a plan that this engine version cannot be given, MissingExtra without jsonschema.
    """
    site = site_of(plan, profile, made=made)
    if profile.engine.name == "vllm":
        return _vllm_files(plan, profile, site)
    if profile.engine.name == "tensorrt-llm":
        return _trtllm_files(plan, profile, site)
    raise NotPossible(
        f"no serving files are written for {profile.engine.name}", where="--engine", hint="choose tensorrt-llm or vllm"
    )


def _trtllm_files(plan: Plan, profile: Profile, site: Site) -> dict[str, str]:
    version = profile.engine.version
    head = _head(plan, profile, site)
    config = trtllm.options_file(plan, profile, site)
    in_pod = trtllm.serve_arguments(profile, site, host="0.0.0.0", config=f"{manifests.CONFIG_FOLDER}/{trtllm.CONFIG}")
    in_pod[1] = manifests.model_in_pod(site)
    texts = {
        trtllm.CONFIG: trtllm.options_file(manifests.plan_in_pod(plan, site), profile, site) if site.local_draft else config
    }
    on_slurm = trtllm.quoted(trtllm.serve_arguments(profile, site, host="0.0.0.0"))
    files = {
        trtllm.CONFIG: config,
        "kubernetes.yaml": manifests.kubernetes(site, f"{TRTLLM_IMAGE}:{version}", in_pod, texts, head),
        "dynamo.yaml": manifests.dynamo(
            site,
            f"{DYNAMO_IMAGE}:{DYNAMO_TAG}",
            trtllm.CONFIG,
            texts,
            [*head, f"{DYNAMO_IMAGE} brings its own TensorRT-LLM: take the tag that has {version}"],
        ),
        "slurm.sh": manifests.slurm(site, on_slurm, head),
    }
    if not site.spans_nodes:
        files["serve.sh"] = _script(site, head, trtllm.serve_arguments(profile, site))
        commands = [trtllm.quoted(command) for command in trtllm.bench_commands(plan, profile, site)]
        note = "measures one replica; the lengths are drawn from a normal distribution with the traffic's mean and deviation"
        files["bench.sh"] = "\n".join([*_preamble([*head, note]), *commands, ""])
        files["llm_api.py"] = trtllm.python_snippet(plan, profile, site)
    return dict(sorted(files.items()))


def _vllm_files(plan: Plan, profile: Profile, site: Site) -> dict[str, str]:
    if site.spans_nodes:
        raise NotPossible(
            f"a vLLM replica over {site.nodes} nodes is not written here",
            where="tensor_parallel x pipeline_parallel",
            hint="plan for TensorRT-LLM, or keep a replica on one node",
        )
    why = vllm.why_of(plan)
    groups = vllm.serve_arguments(plan, profile, site)
    head = [*_head(plan, profile, site), *vllm.notes(plan, profile.engine)]
    head += [f"{group[0]}: {why[group[0]]}" for group in groups if group[0] in why]
    command = [part for group in groups for part in group]
    there = manifests.plan_in_pod(plan, site)
    in_pod = [part for group in vllm.serve_arguments(there, profile, site, host="0.0.0.0") for part in group]
    in_pod[2] = manifests.model_in_pod(site)
    image = f"{VLLM_IMAGE}:v{profile.engine.version}"
    return {"kubernetes.yaml": manifests.kubernetes(site, image, in_pod, {}, head), "serve.sh": _script(site, head, command)}


def _head(plan: Plan, profile: Profile, site: Site) -> list[str]:
    engine = {"tensorrt-llm": "TensorRT-LLM", "vllm": "vLLM"}[profile.engine.name]
    expected = plan.expected
    figures = [
        f"TTFT {expected.ttft_ms:,.0f} ms" if expected.ttft_ms is not None else "",
        f"ITL {expected.itl_ms:,.1f} ms" if expected.itl_ms is not None else "",
        f"{expected.output_tokens_per_s:,.0f} output tokens/s" if expected.output_tokens_per_s is not None else "",
    ]
    shown = ", ".join(figure for figure in figures if figure)
    rests = " and ".join(
        sorted({expected.basis[name] for name in ("ttft_ms", "itl_ms", "output_tokens_per_s") if name in expected.basis})
    )
    return [
        f"{engine} {profile.engine.version}: {profile.model.name}, {site.replicas} x {site.ranks} x {profile.gpu.name}",
        f"weights: {site.model_note}",
        *([f"expected, not measured: {shown}" + (f" ({rests})" if rests else "")] if shown else []),
    ]


def _preamble(head: Sequence[str]) -> list[str]:
    return ["#!/usr/bin/env bash", *(f"# {comment(line)}" for line in head), "set -euo pipefail", 'cd "$(dirname "$0")"']


def _script(site: Site, head: Sequence[str], command: Sequence[str]) -> str:
    """One server a replica, each on its own GPUs and port; HOST and PORT may be set outside."""
    line = " ".join(shlex.quote(part) for part in command)
    line = line.replace(f"--host {HOST} --port {PORT}", '--host "$host" --port "$port"', 1)
    lines = [*_preamble(head), f'host="${{HOST:-{HOST}}}" port="${{PORT:-{PORT}}}"']
    if site.replicas == 1:
        return "\n".join([*lines, f"exec {line}", ""])
    lines += [
        f"# {site.replicas} replicas on the ports from $port on: put a load balancer in front",
        "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT",
        f"for ((i = 0; i < {site.replicas}; i++)); do",
        f"  gpus=$(seq -s, $((i * {site.ranks})) $((i * {site.ranks} + {site.ranks - 1})))",
        f'  CUDA_VISIBLE_DEVICES="$gpus" {line} &',
        "  port=$((port + 1))",
        "done",
        "wait -n",
        "",
    ]
    return "\n".join(lines)
