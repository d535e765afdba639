"""Expected loss of accuracy: published rows only, as ranges, worked by hand from the rows."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

import pytest

from advisor import library
from advisor.estimator.accuracy import expected_loss, size_class
from advisor.types import KvFormat, Model, Quantized, WeightFormat

WEIGHTS = get_args(WeightFormat)
CACHES = get_args(KvFormat)


def model(params: float, *, quantized: Quantized | None = None) -> Model:
    return Model(
        name="m", architecture="LlamaForCausalLM", layers=32, hidden=4096, intermediate=14336, vocab=128256, heads=32,
        kv_heads=8, head_dim=128, attention="gqa", attention_layers=32, mlp_layers=32, params=int(params), quantized=quantized,
    )  # fmt: skip


def span(params: float, weights: WeightFormat, kv: KvFormat = "bf16", metric: str | None = None) -> tuple[float, float] | None:
    loss = expected_loss(model(params), weights, kv, metric=metric)
    return None if loss is None else (loss.low_pct, loss.high_pct)


def test_sixteen_bits_lose_nothing() -> None:
    loss = expected_loss(model(8e9), "bf16", "bf16")
    assert loss is not None
    assert (loss.low_pct, loss.high_pct, loss.basis) == (0.0, 0.0, "arithmetic")


def test_fp8_of_an_8b_is_the_range_of_the_published_rows() -> None:
    # Red Hat: MMLU 66.60 -> 66.27 is 0.495 %, OpenLLM v1 68.71 -> 68.22 is 0.713 %; ModelOpt prints 1.5 %
    assert span(8e9, "fp8") == (round(100 * 0.33 / 66.60, 3), 1.5)
    loss = expected_loss(model(8e9), "fp8", "bf16")
    assert loss is not None
    assert loss.basis == "published"
    assert loss.metric == "MMLU, OpenLLM v1"
    assert "examples/benchmark.md" in loss.source and "Meta-Llama-3-8B-Instruct-FP8" in loss.source


def test_perplexity_is_a_rise_and_is_asked_for_by_name() -> None:
    # ModelOpt INT4 AWQ: 10.936 -> 11.383 and 11.409
    assert span(8e9, "int4_awq", metric="perplexity") == (round(100 * 0.447 / 10.936, 3), round(100 * 0.473 / 10.936, 3))


def test_perplexity_stands_in_where_no_score_is_published() -> None:
    loss = expected_loss(model(0.2e9), "w4a8_awq", "bf16")
    assert loss is not None
    # one figure, 21.5 % on SmolLM2-135M, widened twofold each way
    assert (loss.metric, loss.low_pct, loss.high_pct) == ("perplexity", 10.75, 43.0)


def test_a_single_figure_is_widened_and_a_zero_gets_the_evaluation_noise() -> None:
    assert span(8e9, "w4a8_awq") == (3.0, 12.0)
    p = 0.6655
    assert span(8e9, "int8_wo") == (0.0, round(100 * math.sqrt(p * (1 - p) / 14042) / p, 1))


def test_only_smaller_models_published_bound_from_above() -> None:
    # perplexity of NVFP4 is published up to 9B; a 70B may lose nothing and at most what those lose
    low, high = span(70e9, "nvfp4", metric="perplexity") or (1, 1)
    assert low == 0.0
    assert high == round(100 * (8.44 - 7.5472) / 7.5472, 3)


def test_only_larger_models_published_is_unknown() -> None:
    assert span(3e9, "mxfp4") is None
    assert span(0.5e9, "int4_awq", metric="task:MMLU") is None
    assert span(8e9, "fp8", metric="kl") is None


def test_weights_and_cache_add() -> None:
    weights, cache = span(70e9, "fp8"), span(70e9, "bf16", "fp8")
    both = span(70e9, "fp8", "fp8")
    assert weights is not None and cache is not None
    assert both == (pytest.approx(weights[0] + cache[0]), pytest.approx(weights[1] + cache[1]))
    # the published pair itself, OpenLLM v1 of Meta-Llama-3-70B-Instruct: 79.51 -> 79.16 -> 79.00
    assert both is not None and both[0] <= 100 * (79.51 - 79.00) / 79.51 <= both[1]


def test_a_checkpoint_in_that_format_already_loses_nothing_more() -> None:
    ready = model(8e9, quantized=Quantized(weights="fp8", method="modelopt", kv_cache="fp8"))
    loss = expected_loss(ready, "fp8", "fp8")
    assert loss is not None and loss.high_pct == 0.0
    further = expected_loss(ready, "nvfp4", "fp8")
    assert further is not None
    assert (further.low_pct, further.high_pct) == span(8e9, "nvfp4")


def test_a_named_task_uses_that_benchmark_alone() -> None:
    # 72.8 -> 67.0 on MMLU is the only NVFP4 row of that benchmark at 8B: 7.967 %, widened
    low, high = span(8e9, "nvfp4", metric="task:mmlu") or (0, 0)
    assert (low, high) == (pytest.approx(3.984, abs=2e-3), pytest.approx(15.934, abs=2e-3))


@pytest.mark.parametrize("params, expected", [(0.99e9, 0), (1e9, 1), (3.9e9, 1), (4e9, 2), (15.9e9, 2), (16e9, 3), (64e9, 4)])
def test_size_classes(params: float, expected: int) -> None:
    assert size_class(params) == expected


@pytest.mark.parametrize("metric", ["score", "perplexity"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_larger_model_is_never_given_a_larger_worst_case(weights: WeightFormat, metric: str) -> None:
    for kv in CACHES:
        spans = [span(params, weights, kv, metric) for params in (0.5e9, 2e9, 8e9, 30e9, 100e9)]
        known = [each for each in spans if each is not None]
        assert spans[len(spans) - len(known) :] == known, "unknown only below what is published"
        assert all(0.0 <= low <= high for low, high in known)
        assert all(large[1] <= small[1] + 1e-9 for small, large in pairwise(known))


@pytest.mark.parametrize("table, formats", [("weights", WEIGHTS), ("kv_cache", CACHES)])
def test_every_row_has_a_source_a_known_format_and_one_kind_of_figure(table: str, formats: tuple[str, ...]) -> None:
    data = library.profile("accuracy", table)
    assert data is not None
    for row in data["rows"]:
        assert row["source"] in data["sources"], row
        assert row["format"] in formats and row["format"] != "bf16", row
        assert ("loss_pct" in row) != ("base" in row and "treated" in row), row
    assert {row["source"] for row in data["rows"]} == set(data["sources"])


def test_every_format_but_none_has_a_published_loss_at_8b() -> None:
    for weights in WEIGHTS:
        assert span(8e9, weights) is not None, weights
