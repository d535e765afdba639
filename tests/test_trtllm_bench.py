"""What trtllm-bench sets for an offline run, by its own formulas worked by hand, and what the estimate makes of it."""

from __future__ import annotations

import pytest

from advisor.estimator.deployment import estimate
from advisor.estimator.simulation import simulate
from advisor.estimator.trtllm_bench import as_built, running
from advisor.profiler.gpu import find_gpu
from advisor.profiler.model import read_model
from advisor.types import Deployment, Engine, Load

MODEL = read_model("meta-llama/Llama-3.1-70B")[0]
A100 = find_gpu("a100-sxm-80gb", 8)[0]
BUILT = Engine(version="0.17")


@pytest.mark.parametrize(
    ("isl", "osl", "batch", "tokens"),
    # TP8, BF16: 640 GiB less 141.1 leave 474 for caches of 0.3125 MiB a token
    [(128, 4096, 384, 2048), (2048, 128, 768, 12288), (128, 128, 4096, 8192), (20000, 2000, 96, 2048), (1000, 1000, 896, 2048)],
)
def test_batch_and_tokens_follow_the_lengths(isl: int, osl: int, batch: int, tokens: int) -> None:
    made = as_built(MODEL, A100, Deployment(tensor_parallel=8), Load(isl=isl, osl=osl))
    assert (made.max_batch_size, made.max_num_tokens) == (batch, tokens)


def test_what_is_stated_stays() -> None:
    stated = Deployment(tensor_parallel=8, max_batch_size=100, max_num_tokens=5000)
    made = as_built(MODEL, A100, stated, Load(isl=128, osl=4096))
    assert (made.max_batch_size, made.max_num_tokens) == (100, 5000)


def test_the_running_batch_by_what_fits() -> None:
    """cpp/tests/unit_tests/executor/dynamicBatchTunerTest.cpp, RuntimeBatchSize."""
    expected = {143: 128, 335: 256, 671: 512, 831: 768, 1279: 1024, 1663: 1536, 2049: 2048, 1665: 1665}
    assert {capacity: running(capacity) for capacity in expected} == expected


def test_only_offline_runs_of_engines_that_are_built() -> None:
    load, deployment = Load(isl=500, osl=2000, requests=3000), Deployment(tensor_parallel=8)
    built = estimate(MODEL, A100, deployment, load, BUILT)
    assert built.concurrency == 512 < (built.max_concurrency or 0)
    later = estimate(MODEL, A100, deployment, load, Engine(version="1.0"))
    assert later.concurrency == later.max_concurrency
    served = estimate(MODEL, A100, deployment, load.model_copy(update={"concurrency": 550.0}), BUILT)
    assert served.concurrency == 550


def test_estimate_and_simulation_agree() -> None:
    load, deployment = Load(isl=1000, osl=1000, requests=3000), Deployment(tensor_parallel=8)
    analytic = estimate(MODEL, A100, deployment, load, BUILT).output_tokens_per_s
    assert simulate(MODEL, A100, deployment, load, BUILT).output_tokens_per_s == pytest.approx(analytic, rel=0.02)
