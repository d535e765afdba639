"""What every gain is measured against: the checkpoint as it is, served plainly on these GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from advisor.errors import NotPossible
from advisor.estimator.deployment import held
from advisor.estimator.remembering import by_identity
from advisor.types import Deployment, Load, Model, Profile, Traffic, WeightFormat


@by_identity(64)
def baseline_deployment(profile: Profile) -> Deployment:
    """The checkpoint in its own format, batched as today (in flight unless said otherwise), on the fewest GPUs a replica.

    A replica gets the smallest tensor parallel (then, beyond a node or the attention heads, pipeline stages) on which
    weights and one request fit; the other GPUs are further replicas. Where none is known to fit: all GPUs. The KV cache has
    16 bits unless the checkpoint asks for another format. A checkpoint in a format that is not known here stands as bf16.
    """
    model, gpu = profile.model, profile.gpu
    largest = None
    for tensor, pipeline in _layouts(model, gpu.count, gpu.gpus_per_node):
        largest = Deployment(
            tensor_parallel=tensor,
            pipeline_parallel=pipeline,
            weights=checkpoint_format(model) or "bf16",
            kv_cache=(model.quantized and model.quantized.kv_cache) or "bf16",
            batching=profile.engine.batching or "in-flight",
            replicas=gpu.count // (tensor * pipeline),
        )
        try:
            if held(model, gpu, largest, load_of(profile.traffic), profile.engine).most:
                return largest
        except NotPossible:
            continue
    return largest or Deployment()


def checkpoint_format(model: Model) -> WeightFormat | None:
    """The weight format of the checkpoint as it is; None: quantized in a way that is not known here."""
    return "bf16" if model.quantized is None else model.quantized.weights


@by_identity(64)
def load_of(traffic: Traffic) -> Load:
    """The traffic as the estimator wants it: mean lengths; a concurrency, where known, rather than a rate."""
    return Load(
        isl=traffic.isl.mean,
        osl=traffic.osl.mean,
        concurrency=traffic.concurrency,
        rate=None if traffic.concurrency is not None else traffic.rate,
        shared_prefix=traffic.shared_prefix or 0.0,
        lengths=traffic.lengths,
    )


def _layouts(model: Model, gpus: int, node: int) -> Iterator[tuple[int, int]]:
    """(tensor parallel, pipeline parallel) with ever more GPUs: powers of two that divide the heads, then stages on top."""
    widest = 1
    for power in range(min(gpus, node).bit_length()):
        tensor = 2**power
        if tensor <= min(gpus, node) and model.heads % tensor == 0:
            widest = tensor
            yield tensor, 1
    for stages in range(2, min(gpus // widest, model.layers) + 1):
        yield widest, stages
