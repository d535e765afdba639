"""TensorRT-LLM as an engine that is started here. The only file that imports tensorrt_llm or starts trtllm-serve."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

from advisor.errors import InputError, MissingExtra, NotPossible
from advisor.executor.emitting import trtllm
from advisor.executor.emitting.site import site_of, tokenizer_of
from advisor.executor.servers.engines import HOST, Launch, free_port
from advisor.library import parse_yaml, read_text, write_whole
from advisor.types import Deployment, Plan, Profile

NOT_RUN = "not run: TensorRT-LLM is not installed here"


def installed_version() -> str | None:
    """The version of the tensorrt_llm package of this environment; None where there is none."""
    try:
        return importlib.metadata.version("tensorrt_llm")
    except importlib.metadata.PackageNotFoundError:
        return None


def check_options(file: Path) -> str:
    """Load an LLM API YAML through TensorRT-LLM's own argument class; in a sentence what came of it, never "passed" unrun.

    Raises NotPossible where TensorRT-LLM refuses the file, FileProblem for one that is no YAML.
    """
    version = installed_version()
    if version is None:
        return NOT_RUN
    options = parse_yaml(read_text(file, what="LLM API file"), where=str(file))
    try:
        from tensorrt_llm.llmapi.llm_args import TorchLlmArgs
    except ImportError as error:
        return f"not run: TensorRT-LLM {version} cannot be imported here: {error}"
    try:
        # the weights are not looked at: the class wants a model's name, the file has none
        TorchLlmArgs(model="unused", skip_tokenizer_init=True, **options)
    except (TypeError, ValueError) as error:
        raise NotPossible(
            f"TensorRT-LLM {version} refuses this configuration: {error}",
            where=str(file),
            hint=f"the file was made for another version: give --engine-version {version}",
        ) from None
    return f"loaded by TensorRT-LLM {version}'s own TorchLlmArgs"


def find(wanted: str) -> tuple[str, str]:
    """The installed version, which has to be the wanted one's line, and the path of trtllm-serve.

    Raises MissingExtra where TensorRT-LLM is not installed, InputError for another version than the plan's.
    """
    version, program = installed_version(), shutil.which("trtllm-serve")
    if version is None or program is None:
        hint = "run `advise emit` and its serve.sh where it is installed, then measure that server: --url http://HOST:PORT"
        raise MissingExtra(NOT_RUN, where="tensorrt_llm", hint=hint)
    if version.split(".")[:2] != wanted.split(".")[:2]:
        raise InputError(
            f"the plan is for TensorRT-LLM {wanted}, {version} is installed here",
            where="--engine-version",
            hint=f"plan again with --engine-version {version}",
        )
    return version, program


def launch(plan: Plan, deployment: Deployment, profile: Profile, *, folder: Path, checkpoint: Path | None = None) -> Launch:
    """How trtllm-serve serves one replica of a deployment here; its YAML is written into the folder and loaded once.

    Raises MissingExtra where TensorRT-LLM is not installed, NotPossible, InputError.
    """
    version, program = find(profile.engine.version)
    arguments = plan.model_copy(update={"deployment": deployment.model_copy(update={"batching": "in-flight"})})
    site = site_of(arguments, profile)
    if site.spans_nodes:
        raise NotPossible(f"one replica needs {site.nodes} nodes, this is one", where="tensor_parallel x pipeline_parallel")
    config, port = folder / trtllm.CONFIG, free_port()
    write_whole(config, trtllm.options_file(arguments, profile, site))
    loaded = check_options(config)
    command = trtllm.serve_arguments(profile, site, host=HOST, port=port, config=str(config))
    command[0] = program
    if checkpoint is not None:
        command[1] = str(checkpoint)
        command += tokenizer_of(checkpoint, profile)
    notes = [f"{trtllm.CONFIG}: {loaded}"]
    if deployment.replicas > 1:
        notes.append(f"one of {deployment.replicas} replicas is served, with its share of the load")
    name = site.served_name if "--served_model_name" in command else command[1]
    url = f"http://{HOST}:{port}"
    return Launch("TensorRT-LLM", version, tuple(command), url, name, metrics="/prometheus/metrics", notes=tuple(notes))
