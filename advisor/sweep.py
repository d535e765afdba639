"""Many questions in one process: models x GPUs x traffic x limits, one plan a line, picked up again where it stopped.

    models: [meta-llama/Llama-3.1-8B-Instruct, Qwen/Qwen3-32B]
    gpus: [h100, {gpu: h200, gpus: [1, 2, 8]}]
    traffic: [chat, {traffic: rag, concurrency: [16, 256]}, {isl: 1024, osl: 256, rate: 5}]
    limits: [{}, {itl_ms: 20, accuracy_budget_pct: 1}]         may be left out
    objective: cost
    engine: tensorrt-llm
    engine_version: 1.2.1
    prices: {h100: 2.5, h200: 3.5}                             per GPU and hour, yours: none is built in
    policy: advise.yaml                                        beside this file

or JSON lines, a question each, with the keywords of `pipeline.profile`: {"model": …, "gpu": …, "gpus": 1, "traffic": …}.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from advisor import __version__, gathering, pipeline
from advisor.errors import AdvisorError, FileProblem, InputError
from advisor.library import read_text
from advisor.reasoner.candidates import LAYOUT
from advisor.reasoner.choice import violations
from advisor.reasoner.decision import decide
from advisor.reasoner.diagnosis import diagnose
from advisor.reasoner.rulebook import Rulebook
from advisor.reasoner.source import Node, Source
from advisor.types import Answer, Engine, Estimate, Goal, Policy

KEYS = ("models", "gpus", "traffic", "limits", "objective", "engine", "engine_version", "prices", "policy")
LISTS: dict[str, tuple[str, ...]] = {
    "models": ("model",),
    "gpus": ("gpu", "gpus"),
    "traffic": ("traffic", "isl", "osl", "concurrency", "rate"),
    "limits": ("ttft_ms", "itl_ms", "accuracy_budget_pct", "accuracy_metric"),
}
WORDS = {"models": "model", "gpus": "gpu", "traffic": "traffic"}
"""what a bare word in a list stands for"""
ASKED = (*(name for names in LISTS.values() for name in names), "objective", "engine", "engine_version")
MOST = 1_000_000
"""questions of one file: more is taken for a slip"""
Question = dict[str, Any]


@dataclass
class Sweep:
    """The questions of a file, and what holds for all of them."""

    questions: list[Question]
    prices: dict[str, float] = field(default_factory=dict)
    """GPU id -> price per GPU and hour"""
    policy: Policy | None = None
    rulebook: Rulebook | None = None

    def key(self, question: Question) -> str:
        """A short hash of all that decides the answer but the price."""
        policy = self.policy.model_dump_json() if self.policy else ""
        content = json.dumps([__version__, question, policy], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def answers(self, done: frozenset[str] = frozenset()) -> Iterator[Answer]:
        """An answer for each question whose key is not done, in order; a question that fails does not stop the rest."""
        for question in self.questions:
            key = self.key(question)
            if key in done:
                continue
            try:
                yield self._answered(key, question)
            except AdvisorError as error:
                yield Answer(key=key, question=question, error=error.what, hint=error.hint)

    def _answered(self, key: str, question: Question) -> Answer:
        profile = _profile(question)
        if self.rulebook is None:
            self.rulebook = pipeline.govern(profile, policy=self.policy)[1]
        if self.policy is not None:
            from advisor.reasoner.policing import govern

            profile = govern(profile, self.policy)
        decision = decide(profile, self.rulebook, diagnose(profile, self.rulebook), policy=self.policy)
        chosen, deployment = decision.chosen, decision.chosen.deployment
        used = deployment.tensor_parallel * deployment.pipeline_parallel * deployment.replicas
        price = self.prices.get(profile.gpu.id or "")
        baseline = decision.baseline.deployment
        moved = any(getattr(deployment, name) != getattr(baseline, name) for name in LAYOUT)
        spread = tuple(option.rule for option in decision.options if option.is_layout and moved)
        return Answer(
            key=key,
            question=question,
            feasible=decision.feasible,
            deployment=deployment,
            expected=chosen.estimate.model_copy(update={"notes": ()}),
            baseline_output_tokens_per_s=decision.baseline.estimate.output_tokens_per_s,
            rules=(*chosen.candidate.rules, *spread[:1]),
            gpus_used=used,
            broken=() if decision.feasible else tuple(violations(chosen.estimate, profile.goal)),
            price_per_gpu_hour=price,
            cost_per_million_output_tokens=cost(price, used, chosen.estimate) if decision.feasible else None,
        )


def cost(price: float | None, gpus: int, estimate: Estimate) -> float | None:
    """Price of a million output tokens = price per GPU and hour x GPUs / output tokens per hour x 10^6; None: not known."""
    if price is None or not estimate.output_tokens_per_s:
        return None
    return price * gpus / (estimate.output_tokens_per_s * 3600.0) * 1.0e6


def read_sweep(path: Path, prices: Mapping[str, float] | None = None) -> Sweep:
    """The sweep of a YAML or JSONL file. prices: over those of the file. Raises FileProblem, RuleProblem, UnknownName."""
    given = dict(prices or {})
    if path.suffix in (".jsonl", ".ndjson"):
        return Sweep(list(_json_questions(path)), _by_id(given))
    source = Source(path, str(path), what="sweep")
    sweep = _Reader(source, path).read(given) if not source.problems else None
    if source.problems or sweep is None:
        raise source.problems[0]
    return sweep


def finished(path: Path) -> tuple[frozenset[str], int]:
    """The keys of the whole lines that an output file has, and the bytes they take. Raises FileProblem."""
    keys, size = set(), 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    keys.add(str(json.loads(line)["key"]))
                except (ValueError, KeyError, TypeError):
                    hint = "give another file with -o, or remove this one"
                    raise FileProblem("this is not a sweep's output", where=f"{path}:{number}", hint=hint) from None
                size += len(line)
    except FileNotFoundError:
        return frozenset(), 0
    except OSError as error:
        raise FileProblem(f"the output cannot be read: {error.strerror}", where=str(path), hint="check the path") from None
    return frozenset(keys), size


def read_answers(path: Path, prices: Mapping[str, float] | None = None) -> Iterator[Answer]:
    """The answers in a sweep's output; their costs anew where prices are given (GPU id -> price). Raises FileProblem."""
    finished(path)
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            answer = Answer.model_validate_json(line)
            yield answer if not prices else _priced(answer, prices)


def _priced(answer: Answer, prices: Mapping[str, float]) -> Answer:
    if not answer.feasible or answer.expected is None or answer.gpus_used is None:
        return answer
    price = prices.get(_gpu(answer.question["gpu"], 1)[0].id)
    found = cost(price, answer.gpus_used, answer.expected)
    return answer.model_copy(update={"price_per_gpu_hour": price, "cost_per_million_output_tokens": found})


def _profile(question: Question) -> Any:
    """As `pipeline.profile`, with model, GPU and traffic read once per name."""
    goal = {name: question[name] for name in (*LISTS["limits"], "objective") if name in question}
    load = {name: question.get(name) for name in LISTS["traffic"]}
    engine = question.get("engine", "tensorrt-llm")
    version = question.get("engine_version") or gathering.DEFAULT_VERSIONS[engine]
    model, sources = _model(question["model"])
    gpu, gpu_sources = _gpu(question["gpu"], question.get("gpus", 1))
    traffic, traffic_sources, _ = _traffic(json.dumps(load, sort_keys=True))
    told = {"engine.version": "flag --engine-version" if question.get("engine_version") else "default"}
    return gathering.assemble(
        model,
        gpu,
        traffic,
        goal=Goal.model_validate(goal),
        engine=Engine.model_validate({"name": engine, "version": version}),
        sources=sources | gpu_sources | traffic_sources | told,
    )


@lru_cache(maxsize=256)
def _model(name: str) -> Any:
    from advisor.profiler.model import read_model

    return read_model(name)


@lru_cache(maxsize=1024)
def _gpu(name: str, count: int) -> Any:
    from advisor.profiler.gpu import find_gpu

    return find_gpu(name, count)


@lru_cache(maxsize=1024)
def _traffic(load: str) -> Any:
    given = json.loads(load)
    return gathering.find_traffic(given.pop("traffic"), **given)


def _by_id(prices: Mapping[str, float]) -> dict[str, float]:
    found = {}
    for name, price in prices.items():
        if not 0 < price < math.inf:
            raise InputError(f"a price of {price:g} per GPU-hour", where=name, hint="give a number above 0")
        gpu, _ = _gpu(name, 1)
        found[gpu.id] = float(price)
    return found


# ---------------------------------------------------------------- the file


def _json_questions(path: Path) -> Iterator[Question]:
    """Each line checked for its keys and values; the first one that is at fault is raised with its line."""
    for number, line in enumerate(read_text(path, what="sweep").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            raise FileProblem("not JSON", where=where, hint='a line is {"model": …, "gpu": …}') from None
        if not isinstance(found, dict):
            raise FileProblem("a question is a JSON object", where=where, hint='a line is {"model": …, "gpu": …}')
        problem = next((said for name, value in found.items() if (said := _fault(name, value))), "")
        problem = problem or next((f"the question has no {name}" for name in ("model", "gpu") if name not in found), "")
        if problem:
            raise FileProblem(problem, where=where, hint=f"keys: {', '.join(ASKED)}")
        yield found


def _fault(name: str, value: Any) -> str:
    """What is wrong with one keyword of a question; "" when nothing is."""
    if name not in ASKED:
        near = difflib.get_close_matches(name, ASKED, n=1)
        return f"unknown key {name!r}" + (f"; did you mean {near[0]}?" if near else "")
    if name in ("model", "gpu", "traffic", "accuracy_metric", "engine_version"):
        return "" if isinstance(value, str) and value else f"{name} is text"
    if name == "objective":
        return "" if value in ("throughput", "latency", "cost") else "objective is throughput, latency or cost"
    if name == "engine":
        return "" if value in gathering.DEFAULT_VERSIONS else f"engine is {' or '.join(gathering.DEFAULT_VERSIONS)}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        return f"{name} is a number"
    if name == "gpus":
        return "" if isinstance(value, int) and value >= 1 else "gpus is a whole number, 1 or more"
    return "" if value > 0 or name == "accuracy_budget_pct" else f"{name} is a number above 0"


class _Reader:
    """A YAML sweep while it is read."""

    def __init__(self, source: Source, path: Path) -> None:
        self.source = source
        self.path = path

    def read(self, prices: Mapping[str, float]) -> Sweep | None:
        source = self.source
        nodes = source.mapping(source.root, KEYS, KEYS[3:], what="a sweep")
        axes = [list(self._entries(nodes.get(name), name)) for name in LISTS]
        axes[3] = axes[3] or [{}]
        shared = {name: self._scalar(nodes[name], name) for name in KEYS[4:7] if name in nodes}
        told = {key.value: source.number(value, "a price") for key, value in self._pairs(nodes.get("prices"))}
        policy = self.path.parent / source.text(nodes["policy"], "policy") if "policy" in nodes else None
        for name, axis in zip(tuple(LISTS)[:3], axes, strict=False):
            if not axis and name in nodes:
                source.report(nodes[name], f"{name} is empty", "list at least one")
        if self._is_too_many(math.prod(map(len, axes)), source.root) or source.problems:
            return None
        questions = [{**model, **gpu, **load, **limit, **shared} for model, gpu, load, limit in product(*axes)]
        return Sweep(questions, _by_id({**told, **prices}), _read_policy(policy))

    def _pairs(self, node: Node) -> list[tuple[Node, Node]]:
        return [] if node is None else self.source.pairs(node, "prices")

    def _scalar(self, node: Node, name: str) -> Any:
        value = self.source.text(node, name) if name == "engine_version" else self.source.scalar(node, name)
        problem = _fault(name, value)
        if problem:
            self.source.report(node, problem)
        return value

    def _entries(self, node: Node, name: str) -> Iterator[Question]:
        """Each entry of a list, its own lists multiplied out."""
        for item in self.source.items(node, name):
            if getattr(item, "id", "") == "scalar" and name in WORDS:
                yield {WORDS[name]: self._scalar(item, WORDS[name])}
                continue
            found = self.source.mapping(item, LISTS[name], LISTS[name], what=f"an entry of {name}")
            values = [[(key, self._scalar(one, key)) for one in self._many(value)] for key, value in found.items()]
            if self._is_too_many(math.prod(map(len, values)), item):
                return
            for chosen in product(*values):
                yield dict(chosen)

    def _is_too_many(self, count: int, node: Node) -> bool:
        if count > MOST:
            self.source.report(node, f"{count:,} questions are more than {MOST:,}", "split the file")
        return count > MOST

    def _many(self, node: Node) -> list[Node]:
        return self.source.items(node, "this") if getattr(node, "id", "") == "sequence" else [node]


def _read_policy(path: Path | None) -> Policy | None:
    if path is None:
        return None
    from advisor.reasoner.policy_file import read_policy

    return read_policy(path)
