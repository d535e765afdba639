"""The closed loop: do what the plan says, measure the exported files, ask the rules again, do what fires next.

There is no order of remedies here. The rules, asked through `ask`, say what fires; what this program cannot do is said so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from advisor.errors import InputError
from advisor.executor import causal_model, evaluation, publication, quantization
from advisor.executor.calibration import match_lengths, token_distance
from advisor.executor.evaluation import Block
from advisor.executor.journal import Journal
from advisor.executor.material import Material, gather_material
from advisor.executor.preflight import check_request
from advisor.executor.progress import Progress
from advisor.executor.quantization import BITS, GROUPED, Scheme, Sensitivities
from advisor.executor.request import Answer, Ask, Outcome, Pages, Remedy, Request
from advisor.executor.trial import Bench, Trial
from advisor.types import Change, Plan, Profile, Scalar

ALPHAS = (0.7, 0.8, 0.9)
WIDER = {8: (8.5, 9.0, 10.0, 12.0), 4: (4.5, 5.0, 6.0, 8.0)}
"""effective bits that a mixed-precision search tries, narrowest first, by the bits of the uniform scheme"""
SEARCHED = ("int8_sq", "int4_awq", "w4a8_awq", "fp8", "int8_wo", "fp8_rowwise")
"""schemes that AutoQuantize takes: not GPTQ, and no NVFP4 without CUDA"""


def carry_out(
    request: Request, profile: Profile, plan: Plan, parameters: dict[str, object], ask: Ask, pages: Pages, progress: Progress
) -> Outcome:
    """Carry out a plan on the model's folder and publish it when its gate passes.

    parameters: of the rule that chose the weights' format. ask: the rules about measured facts. pages: the files beside the
    checkpoint. Raises InputError, NotPossible, MissingExtra, FileProblem; finished work is kept in request.work.
    """
    folder = check_request(request, profile, plan)
    with Journal(request.work) as journal:
        if publication.was_published(journal, request.out):
            return publication.finish(journal, request.out)
        publication.check_free(request.out)
        prompts = _whole(parameters.get("calibration_prompts"), 0) or None
        material = gather_material(request, profile, plan, folder, journal, prompts, progress)
        run = _Run(request, profile, plan, material, Bench(folder, journal, progress, request.seed), progress)
        passed = run.go(parameters, ask)
        changes = (*run.changes, *_serving_changes(plan, profile, passed))
        material.check_unchanged()
        return publication.publish(
            journal, request, run.best(), changes, run.facts, pages, passed=passed, summary=run.summary(passed)
        )


class _Run:
    """The state of one run: what was measured, what was done."""

    def __init__(
        self, request: Request, profile: Profile, plan: Plan, material: Material, bench: Bench, progress: Progress
    ) -> None:
        self.request, self.plan, self.bench, self.progress = request, plan, bench, progress
        self.goal = profile.goal
        self.metric = self.goal.accuracy_metric if self.goal.accuracy_metric in evaluation.METRICS else "perplexity"
        self.split = material.split
        self.calibration = material.split.calibration if material.split else ()
        self.lengths = material.lengths
        self.began = time.monotonic()
        self.changes: list[Change] = []
        self.facts: dict[str, Scalar] = {}
        self.trials: list[tuple[Trial, float]] = []
        self.round = 0
        self.scheme: Scheme | None = None
        self.parameters: dict[str, object] = {}
        self.worst, self.beyond = 0.0, 1.0
        self.refused: set[str] = set()
        self.found: Sensitivities | None = None
        memory = plan.expected.memory_gib
        self.growth = (memory.capacity - memory.total + memory.weights) / memory.weights if memory.weights else 1.0
        self.original_score: float | None = None

    def go(self, parameters: dict[str, object], ask: Ask) -> bool:
        """Rounds until the gate passes or nothing is left. True: passed, or there was nothing to judge."""
        deployment = self.plan.deployment
        self.parameters = parameters
        if self.split is None:
            return True
        rule = next((step.rule for step in self.plan.steps if "weights" in step.changes), None) or next(
            (step.rule for step in self.plan.steps if "kv_cache" in step.changes), "plan"
        )
        model = causal_model.load_model(self.bench.model)
        group = quantization.group_size(quantization.linear_inputs(model)) if deployment.weights in GROUPED else None
        del model
        self.scheme = Scheme(deployment.weights, deployment.kv_cache, deployment.keep_high_precision, group=group)
        self.facts |= {"scheme": deployment.weights, "recalibrated": False, "mixed_precision_tried": False, "qat_tried": False}
        self._note_calibration()
        verdict = self._try(rule, "quantize", self._tuned(parameters))
        while verdict != "passed":
            remedy = self._next(ask(dict(self.facts)), ask)
            if remedy is None:
                return False
            if self.round >= self.request.max_rounds or self._late():
                limit = f"--max-rounds {self.request.max_rounds}" if self.round >= self.request.max_rounds else "--max-time"
                self._skip(remedy, f"not run: {limit} was reached")
                return False
            verdict = self._apply(remedy) or verdict
        return True

    def best(self) -> Trial | None:
        """The last trial: the one that passed, if any did."""
        return self.trials[-1][0] if self.trials else None

    def summary(self, passed: bool) -> str:
        """One sentence."""
        if not self.trials:
            return "Nothing was to be quantized; the checkpoint is served as it is."
        trial, loss = self.trials[-1]
        budget = self.goal.accuracy_budget_pct
        limit = "no budget was set" if budget is None else f"the budget is {budget:g} %"
        word = "published" if passed else "not published"
        return f"{trial.scheme.name}: loss of {loss:.2f} % on {self.metric} of the exported files; {limit}; {word}."

    def _next(self, answer: Answer, ask: Ask) -> Remedy | None:
        """The first remedy that the rules call up and that can be done here; facts they lack are measured first."""
        if not answer.remedies and "measured.sensitive_layer_share" in answer.wanted and self._measure_sensitivity():
            answer = ask(dict(self.facts))
        for remedy in answer.remedies:
            if remedy.rule in self.refused:
                continue
            if remedy.action in ("recalibrate", "mixed_precision"):
                return remedy
            self._skip(remedy, f"not run: {remedy.action} is not carried out by this program; {_manual(remedy.action)}")
        return None

    def _apply(self, remedy: Remedy) -> str | None:
        self.progress.say("rule", f"the gate failed; {remedy.rule} fires", rule=remedy.rule)
        return self._recalibrate(remedy) if remedy.action == "recalibrate" else self._mix(remedy)

    def _recalibrate(self, remedy: Remedy) -> str | None:
        assert self.split is not None and self.scheme is not None
        self.facts["recalibrated"] = True
        wanted = _whole(remedy.parameters.get("calibration_prompts"), 512)
        wanted = min(wanted, self.request.prompts) if self.request.prompts else wanted
        fresh = match_lengths(self.split.reserve, self.lengths)
        if not fresh:
            self._skip(remedy, "not run: every production prompt that is not held out was calibrated on already")
            return None
        own = self.request.production is None
        self.calibration = (*self.calibration, *fresh)[:wanted] if own else fresh[:wanted]
        self._note_calibration()
        return self._try(remedy.rule, "recalibrate", self._tuned(self.parameters))

    def _mix(self, remedy: Remedy) -> str | None:
        assert self.scheme is not None
        self.facts["mixed_precision_tried"] = True
        if self.scheme.weights not in SEARCHED:
            self._skip(remedy, f"not run: ModelOpt's search takes no {self.scheme.weights}")
            return None
        narrow = BITS[self.scheme.weights]
        allowed = [bits for bits in WIDER[narrow] if bits / narrow <= self.growth]
        if not allowed:
            self._skip(remedy, f"not run: the memory left allows {self.growth:.2f} times the weights, and that is too little")
            return None
        made, label = self.scheme, f"round-{self.round + 1}"
        for bits in allowed:
            self.found = self.bench.sensitivities(label, self.scheme, self.calibration, bits=bits, with_fp8=narrow == 4)
            made = replace(self.scheme, wide=(*self.scheme.wide, *self.found.wide), wide_fp8=self.found.wide_fp8)
            if bits != allowed[-1] and (made == self.scheme or not self._promises(self.found.left)):
                continue
            if bits == allowed[-1] or self.bench.suffices(f"{label}/bits-{bits:g}", made, self.calibration, self._within):
                break
        self.scheme = made
        return self._try(remedy.rule, "mixed_precision", made)

    def _tuned(self, parameters: dict[str, object]) -> Scheme:
        assert self.scheme is not None
        if self.scheme.weights != "int8_sq":
            return self.scheme
        given = parameters.get("alphas")
        alphas = tuple(float(str(each)) for each in given) if isinstance(given, (list, tuple)) else ALPHAS
        self.scheme = self.bench.choose_alpha(f"round-{self.round + 1}", self.scheme, self.calibration, alphas)
        return self.scheme

    def _try(self, rule: str, action: str, scheme: Scheme) -> str:
        """One round: make, export, measure the exported files, and judge; a result within the noise is measured further."""
        assert self.split is not None
        self.round += 1
        name, began = f"round-{self.round}", time.monotonic()
        self.progress.say("round", f"{name}: {action} to {scheme.name}", rule=rule, scheme=scheme.plain())
        held_out = self.split.evaluation[: max(2, (len(self.split.evaluation) + 1) // 2)]
        self.bench.original(held_out)
        trial = self.bench.run(name, scheme, self.calibration, held_out)
        blocks = self.bench.measure(name, trial, held_out)
        loss, verdict = self._judge(blocks, trial)
        if verdict == "inconclusive" and len(held_out) < len(self.split.evaluation):
            self.progress.say(
                "noise", f"{name}: within the noise; all {len(self.split.evaluation)} held-out prompts are measured"
            )
            held_out = self.split.evaluation
            self.bench.original(held_out)
            blocks = self.bench.measure(name, trial, held_out)
            loss, verdict = self._judge(blocks, trial)
        before = dict(self.facts)
        self.facts |= {"accuracy_loss_pct": round(loss[0], 4), "accuracy_inconclusive": verdict == "inconclusive"}
        self.trials.append((trial, loss[0]))
        in_memory = evaluation.loss_pct(trial.in_memory, self.metric, self.request.seed)[0]
        self.worst, self.beyond = loss[2], max(1.0, loss[2] / in_memory) if in_memory > 0 else 1.0
        self.changes.append(self._change(rule, action, trial, blocks, verdict, before, time.monotonic() - began, loss))
        self.progress.say("gate", f"{name}: {self.changes[-1].detail.splitlines()[0]}", verdict=verdict, loss_pct=loss[0])
        return "passed" if verdict in ("passed", "no budget") else verdict

    def _judge(self, blocks: Sequence[Block], trial: Trial) -> tuple[tuple[float, float, float], str]:
        budget = self.goal.accuracy_budget_pct
        if self.goal.accuracy_metric == "command":
            assert self.request.command is not None
            if self.original_score is None:
                self.original_score = evaluation.run_command(
                    self.request.command, self.bench.model, timeout=self.request.command_seconds
                )
            score = evaluation.run_command(self.request.command, trial.folder, timeout=self.request.command_seconds)
            if not self.original_score:
                raise InputError(
                    "the unquantized model scores 0: no loss can be told",
                    where=self.request.command,
                    hint="choose another score",
                )
            lost = 100 * (self.original_score - score) / abs(self.original_score)
            return (lost, lost, lost), "no budget" if budget is None else evaluation.judge((lost, lost, lost), budget)
        loss = evaluation.loss_pct(blocks, self.metric, self.request.seed)
        return loss, "no budget" if budget is None else evaluation.judge(loss, budget)

    def _promises(self, left: float) -> bool:
        """Whether the upper end of the loss measured last, scaled by the share of the scores that would remain, keeps the
        budget: the scores are of second order and add up."""
        budget = self.goal.accuracy_budget_pct
        return budget is None or self.worst * left <= budget

    def _within(self, blocks: Sequence[Block]) -> bool:
        """The preselection of a bit width, in memory on calibration prompts: its loss, times what the export and the noise
        added in the last round, keeps the budget."""
        budget = self.goal.accuracy_budget_pct
        return budget is None or evaluation.loss_pct(blocks, self.metric, self.request.seed)[0] * self.beyond <= budget

    def _change(
        self, rule: str, action: str, trial: Trial, blocks: Sequence[Block], verdict: str, before: dict[str, Scalar],
        seconds: float, loss: tuple[float, float, float],
    ) -> Change:  # fmt: skip
        budget, seed = self.goal.accuracy_budget_pct, self.request.seed
        limit_on = "" if self.goal.accuracy_metric == "command" else self.metric
        shipped = evaluation.measure(blocks, "exported files", limit_on=limit_on, budget_pct=budget, seed=seed)
        simulated = evaluation.measure(trial.in_memory, "in memory, before the export", limit_on="", budget_pct=None, seed=seed)
        if len(trial.in_memory) != len(blocks):
            base = evaluation.measure_original(trial.in_memory)
            simulated = (base.model_copy(update={"what": "original, on the prompts measured in memory"}), *simulated)
        limit = (
            "no accuracy budget was set: measured, not judged" if budget is None else f"{verdict}: the budget is {budget:g} %"
        )
        parts = ", ".join(f"{part} {took:.0f} s" for part, took in trial.seconds.items())
        distance = self.facts.get("calibration_distance")
        near = "not known" if not isinstance(distance, float) else f"{distance:.2f} (0 the same tokens, 1 disjoint)"
        detail = [
            f"loss of {loss[0]:.2f} % on {self.goal.accuracy_metric} (95 % between {loss[1]:.2f} and {loss[2]:.2f}); {limit}",
            f"{trial.scheme.name}: {trial.size_mb:.1f} MB, peak memory {trial.peak_gib:.2f} GiB, {parts}",
            f"calibrated on {len(self.calibration)} prompts; distance from production {near}",
        ]
        gate = {"passed": "passed", "failed": "failed", "inconclusive": "inconclusive", "no budget": "not run"}[verdict]
        return Change.model_validate(
            {
                "rule": rule, "action": action, "artifact": str(trial.folder), "seconds": round(seconds, 1), "before": before,
                "after": dict(self.facts), "gate": gate, "detail": "\n".join(detail),
                "accuracy": (evaluation.measure_original(blocks), *simulated, *shipped),
                "layers": self.found.layers if action == "mixed_precision" and self.found else (),
            }
        )  # fmt: skip

    def _measure_sensitivity(self) -> bool:
        """Measure how unevenly the layers suffer. False: the search takes no such scheme."""
        assert self.scheme is not None
        if self.scheme.weights not in SEARCHED or not self.calibration:
            return False
        narrow = BITS[self.scheme.weights]
        self.found = self.bench.sensitivities(
            f"round-{self.round}", self.scheme, self.calibration, bits=WIDER[narrow][0], with_fp8=narrow == 4
        )
        self.facts["sensitive_layer_share"] = round(self.found.share, 4)
        return True

    def _note_calibration(self) -> None:
        assert self.split is not None
        production = self.split.evaluation + self.split.reserve
        distance = token_distance(self.calibration, production, seed=self.request.seed)
        self.facts |= {"calibration_prompts": len(self.calibration)}
        if distance is not None:
            self.facts["calibration_distance"] = round(distance, 4)

    def _skip(self, remedy: Remedy, why: str) -> None:
        self.refused.add(remedy.rule)
        self.changes.append(Change(rule=remedy.rule, action=remedy.action, gate="not run", detail=why))
        self.progress.say("not run", f"{remedy.rule}: {why}", rule=remedy.rule)

    def _late(self) -> bool:
        return self.request.max_seconds is not None and time.monotonic() - self.began > self.request.max_seconds


def _serving_changes(plan: Plan, profile: Profile, passed: bool) -> tuple[Change, ...]:
    """The plan's other steps: written into the serving files, not run."""
    from importlib.util import find_spec

    name, module = {"vllm": ("vLLM", "vllm")}.get(profile.engine.name, ("TensorRT-LLM", "tensorrt_llm"))
    why = (
        f"{name} is not installed here"
        if find_spec(module) is None
        else "serving and its benchmark are not started by this command"
    )
    written = "written into the serving files; " if passed else ""
    return tuple(
        Change(rule=step.rule, action="serve", gate="not run", detail=f"{written}not run: {why}")
        for step in plan.steps
        if not {"weights", "kv_cache", "keep_high_precision"} & set(step.changes)
    )


def _manual(action: str) -> str:
    return "the checkpoint of the last round is kept to start from" if action == "qat" else "see the rule's page for how"


def _whole(value: object, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default
