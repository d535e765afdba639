"""The GPU profiler: profiles/gpus against the facts, names, and recorded NVML machines replayed through the real path."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from nvml_replay import RECORDINGS, replay

from advisor import library
from advisor.errors import AdvisorError, GpuProblem, MissingExtra, UnknownName
from advisor.profiler import catalogue
from advisor.profiler.gpu import NVLINK_GB_S, PCIE_GB_S_PER_LANE, find_gpu, gpu_names, read_gpus

TRUTH = Path(__file__).parents[1].parent / "shared" / "facts" / "truth" / "gpus.json"
RESULTS = {
    "h200-sxm-141gb": Path(__file__).parents[1] / "benchmarks" / "gpu" / "results" / "h200-2026-11-23.json",
    "h100-sxm-80gb": Path(__file__).parents[1] / "benchmarks" / "gpu" / "results" / "h100-2026-11-28.json",
}
"""GPU -> what benchmarks/gpu/measure.py brought back from a real one"""
needs_truth = pytest.mark.skipif(not TRUTH.is_file(), reason="the collected facts are not beside this checkout")


def facts_of(identity: str) -> dict[str, Any]:
    facts = library.profile("gpus", identity)
    assert facts is not None
    return dict(facts)


# ---------------------------------------------------------------- profiles/gpus


@needs_truth
def test_every_gpu_of_the_facts_has_a_profile_and_no_other() -> None:
    assert set(gpu_names()) == {gpu["id"] for gpu in json.loads(TRUTH.read_text())}


@needs_truth
@pytest.mark.parametrize("identity", gpu_names())
def test_a_profile_agrees_with_the_facts(identity: str) -> None:
    truth = next(gpu for gpu in json.loads(TRUTH.read_text()) if gpu["id"] == identity)
    ours = facts_of(identity)
    assert ours["sm"] == truth["sm_version"]
    assert truth["arch"].startswith(ours["architecture"])
    assert ours["memory_gb"] == truth["memory_gb"]
    assert ours["bandwidth_gb_s"] == truth["memory_bandwidth_gb_s"]
    assert ours["tflops"] == truth["tflops_dense"]
    assert ours["tdp_w"] == truth["tdp_w"]
    assert ours["pcie"] == {"gen": truth["pcie_gen"], "lanes": truth["pcie_lanes"], "gb_s": truth["pcie_gb_s_per_direction"]}
    if ours["link"] == "nvlink":
        assert ours["link_gb_s"] == truth["nvlink_gb_s_per_direction_per_gpu"]
    assert set(truth.get("discrepancies", [])) <= set(ours["discrepancies"])


@pytest.mark.parametrize("identity", gpu_names())
def test_a_profile_makes_sense_by_itself(identity: str) -> None:
    facts = facts_of(identity)
    rates = facts["tflops"]
    assert facts["architecture"] in ("Volta", "Turing", "Ampere", "Ada", "Hopper", "Blackwell")
    assert (rates["bf16"] is None) == (facts["sm"] < 80), "bf16 came with Ampere"
    assert (rates["fp8"] is None) == (facts["sm"] < 89), "fp8 came with Ada"
    assert (rates["fp4"] is None) == (facts["sm"] < 100), "fp4 came with Blackwell"
    if rates["fp8"]:
        assert 1.99 <= rates["fp8"] / rates["fp16"] <= 2.03
    assert 0.9 <= facts["memory_gib"] * 2**30 / (facts["memory_gb"] * 1e9) <= 1.08
    if facts["nvml_total_mib"]:
        assert facts["memory_gib"] == round(facts["nvml_total_mib"] / 1024, 2)
    assert facts["link"] in ("nvlink", "pcie", "c2c")
    if facts["link"] == "pcie":
        assert facts["link_gb_s"] == facts["pcie"]["gb_s"]
    if facts["link"] == "nvlink":
        assert facts["link_gb_s"] % NVLINK_GB_S[facts["sm"]] == 0, "a whole number of links"
    assert facts["pcie"]["gb_s"] == facts["pcie"]["lanes"] * PCIE_GB_S_PER_LANE[facts["pcie"]["gen"]]
    assert facts["sources"]["memory_gib"] and facts["sources"]["all_else"]


def test_every_name_points_to_a_profile_and_every_nvml_name_and_alias_is_found() -> None:
    names = library.profile("gpus", "_names")
    assert names is not None
    assert {*names["exact"].values(), *names["short"].values()} <= set(gpu_names())
    for identity in gpu_names():
        facts = facts_of(identity)
        for name in (identity, facts["name"], *facts["nvml_names"], *facts["aliases"]):
            assert find_gpu(name)[0].id == identity, name


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        ("h100", "h100-sxm-80gb"),
        ("H100 SXM", "h100-sxm-80gb"),
        ("H100_SXM", "h100-sxm-80gb"),
        ("h100-sxm5", "h100-sxm-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm-80gb"),
        ("h100-pcie", "h100-pcie-80gb"),
        ("H100 NVL", "h100-nvl-94gb"),
        ("a100", "a100-sxm-80gb"),
        ("a100-40gb", "a100-sxm-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("NVIDIA H200", "h200-sxm-141gb"),
        ("l40s", "l40s"),
        ("b200", "b200"),
        ("4090", "rtx-4090"),
        ("RTX4090", "rtx-4090"),
        ("rtx 5090", "rtx-5090"),
        ("GeForce RTX 3090", "rtx-3090"),
        ("gh200", "gh200-96gb"),
        ("t4", "t4"),
        ("Tesla T4", "t4"),
        ("dgx spark", "dgx-spark-gb10"),
    ],
)
def test_usual_names_resolve(name: str, identity: str) -> None:
    assert find_gpu(name)[0].id == identity


def test_a_name_that_leaves_something_open_says_what_it_was_taken_for() -> None:
    gpu, sources = find_gpu("h100")
    assert gpu.notes[0] == "h100 taken as h100-sxm-80gb, not h100-nvl-94gb or h100-pcie-80gb"
    assert sources["gpu.id"] == "flag --gpu h100"
    assert not any("taken as" in note for note in find_gpu("h100-sxm-80gb")[0].notes)


@pytest.mark.parametrize(("typo", "meant"), [("h10O", "h100"), ("h1000", "h100"), ("rtx-4009", "rtx-4090"), ("l40z", "l40s")])
def test_a_typo_gets_the_nearest_names(typo: str, meant: str) -> None:
    with pytest.raises(UnknownName) as caught:
        find_gpu(typo)
    assert meant in caught.value.near
    assert "did you mean" in caught.value.hint


@pytest.mark.parametrize("name", ["", "   ", "quantum", "💥"])
def test_a_name_near_nothing_gets_the_whole_list(name: str) -> None:
    with pytest.raises(UnknownName) as caught:
        find_gpu(name)
    assert "h100-sxm-80gb" in caught.value.hint


@pytest.mark.parametrize("count", [0, -1])
def test_fewer_than_one_gpu_is_refused(count: int) -> None:
    with pytest.raises(GpuProblem) as caught:
        find_gpu("h100", count)
    assert f"--gpus {count}" in caught.value.where


def test_every_fact_of_a_named_gpu_has_its_source() -> None:
    gpu, sources = find_gpu("h100-sxm-80gb", 4)
    assert sources["gpu.bandwidth_gb_s"] == "profiles/gpus/h100-sxm-80gb.yaml"
    assert sources["gpu.count"] == "flag --gpus"
    set_facts = {name for name, value in gpu if value not in (None, (), "") and name != "notes"}
    assert {f"gpu.{name}" for name in set_facts} == set(sources)


def test_bridged_cards_beyond_the_reach_of_nvlink_are_planned_over_pcie() -> None:
    assert find_gpu("h100-nvl-94gb", 2)[0].link == "nvlink"
    four = find_gpu("h100-nvl-94gb", 4)[0]
    assert (four.link, four.link_gb_s) == ("pcie", 63)
    assert any("at most 2" in note for note in four.notes)


def test_more_gpus_than_a_node_holds_are_said() -> None:
    assert any("more than the 8 of one node" in note for note in find_gpu("h100", 16)[0].notes)


# ---------------------------------------------------------------- NVML, replayed


@pytest.mark.parametrize("name", sorted(path.stem for path in RECORDINGS.glob("*.json")))
def test_every_recording_ends_in_gpus_or_a_clear_error_and_shuts_nvml_down(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = replay(monkeypatch, name)
    try:
        gpu, sources = read_gpus()
        known = {f"gpu.{fact}" for fact, value in gpu if value not in (None, ()) and fact != "notes"}
        if not any(rate for _, rate in gpu.tflops):
            known -= {"gpu.tflops"}
        assert known - {"gpu.id"} <= set(sources) | {"gpu.id"}
    except AdvisorError as error:
        assert error.what and error.hint and "--gpu" in error.hint
        assert len(str(error).splitlines()) == 3
    assert nvml.open == 0


@pytest.mark.parametrize("path", sorted(RECORDINGS.glob("*.json")), ids=lambda path: path.stem)
def test_no_recording_names_a_machine(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"GPU-[0-9a-f]{8}|[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-9]|[Ss]erial|UUID", text)
    assert json.loads(text)["origin"]


def test_eight_h100_with_nvlink(monkeypatch: pytest.MonkeyPatch) -> None:
    replay(monkeypatch, "h100x8")
    gpu, sources = read_gpus()
    assert (gpu.id, gpu.name, gpu.sm, gpu.count) == ("h100-sxm-80gb", "NVIDIA H100 80GB HBM3", 90, 8)
    assert (gpu.link, gpu.link_gb_s) == ("nvlink", 450)
    assert (gpu.memory_gib, gpu.free_memory_gib) == (79.65, 58.5)
    assert (gpu.driver, gpu.cuda, gpu.mig, gpu.ecc, gpu.power_limit_w) == ("580.95.05", "13.0", False, True, 700)
    assert [(p.pid, p.device, p.used_memory_gib) for p in gpu.processes] == [(4242, 0, 21.13)]
    assert (gpu.bandwidth_gb_s, gpu.tflops.fp8) == (3350, 1979)
    assert sources["gpu.free_memory_gib"] == "nvml"
    assert sources["gpu.bandwidth_gb_s"] == "profiles/gpus/h100-sxm-80gb.yaml"
    assert sources["gpu.link"] == "nvml, 18 active NVLink links"


def test_two_l40s_on_pcie(monkeypatch: pytest.MonkeyPatch) -> None:
    replay(monkeypatch, "l40sx2")
    gpu, sources = read_gpus()
    assert (gpu.id, gpu.count, gpu.link, gpu.link_gb_s, gpu.mig) == ("l40s", 2, "pcie", 31.5, None)
    assert sources["gpu.link_gb_s"] == "nvml, PCIe 4.0 x16"
    assert "gpu.mig" not in sources


def test_a_t4_whose_process_memory_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    replay(monkeypatch, "t4")
    gpu, _ = read_gpus()
    assert (gpu.id, gpu.sm, gpu.architecture, gpu.cuda) == ("t4", 75, "Turing", "12.2")
    assert gpu.processes[0].used_memory_gib is None


def test_names_as_bytes_from_an_older_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = replay(monkeypatch, "t4")
    nvml.nvmlDeviceGetName = lambda handle: b"Tesla T4"  # type: ignore[attr-defined]
    nvml.nvmlSystemGetDriverVersion = lambda: b"535.183.01"  # type: ignore[attr-defined]
    gpu, _ = read_gpus()
    assert (gpu.id, gpu.driver) == ("t4", "535.183.01")


def test_bridged_pairs_are_planned_over_pcie_and_a_low_power_limit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    replay(monkeypatch, "h100-nvl-x4")
    gpu, _ = read_gpus()
    assert (gpu.link, gpu.link_gb_s) == ("pcie", 63)
    assert any("only some pairs" in note for note in gpu.notes)
    assert any("power limit of 310 W" in note for note in gpu.notes)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    pair, _ = read_gpus()
    assert (pair.count, pair.link, pair.link_gb_s) == (2, "nvlink", 300)
    assert any("hides 2 more" in note for note in pair.notes)


def test_mixed_gpus_are_named_and_one_kind_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    replay(monkeypatch, "mixed")
    with pytest.raises(GpuProblem) as caught:
        read_gpus()
    assert "1 x NVIDIA GeForce RTX 4090 (24 GiB), 2 x NVIDIA GeForce RTX 3090 (24 GiB)" in caught.value.what
    assert "--gpu rtx-3090 --gpus 2" in caught.value.hint
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert read_gpus()[0].id == "rtx-4090"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    pair, _ = read_gpus()
    assert (pair.id, pair.link, pair.link_gb_s) == ("rtx-3090", "nvlink", 56.25)


@pytest.mark.parametrize("value", ["", "-1", "9", "GPU-0000"])
def test_hiding_every_gpu_is_an_error(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replay(monkeypatch, "h100x8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    with pytest.raises(GpuProblem, match="hides every GPU"):
        read_gpus()


def test_an_unknown_gpu_keeps_its_nvml_facts_and_names_what_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    replay(monkeypatch, "unknown")
    gpu, sources = read_gpus()
    assert (gpu.id, gpu.name, gpu.sm, gpu.architecture, gpu.memory_gib) == (None, "NVIDIA L20", 89, "Ada", 44.99)
    assert gpu.bandwidth_gb_s == pytest.approx(864, rel=0.01)
    assert sources["gpu.bandwidth_gb_s"] == "nvml, memory bus width x clock"
    assert not any(rate for _, rate in gpu.tflops)
    assert "gpu.tflops" not in sources
    assert gpu.notes[0] == "NVIDIA L20 is not in profiles/gpus: its tensor-core rates and TDP are not known"


def test_another_variant_under_a_known_name_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    replay(monkeypatch, "other-variant")
    gpu, _ = read_gpus()
    assert (gpu.id, gpu.memory_gib) == (None, 140.4)
    assert "another variant" in gpu.notes[0]


@pytest.mark.parametrize("identity", ["h100x8", "l40sx2", "t4", "h100-nvl-x4"])
def test_bandwidth_reckoned_from_the_clock_agrees_with_the_profile(identity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replay(monkeypatch, identity)
    assert not any("bus width and clock" in note for note in read_gpus()[0].notes)


def test_memory_that_nvml_does_not_report_comes_from_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    replay(monkeypatch, "gb10")
    gpu, sources = read_gpus()
    assert (gpu.id, gpu.memory_gib, gpu.free_memory_gib) == ("dgx-spark-gb10", 121.6, None)
    assert "not read through NVML: memory: Not Supported" in gpu.notes
    assert sources["gpu.memory_gib"] == "profiles/gpus/dgx-spark-gb10.yaml"


def test_what_may_not_be_read_is_none_and_noted_and_the_rest_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    replay(monkeypatch, "restricted")
    gpu, _ = read_gpus()
    assert (gpu.id, gpu.power_limit_w, gpu.ecc, gpu.processes) == ("h100-pcie-80gb", None, None, ())
    assert "not read through NVML: processes: Insufficient Permissions" in gpu.notes
    assert (gpu.link, gpu.link_gb_s) == ("pcie", 63)


def test_one_of_two_equal_mig_slices_is_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    replay(monkeypatch, "a100-mig")
    gpu, sources = read_gpus()
    assert (gpu.id, gpu.count, gpu.mig, gpu.link) == (None, 1, True, None)
    assert gpu.name == "NVIDIA A100-SXM4-80GB MIG 3g.40gb"
    assert gpu.memory_gib == 39.25
    assert gpu.bandwidth_gb_s == pytest.approx(2039 * 40192 / 81920, rel=0.001)
    assert gpu.tflops.bf16 == pytest.approx(312 * 42 / 108, rel=0.001)
    assert any("one of 2 equal slices" in note for note in gpu.notes)
    assert "slice's share" in sources["gpu.bandwidth_gb_s"]


def test_unequal_or_missing_mig_devices_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    replay(monkeypatch, "a100-mig-unequal")
    with pytest.raises(GpuProblem, match="not equal") as unequal:
        read_gpus()
    assert "3g.40gb" in unequal.value.where and "1g.10gb" in unequal.value.where
    replay(monkeypatch, "a100-mig-empty")
    with pytest.raises(GpuProblem, match="no MIG device exists"):
        read_gpus()


@pytest.mark.parametrize(
    ("recording", "says"),
    [
        ("no-driver", "no NVIDIA driver"),
        ("driver-not-loaded", "not loaded"),
        ("permission-denied", "may not read"),
        ("version-mismatch", "different versions"),
        ("no-gpu", "but no GPU"),
        ("gpu-lost", "lost"),
        ("gpu-lost-later", "lost"),
    ],
)
def test_each_way_of_having_no_gpu_has_its_own_answer(recording: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = replay(monkeypatch, recording)
    with pytest.raises(GpuProblem, match=says):
        read_gpus()
    assert nvml.open == 0


def test_a_lost_gpu_is_named_and_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    replay(monkeypatch, "gpu-lost")
    with pytest.raises(GpuProblem) as caught:
        read_gpus()
    assert caught.value.where == "GPU 1 of 2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert read_gpus()[0].count == 1


def test_without_the_nvml_binding_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingExtra, match="nvidia-ml-py"):
        read_gpus()


def test_naming_a_gpu_reads_two_small_files_and_never_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    catalogue._table.cache_clear()
    library.profile.cache_clear()
    find_gpu("h100")
    assert library.profile.cache_info().currsize == 2


# ---------------------------------------------------------------- a real one


def test_a_real_h200(monkeypatch: pytest.MonkeyPatch) -> None:
    replay(monkeypatch, "h200")
    gpu, sources = read_gpus()
    assert (gpu.id, gpu.count, gpu.sm, gpu.memory_gib, gpu.free_memory_gib) == ("h200-sxm-141gb", 1, 90, 140.4, 139.8)
    assert (gpu.driver, gpu.cuda, gpu.mig, gpu.ecc, gpu.power_limit_w) == ("580.159.04", "13.0", False, True, 700)
    assert (gpu.link, sources["gpu.link"]) == ("pcie", "nvml, PCIe 5.0 x16"), "its virtual machine shows no NVLink"
    assert gpu.bandwidth_gb_s == 4800
    assert not any("not read" in note for note in gpu.notes)


def test_a_real_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    replay(monkeypatch, "h100")
    gpu, sources = read_gpus()
    assert (gpu.id, gpu.count, gpu.sm, gpu.memory_gib, gpu.free_memory_gib) == ("h100-sxm-80gb", 1, 90, 79.65, 79.18)
    assert (gpu.driver, gpu.cuda, gpu.mig, gpu.ecc, gpu.power_limit_w) == ("580.159.04", "13.0", False, True, 700)
    assert (gpu.link, sources["gpu.link"]) == ("pcie", "nvml, PCIe 5.0 x16"), "its virtual machine shows no NVLink"
    assert gpu.bandwidth_gb_s == 3350


def section(gpu: str, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(RESULTS[gpu].read_text())["sections"].get(name, {}).get("result", [])
    return rows


@pytest.mark.parametrize(("gpu", "stopped"), [("h200-sxm-141gb", ["accuracy"]), ("h100-sxm-80gb", [])])
def test_the_measured_kernels_were_right_and_no_measurement_is_missing(gpu: str, stopped: list[str]) -> None:
    assert all(row["error"] < 0.01 for row in section(gpu, "check"))
    assert all(row["error_of"] < 0.01 for row in section(gpu, "library_gemm") if "check" in row)
    sections = json.loads(RESULTS[gpu].read_text())["sections"]
    assert [name for name, part in sections.items() if "error" in part] == stopped, "stopped by their time limit"
    for name, part in sections.items():
        if isinstance(part.get("result"), list) and name != "check":
            assert not [row for row in part["result"] if "error" in row], name


@pytest.mark.parametrize("gpu", list(RESULTS))
def test_the_measured_figures_of_a_gpu_are_those_of_the_results(gpu: str) -> None:
    measured = facts_of(gpu)["measured"]
    gemm = [row for row in (*section(gpu, "gemm"), *section(gpu, "library_gemm")) if "us" in row]
    forms = {"bf16": "bf16", "fp8": "fp8", "int4_weight_only": "int4 triton"}
    forms |= {"fp8_cutlass": "fp8 cutlass", "int4_machete": "int4 machete", "int4_marlin": "int4 marlin"}
    for name, rate in measured["gemm_tflops"].items():
        rates = sorted(row["tflops"] for row in gemm if row["format"] == forms[name] and row["m"] >= 1024)
        assert rate == round(rates[len(rates) // 2])
        assert measured["gemm_best_tflops"][name] == round(max(row["tflops"] for row in gemm if row["format"] == forms[name]))
    largest = {row["operation"]: row["gb_s"] for row in section(gpu, "bandwidth")}
    assert measured["read_gb_s"] == round(largest["read (Triton sum)"])
    assert measured["write_gb_s"] == round(largest["write"])
    for key, name in (("decode_attention_gb_s", "attention"), ("decode_attention_flash3_gb_s", "library_attention")):
        for cache, kernel in (("bf16", "bfloat16"), ("fp8", "float8_e4m3fn")):
            best = max((row["gb_s"] for row in section(gpu, name) if row.get("cache") == kernel), default=None)
            assert key not in measured or measured[key][cache] == round(best or 0.0)
    chain = {row["how"]: row["us"] for row in section(gpu, "launches") if row["what"].startswith("torch")}
    assert measured["launch_us"]["from_the_host"] == round(chain["from the host"], 2)
    assert measured["launch_us"]["cuda_graph"] == round(chain["CUDA graph"], 2)
