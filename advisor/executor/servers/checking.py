"""A plan on a real server: started (or found behind a URL), loaded as the traffic says, judged, and written down as Changes."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from advisor.errors import NotPossible
from advisor.executor.servers import aiperf, tensorrt_llm_engine, vllm_engine
from advisor.executor.servers.engines import Launch, Server, serving
from advisor.executor.servers.load import MOST_THREADS, Admission, Request, gaps, make_requests
from advisor.executor.servers.measuring import Arm, Bounds, Measured, ReadMetrics, figures_of, interval, measure
from advisor.executor.servers.verifying import change_of, verify
from advisor.types import Change, Deployment, Estimate, Goal, Interval, Plan, Profile

Tell = Callable[[str], None]
GAIN = "in_flight_gain"
SHARE, LEAST = 4, 32
"""requests of a round: at the end of each the slots run empty, a quarter of it is enough to bear"""


@dataclass(frozen=True)
class Way:
    """One deployment to measure, and how requests are admitted to it."""

    what: str
    deployment: Deployment
    static: bool
    expected: Estimate | None
    """by the estimator itself, for the machine that is measured; None: there is no estimate for it"""
    gated: bool
    """the limits are judged on it"""
    checkpoint: Path | None = None
    """folder of the weights; None: where the plan says"""


@dataclass(frozen=True)
class Order:
    """What to run and how long."""

    out: Path
    url: str | None = None
    python: str | None = None
    requests: int | None = None
    """of one round; None: SHARE times those that run at once, at least LEAST"""
    bounds: Bounds = field(default_factory=Bounds)
    deadline: float = 600.0
    """seconds for an engine to become healthy"""
    arrivals: tuple[tuple[float, int, int], ...] = ()
    """a trace to replay: (seconds after the first, input, output tokens)"""
    texts: tuple[tuple[int, ...], ...] = ()
    """the user's prompts as token ids, cut or joined to the traffic's lengths; none: random tokens"""
    aiperf: str | None = None
    """the aiperf program; None: the client of load.py"""


def check(
    plan: Plan,
    profile: Profile,
    ways: Sequence[Way],
    order: Order,
    *,
    idle_share: float,
    read_metrics: ReadMetrics | None = None,
    tell: Tell = lambda _line: None,
) -> tuple[tuple[Change, ...], tuple[Measured, ...]]:
    """Measure every way and judge it; the Changes (the ways in order) and what they rest on.

    Ways that need the same server share one and take turns on it. idle_share: what static batching idles by the lengths.
    Raises MissingExtra, NotPossible, EngineFailed, NotMeasured, InputError.
    """
    found: dict[str, Measured] = {}
    started: dict[str, tuple[str, tuple[str, ...]]] = {}
    for launch, together in _servers(plan, profile, ways, order):
        with _server(launch, profile, order, "-".join(way.what.replace(" ", "-") for way in together)) as server:
            if server.seconds is not None:
                tell(f"{order_name(together)}: healthy after {server.seconds:,.1f} s")
            compared = any(way.static for way in together)  # in turns, round by round: one client for all of them
            program = None if compared else order.aiperf
            arms = [_arm(way, server, profile, order, program) for way in together]
            count = order.requests or max(LEAST, SHARE * max(arm.slots for arm in arms))
            made = measure(
                arms, _requests(profile, order, count), limits=limits_of(profile.goal), bounds=order.bounds,
                read_metrics=read_metrics, tell=tell,
            )  # fmt: skip
        for one in made:
            found[one.arm.what] = one
            if launch is not None:
                started[one.arm.what] = (shlex.join(launch.command), launch.notes)
    measured = tuple(found[way.what] for way in ways)
    return _changes(ways, measured, profile, started, idle_share), measured


def limits_of(goal: Goal) -> dict[str, float]:
    """Metric -> its limit in ms."""
    limits = {"ttft_ms": goal.ttft_ms, "itl_ms": goal.itl_ms}
    return {metric: limit for metric, limit in limits.items() if limit is not None}


def order_name(ways: Sequence[Way]) -> str:
    """The names of ways that share a server."""
    return " and ".join(way.what for way in ways)


def slots_of(way: Way, profile: Profile) -> int:
    """Requests at once at one replica of a deployment."""
    concurrency = profile.traffic.concurrency or (way.expected.concurrency if way.expected is not None else None) or 1.0
    return max(1, round(concurrency / way.deployment.replicas))


def _servers(plan: Plan, profile: Profile, ways: Sequence[Way], order: Order) -> Iterator[tuple[Launch | None, list[Way]]]:
    """Each server to be started with the ways that it serves; None: the one behind the URL serves them all."""
    if order.url is not None:
        yield None, list(ways)
        return
    groups: dict[tuple[Deployment, Path | None], list[Way]] = {}
    for way in ways:
        groups.setdefault((way.deployment.model_copy(update={"batching": "in-flight"}), way.checkpoint), []).append(way)
    for (deployment, checkpoint), together in groups.items():  # one at a time: each launch finds its own free port
        yield _launch(plan, deployment, checkpoint, profile, order), together


def _launch(plan: Plan, deployment: Deployment, checkpoint: Path | None, profile: Profile, order: Order) -> Launch:
    if profile.engine.name == "tensorrt-llm":
        return tensorrt_llm_engine.launch(plan, deployment, profile, folder=order.out, checkpoint=checkpoint)
    installed = vllm_engine.find(order.python)
    return vllm_engine.launch(plan, deployment, profile, installed, checkpoint=checkpoint)


def refuse(deployment: Deployment, profile: Profile, python: str | None, gpus: int) -> None:
    """Raise MissingExtra where the profile's engine is not installed, NotPossible where it cannot run a deployment on a machine
    with so many GPUs; InputError for a Python that is none. Nothing is started."""
    if profile.engine.name == "tensorrt-llm":
        tensorrt_llm_engine.find(profile.engine.version)
    else:
        installed = vllm_engine.find(python)
        if installed.cpu:
            vllm_engine.check_cpu(deployment)
            return
    ranks = deployment.tensor_parallel * deployment.pipeline_parallel
    if ranks > gpus:
        has = f"{gpus} GPU{'' if gpus == 1 else 's'}" if gpus else "no GPU"
        raise NotPossible(
            f"not run: a replica needs {ranks} x {profile.gpu.name}, this machine has {has}",
            where="tensor_parallel x pipeline_parallel",
        )


@contextlib.contextmanager
def _server(launch: Launch | None, profile: Profile, order: Order, name: str) -> Iterator[Server]:
    if launch is None:
        assert order.url is not None
        yield found_server(order.url, "/prometheus/metrics" if profile.engine.name == "tensorrt-llm" else "/metrics")
        return
    log = order.out / "logs" / f"{name}-{time.strftime('%Y%m%dT%H%M%S')}.log"
    with serving(launch, log=log, deadline=order.deadline) as server:
        yield server


def found_server(url: str, metrics: str = "/metrics") -> Server:
    """A server that runs already, with the name of the model that it serves. Raises InputError."""
    import json

    from advisor.errors import InputError
    from advisor.executor.servers.engines import fetch

    url = url.rstrip("/")
    hint = "give the root of an OpenAI-compatible server, for example http://127.0.0.1:8000"
    try:
        status, text = fetch(url + "/v1/models")
        names = [str(entry["id"]) for entry in json.loads(text)["data"]] if status == 200 else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"no server answers there: {error}", where=url, hint=hint) from None
    if not names:
        raise InputError(f"this server lists no model (status {status})", where=f"{url}/v1/models", hint=hint)
    return Server(url, names[0], metrics)


def _arm(way: Way, server: Server, profile: Profile, order: Order, program: str | None) -> Arm:
    """aiperf where it is there and can admit requests so, our own client otherwise."""
    admission, slots = _admission(way, profile, order), slots_of(way, profile)
    if program is None or admission != "in-flight":
        if admission != "arrivals" and slots > MOST_THREADS:
            raise NotPossible(
                f"not run: {slots:,} requests at once, the advisor's own client keeps {MOST_THREADS:,}",
                where="traffic.concurrency",
                hint="install aiperf, or plan for more replicas",
            )
        return Arm(way.what, server, admission, slots)
    tokenizer = str(profile.model.folder or way.checkpoint or profile.model.name)
    return Arm(way.what, server, admission, slots, aiperf.sender(program, tokenizer), "aiperf")


def _admission(way: Way, profile: Profile, order: Order) -> Admission:
    if way.static:
        return "static"
    return "arrivals" if order.arrivals or (profile.traffic.concurrency is None and profile.traffic.rate) else "in-flight"


def _requests(profile: Profile, order: Order, requests: int) -> Callable[[int], Sequence[Request]]:
    """Number -> requests: the same lengths in the same order each time, other tokens; fewer to warm up."""
    traffic, vocab = profile.traffic, profile.model.vocab
    shared, texts = traffic.shared_prefix or 0.0, order.texts
    pairs: Sequence[tuple[int, int]] = traffic.lengths or ((round(traffic.isl.mean), round(traffic.osl.mean)),)
    seed = time.time_ns()  # a server that was measured before still has the prompts of then in its cache

    def of(number: int) -> Sequence[Request]:
        count, first = max(1, requests // 2) if number <= 0 else requests, number * requests
        if order.arrivals:
            rows = order.arrivals[:count]
            times = [at for at, _, _ in rows]
            pairs_of = [(isl, osl) for _, isl, osl in rows]
            return make_requests(
                pairs_of, len(rows), vocab=vocab, shared_prefix=shared, seed=seed + number, arrivals=times, shuffled=False,
                texts=texts, first=first,
            )  # fmt: skip
        drawn = gaps(count, traffic.rate, traffic.burstiness) if traffic.concurrency is None and traffic.rate else ()
        return make_requests(
            pairs, count, vocab=vocab, shared_prefix=shared, seed=seed + number, arrivals=drawn, texts=texts, first=first
        )

    return of


def _changes(
    ways: Sequence[Way],
    measured: Sequence[Measured],
    profile: Profile,
    started: Mapping[str, tuple[str, tuple[str, ...]]],
    idle_share: float,
) -> tuple[Change, ...]:
    changes: list[Change] = []
    before: tuple[Interval, ...] = ()
    static = next(((way, one) for way, one in zip(ways, measured, strict=True) if way.static), None)
    for way, one in zip(ways, measured, strict=True):
        figures = verify(
            one,
            limits=limits_of(profile.goal) if way.gated else {},
            expected=way.expected,
            replicas=way.deployment.replicas,
            predicted={"idle_share": idle_share if way.static else 0.0},
        )
        if static is not None and not way.static and _same_but_batching(static[0], way):
            figures = (*figures, *_gain(static, way, one))
        command, notes = started.get(way.what, ("", ()))
        if way.static:
            notes = (
                *notes,
                f"Filling those slots gives at most {1 / (1 - idle_share):.2f} x the throughput, if steps cost the same.",
            )
        if way.expected is None:
            notes = (*notes, "Latency and throughput have no prediction for this machine: the plan is for another one.")
        changes.append(
            change_of(one, figures, before=before, gated=way.gated, notes=notes, command=command, seconds=one.seconds)
        )
        before = before or figures
    return tuple(changes)


def _same_but_batching(one: Way, other: Way) -> bool:
    in_flight = {"batching": "in-flight"}
    return one.deployment.model_copy(update=in_flight) == other.deployment.model_copy(update=in_flight)


def _gain(static: tuple[Way, Measured], way: Way, one: Measured) -> tuple[Interval, ...]:
    """Throughput over that of static batching on the same server, round by round, beside the ratio of the two estimates.

    The two took turns, so what disturbs one round disturbs both and drops out of its ratio.
    """
    rounds = zip(static[1].rounds, one.rounds, strict=False)
    pairs = [(figures_of(slow)["output_tokens_per_s"], figures_of(fast)["output_tokens_per_s"]) for slow, fast in rounds]
    ratios = [fast / slow for slow, fast in pairs if slow]
    if not ratios:
        return ()
    before, after = (each.expected.output_tokens_per_s if each.expected is not None else None for each in (static[0], way))
    ratio = after / before if before and after is not None else None
    gain = interval(GAIN, way.what, ratios, sum(len(each.good) for each in one.rounds))
    return (gain.model_copy(update={"predicted": ratio}),)
