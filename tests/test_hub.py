"""The hub: the real huggingface_hub client against a local server that speaks its API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub, serving
from safetensors_files import LLAMA, llama_tensors, write_safetensors, write_shards

from advisor.errors import FileProblem, MissingExtra, ModelProblem
from advisor.profiler import hub as hub_module
from advisor.profiler.model import read_model

pytest.importorskip("huggingface_hub")
ROOT = Path(__file__).parents[1]
BIG = llama_tensors() | {"model.extra.weight": ("BF16", [3000, 1000])}
"""6 MB of weights, so that fetching them would show"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    write_safetensors(tmp_path / "one.safetensors", BIG)
    names = write_shards(tmp_path / "shards", BIG, 3)
    config = json.dumps(LLAMA).encode()
    shards = {name: (tmp_path / "shards" / name).read_bytes() for name in [*names, "model.safetensors.index.json"]}
    record = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    files = {
        "acme/tiny": {"config.json": config, "model.safetensors": (tmp_path / "one.safetensors").read_bytes()},
        "acme/sharded": {"config.json": config, **shards},
        "acme/quantized": {"config.json": config, "hf_quant_config.json": json.dumps(record).encode()},
        "acme/gguf": {"model.Q4_K_M.gguf": b"GGUF"},
        "acme/gated": {"config.json": config},
        "acme/garbage": {"config.json": b"{nonsense"},
        "acme/encoder": {"config.json": b'{"model_type": "bert", "hidden_size": 768}'},
    }
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving(Hub(files=files, gated={"acme/gated"}, token="hf_secret")) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.mark.parametrize("repository", ["acme/tiny", "acme/sharded"])
def test_sizes_come_from_config_and_headers_and_no_weights_are_fetched(hub: Hub, repository: str) -> None:
    model, sources = read_model(repository)
    assert model.name == repository
    assert (model.layers, model.params) == (2, 86848 + 3_000_000)
    assert model.weight_bytes == 2 * (86848 + 3_000_000)
    assert sources["model.layers"] == "hub"
    assert sources["model.weight_bytes"] == "safetensors"
    assert hub.sent < 500_000
    assert {method for method, _ in hub.requests} <= {"GET", "HEAD"}
    asked = {path.rsplit("/", 1)[1] for method, path in hub.requests if "/resolve/" in path}
    assert not any(name.endswith((".bin", ".py", ".gguf")) for name in asked)


def test_a_quantization_record_is_fetched_beside_the_configuration(hub: Hub) -> None:
    model, sources = read_model("acme/quantized")
    assert model.quantized is not None
    assert (model.quantized.weights, model.quantized.kv_cache) == ("fp8", "fp8")
    assert sources["model.quantized"] == "hf_quant_config.json"
    assert any("no safetensors" in note for note in model.notes)


def test_the_second_reading_comes_from_the_cache_even_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    read_model("acme/sharded")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = len(hub.requests)
    model, _ = read_model("acme/sharded")
    assert len(hub.requests) == before
    assert model.params == 86848
    assert any("Offline" in note for note in model.notes)


def test_weights_that_are_in_the_cache_are_read_there(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    snapshot = tmp_path / "cache" / "models--acme--tiny" / "snapshots" / COMMIT
    read_model("acme/tiny")
    (snapshot / "model.safetensors").write_bytes(hub.files["acme/tiny"]["model.safetensors"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert read_model("acme/tiny")[0].params == 86848 + 3_000_000


def fails(repository: str, what: str, hint: str) -> None:
    with pytest.raises(ModelProblem) as caught:
        read_model(repository)
    assert what in caught.value.what, str(caught.value)
    assert hint in caught.value.hint, str(caught.value)
    assert repository in caught.value.where


def test_gated_without_a_token(hub: Hub) -> None:
    fails("acme/gated", "gated", "HF_TOKEN")


def test_gated_with_the_wrong_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    fails("acme/gated", "gated", "accept the licence")


def test_gated_with_the_right_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert read_model("acme/gated")[0].layers == 2


def test_no_such_repository(hub: Hub) -> None:
    fails("acme/nothing", "no such model", "check the name")


def test_a_typo_in_a_known_id_is_offered_when_the_hub_has_nothing(hub: Hub) -> None:
    fails("meta-llama/Llama-3.1-9B", "no such model", "did you mean meta-llama/Llama-3.1-8B")
    fails("someone/Qwen3-32B", "no such model", "did you mean Qwen/Qwen3-32B")


def test_a_repository_without_config_json(hub: Hub) -> None:
    fails("acme/gguf", "no config.json", "original model")


def test_offline_and_not_in_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fails("acme/tiny", "HF_HUB_OFFLINE", "config.json")
    assert hub.requests == []


@pytest.mark.parametrize("status", [403, 500])
def test_other_refusals_carry_their_status(hub: Hub, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.status = status
    fails("acme/tiny", str(status), "config.json")


def test_a_server_that_is_not_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    fails("acme/tiny", "cannot be reached", "check the network")


def test_a_server_that_does_not_answer_is_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "REQUEST_SECONDS", 0.3)
    hub.delay = 5
    begun = time.monotonic()
    fails("acme/tiny", "in time", "try again")
    assert time.monotonic() - begun < 4


def test_headers_that_take_too_long_leave_sizes_by_arithmetic(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "HEADER_SECONDS", 0.0)
    model, _ = read_model("acme/sharded")
    assert (model.params, model.weight_bytes) == (86848, None)
    assert any("in time" in note for note in model.notes)


def test_a_shard_that_is_missing_or_garbage_leaves_sizes_by_arithmetic(hub: Hub) -> None:
    name = next(name for name in hub.files["acme/sharded"] if "00002" in name)
    for content in (None, b"\xff" * 4096):
        if content is None:
            kept = hub.files["acme/sharded"].pop(name)
        else:
            hub.files["acme/sharded"][name] = content
        model, _ = read_model("acme/sharded")
        assert (model.params, model.weight_bytes) == (86848, None)
        assert model.notes
        hub.files["acme/sharded"][name] = kept


def test_a_giant_config_is_refused_before_it_is_fetched(hub: Hub) -> None:
    hub.files["acme/tiny"]["config.json"] = b" " * (9 * 2**20)
    with pytest.raises(FileProblem, match="9 MiB"):
        read_model("acme/tiny")
    assert hub.sent < 100_000


def test_what_the_files_hold_is_checked_as_in_a_folder(hub: Hub) -> None:
    with pytest.raises(FileProblem, match="not valid JSON"):
        read_model("acme/garbage")
    fails("acme/encoder", "an encoder", "decoder")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra) as caught:
        read_model("acme/tiny")
    assert "pip install 'inference-advisor[hub]'" in caught.value.hint


@pytest.mark.slow
def test_a_fresh_process_honours_the_environment(hub: Hub, tmp_path: Path) -> None:
    code = "from advisor.profiler.model import read_model; print(read_model('acme/tiny')[0].params)"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "3086848", done.stderr
    offline = {**environment, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    done = subprocess.run([sys.executable, "-c", code], env=offline, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "HF_HUB_OFFLINE is set" in done.stderr


def test_known_names_never_import_the_library() -> None:
    code = (
        "import sys; from advisor.profiler.model import read_model; read_model('llama-3.1-8b');"
        "print(sorted({'huggingface_hub', 'httpx', 'httpx2', 'requests', 'numpy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
