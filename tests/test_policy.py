"""The policy file: read with the place of every problem, held against the question and every candidate."""

from __future__ import annotations

import sys
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import sample_profiles as samples
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor import pipeline
from advisor.cli import main
from advisor.errors import FileProblem, InputError, NoPlanFits, PolicyProblem, RuleProblem
from advisor.reasoner.decision import decide
from advisor.reasoner.diagnosis import diagnose
from advisor.reasoner.policing import budget_for, govern, remedy_ban, spend_limits, version_allowed
from advisor.reasoner.policy_file import read_policy
from advisor.types import Goal, Policy, Profile, Quantized, Report, Speculation

FP8_KV = "kv-cache-starves-batch/fp8-kv-cache"
RULEBOOK = pipeline.rules()
FP8_WEIGHTS = "weights-slow-decode/fp8-weights"
WHOLE = """\
techniques:
  allow: [weights-slow-decode/*, kv-cache-starves-batch/*, static-batching-idles/*]
  forbid: [weights-slow-decode/nvfp4-weights]
deployment:
  weights: [bf16, fp8]
  speculation: never
  tensor_parallel: [1, 2]
engines: {tensorrt-llm: ["1.2.*", ">=1.3"], vllm: any}
accuracy:
  - {model: "meta-llama/*", budget_pct: 1}
  - {model: "*", budget_pct: 0.5, metric: kl}
limits: {ttft_ms: 500, itl_ms: 30}
spend: {gpu_hours: 20, hours: 6, disk_gib: 400}
training: never
tell: ["hf://our-org/*"]
suppress:
  - {rule: launch-bound/cuda-graphs, reason: the driver is old, until: 2027-03-31}
"""


def _policy(tmp_path: Path, text: str, today: date = date(2026, 11, 23)) -> Policy:
    path = tmp_path / "advise.yaml"
    path.write_text(text, encoding="utf-8")
    return read_policy(path, today=today)


def _advised(tmp_path: Path, text: str, profile: Profile | None = None) -> Report:
    return pipeline.advise(profile or samples.profile(), policy=_policy(tmp_path, text))


def test_every_key_is_read(tmp_path: Path) -> None:
    policy = _policy(tmp_path, WHOLE)
    assert policy.deployment == {"weights": ("bf16", "fp8"), "speculation": (), "tensor_parallel": (1, 2)}
    assert policy.engines == {"tensorrt-llm": ("1.2.*", ">=1.3"), "vllm": ()}
    assert [one.metric for one in policy.accuracy] == ["perplexity", "kl"]
    assert (policy.ttft_ms, policy.itl_ms, policy.gpu_hours, policy.hours, policy.disk_gib) == (500, 30, 20, 6, 400)
    assert policy.training == "never" and policy.tell == ("hf://our-org/*",)
    assert policy.suppress[0].until == "2027-03-31" and not policy.suppress[0].expired
    assert policy.lines["deployment.weights"] == 5 and policy.lines["limits.itl_ms"] == 12


def test_an_empty_file_limits_nothing(tmp_path: Path) -> None:
    free, limited = pipeline.advise(samples.profile()), _advised(tmp_path, "# nothing\n")
    assert limited.plan == free.plan
    assert limited.policy is not None and free.policy is None


@pytest.mark.parametrize(
    ("text", "line", "column", "marked", "said"),
    [
        ("tecniques: {}\n", 1, 1, "tecniques", "did you mean techniques"),
        (
            "techniques:\n  forbid: [single-stream-slow/eagel3]\n",
            2,
            12,
            "single-stream-slow/eagel3",
            "single-stream-slow/eagle3",
        ),
        ("deployment:\n  weight: [fp8]\n", 2, 3, "weight", "did you mean weights"),
        ("deployment:\n  weights: [bf16, pf8]\n", 2, 19, "pf8", "did you mean fp8"),
        ("deployment:\n  speculation: [eagle]\n", 2, 17, "eagle", "did you mean eagle3"),
        ("deployment:\n  tensor_parallel: [two]\n", 2, 21, "two", "never 'two'"),
        ("deployment:\n  weights: []\n", 2, 12, "[]", "no value of weights"),
        ("engines: {tensorrt: any}\n", 1, 11, "tensorrt", "did you mean tensorrt-llm"),
        ("engines: {vllm: [0.10]}\n", 1, 18, "0.10", 'write "0.10"'),
        ('engines: {vllm: ["new"]}\n', 1, 19, "new", "is no version"),
        ("accuracy:\n  - {model: m, budget_pct: -1}\n", 2, 28, "-1", "budget_pct cannot be -1"),
        ("accuracy:\n  - {model: m, budget_pct: 1, metric: perplexty}\n", 2, 39, "perplexty", "did you mean perplexity"),
        ("limits: {itl_ms: fast}\n", 1, 18, "fast", "is a number"),
        ("limits: {itl_ms: 0}\n", 1, 18, "0", "cannot be 0"),
        ("spend: {gpu_hour: 3}\n", 1, 9, "gpu_hour", "did you mean gpu_hours"),
        ("training: unask\n", 1, 11, "unask", "did you mean"),
        ("training: no\n", 1, 11, "no", "never, ask, unasked"),
        ("tell: [our-org/*]\n", 1, 8, "our-org/*", "with its scheme"),
        ("rules: nowhere\n", 1, 8, "nowhere", "there is no folder"),
        (
            "suppress:\n  - {rule: launch-bound/cuda-graph, reason: r, until: 2027-01-01}\n",
            2,
            12,
            "launch",
            "launch-bound/cuda-graphs",
        ),
        ("suppress:\n  - {rule: launch-bound/cuda-graphs, reason: r, until: soon}\n", 2, 56, "soon", "is not a date"),
        ("suppress:\n  - {rule: launch-bound/cuda-graphs, until: 2027-01-01}\n", 2, 5, "{rule", "has no 'reason'"),
        ("limits: {itl_ms: 3\n", 2, 1, "", "not valid YAML"),
    ],
)
def test_a_problem_is_shown_where_it_stands(tmp_path: Path, text: str, line: int, column: int, marked: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        _policy(tmp_path, text)
    shown = str(caught.value)
    assert said in shown
    assert f"advise.yaml:{line}:{column}\n" in shown
    assert shown.splitlines()[3].index("^") == len("where: ") + column - 1
    assert text.splitlines()[line - 1][column - 1 :].startswith(marked) if marked else True


def test_a_file_that_is_not_there_is_called_a_policy(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="this policy cannot be read"):
        read_policy(tmp_path / "none.yaml")


def test_nothing_outside_the_policy_is_planned_and_what_it_cost_is_said(tmp_path: Path) -> None:
    free = pipeline.advise(samples.profile())
    report = _advised(tmp_path, f"deployment: {{weights: [bf16]}}\ntechniques: {{forbid: [{FP8_KV}]}}\n")
    assert free.plan.deployment.weights == "fp8" and free.plan.deployment.kv_cache == "fp8"
    deployments = [report.plan.deployment, *(one.deployment for one in report.plan.alternatives)]
    assert {(one.weights, one.kv_cache) for one in deployments} == {("bf16", "bf16")}
    rejected = {one.rule: one for one in report.plan.rejected}
    weights = rejected[FP8_WEIGHTS]
    assert weights.reason.startswith("forbidden by the policy ") and "advise.yaml:1 (weights: bf16)" in weights.reason
    assert weights.estimate is not None and weights.estimate.output_tokens_per_s is not None
    ours = report.plan.expected.output_tokens_per_s
    assert ours is not None and f"{(weights.estimate.output_tokens_per_s / ours - 1) * 100:.0f} %" in weights.reason
    assert "advise.yaml:2 (forbid" in rejected[FP8_KV].reason
    assert any("Without the policy" in said for said in report.plan.warnings)
    assert report.policy is not None and report.policy.deployment == {"weights": ("bf16",)}


def test_flips_and_alternatives_stay_within_the_policy(tmp_path: Path) -> None:
    report = _advised(tmp_path, "deployment: {weights: [bf16], kv_cache: [bf16], speculation: never}\n")
    words = [flip.then for flip in report.plan.flips]
    assert all("BF16 weights, BF16 KV cache" in said and "speculative" not in said for said in words)


def test_speculation_by_method(tmp_path: Path) -> None:
    profile = pipeline.profile("meta-llama/Llama-3.1-8B-Instruct", gpu="h100", isl=1024, osl=512, concurrency=1)
    profile = profile.model_copy(update={"measured": {"ngram_acceptance": 0.6}})

    def method(methods: str) -> str | None:
        speculation = _advised(tmp_path, f"deployment: {{speculation: {methods}}}\n", profile).plan.deployment.speculation
        return speculation.method if speculation else None

    free = pipeline.advise(profile).plan.deployment.speculation
    assert free is not None
    assert method(f"[{free.method}]") == free.method
    assert method("never") is None
    assert method("[mtp]") is None
    others = {"ngram", "draft", "eagle3"} - {free.method}
    assert method(f"[{', '.join(sorted(others))}]") in others | {None}


def test_a_layout_limit_is_kept_and_its_cost_named(tmp_path: Path) -> None:
    profile = samples.profile(gpu=samples.gpu(count=4), goal=Goal(objective="latency"))
    free = pipeline.advise(profile)
    report = _advised(tmp_path, "deployment: {tensor_parallel: [1]}\n", profile)
    assert free.plan.deployment.tensor_parallel > 1 and report.plan.deployment.tensor_parallel == 1
    assert any("tensor_parallel: 1" in one.reason and "it costs" in one.reason for one in report.plan.rejected)


FIELD_VALUES: dict[str, list[Any]] = {
    "weights": ["bf16", "fp8", "int4_awq", "nvfp4"],
    "kv_cache": ["bf16", "fp8"],
    "batching": ["in-flight", "static"],
    "tensor_parallel": [1, 2, 4],
    "replicas": [1, 2, 4],
    "chunked_prefill": [True, False],
    "cuda_graphs": [True, False],
    "scheduler_policy": ["guaranteed_no_evict", "max_utilization"],
    "speculation": ["ngram", "draft", "eagle3", "mtp"],
}


@settings(max_examples=60, deadline=None)
@given(
    fields=st.fixed_dictionaries(
        {}, optional={name: st.lists(st.sampled_from(values), unique=True) for name, values in FIELD_VALUES.items()}
    ),
    forbid=st.lists(st.sampled_from(["*/fp8-*", "kv-cache-starves-batch/*", "gpus-left-over/*", "single-stream-slow/*"])),
    concurrency=st.sampled_from([1.0, 8.0, 64.0, 512.0]),
    count=st.sampled_from([1, 4]),
    objective=st.sampled_from(["throughput", "latency", "cost"]),
)
def test_no_deployment_that_is_tried_is_outside(
    fields: dict[str, list[Any]], forbid: list[str], concurrency: float, count: int, objective: Any
) -> None:
    policy = Policy(deployment={name: tuple(values) for name, values in fields.items()}, forbid=tuple(forbid))
    goal = Goal(objective=objective)
    profile = samples.profile(gpu=samples.gpu(count=count), traffic=samples.traffic(concurrency=concurrency), goal=goal)
    try:
        decision = decide(profile, RULEBOOK, diagnose(profile, RULEBOOK), policy=policy)
    except NoPlanFits:
        return
    for one in (*decision.tried, decision.chosen):
        for name, values in fields.items():
            value = getattr(one.deployment, name)
            value = value.method if isinstance(value, Speculation) else value
            assert value in values or (name == "speculation" and value is None)
        assert not [rule for rule in one.candidate.rules for pattern in forbid if fnmatchcase(rule, pattern)]


def test_an_allow_list_forbids_the_rest(tmp_path: Path) -> None:
    report = _advised(tmp_path, "techniques: {allow: [weights-slow-decode/*]}\n")
    assert {step.rule.partition("/")[0] for step in report.plan.steps} == {"weights-slow-decode"}
    assert "allow has no pattern" in next(one for one in report.plan.rejected if one.rule == FP8_KV).reason


def test_a_suppression_ends(tmp_path: Path) -> None:
    text = f"suppress:\n  - {{rule: {FP8_KV}, reason: audit, until: 2026-11-22}}\n"
    on_the_day, after = (_policy(tmp_path, text, date(2026, 11, day)) for day in (22, 23))
    assert pipeline.advise(samples.profile(), policy=on_the_day).plan.deployment.kv_cache == "bf16"
    report = pipeline.advise(samples.profile(), policy=after)
    assert report.plan.deployment.kv_cache == "fp8"
    assert report.overrides[0].expired and "advise.yaml:2" in report.overrides[0].source


def test_a_suppressed_warning_is_not_said(tmp_path: Path) -> None:
    profile = pipeline.profile("meta-llama/Llama-3.3-70B-Instruct", gpu="a100", gpus=1, concurrency=64)
    said = [one for one in pipeline.advise(profile).findings if one.safety == "manual" and one.verdict == "fires"]
    rule = said[0].rule
    report = _advised(tmp_path, f"suppress:\n  - {{rule: {rule}, reason: known, until: 2027-01-01}}\n", profile)
    assert all(rule not in words for words in report.plan.warnings)
    assert all(one.rule != rule for one in report.findings)


def test_the_tighter_limit_counts(tmp_path: Path) -> None:
    policy = _policy(tmp_path, "limits: {itl_ms: 20, ttft_ms: 900}\naccuracy: [{model: 'meta-llama/*', budget_pct: 1}]\n")
    asked = samples.profile(goal=Goal(itl_ms=10, ttft_ms=2000))
    goal = govern(asked, policy).goal
    assert (goal.itl_ms, goal.ttft_ms, goal.accuracy_budget_pct) == (10, 900, 1)
    sources = govern(asked, policy).sources
    assert "advise.yaml:1" in sources["goal.ttft_ms"] and "goal.itl_ms" not in sources


def test_the_first_matching_budget_counts(tmp_path: Path) -> None:
    policy = _policy(tmp_path, WHOLE)
    assert budget_for(policy, "Meta-Llama/Llama-3.1-8B") == policy.accuracy[0]
    assert budget_for(policy, "Qwen/Qwen3-8B") == policy.accuracy[1]


def test_two_metrics_cannot_both_be_kept(tmp_path: Path) -> None:
    asked = samples.profile(goal=Goal(accuracy_budget_pct=2, accuracy_metric="top1"))
    with pytest.raises(PolicyProblem, match="limits perplexity"):
        govern(asked, _policy(tmp_path, "accuracy: [{model: '*', budget_pct: 1}]\n"))


@pytest.mark.parametrize(
    ("version", "pattern", "allowed"),
    [
        ("1.2.1", "1.2.*", True), ("1.20.1", "1.2.*", False), ("1.2.1", ">=1.2", True), ("1.10.0", ">1.9", True),
        ("1.2", "<=1.2.0", True), ("1.2.0", "==1.2", True), ("1.3.0rc1", "<1.3", False), ("0.11.0", "0.11.0", True),
    ],
)  # fmt: skip
def test_versions(version: str, pattern: str, allowed: bool) -> None:
    assert version_allowed(version, (pattern,)) is allowed


def test_engine_and_version_outside_are_refused(tmp_path: Path) -> None:
    policy = _policy(tmp_path, 'engines: {tensorrt-llm: ["1.3.0"]}\n')
    model = "meta-llama/Llama-3.1-8B-Instruct"
    with pytest.raises(PolicyProblem, match=r"tensorrt-llm 1\.2\.1 is not a version"):
        pipeline.advise(pipeline.profile(model, gpu="h100", engine_version="1.2.1"), policy=policy)
    with pytest.raises(PolicyProblem, match="vllm is not an engine"):
        pipeline.advise(pipeline.profile(model, gpu="h100", engine="vllm"), policy=policy)
    unasked = govern(pipeline.profile(model, gpu="h100"), policy)
    assert unasked.engine.version == "1.3.0" and "advise.yaml:1" in unasked.sources["engine.version"]


def test_a_policy_that_leaves_nothing_is_an_error_with_its_place(tmp_path: Path) -> None:
    quantized = samples.model(quantized=Quantized(weights="int4_awq", method="awq"))
    with pytest.raises(NoPlanFits) as caught:
        _advised(tmp_path, "deployment: {weights: [bf16]}\n", samples.profile(model=quantized))
    assert "advise.yaml:1 (weights: bf16)" in str(caught.value) and caught.value.exit_status == 4


def test_what_would_give_names_the_permission(tmp_path: Path) -> None:
    profile = samples.profile(model=samples.large_model(), gpu=samples.gpu(count=1), traffic=samples.traffic(concurrency=4.0))
    free = pipeline.advise(profile)
    assert free.plan.feasible
    report = _advised(
        tmp_path, f"deployment: {{weights: [bf16, {'fp8' if free.plan.deployment.weights != 'fp8' else 'nvfp4'}]}}\n", profile
    )
    assert not report.plan.feasible
    assert any("the policy forbids it" in said for said in report.plan.shortfall)


def test_a_checkpoint_larger_than_the_disk_is_not_made(tmp_path: Path) -> None:
    report = _advised(tmp_path, "spend: {disk_gib: 5}\n")
    assert report.plan.deployment.weights == "bf16"
    assert "disk_gib: 5; the fp8 checkpoint takes about 8 GiB" in next(
        one.reason for one in report.plan.rejected if one.rule == FP8_WEIGHTS
    )


def test_training_never_leaves_no_training_fallback(tmp_path: Path) -> None:
    trains = {"accuracy-missed/qat", "accuracy-missed/qad"}
    profile = samples.profile(goal=Goal(accuracy_budget_pct=1))
    assert trains & {one.rule for one in pipeline.advise(profile).plan.fallbacks}
    report = _advised(tmp_path, "training: never\n", profile)
    assert not trains & {one.rule for one in report.plan.fallbacks}
    assert any("(training: never)" in one.reason for one in report.plan.rejected)


def test_an_overlay_goes_with_the_policy(tmp_path: Path) -> None:
    (tmp_path / "overlay").mkdir()
    entry = f"suppress:\n  - {{rule: {FP8_WEIGHTS}, reason: audit, until: 2999-01-01}}\n"
    (tmp_path / "overlay" / "overlay.yaml").write_text(entry, encoding="utf-8")
    report = _advised(tmp_path, "rules: overlay\n")
    assert report.overrides[0].rule == FP8_WEIGHTS and report.plan.deployment.weights != "fp8"
    with pytest.raises(InputError, match="overlay of its own"):
        pipeline.advise(samples.profile(), overlay=tmp_path, policy=_policy(tmp_path, "rules: overlay\n"))


def test_hostile_files_are_problems_not_crashes(tmp_path: Path) -> None:
    for text in ("[" * 3000, "a: &x 1\nb: *x\n", "- 1\n", "limits: 3\n", "techniques: [1]\n", "? [a]\n: 1\n", "accuracy: {}\n"):
        with pytest.raises((RuleProblem, FileProblem)):
            _policy(tmp_path, text)


# ---------------------------------------------------------------- while it is applied


@pytest.mark.parametrize(
    ("training", "unasked", "may"),
    [("never", False, False), ("ask", False, True), ("ask", True, False), ("unasked", True, True)],
)
def test_training_runs_as_the_policy_says(tmp_path: Path, training: str, unasked: bool, may: bool) -> None:
    policy = _policy(tmp_path, f"training: {training}\n")
    rules = {rule.id: rule for rule in pipeline.rules().rules}
    assert (remedy_ban(rules["accuracy-missed/qat"], policy, unasked=unasked) == "") is may
    assert remedy_ban(rules["accuracy-missed/recalibrate"], policy, unasked=unasked) == ""
    forbidding = _policy(tmp_path, f"training: {training}\ntechniques: {{forbid: [accuracy-missed/*]}}\n")
    assert "forbid: accuracy-missed/*" in remedy_ban(rules["accuracy-missed/recalibrate"], forbidding, unasked=unasked)


def test_what_applying_may_spend(tmp_path: Path) -> None:
    assert spend_limits(_policy(tmp_path, "spend: {}\n")) == ()
    policy = _policy(tmp_path, "spend: {hours: 2, gpu_hours: 4, disk_gib: 3}\n")
    assert [one[:2] for one in spend_limits(policy)] == [("seconds", 7200), ("gpu_seconds", 14400), ("bytes", 3 * 2**30)]
    assert spend_limits(policy)[0][2] == f"{policy.file}:1 (hours: 2)"


def test_apply_asks_the_rules_within_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor itself needs a GPU or minutes: what it is given is looked at in its place."""
    from advisor import undertaking
    from advisor.executor.request import Outcome, Request

    seen: dict[str, object] = {}

    def carry_out(request: Request, profile: object, plan: object, parameters: object, ask: Any, *others: object) -> Outcome:
        seen["limits"] = [limit.most for limit in request.limits]
        facts = {"accuracy_loss_pct": 9.0, "accuracy_inconclusive": False, "scheme": "fp8", "recalibrated": True}
        tried = {"mixed_precision_tried": True, "qat_tried": False, "calibration_prompts": 512, "recalibration_left": False}
        answer = ask(facts | tried)
        seen["actions"] = {remedy.action for remedy in answer.remedies}
        seen["forbidden"] = {remedy.action: ban for remedy, ban in answer.forbidden}
        raise _LookedAt

    monkeypatch.setattr(undertaking, "carry_out", carry_out)
    profile = samples.profile(goal=Goal(accuracy_budget_pct=1))

    def remedies(text: str, unasked: bool) -> object:
        report = pipeline.advise(profile, policy=_policy(tmp_path, text))
        with pytest.raises(_LookedAt):
            pipeline.apply(report, out=tmp_path / "out", unasked=unasked)
        return seen["actions"]

    assert "qat" in remedies("training: unasked\nspend: {hours: 1}\n", True)  # type: ignore[operator]
    assert seen["limits"] == [3600]
    assert "qat" in remedies("training: ask\n", False)  # type: ignore[operator]
    assert "qat" not in remedies("training: ask\n", True)  # type: ignore[operator]
    assert "qat" not in remedies("training: never\n", False)  # type: ignore[operator]
    assert "training: never" in seen["forbidden"]["qat"]  # type: ignore[index]


class _LookedAt(Exception):
    pass


def test_a_made_report_is_not_taken_under_another_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.json").write_text(pipeline.advise(samples.profile()).model_dump_json(), encoding="utf-8")
    (tmp_path / "advise.yaml").write_text("deployment: {weights: [bf16]}\n", encoding="utf-8")
    for command in ("emit", "apply"):
        given = [
            command,
            str(tmp_path / "report.json"),
            "--policy",
            str(tmp_path / "advise.yaml"),
            "--out",
            str(tmp_path / "out"),
        ]
        monkeypatch.setattr(sys, "argv", ["advise", *given])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2 and not (tmp_path / "out").exists()
