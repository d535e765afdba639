"""What would be tried if a measurement disappoints: the same rules, asked about results that are not there yet."""

from __future__ import annotations

from advisor.estimator.training import training_cost
from advisor.reasoner.diagnosis import diagnose
from advisor.reasoner.rulebook import Rulebook
from advisor.types import Deployment, Fallback, Profile, Rule, Scalar, TrainingCost

# What a run of each action leaves behind as a measured fact, so that the rules can tell what was tried or ruled out.
LEAVES: dict[str, dict[str, Scalar]] = {
    "recalibrate": {"recalibrated": True},
    "mixed_precision": {"mixed_precision_tried": True},
    "qat": {"qat_tried": True},
    "distill": {},
}
# A disappointment as bad as can be: every limit missed, by an uncalibrated scheme whose worst layers hold all the error.
_WORST: dict[str, Scalar] = {
    "accuracy_loss_pct": 100.0,
    "accuracy_inconclusive": False,
    "calibration_prompts": 1,
    "calibration_distance": 1.0,
    "recalibrated": False,
    "mixed_precision_tried": False,
    "qat_tried": False,
    "sensitive_layer_share": 1.0,
    "teacher_loss_pct": 0.0,
}


def find_fallbacks(profile: Profile, rulebook: Rulebook, deployment: Deployment) -> tuple[Fallback, ...]:
    """The remedies that a bad measurement would call up, in the order in which the rules themselves allow them."""
    rules = tuple(rule for rule in rulebook.rules if rule.applies.action in LEAVES)
    imagined = _disappointed(profile, deployment)
    found: list[Fallback] = []
    while True:
        findings = diagnose(imagined, Rulebook(rules=rules, overrides=()))
        fired = {finding.rule for finding in findings if finding.verdict == "fires"}
        fresh = [rule for rule in rules if rule.id in fired and rule.id not in {one.rule for one in found}]
        if not fresh:
            return tuple(found)
        first = min(fresh, key=effort)
        same = [rule for rule in fresh if rule.applies.action == first.applies.action]
        found += [
            Fallback(**{"if": _condition(rule, found)}, rule=rule.id, cost=training_price(rule, profile)) for rule in same
        ]
        left = LEAVES[first.applies.action]
        imagined = imagined.model_copy(update={"measured": imagined.measured | left})


def training_price(rule: Rule, profile: Profile, tokens: float | None = None) -> TrainingCost | None:
    """What a rule's remedy that trains would cost on the profile's GPU, before anything is spent.

    tokens: to train on; None: the published range. None: it trains nothing whose cost the profile alone tells, or the GPU's
    peak is not known.
    """
    if rule.applies.action != "qat":
        return None
    distils = rule.applies.parameters.get("loss") != "cross_entropy"
    return training_cost("qad" if distils else "qat", profile.model, profile.gpu, tokens=tokens)


def _disappointed(profile: Profile, deployment: Deployment) -> Profile:
    goal = profile.goal
    limits = {"accuracy_budget_pct": goal.accuracy_budget_pct if goal.accuracy_budget_pct is not None else 1.0}
    limits |= {name: getattr(goal, name) or 1.0 for name in ("ttft_ms", "itl_ms")}
    slow = {name: 2 * limits[name] for name in ("ttft_ms", "itl_ms")}
    measured = _WORST | slow | {"scheme": deployment.weights}
    return profile.model_copy(update={"goal": goal.model_copy(update=limits), "measured": measured})


def effort(rule: Rule) -> tuple[int, str]:
    """Of several that the rules allow at once, the one with the fewest conditions on what must have been tried before."""
    asked = sum("_tried" in line or "recalibrat" in line for line in rule.requires)
    return asked + 9 * (rule.applies.action == "distill"), rule.id


def _condition(rule: Rule, before: list[Fallback]) -> str:
    asked = next((line for line in rule.when if "measured." in line), rule.when[0])
    return asked if not before else f"{asked}, still"
