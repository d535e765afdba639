"""How close the estimates come to published measurements; prints the tables, `--write` renews docs/accuracy.md.

    python benchmarks/accuracy.py [--write]

Every table has two readings of the same records: with the constants as shipped (fitted on all records) and held out (each group
of model, GPU and format predicted by constants fitted without it; benchmarks/held_out.csv, written by benchmarks/fit.py).
"""

from __future__ import annotations

import csv
import math
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from choices import choice_lines, choices
from measurements import Measured, error, read_measurements
from peer import peer_errors
from printed import printed
from ratios import LATENCIES, Ratio, pairs

from advisor import library
from advisor.estimator.intervals import line_of

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "accuracy.md"
HELD_OUT = ROOT / "benchmarks" / "held_out.csv"
REASONS = (
    ("itl|gpt-oss|tp1 pp1", "At 64 about 53 ran at once, as the queue in its TTFT shows; by our count all fit."),
    ("itl|gpt-oss", "InferenceX runs the experts on Triton; the tables' kernels are slower at 32 to 64 tokens."),
    ("ttft|gpt-oss|tp8", "The same configuration in two other runs: 104 and 119 ms."),
    (
        "ttft|gpt-oss|tp1 pp1",
        "At 64 requests queued for a slot, though even in the script's 0.85 of the memory all fit by our count.",
    ),
    (
        "ttft|DeepSeek|fp8|ep8",
        "DeepGEMM's experts on Blackwell before 1.2: what it took to scatter long prompts is known from this group only.",
    ),
    (
        "ttft|DeepSeek|ep8",
        "64 at a time: half the TTFT of 1.1, and of 1.2 without expert parallelism; the opening burst seems not to be in it.",
    ),
    (
        "ttft|DeepSeek|fp8|8192/1024",
        "InferenceX gives the cache 0.8 of the memory left (its dsr1_fp8_b200_trt script): requests queue for slots.",
    ),
    ("ttft|DeepSeek", "A tenth of the requests, those of the opening burst, make most of the mean; two runs differ by half."),
    ("itl|DeepSeek|fp8", "DeepGEMM's experts on Blackwell before 1.2, known from this group only."),
    (
        "a100-pcie",
        "In the published A100-PCIe columns a step of two GPUs takes twice that of two SXM whatever its messages, of four and "
        "eight what the bus explains.",
    ),
    (
        "Qwen3-30B",
        "A small model at tens of thousands of tokens a second: the host sets the pace, and by how much differs between "
        "releases; the published GB300 figure even lies below the B200's.",
    ),
    ("gpt-oss|h100", "MXFP4 on Hopper: mixed steps are slower than the decode kernels that were measured."),
    (
        "gpt-oss",
        "The table of 1.1 to 1.2 lies up to a tenth below that of 1.2 for the same GPU; one set of constants serves both, and "
        "mixed steps are slower than the decode kernels that were measured.",
    ),
    ("405B|rtx-pro", "Eight pipeline stages over PCIe with few sequences each."),
    (
        "h100-sxm-80gb|fp8|offline|Llama-3.1-70B",
        "70 GB of weights on one 80 GB GPU: a few hundred MiB of workspace decide how many sequences fit.",
    ),
    ("DeepSeek", "Kernels for Blackwell changed between releases; the tables are those of 1.3."),
    ("Llama-4-Scout|gb200", "Faster on B200 than on GB200 in the same table of 1.0, by up to a third."),
    ("served", "A run of 500 requests near saturation never reaches its steady state."),
)


CONTRADICTED = (
    (("t06765", "t07273"), "eight GPUs at 128 take 57 % longer than at 64, four 41 %: not understood"),
    (("t08031",), "the NVFP4 server ran with no choice of kernels, the FP8 one with several (perf-changelog, pull 1011)"),
    (("t02371",), "two releases: 1.1 without, 1.2 with attention-DP"),
)
"""records of pairs on the wrong side of 1, and what is known of these"""


class Row(NamedTuple):
    """One line of a table."""

    name: str
    count: int
    mean: float
    median: float
    bias: float
    within_10: float
    within_20: float
    held_mean: float | None
    held_median: float | None


Errors = Sequence[tuple[Measured, float]]


def held_out() -> dict[str, float]:
    """Record id -> log error under constants fitted without its group."""
    if not HELD_OUT.is_file():
        return {}
    with HELD_OUT.open(encoding="utf-8") as file:
        return {row["id"]: float(row["log_error"]) for row in csv.DictReader(file)}


def row(name: str, errors: Errors, out: dict[str, float]) -> Row:
    """The figures of a group of records, in percent."""
    values = [math.expm1(e) for _, e in errors]
    sizes = [abs(v) for v in values]
    held = [abs(math.expm1(out[m.id])) for m, _ in errors if m.id in out]
    return Row(
        name, len(values), 100 * statistics.fmean(sizes), 100 * statistics.median(sizes), 100 * statistics.fmean(values),
        100 * sum(s <= 0.1 for s in sizes) / len(sizes), 100 * sum(s <= 0.2 for s in sizes) / len(sizes),
        100 * statistics.fmean(held) if held else None, 100 * statistics.median(held) if held else None,
    )  # fmt: skip


def table(title: str, errors: Errors, key: Callable[[Measured], str], out: dict[str, float]) -> list[str]:
    """A Markdown table, one line a group, the whole last."""
    groups: dict[str, list[tuple[Measured, float]]] = defaultdict(list)
    for item in errors:
        groups[key(item[0])].append(item)
    rows = [row(name, groups[name], out) for name in sorted(groups)]
    if len(rows) > 1:
        rows.append(row("**all**", errors, out))
    lines = [
        f"| {title} | records | mean error | median | bias | within 10 % | within 20 % | held out: mean | median |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        held = f"{r.held_mean:.1f} % | {r.held_median:.1f} %" if r.held_mean is not None else "- | -"
        lines.append(
            f"| {r.name} | {r.count} | {r.mean:.1f} % | {r.median:.1f} % | {r.bias:+.1f} % | {r.within_10:.0f} % "
            f"| {r.within_20:.0f} % | {held} |"
        )
    return [*lines, ""]


def without_settings(errors: Errors, out: dict[str, float]) -> str:
    """The held-out figures of one who does not know how the servers were started."""
    sizes = [abs(math.expm1(out.get(f"{m.id} plain", out[m.id]))) for m, _ in errors if m.id in out]
    mean, median = 100 * statistics.fmean(sizes), 100 * statistics.median(sizes)
    return f"With the engine's defaults instead of those settings: held out {mean:.1f} %, median {median:.1f} %."


def spearman(errors: Errors) -> float:
    """Rank correlation of estimates and measurements."""

    def ranks(values: list[float]) -> list[float]:
        order = sorted(range(len(values)), key=values.__getitem__)
        found = [0.0] * len(values)
        for rank, index in enumerate(order):
            found[index] = float(rank)
        return found

    measured = [m.value for m, _ in errors]
    estimated = [m.value * math.exp(e) for m, e in errors]
    return statistics.correlation(ranks(measured), ranks(estimated))


def coverage(errors: Errors, out: dict[str, float]) -> float:
    """Share of held-out measurements inside the shipped intervals."""
    data = library.profile("constants", "_intervals") or {}
    inside = total = 0
    for m, _ in errors:
        kinds = data.get(line_of(m.engine), {}).get(m.regime)
        if kinds is None or m.id not in out:
            continue
        low, high = kinds["moe" if m.model.moe else "dense"][:2]
        total += 1
        inside += low <= math.exp(-out[m.id]) <= high
    return inside / total if total else math.nan


def fold_coverage(errors: Errors, out: dict[str, float]) -> float:
    """The same with each group's interval taken from all other groups, so that no record judges its own interval."""
    held = [(m, -out[m.id]) for m, _ in errors if m.id in out]
    inside = 0
    for group in {m.group for m, _ in held}:
        mine = [e for m, e in held if m.group == group]
        moe = next(m.model.moe is not None for m, _ in held if m.group == group)
        others = sorted(e for m, e in held if m.group != group and (m.model.moe is not None) == moe)
        if len(others) < 10:
            others = sorted(e for m, e in held if m.group != group)
        if others:
            low, high = others[round(0.1 * (len(others) - 1))], others[round(0.9 * (len(others) - 1))]
            inside += sum(low <= e <= high for e in mine)
    return inside / len(held) if held else math.nan


def ratio_table(ratios: Sequence[Ratio]) -> list[str]:
    """Ratios by technique, engine and metric."""
    groups: dict[tuple[str, str, str], list[Ratio]] = defaultdict(list)
    for ratio in ratios:
        metric = ratio.metric.removesuffix("_ms").upper() if ratio.metric in LATENCIES else "throughput"
        groups[ratio.technique, ratio.engine, metric].append(ratio)
    lines = [
        "| ratio of | engine | metric | pairs | right side of 1 | plain pairs | right side | mean error |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for (technique, engine, metric), found in sorted(groups.items()):
        plain = [r for r in found if r.warm and abs(r.published - 1) > 0.03]
        right = 100 * sum(r.right_side for r in found) / len(found)
        clear = f"{100 * sum(r.right_side for r in plain) / len(plain):.0f} %" if plain else "-"
        mean = 100 * statistics.fmean(abs(r.estimated / r.published - 1) for r in found)
        lines.append(
            f"| {technique} | {engine} | {metric} | {len(found)} | {right:.0f} % | {len(plain)} | {clear} | {mean:.1f} % |"
        )
    return [*lines, ""]


def wrong_lines(ratios: Sequence[Ratio]) -> list[str]:
    """The inter-token latencies on the wrong side of 1, by their records, and what is known of each."""
    lines = []
    for ratio in (ratio for ratio in ratios if not ratio.right_side and ratio.metric == "itl_ms"):
        cold = "" if ratio.warm else "one of the servers, of an older release, was not warm"
        why = next((text for ids, text in CONTRADICTED if set(ids) & set(ratio.records)), cold or "not understood")
        lines.append(
            f"- {ratio.technique}, {ratio.engine}, {ratio.what} ({', '.join(ratio.records)}): {ratio.published:.2f}, estimated "
            f"{ratio.estimated:.2f}; {why}"
        )
    return ["Inter-token latencies on the wrong side:", "", *lines, ""] if lines else []


def printed_lines(ratios: Sequence[Ratio]) -> list[str]:
    """The pairs on the wrong side of 1, and the five that are furthest off."""
    wrong = [ratio for ratio in ratios if not ratio.right_side]
    far = sorted(ratios, key=lambda ratio: -abs(ratio.estimated / ratio.published - 1))[:5]
    shown = [*(("wrong side", ratio) for ratio in wrong), *(("far off", ratio) for ratio in far if ratio not in wrong)]
    return [*[f"- {why}: {r.technique}, {r.what}: {r.published:.2f}, estimated {r.estimated:.2f}" for why, r in shown], ""]


def worst(errors: Errors) -> list[str]:
    """The ten worst records and why."""
    lines = ["| record | measured | estimated | error | why |", "|---|---:|---:|---:|---|"]
    for m, e in sorted(errors, key=lambda item: -abs(item[1]))[:10]:
        where = f"{m.gpu.id}|{m.deployment.weights}|{m.regime}|{m.model.name}|{layout(m)}|{m.load.isl:g}/{m.load.osl:g}"
        why = next((text for pattern, text in REASONS if all(p in where for p in pattern.split("|"))), "not understood")
        load = f"{m.load.isl:g}/{m.load.osl:g}" + (f" x {m.load.concurrency:g}" if m.load.concurrency else "")
        release = m.source.split()[-1] if m.regime == "offline" else m.engine.version
        lines.append(
            f"| {m.id} {m.model.name} {m.gpu.id} {m.deployment.weights} {layout(m)} {load} ({release}) | {m.value:,.4g} "
            f"| {m.value * math.exp(e):,.4g} | {100 * math.expm1(e):+.0f} % | {why} |"
        )
    return [*lines, ""]


def beside_the_peer(errors: Errors) -> list[str]:
    """aiconfigurator-core's errors beside ours on the records that both estimate."""
    theirs, out = peer_errors(), held_out()
    lines = [
        "## Beside aiconfigurator-core 0.12.0", "",
        "As it ships, on the records that it can estimate (GH200 and A100-PCIe are not among its systems).", "",
        "| regime | GPU | records | its mean | median | ours: mean | median | ours held out: mean | median |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for regime in ("offline", "itl"):
        both = [(m, theirs[m.id], e) for m, e in errors if m.regime == regime and m.id in theirs and m.id in out]
        names = sorted({m.gpu.id or "" for m, _, _ in both})
        for name in [*names, "**all**"] if both else []:
            some = [item for item in both if name in (item[0].gpu.id, "**all**")]
            columns = [
                [abs(math.expm1(x)) for x in part] for part in zip(*((b, c, out[a.id]) for a, b, c in some), strict=True)
            ]
            figures = " | ".join(f"{100 * statistics.fmean(c):.1f} % | {100 * statistics.median(c):.1f} %" for c in columns)
            lines.append(f"| {regime} | {name} | {len(some)} | {figures} |")
    return [*lines, ""] if theirs else []


def page(errors: Errors, left_out: Counter[str], missing: int) -> str:
    """docs/accuracy.md."""
    out, speed_ups, paired = held_out(), printed(), pairs(m for m, _ in errors)

    def some(condition: Callable[[Measured], bool]) -> Errors:
        return [(m, e) for m, e in errors if condition(m)]

    trt = some(lambda m: m.engine.name == "tensorrt-llm" and m.layout_stated)
    offline = [x for x in trt if x[0].regime == "offline"]
    itl = [x for x in trt if x[0].regime == "itl"]
    ttft = [x for x in trt if x[0].regime == "ttft" and x[0].protocol_known]
    unstated = some(lambda m: m.engine.name == "tensorrt-llm" and not m.layout_stated)
    lines = [
        "# How close the estimates come",
        "",
        "Written by `python benchmarks/accuracy.py --write`; no figure on this page is typed in. The records are published "
        "measurements that nobody here made (facts/truth/throughput.jsonl); constants of single operations come from kernel "
        "tables, those of the engines from these records, so each table also has the errors of groups (model, GPU, format) "
        "that were held out. Errors are |estimate / measurement - 1|.",
        "",
        "## TensorRT-LLM 0.14 and later: maximum offline throughput",
        "",
        f"Spearman {spearman(offline):.3f}. Of the held-out measurements {100 * coverage(offline, out):.0f} % lie in the 80 % "
        f"interval; {100 * fold_coverage(offline, out):.0f} % when each group's interval is taken from the other groups.",
        "",
    ]
    for title, key in KEYS.items():
        lines += table(title, offline, key, out)
    lines += ["### The ten worst", "", *worst(offline)]
    lines += beside_the_peer(errors)
    lines += [
        "## TensorRT-LLM: inter-token latency at a given concurrency", "",
        f"Spearman {spearman(itl):.3f}; {100 * coverage(itl, out):.0f} % in the interval.", "",
    ]  # fmt: skip
    for title, key in LATENCY_KEYS.items():
        lines += table(title, itl, key, out)
    lines += ["### The ten worst", "", *worst(itl)]
    lines += [
        "## TensorRT-LLM: time to first token where the source says how requests arrived", "",
        f"Closed loop of ten requests a client, all starting at once; the servers' settings are those of InferenceX's scripts "
        f"(benchmarks/inferencex.py). Spearman {spearman(ttft):.3f}; {100 * coverage(ttft, out):.0f} % in the interval. "
        f"{without_settings(ttft, out)}", "",
    ]  # fmt: skip
    for title, key in LATENCY_KEYS.items():
        lines += table(title, ttft, key, out)
    lines += ["### The ten worst", "", *worst(ttft)]
    served = [x for x in trt if x[0].regime.startswith("served")]
    lines += ["## TensorRT-LLM 0.14: serving at an arrival rate", "", *table("metric", served, lambda m: m.regime, out)]
    others = some(lambda m: m.engine.name != "tensorrt-llm")
    lines += ["## Other engines", "", OTHERS, "", *table("engine and metric", others, other_engine, out)]
    lines += [
        "## Mixtures of experts whose layout the source does not state", "",
        "Taken as the documentation of those tables runs them: attention-DP and expert parallelism over all ranks. Not part of "
        "the tables above, and nothing was fitted on them.", "",
        *table("model", unstated, lambda m: f"{m.model.name}, {m.gpu.id}", out),
        "## Ratios that decide advice", "",
        "A published ratio within 2 % of 1 counts as right either way. Plain pairs: both runs on servers that were warm, the "
        "ratio more than 3 % from 1.", "",
        *ratio_table(paired), *wrong_lines(paired),
        "### Speed-ups that a source prints", "",
        "Formats by batch, FP8 caches, drafts with the acceptance that the source prints (benchmarks/printed.py).", "",
        *ratio_table(speed_ups), *printed_lines(speed_ups),
        "## Choices", "", *choice_lines(choices()),
        "## Left out", "",
        f"{missing} records have no estimate. Records that were not compared:", "",
        *[f"- {count}: {reason}" for reason, count in left_out.most_common()], "",
    ]  # fmt: skip
    return "\n".join(lines)


OTHERS = (
    "InferenceX warms its servers up since 2026-01-21. Before, kernels were compiled while the opening burst waited, up to a "
    "minute of it; those runs stand apart, and no constant was fitted on their TTFT."
)


def other_engine(m: Measured) -> str:
    """Engine, metric, and whether the server was warm."""
    return f"{m.engine.name}, {m.regime}{'' if m.warm else ', not warmed up'}"


def layout(m: Measured) -> str:
    """How the model is divided."""
    d = m.deployment
    return f"tp{d.tensor_parallel} pp{d.pipeline_parallel}" + (
        " attention-DP" if d.attention_dp else f" ep{d.expert_parallel}" if d.expert_parallel > 1 else ""
    )


def architecture(m: Measured) -> str:
    """Dense or experts, and how attention keeps its cache."""
    attends = "MLA" if m.model.mla else "windows" if m.model.window else "GQA" if m.model.kv_heads < m.model.heads else "MHA"
    return f"{'mixture of experts' if m.model.moe else 'dense'}, {attends}"


LATENCY_KEYS: dict[str, Callable[[Measured], str]] = {
    "model, GPU, format": lambda m: m.group.replace("|", ", "),
    "release": lambda m: ".".join(m.engine.version.split(".")[:2]),
    "architecture": architecture,
    "layout": layout,
    "concurrency": lambda m: f"{2 ** math.floor(math.log2(m.load.concurrency or 1)):5d} to the next power of 2".strip(),
}
KEYS: dict[str, Callable[[Measured], str]] = {
    "release": lambda m: m.source.removeprefix("TensorRT-LLM "),
    "GPU": lambda m: m.gpu.id or "",
    "model": lambda m: m.model.name,
    "format": lambda m: m.deployment.weights,
    "architecture": architecture,
    "layout": layout,
    "input/output tokens": lambda m: f"{m.load.isl:g}/{m.load.osl:g}",
}


def main() -> None:
    """Print or write the page."""
    measured, left_out = read_measurements()
    found = [(m, error(m)) for m in measured]
    errors = [(m, e) for m, e in found if e is not None]
    text = page(errors, left_out, len(found) - len(errors))
    if "--write" in sys.argv:
        library.write_whole(PAGE, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
