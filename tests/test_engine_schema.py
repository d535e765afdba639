# ruff: noqa: E501 (a table of cases)
"""Configurations against the arguments of TensorRT-LLM, and NVIDIA's own tuned files as the judge."""

import json
from pathlib import Path

import pytest

from advisor.errors import NotPossible
from advisor.executor.emitting import engine_rules
from advisor.executor.emitting.engine_schema import VERSIONS, command_options, engine_schema, known_version, validate

RECIPES = Path(__file__).parents[1].parent / "shared" / "facts" / "trtllm" / "recipes.json"
UPSTREAM = {"1.2.1": "1.2.1", "1.3": "main@0004396"}


@pytest.mark.parametrize(("given", "known"), [("1.2.1", "1.2.1"), ("1.2", "1.2.1"), ("1.3", "1.3"), ("1.3.0rc27", "1.3")])
def test_versions_are_mapped_to_the_schemas_kept(given, known):
    assert known_version(given) == known


@pytest.mark.parametrize("version", ["1.1.0", "0.20", "2.0", "", "1.20", "1.30.1"])
def test_other_versions_are_refused(version):
    with pytest.raises(NotPossible, match="not known here"):
        known_version(version)


@pytest.mark.parametrize("version", VERSIONS)
def test_each_schema_has_its_source_and_its_rules(version):
    stored = engine_schema(version)
    assert stored["source"]["repo"] == "NVIDIA/TensorRT-LLM" and len(stored["source"]["commit"]) == 40
    assert len(stored["cross_field_rules"]) >= 18
    assert all(
        rule["checked"].split(":")[0] in ("yes", "no", "by the schema", "in part") for rule in stored["cross_field_rules"]
    )
    assert validate({}, version) == []


def test_every_rule_function_is_in_use():
    used = {rule for rules in engine_rules.RULES.values() for rule in rules}
    public = {value for name, value in vars(engine_rules).items() if callable(value) and getattr(value, "__doc__", None)}
    assert used == {
        value for value in public if value.__module__ == engine_rules.__name__ and not value.__name__.startswith("_")
    }


BOTH = ("1.2.1", "1.3")


@pytest.mark.parametrize(
    ("versions", "config", "path", "says"),
    [
        (BOTH, {"kv_cache_free_gpu_memory_fraction": 0.9}, "kv_cache_free_gpu_memory_fraction", "kv_cache_config.free_gpu_memory_fraction"),
        (BOTH, {"kv_cache_config": {"enable_block_reusee": True}}, "kv_cache_config.enable_block_reusee", "did you mean enable_block_reuse?"),
        (BOTH, {"quant_config": {"quant_algo": "FP8"}}, "quant_config", "not a key"),
        (BOTH, {"tensor_parallel_size": "2"}, "tensor_parallel_size", "integer"),
        (BOTH, {"enable_chunked_prefill": 1}, "enable_chunked_prefill", "boolean"),
        (BOTH, {"scheduler_config": {"capacity_scheduler_policy": "FASTEST"}}, "scheduler_config.capacity_scheduler_policy", "FASTEST"),
        (BOTH, {"kv_cache_config": {"dtype": "int8"}}, "kv_cache_config.dtype", "auto, fp8, nvfp4"),
        (BOTH, {"cuda_graph_config": {"batch_sizes": [1, 8], "max_batch_size": 4}}, "cuda_graph_config.max_batch_size", "is 8"),
        (BOTH, {"moe_config": {"load_balancer": {"num_slots": 10}}, "moe_expert_parallel_size": 4}, "moe_config.load_balancer.num_slots", "does not divide"),
        (BOTH, {"attention_dp_config": {"enable_balance": True, "timeout_iters": -1}}, "attention_dp_config.timeout_iters", "0 or more"),
        (BOTH, {"ray_worker_extension_cls": "x"}, "ray_worker_extension_cls", "orchestrator_type: ray"),
        (BOTH, {"speculative_config": {"decoding_type": "Eagle", "max_draft_len": 3}}, "speculative_config.speculative_model", "needed"),
        (("1.2.1",), {"speculative_config": {"decoding_type": "Eagle3"}}, "speculative_config", "did you mean Eagle?"),
        (("1.2.1",), {"speculative_config": {"decoding_type": "Draft_Target"}}, "speculative_config", "did you mean DraftTarget?"),
        (("1.2.1",), {"speculative_config": {"decoding_type": "Medusa"}}, "speculative_config.decoding_type", "PyTorch backend"),
        (("1.2.1",), {"speculative_config": {"decoding_type": "NGram", "max_draft_len": 4, "draft_len_schedule": {"2": 4}}}, "speculative_config.draft_len_schedule", "batch size 1"),
        (("1.3",), {"speculative_config": {"decoding_type": "DraftTarget"}}, "speculative_config", "did you mean Draft_Target?"),
        (("1.3",), {"speculative_config": {"decoding_type": "NGram"}}, "speculative_config.max_draft_len", "needed"),
        (("1.3",), {"speculative_config": {"decoding_type": "Draft_Target", "max_draft_len": 3}}, "speculative_config.speculative_model", "needed"),
        (("1.3",), {"speculative_config": {"decoding_type": "MTP", "max_draft_len": 3, "max_concurrency": 8, "draft_len_schedule": {"4": 3}}}, "speculative_config.max_concurrency", "exclude"),
        (("1.3",), {"speculative_config": {"decoding_type": "MTP", "max_draft_len": 3, "draft_len_schedule": {"4": 2, "9": 5}}}, "speculative_config.draft_len_schedule", "above max_draft_len"),
        (("1.3",), {"speculative_config": {"decoding_type": "MTP", "max_draft_len": 3, "use_dynamic_tree": True}}, "speculative_config.dynamic_tree_max_topK", "above 0"),
        (("1.3",), {"speculative_config": {"decoding_type": "MTP", "max_draft_len": 3, "max_total_draft_tokens": 20, "use_dynamic_tree": True, "dynamic_tree_max_topK": 4}}, "speculative_config.max_total_draft_tokens", "between 3 and 12"),
        (("1.3",), {"speculative_config": {"decoding_type": "NGram", "max_draft_len": 3, "use_rejection_sampling": True}}, "speculative_config.use_rejection_sampling", "NGram"),
        (("1.3",), {"kv_cache_config": {"dtype": "fp8_ds_mla", "enable_kv_pool_rebalance": True}}, "kv_cache_config.enable_kv_pool_rebalance", "fp8_ds_mla"),
        (("1.3",), {"kv_cache_config": {"disk_cache_size": 1024}}, "kv_cache_config.disk_cache_path", "needed"),
        (("1.3",), {"enable_mla_skip_correction": True, "attn_backend": "VANILLA"}, "enable_mla_skip_correction", "TRTLLM"),
        (("1.3",), {"torch_compile_config": {"enable_piecewise_cuda_graph": True}, "prefill_cuda_graph_backend": "breakable"}, "torch_compile_config", "excludes"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_path(versions, config, path, says):
    for version in versions:
        problems = dict(validate(config, version))
        assert path in problems, problems
        assert says in problems[path]


@pytest.mark.parametrize("value", [None, 5, "x", [], {}])
def test_a_section_of_any_kind_is_answered(value):
    for section in ("kv_cache_config", "speculative_config", "scheduler_config", "moe_config", "cuda_graph_config"):
        for version in VERSIONS:
            validate({section: value}, version)


def test_options_of_the_commands_are_known_by_version():
    assert "--served_model_name" in command_options("1.3", "trtllm-serve")
    assert "--served_model_name" not in command_options("1.2.1", "trtllm-serve")
    assert {"--config", "--extra_llm_api_options"} <= set(command_options("1.2.1", "trtllm-serve"))
    assert "--tp" in command_options("1.2.1", "trtllm-bench", "throughput")


@pytest.mark.skipif(not RECIPES.is_file(), reason="the recipes are not here")
def test_nvidia_s_tuned_files_pass_and_the_known_bad_ones_do_not():
    """878 tuned configurations; the upstream argument classes' own verdict on each stands beside it."""
    records = json.loads(RECIPES.read_text())["records"]
    assert len(records) == 878
    refused = dict.fromkeys(VERSIONS, 0)
    for record in records:
        for version in VERSIONS:
            problems = validate(record["config"], version)
            assert bool(problems) == bool(record["schema_errors"][UPSTREAM[version]]), (record["path"], version, problems)
            refused[version] += bool(problems)
            for error in record["schema_errors"][UPSTREAM[version]]:
                key = error.split(":")[0].split(".")[-1]
                assert any(key in path for path, _ in problems), (error, problems)
    assert refused == {"1.2.1": 41, "1.3": 48}
    curated = [r for r in records if r["source_repo"] == "NVIDIA/TensorRT-LLM" and r["schema_errors"]["1.2.1"]]
    assert len(curated) == 4
    for record in curated:
        for version in VERSIONS:
            [(path, message)] = validate(record["config"], version)
            assert path == "kv_cache_free_gpu_memory_fraction" and "kv_cache_config.free_gpu_memory_fraction" in message
