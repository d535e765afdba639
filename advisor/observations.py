"""What was measured as rows of the evidence file, and `advise evidence`: how far the estimates were off so far."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from advisor.executor.servers.checking import Way
from advisor.executor.servers.evidence import Observation, errors_so_far, evidence_file, read
from advisor.executor.servers.measuring import OWN, Measured
from advisor.executor.servers.verifying import PREDICTED
from advisor.types import Profile


def evidence(file: str | None = None, *, form: str = "text") -> str:
    """What was measured so far, as JSON lines' list or as a table of how far the estimates were off. Raises FileProblem."""
    path = evidence_file(file)
    observations = read(path)
    if form == "json":
        return json.dumps([vars(each) for each in observations], indent=1)
    if not observations:
        return f"nothing was measured yet ({path})\n"
    lines = [f"{len(observations)} figures measured, {path}", ""]
    rows = errors_so_far(observations)
    if not rows:
        lines.append("None of them has a prediction beside it: they are of machines that nothing was planned for.")
    for gpu, model, metric, count, ratio, error in rows:
        lines.append(f"{gpu}, {model}: {metric} measured / predicted {ratio:.3g} (median of {count}), error {error:.0%}")
    lines += ["", "Later estimates for the same GPU, model and engine are corrected by these. Deleting the file is safe."]
    return "\n".join(lines) + "\n"


def observations(profile: Profile, machine: str, ways: Sequence[Way], measured: Sequence[Measured]) -> tuple[Observation, ...]:
    """The figures that estimates are made of, each beside what the estimator itself said of it."""
    traffic = profile.traffic
    load = f"concurrency {traffic.concurrency:g}" if traffic.concurrency is not None else f"rate {traffic.rate}"
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    found = []
    for way, one in zip(ways, measured, strict=True):
        for figure in one.figures:
            if figure.metric not in PREDICTED:
                continue
            value = getattr(way.expected, figure.metric) if way.expected is not None else None
            if value is not None and figure.metric == "output_tokens_per_s":
                value /= way.deployment.replicas
            found.append(
                Observation(
                    at=now,
                    gpu=machine,
                    gpus=profile.gpu.count,
                    model=profile.model.name,
                    engine=profile.engine.name,
                    engine_version=profile.engine.version,
                    deployment=way.deployment.model_dump_json(exclude_defaults=True),
                    isl=traffic.isl.mean,
                    osl=traffic.osl.mean,
                    load=load,
                    metric=figure.metric,
                    predicted=value,
                    measured=figure.value,
                    low=figure.low,
                    high=figure.high,
                    client="own" if one.arm.client == OWN else one.arm.client,
                )
            )
    return tuple(found)
