"""Which deployments the fired rules allow: every combination of their changes and of the ways to spread over the GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from advisor.estimator.remembering import by_identity
from advisor.types import Deployment, Finding, Gpu, Model, Rule

# Fields that say how the model is spread over the GPUs: searched together, since their product is bounded by the machine.
LAYOUT = ("tensor_parallel", "pipeline_parallel", "expert_parallel", "attention_dp", "replicas")
# Fields whose values the estimator ranks against each other. The others are switches: applied together, then tested singly.
RANKED = ("weights", "kv_cache", "speculation", "keep_high_precision")


@dataclass(frozen=True)
class Option:
    """A rule's change of the Deployment: field -> value."""

    rule: str
    changes: dict[str, object]
    conflicts: frozenset[str] = frozenset()

    def __hash__(self) -> int:
        return hash((self.rule, *self.changes))

    @property
    def is_switch(self) -> bool:
        """A change that is made whenever its rule fires and nothing speaks against it."""
        return not any(field in RANKED or field in LAYOUT for field in self.changes)

    @property
    def is_layout(self) -> bool:
        """A change of how the model is spread over the GPUs; the planner searches the values."""
        return any(field in LAYOUT for field in self.changes)


def fired_options(rules: tuple[Rule, ...], findings: tuple[Finding, ...]) -> tuple[Option, ...]:
    """The changes of the rules that fire, in the rules' order."""
    fired = {finding.rule for finding in findings if finding.verdict == "fires"}
    return tuple(
        Option(rule.id, changes_of(rule), frozenset(rule.conflicts))
        for rule in rules
        if rule.id in fired and rule.applies.deployment
    )


@by_identity(256)
def changes_of(rule: Rule) -> dict[str, object]:
    """What a rule sets, as values of the Deployment; a speculation stays the mapping that the rule gives, to be filled in."""
    given = rule.applies.deployment
    typed = Deployment.model_validate({name: value for name, value in given.items() if name != "speculation"})
    return {name: value if name == "speculation" else getattr(typed, name) for name, value in given.items()}


@dataclass(frozen=True)
class Layout:
    """One way to spread a model over GPUs. tensor_parallel * pipeline_parallel * replicas GPUs are used."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: int = 1
    attention_dp: bool = False
    replicas: int = 1

    def changes(self) -> dict[str, object]:
        """As fields of a Deployment."""
        return {field: getattr(self, field) for field in LAYOUT}


def layout_of(deployment: Deployment) -> Layout:
    """The layout of a deployment."""
    return Layout(*(getattr(deployment, field) for field in LAYOUT))


def layouts(
    model: Model, gpu: Gpu, baseline: Deployment, options: tuple[Option, ...], *, spare: bool = False
) -> tuple[Layout, ...]:
    """Every way to spread a model over the GPUs, smallest tensor parallel first; only the baseline's where no rule asks.

    Tensor parallelism stays within a node and is a power of two up to the attention heads; pipeline parallelism is added
    only across nodes; expert parallelism and attention-DP only where a fired rule names them. All GPUs are used by
    replicas; with `spare`, fewer replicas are tried too (the cheapest deployment may leave GPUs free).
    """
    fields = {field for option in options for field in option.changes}
    if not fields & set(LAYOUT):
        return (layout_of(baseline),)
    node = min(gpu.count, gpu.gpus_per_node)
    found: list[Layout] = []
    tensor = 1
    while tensor <= node and tensor <= model.heads:
        pipelines = {1}
        if tensor == node and gpu.count > node:
            pipelines |= {stages for stages in (2, 4, 8) if stages <= gpu.count // node and stages <= model.layers}
        for stages in sorted(pipelines):
            most = gpu.count // (tensor * stages)
            copies = {most} | ({2**power for power in range(most.bit_length()) if 2**power <= most} if spare else set())
            for (expert, dp), replicas in product(_expert_ways(model, tensor, fields), sorted(copies)):
                found.append(Layout(tensor, stages, expert, dp, replicas))
        tensor *= 2
    return tuple(found) or (layout_of(baseline),)


def _expert_ways(model: Model, tensor: int, fields: set[str]) -> list[tuple[int, bool]]:
    """(expert parallel, attention-DP) for one tensor parallel. Ranks that divide the requests keep their experts whole where
    they can: 92 of 97 published configurations with attention-DP have as many expert-parallel ranks."""
    if tensor == 1:
        return [(1, False)]
    whole = model.moe is not None and "expert_parallel" in fields
    ways = [(1, False), (tensor, False)] if whole else [(1, False)]
    return [*ways, (tensor if whole else 1, True)] if "attention_dp" in fields else ways


@dataclass(frozen=True)
class Candidate:
    """A deployment, and the rules whose changes made it from the baseline."""

    deployment: Deployment
    rules: tuple[str, ...]


@lru_cache(maxsize=64)
def combine(baseline: Deployment, options: tuple[Option, ...], spread: tuple[Layout, ...]) -> tuple[Candidate, ...]:
    """Every combination of the ranked options, one value a field, over every layout; all switches on.

    Remembered: where a profile is moved to find what would change the plan, the same rules fire more often than not.
    """
    return tuple(_combine(baseline, options, spread))


def _combine(baseline: Deployment, options: tuple[Option, ...], spread: tuple[Layout, ...]) -> Iterator[Candidate]:
    switches = [option for option in options if option.is_switch]
    ranked: dict[str, list[Option | None]] = {}
    for option in options:
        if not option.is_switch and not option.is_layout:
            ranked.setdefault(next(iter(option.changes)), [None]).append(option)
    ways = [(layout, layout.changes()) for layout in spread]
    switched: dict[str, object] = {field: value for option in switches for field, value in option.changes.items()}
    for chosen in product(*ranked.values()):
        picked = [option for option in chosen if option is not None]
        if any(one.conflicts & {other.rule for other in picked} for one in picked):
            continue
        changes = switched | {field: value for option in picked for field, value in option.changes.items()}
        rules = tuple(option.rule for option in (*switches, *picked))
        for layout, way in ways:
            if layout.pipeline_parallel > 1 and "speculation" in changes:
                continue  # MTP and EAGLE-3 do not run over pipeline stages (TensorRT-LLM's feature combination matrix)
            yield Candidate(baseline.model_copy(update=changes | way), rules)
