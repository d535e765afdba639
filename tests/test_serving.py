# ruff: noqa: E501 (tables of cases)
"""Serving files from hand-made plans: valid for the version, parsed back, and run by a real shell against a stand-in engine."""

import ast
import itertools
import json
import os
import shlex
import stat
import subprocess

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.errors import NotPossible
from advisor.executor.emitting import vllm
from advisor.executor.emitting.engine_schema import validate
from advisor.executor.emitting.serving import write_serving
from advisor.executor.emitting.settings import Setting, annotated, plain, yaml_text
from advisor.executor.emitting.site import site_of
from advisor.executor.emitting.trtllm import llm_options
from advisor.types import (
    Deployment,
    Engine,
    Estimate,
    Goal,
    Gpu,
    Lengths,
    Memory,
    Model,
    Moe,
    Plan,
    Profile,
    Quantized,
    Speculation,
    Step,
    Traffic,
)

ESTIMATE = Estimate(
    memory_gib=Memory(weights=8, kv_cache=20, activations=1, runtime=2, total=31, capacity=79),
    fits=True,
    max_concurrency=300,
    ttft_ms=41.0,
    itl_ms=7.2,
    output_tokens_per_s=4200.0,
    basis={"ttft_ms": "arithmetic", "itl_ms": "arithmetic", "output_tokens_per_s": "arithmetic"},
)
RULES = {"weights": "weights-slow-decode/fp8-weights", "kv_cache": "kv-cache-starves-batch/fp8-kv-cache"}


def plan(deployment=None, rules=None, **fields):
    deployment = deployment or Deployment(**fields)
    steps = [
        Step(rule=rule, changes={field: getattr(deployment, field)}, before=ESTIMATE, after=ESTIMATE, alone=ESTIMATE)
        for field, rule in (rules or {}).items()
    ]
    return Plan(
        goal=Goal(),
        feasible=True,
        verdict="",
        baseline_deployment=Deployment(),
        baseline=ESTIMATE,
        deployment=deployment,
        expected=ESTIMATE,
        steps=tuple(steps),
    )


def profile(
    *,
    name="meta-llama/Llama-3.1-8B-Instruct",
    version="1.2.1",
    engine="tensorrt-llm",
    count=8,
    isl=1000.0,
    concurrency=32.0,
    **model,
):
    lengths = {"p50": 900, "p90": 1800, "p99": 3000}
    return Profile(
        gpu=Gpu(id="h100-sxm-80gb", name="NVIDIA H100 80GB HBM3", count=count),
        model=Model(
            name=name,
            architecture="LlamaForCausalLM",
            layers=32,
            hidden=4096,
            intermediate=14336,
            vocab=128256,
            heads=32,
            kv_heads=8,
            head_dim=128,
            attention="gqa",
            attention_layers=32,
            mlp_layers=32,
            **model,
        ),
        traffic=Traffic(
            name="t",
            isl=Lengths(mean=isl, max=max(isl, 4000), **lengths),
            osl=Lengths(mean=200, max=1000, **lengths),
            concurrency=concurrency,
            lengths=((900, 100), (1100, 300)),
        ),
        engine=Engine(name=engine, version=version),
    )


MOE = Moe(experts=256, active=8, intermediate=2048, layers=58)
PLANS = {
    "the 8B in FP8": (plan(weights="fp8", kv_cache="fp8", rules=RULES), profile()),
    "as it is": (plan(), profile()),
    "everything set": (
        plan(
            weights="fp8",
            kv_cache="fp8",
            tensor_parallel=2,
            replicas=4,
            max_batch_size=256,
            max_num_tokens=4096,
            chunked_prefill=True,
            prefix_reuse=True,
            scheduler_policy="max_utilization",
            rules=RULES | {"prefix_reuse": "prompts-repeat/prefix-reuse", "scheduler_policy": "cache-idle/max-utilization"},
        ),
        profile(),
    ),
    "n-grams": (
        plan(speculation=Speculation(method="ngram", draft_len=4, max_concurrency=8), rules={"speculation": "single-stream-slow/ngram"}),
        profile(concurrency=1.0),
    ),
    "EAGLE-3": (plan(speculation=Speculation(method="eagle3", draft_len=3, draft_model="yuhuili/EAGLE3-LLaMA3.1-8B")), profile()),
    "a draft model": (plan(speculation=Speculation(method="draft", draft_model="meta-llama/Llama-3.2-1B")), profile()),
    "MoE": (
        plan(tensor_parallel=8, expert_parallel=8, attention_dp=True, max_batch_size=1024, kv_cache="fp8", weights="fp8_block",
             speculation=Speculation(method="mtp", draft_len=1)),
        profile(name="deepseek-ai/DeepSeek-R1", moe=MOE, quantized=Quantized(weights="fp8_block", method="fp8")),
    ),
    "over nodes": (plan(tensor_parallel=8, pipeline_parallel=2, replicas=2), profile(count=32)),
    "no graphs": (plan(cuda_graphs=False), profile()),
    "static": (plan(batching="static", max_batch_size=8), profile()),
    "as many as fit": (plan(weights="int4_awq"), profile(concurrency=None)),
}  # fmt: skip


def cases():
    return [(name, version) for name in PLANS for version in ("1.2.1", "1.3.0rc27")]


def of(name, version):
    made, given_profile = PLANS[name]
    return made, given_profile.model_copy(update={"engine": Engine(version=version)})


@pytest.mark.parametrize(("name", "version"), cases())
def test_the_yaml_is_valid_and_comes_back_as_it_was_meant(name, version):
    made, given_profile = of(name, version)
    text = write_serving(made, given_profile)["trtllm.yaml"]
    config = yaml.safe_load(text)
    assert config == plain(llm_options(made, given_profile))
    assert validate(config, version) == []
    assert config["tensor_parallel_size"] == made.deployment.tensor_parallel
    assert config["pipeline_parallel_size"] == made.deployment.pipeline_parallel
    for line in text.splitlines():
        assert line.startswith("#") or line.endswith(":") or "  # " in line, f"no reason: {line}"


@pytest.mark.parametrize(("name", "version"), cases())
def test_the_same_plan_gives_the_same_files(name, version):
    assert write_serving(*of(name, version)) == write_serving(*of(name, version))


@pytest.mark.parametrize(("name", "version"), cases())
def test_scripts_snippets_and_manifests_are_well_formed(name, version):
    made, given_profile = of(name, version)
    files = write_serving(made, given_profile)
    for file, text in files.items():
        if file.endswith(".sh"):
            subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        elif file.endswith(".py"):
            ast.parse(text)
        else:
            documents = list(yaml.safe_load_all(text))
            assert all(document for document in documents)
    kinds = [document["kind"] for document in yaml.safe_load_all(files["kubernetes.yaml"])]
    spans = name == "over nodes"
    assert kinds == ["ConfigMap", "LeaderWorkerSet" if spans else "Deployment", "Service"]
    for manifest in ("kubernetes.yaml", "dynamo.yaml"):
        config_map = next(d for d in yaml.safe_load_all(files[manifest]) if d["kind"] == "ConfigMap")
        assert config_map["data"]["trtllm.yaml"] == files["trtllm.yaml"]
    assert ("serve.sh" in files) is not spans


def test_each_value_names_its_rule():
    text = write_serving(*PLANS["everything set"])["trtllm.yaml"]
    assert "  dtype: fp8  # kv-cache-starves-batch/fp8-kv-cache\n" in text
    assert "  enable_block_reuse: true  # prompts-repeat/prefix-reuse\n" in text
    assert "  capacity_scheduler_policy: MAX_UTILIZATION  # cache-idle/max-utilization; batching is in-flight\n" in text
    assert "tensor_parallel_size: 2  # plan\n" in text
    assert "pipeline_parallel_size: 1  # engine default\n" in text
    assert "  max_batch_size: 256  #" in text and "max_batch_size: 256  # plan\n" in text


def test_no_key_sets_the_format_of_weights_and_the_checkpoint_is_named():
    text = write_serving(*PLANS["the 8B in FP8"])["trtllm.yaml"]
    assert "quant" not in yaml.safe_dump(yaml.safe_load(text))
    assert "# weights: meta-llama/Llama-3.1-8B-Instruct in fp8: made by `advise apply` into checkpoint/" in text
    assert "the checkpoint as it is (fp8_block)" in write_serving(*PLANS["MoE"])["trtllm.yaml"]
    assert site_of(*PLANS["MoE"]).model == "deepseek-ai/DeepSeek-R1"
    made = write_serving(plan(kv_cache="fp8"), profile(), made=True)[
        "serve.sh"
    ]  # the scales of its cache are in the checkpoint
    assert "exec trtllm-serve ./checkpoint " in made
    assert "exec trtllm-serve meta-llama/Llama-3.1-8B-Instruct " in write_serving(plan(kv_cache="fp8"), profile())["serve.sh"]


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        (
            "n-grams",
            "1.2.1",
            {
                "decoding_type": "NGram",
                "max_draft_len": 4,
                "max_matching_ngram_size": 2,
                "is_public_pool": False,
                "max_concurrency": 8,
            },
        ),
        ("EAGLE-3", "1.2.1", {"decoding_type": "Eagle", "max_draft_len": 3, "speculative_model": "yuhuili/EAGLE3-LLaMA3.1-8B"}),
        ("EAGLE-3", "1.3", {"decoding_type": "Eagle3", "max_draft_len": 3, "speculative_model": "yuhuili/EAGLE3-LLaMA3.1-8B"}),
        (
            "a draft model",
            "1.2.1",
            {"decoding_type": "DraftTarget", "max_draft_len": 3, "speculative_model": "meta-llama/Llama-3.2-1B"},
        ),
        (
            "a draft model",
            "1.3",
            {"decoding_type": "Draft_Target", "max_draft_len": 3, "speculative_model": "meta-llama/Llama-3.2-1B"},
        ),
        ("MoE", "1.2.1", {"decoding_type": "MTP", "max_draft_len": 1, "num_nextn_predict_layers": 1}),
    ],
)
def test_speculation_goes_by_its_name_in_the_version(name, version, expected):
    assert yaml.safe_load(write_serving(*of(name, version))["trtllm.yaml"])["speculative_config"] == expected


def test_the_batch_of_attention_dp_is_per_rank():
    config = yaml.safe_load(write_serving(*PLANS["MoE"])["trtllm.yaml"])
    assert config["enable_attention_dp"] is True and config["moe_expert_parallel_size"] == 8
    assert config["max_batch_size"] == 128 and config["cuda_graph_config"]["max_batch_size"] == 128


def test_other_values():
    assert yaml.safe_load(write_serving(*PLANS["no graphs"])["trtllm.yaml"])["cuda_graph_config"] is None
    static = yaml.safe_load(write_serving(*PLANS["static"])["trtllm.yaml"])
    assert static["scheduler_config"]["capacity_scheduler_policy"] == "STATIC_BATCH"
    assert yaml.safe_load(write_serving(*PLANS["as it is"])["trtllm.yaml"])["kv_cache_config"]["dtype"] == "auto"


@pytest.mark.parametrize(
    ("running", "dp", "largest"), [(100.0, False, None), (300.0, False, 512), (9000.0, False, 2048), (2000.0, True, 256)]
)
def test_graphs_reach_up_to_the_requests_in_flight(running, dp, largest):
    made = plan(tensor_parallel=8, attention_dp=dp)
    made = made.model_copy(update={"expected": ESTIMATE.model_copy(update={"concurrency": running})})
    config = yaml.safe_load(write_serving(made, profile())["trtllm.yaml"])
    assert config["cuda_graph_config"].get("max_batch_size") == largest


def test_prompts_longer_than_a_step_are_warned_of():
    made, given_profile = plan(), profile(isl=20_000.0)
    assert "careful: prompts of more than 8,192 tokens" in write_serving(made, given_profile)["trtllm.yaml"]
    chunked = plan(chunked_prefill=True)
    assert "careful" not in write_serving(chunked, given_profile)["trtllm.yaml"]


def test_prompts_are_held_back_only_where_the_plan_says_so():
    held = yaml.safe_load(write_serving(plan(batch_wait_steps=20, batch_wait_fill=0.9), profile())["trtllm.yaml"])
    assert (held["batch_wait_timeout_iters"], held["batch_wait_max_tokens_ratio"]) == (20, 0.9)
    assert "batch_wait" not in write_serving(plan(), profile())["trtllm.yaml"]


@pytest.mark.parametrize(
    ("fields", "model", "says"),
    [
        ({"kv_cache": "int8"}, {}, "no INT8 KV cache"),
        ({"kv_cache": "bf16", "weights": "fp8"}, {"quantized": Quantized(weights="fp8", method="modelopt", kv_cache="fp8")}, "the checkpoint's KV cache is fp8"),
        ({"speculation": Speculation(method="eagle3")}, {}, "needs a draft model"),
        ({"speculation": Speculation(method="mtp"), "pipeline_parallel": 2}, {}, "does not run mtp with pipeline"),
        ({"tensor_parallel": 3, "pipeline_parallel": 5}, {}, "do not divide over 2 nodes"),
    ],
)  # fmt: skip
def test_what_the_engine_does_not_have_is_refused(fields, model, says):
    with pytest.raises(NotPossible, match=says) as caught:
        write_serving(plan(**fields), profile(**model))
    assert caught.value.hint


def test_an_unknown_version_is_refused():
    with pytest.raises(NotPossible, match=r"TensorRT-LLM 0\.9"):
        write_serving(plan(), profile(version="0.9"))


# ---------------------------------------------------------------- run by a real shell


def engine_stand_in(folder, name):
    """A command that writes down how it was called."""
    path = folder / name
    path.write_text(
        "#!/usr/bin/env python3\nimport json, os, sys\n"
        f"print(json.dumps([sys.argv[1:], os.environ.get('CUDA_VISIBLE_DEVICES')]), file=open({str(folder / 'calls')!r}, 'a'), flush=True)\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def calls_of(folder, file, text, *commands, **environment):
    for command in commands:
        engine_stand_in(folder, command)
    (folder / file).write_text(text)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", str(folder / file)], env={"PATH": path} | environment, check=True, timeout=30)
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


NASTY = '/models/it\'s $(touch /tmp/never) `x` "q"; rm -rf\nnext'


@pytest.mark.parametrize("folder", ["/models/plain", NASTY, "relative", "-rf"])
def test_the_model_reaches_the_server_as_one_argument(tmp_path, folder):
    made, given_profile = plan(), profile(folder=folder)
    files = write_serving(made, given_profile)
    expected = folder if folder.startswith("/") else "./" + folder
    [[arguments, _]] = calls_of(tmp_path, "serve.sh", files["serve.sh"], "trtllm-serve")
    assert arguments == [expected, "--host", "127.0.0.1", "--port", "8000", "--config", "trtllm.yaml"]
    assert yaml.safe_load(files["trtllm.yaml"]) and list(yaml.safe_load_all(files["kubernetes.yaml"]))
    ast.parse(files["llm_api.py"])


def test_host_and_port_may_be_set_outside(tmp_path):
    text = write_serving(*PLANS["as it is"])["serve.sh"]
    [[arguments, _]] = calls_of(tmp_path, "serve.sh", text, "trtllm-serve", HOST="0.0.0.0", PORT="9000")
    assert arguments[1:5] == ["--host", "0.0.0.0", "--port", "9000"]


def test_replicas_get_their_own_gpus_and_ports(tmp_path):
    text = write_serving(*PLANS["everything set"])["serve.sh"].replace("wait -n\n", "wait\n")
    calls = sorted(calls_of(tmp_path, "serve.sh", text, "trtllm-serve"), key=lambda call: call[1])
    assert [gpus for _, gpus in calls] == ["0,1", "2,3", "4,5", "6,7"]
    assert [arguments[4] for arguments, _ in calls] == ["8000", "8001", "8002", "8003"]


def test_the_benchmark_uses_the_profile_s_lengths(tmp_path):
    text = write_serving(*PLANS["everything set"])["bench.sh"]
    made, ran = (call[0] for call in calls_of(tmp_path, "bench.sh", text, "trtllm-bench"))
    assert made[made.index("prepare-dataset") :] == shlex.split(
        "prepare-dataset --output dataset.jsonl token-norm-dist --num-requests 80 --input-mean 1000 --input-stdev 100"
        " --output-mean 200 --output-stdev 100"
    )
    assert ran[:4] == ["--model", "meta-llama/Llama-3.1-8B-Instruct", "--model_path", "./checkpoint"]
    assert (
        "--tp 2" in " ".join(ran)
        and "--concurrency 8" in " ".join(ran)
        and "--extra_llm_api_options trtllm.yaml" in " ".join(ran)
    )


def test_the_snippet_passes_the_arguments_of_the_yaml():
    for name, version in cases():
        files = write_serving(*of(name, version))
        if "llm_api.py" not in files:
            continue
        config = yaml.safe_load(files["trtllm.yaml"])
        call = next(
            node for node in ast.walk(ast.parse(files["llm_api.py"])) if isinstance(node, ast.Call) and node.func.id == "LLM"
        )
        passed = {keyword.arg: keyword.value for keyword in call.keywords}
        assert set(passed) - {"model"} == set(config)
        for key, node in passed.items():
            if isinstance(node, ast.Call):
                fields = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
                assert fields == {field: value for field, value in config[key].items() if field != "decoding_type"}
            elif key != "model":
                assert ast.literal_eval(node) == config[key]


def test_slurm_starts_a_rank_a_gpu(tmp_path):
    text = write_serving(*PLANS["over nodes"])["slurm.sh"]
    for line in ("--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--array=0-1"):
        assert f"#SBATCH {line}\n" in text
    [[arguments, _]] = calls_of(tmp_path, "slurm.sh", text, "srun", SLURM_SUBMIT_DIR=str(tmp_path))
    assert arguments[:3] == ["--mpi=pmix", "trtllm-llmapi-launch", "trtllm-serve"]
    (tmp_path / "calls").unlink()
    [[arguments, _]] = calls_of(tmp_path, "slurm.sh", text, "srun", SLURM_SUBMIT_DIR=str(tmp_path), CONTAINER="an image")
    assert arguments[1] == "--container-image=an image"


def test_a_leader_starts_all_ranks_on_all_nodes(tmp_path):
    documents = list(yaml.safe_load_all(write_serving(*PLANS["over nodes"])["kubernetes.yaml"]))
    template = documents[1]["spec"]["leaderWorkerTemplate"]
    assert documents[1]["spec"]["replicas"] == 2 and template["size"] == 2
    leader = template["leaderTemplate"]["spec"]["containers"][0]
    assert leader["resources"]["limits"]["nvidia.com/gpu"] == 8
    script = (
        leader["command"][2]
        .replace("$$(", "$(")
        .replace("until timeout", "until true || timeout")
        .replace("install -m", "true -m")
    )
    engine_stand_in(tmp_path, "mpirun")
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "LWS_LEADER_ADDRESS": "m-0.m.ns"}
    subprocess.run(["bash", "-c", script, *leader["command"][3:]], env=environment, check=True, timeout=30)
    [arguments, _] = json.loads((tmp_path / "calls").read_text())
    text = " ".join(arguments)
    assert "-n 16 -H m-0.m.ns:8,m-0-1.m.ns:8" in text
    assert text.endswith(
        "trtllm-llmapi-launch trtllm-serve meta-llama/Llama-3.1-8B-Instruct --host 0.0.0.0 --port 8000"
        " --config /etc/serving/trtllm.yaml"
    )
    worker = template["workerTemplate"]["spec"]["containers"][0]
    subprocess.run(["bash", "-n"], input=worker["command"][2], text=True, check=True)
    service = documents[2]["spec"]["selector"]
    assert service["role"] == template["leaderTemplate"]["metadata"]["labels"]["role"]


def test_a_made_checkpoint_is_mounted():
    documents = list(yaml.safe_load_all(write_serving(*PLANS["the 8B in FP8"])["kubernetes.yaml"]))
    pod = documents[1]["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"][1] == "/models/checkpoint"
    claim = next(volume for volume in pod["volumes"] if volume["name"] == "models")["persistentVolumeClaim"]["claimName"]
    assert claim == "meta-llama-llama-3-1-8b-instruct"


def test_kubernetes_replaces_nothing_in_the_arguments():
    files = write_serving(plan(), profile(name="x/$(HOME)", version="1.3"))
    for manifest in ("kubernetes.yaml", "dynamo.yaml"):
        assert "x/$$(HOME)" in files[manifest] and '"x/$(HOME)"' not in files[manifest]


@pytest.mark.parametrize("name", ["8B", "Ünï/…", "a" * 200, "--", "x" * 39 + "-y"])
def test_names_suit_kubernetes(name):
    slug = site_of(plan(), profile(name=name)).slug
    assert len(slug) <= 40 and slug[0].isalpha() and slug[-1].isalnum() and slug.replace("-", "").isalnum() and slug.isascii()


# ---------------------------------------------------------------- vLLM


def test_vllm_switches_speculation_off_by_its_schedule_where_it_has_one():
    speculation = Speculation(method="ngram", draft_len=4, max_concurrency=16)

    def config(version, **more):
        made = plan(speculation=speculation, **more)
        asked = profile(engine="vllm", version=version)
        words = [word for group in vllm.serve_arguments(made, asked, site_of(made, asked)) for word in group]
        return json.loads(words[words.index("--speculative-config") + 1]).get("num_speculative_tokens_per_batch_size")

    assert config("0.32.0") == config("0.24.0") == [[1, 16, 4], [17, 17, 0]]  # what follows the last range keeps its 0
    assert config("0.32.0", replicas=2) == [[1, 8, 4], [9, 9, 0]]  # a server is one replica
    assert config("0.23.1") is None and config("0.32.0", attention_dp=True, tensor_parallel=2) is None


def test_tensorrt_llm_switches_it_off_at_each_replica_s_share():
    made = plan(speculation=Speculation(method="ngram", draft_len=4, max_concurrency=16), replicas=2)
    assert yaml.safe_load(write_serving(made, profile())["trtllm.yaml"])["speculative_config"]["max_concurrency"] == 8


def test_vllm_s_command(tmp_path):
    given_profile = profile(engine="vllm", version="0.11.0")
    made = plan(
        weights="fp8",
        kv_cache="fp8",
        tensor_parallel=2,
        max_batch_size=64,
        max_num_tokens=4096,
        prefix_reuse=True,
        scheduler_policy="max_utilization",
        speculation=Speculation(method="ngram", draft_len=4, max_concurrency=8),
        rules=RULES | {"prefix_reuse": "prompts-repeat/prefix-reuse"},
    )
    files = write_serving(made, given_profile)
    assert set(files) == {"serve.sh", "kubernetes.yaml"}
    [[arguments, _]] = calls_of(tmp_path, "serve.sh", files["serve.sh"], "vllm")
    assert arguments[:2] == ["serve", "./checkpoint"]
    options = dict(itertools.pairwise(arguments))
    assert (
        options["--tensor-parallel-size"] == "2" and options["--kv-cache-dtype"] == "fp8" and options["--max-num-seqs"] == "64"
    )
    assert "--enable-prefix-caching" in arguments
    assert json.loads(options["--speculative-config"]) == {
        "method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 4
    }  # fmt: skip
    assert "# --kv-cache-dtype: kv-cache-starves-batch/fp8-kv-cache\n" in files["serve.sh"]
    assert "not checked against an argument schema" in files["serve.sh"] and "not switched off above 8" in files["serve.sh"]
    assert "max_utilization has no option" in files["serve.sh"]
    kinds = [document["kind"] for document in yaml.safe_load_all(files["kubernetes.yaml"])]
    assert kinds == ["Deployment", "Service"]


@pytest.mark.parametrize(
    ("rate", "replicas", "attention_dp", "front_ends"),
    [(6000, 1, False, None), (8400, 1, False, "4"), (16800, 2, False, "4"), (99000, 1, False, "8"), (8400, 1, True, None)],
)
def test_vllm_gets_as_many_api_servers_as_its_tokens_want(rate, replicas, attention_dp, front_ends):
    made = plan(replicas=replicas, attention_dp=attention_dp)
    made = made.model_copy(update={"expected": ESTIMATE.model_copy(update={"output_tokens_per_s": float(rate)})})
    asked = profile(engine="vllm", version="0.32.0")
    options = dict(group for group in vllm.serve_arguments(made, asked, site_of(made, asked)) if len(group) == 2)
    assert options.get("--api-server-count") == front_ends


@pytest.mark.parametrize(("engine", "version"), [("vllm", "0.32.0"), ("tensorrt-llm", "1.3.0")])
def test_a_draft_in_a_folder_is_mounted_into_the_pod(engine, version):
    made = plan(speculation=Speculation(method="draft", draft_len=3, draft_model="/home/me/draft"))
    files = write_serving(made, profile(engine=engine, version=version))
    assert "/home/me/draft" in files["serve.sh"] + files.get("trtllm.yaml", "")
    text = files["kubernetes.yaml"]
    assert "/home/me" not in text and "/models/draft" in text and "the draft model in its folder draft" in text
    [deployment] = [document for document in yaml.safe_load_all(text) if document["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    assert "/models" in {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert any("persistentVolumeClaim" in volume for volume in pod["volumes"])


def test_attention_dp_is_data_parallelism_there():
    made, _ = PLANS["MoE"]
    text = write_serving(made, profile(engine="vllm", version="0.11.0", moe=MOE))["serve.sh"]
    assert "--data-parallel-size 8 --tensor-parallel-size 1 --enable-expert-parallel --max-num-seqs 128" in text


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kv_cache": "nvfp4"}, "no nvfp4 KV cache"),
        ({"batching": "static"}, "batches in flight"),
        ({"tensor_parallel": 16}, "over 2 nodes"),
        ({"speculation": Speculation(method="draft")}, "needs a draft model"),
    ],
)
def test_what_vllm_does_not_have_is_refused(fields, says):
    with pytest.raises(NotPossible, match=says):
        write_serving(plan(**fields), profile(engine="vllm", version="0.11.0"))


# ---------------------------------------------------------------- YAML


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30)
DATA = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=12
)


@given(st.dictionaries(st.text(max_size=8), DATA, max_size=4) | st.lists(DATA, max_size=4))
@settings(max_examples=100, deadline=None)
def test_yaml_comes_back_as_it_was(data):
    assert yaml.safe_load(yaml_text(data)) == data


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.tuples(DATA, st.text(max_size=30)), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_no_comment_can_become_a_value(entries):
    section = {key: Setting(value, why) for key, (value, why) in entries.items()}
    assert yaml.safe_load(annotated(section)) == plain(section)


@pytest.mark.parametrize("text", ["a\nb\n", " a\nb\n", "a\n\n", "#!x\n  y\nz", "a \nb\n", "\n", "a\n\n\nb\n", "- x\n- y\n", "yes", "~", "1e3", "0x1f", "1_000", "=", "<<"])  # fmt: skip
def test_texts_that_yaml_takes_otherwise(text):
    assert yaml.safe_load(yaml_text({"k": text, "l": [text, {"m": text}]})) == {"k": text, "l": [text, {"m": text}]}
