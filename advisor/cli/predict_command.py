"""`advise predict`: Points in, Estimates out, a JSON line each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from advisor.cli.options import estimator_option


@click.command("predict")
@click.option("--from", "source", help="JSON lines of Points; - for stdin.", metavar="FILE.jsonl|-")
@click.option("--model", metavar="MODEL")
@click.option("--gpu", metavar="GPU")
@click.option("--tensor-parallel", type=int, metavar="N")
@click.option("--pipeline-parallel", type=int, metavar="N")
@click.option("--expert-parallel", type=int, metavar="N")
@click.option("--attention-dp/--no-attention-dp", default=None)
@click.option("--replicas", type=int, metavar="N")
@click.option("--weights", metavar="FORMAT")
@click.option("--kv-cache", metavar="FORMAT")
@click.option("--batching", metavar="in-flight|static")
@click.option("--speculation", help='JSON: {"method": "eagle3", "draft_len": 3, "acceptance": 0.7}', metavar="JSON")
@click.option("--max-batch-size", type=int, metavar="N")
@click.option("--max-num-tokens", type=int, metavar="N")
@click.option("--chunked-prefill/--no-chunked-prefill", default=None)
@click.option("--prefix-reuse/--no-prefix-reuse", default=None)
@click.option("--cuda-graphs/--no-cuda-graphs", default=None)
@click.option("--isl", type=int, metavar="N")
@click.option("--osl", type=int, metavar="N")
@click.option("--concurrency", help='A number, or "max".', metavar="N|max")
@click.option("--rate", type=float, metavar="R")
@click.option("--requests", type=int, help="Requests of a finite run; with max as in published tables.", metavar="N")
@click.option(
    "--traffic",
    help="Simulate single requests: a trace as it was, or a named shape (chat, rag, ...) at a load.",
    metavar="NAME|FILE",
)
@click.option("--engine", metavar="NAME")
@click.option("--engine-version", metavar="V")
@estimator_option
def command(source: str | None, estimator: str, traffic: str | None, **fields: Any) -> int:
    """Estimate memory, TTFT, ITL and throughput of deployments: one Point in, one Estimate out, a JSON line each.

    With --estimator silicon the times are those of NVIDIA's measured operations, basis silicon, and a note compares them with
    our own; where the tables have no answer the estimate stays ours and a note says why.

    With --traffic a discrete-event simulation serves single requests instead, and prints a Simulated: percentiles of TTFT, ITL,
    latency and queueing, KV cache in use, idle slots, preemptions. A trace's requests come as they came then, unless
    --isl, --osl, --concurrency, --rate or --requests say otherwise; then their lengths are drawn from it.
    """
    from advisor.prediction import predict_lines

    if traffic is not None:
        if source is not None or estimator == "silicon" or not fields["model"]:
            raise click.UsageError("--traffic goes with --model and --gpu, not with --from or --estimator silicon.")
        return _simulated(fields, traffic)
    if source is None and not fields["model"]:
        raise click.UsageError("Give --from FILE.jsonl, or --model and --gpu with --isl, --osl and --concurrency.")
    lines = _file_lines(source) if source is not None else iter([_flag_line(fields)])
    for line in predict_lines(lines, silicon=estimator == "silicon"):
        sys.stdout.write(line + "\n")
        failed = source is None and line.startswith('{"error"')
    sys.stdout.flush()
    return 1 if source is None and failed else 0


def _simulated(fields: dict[str, Any], traffic: str) -> int:
    import json

    from advisor.prediction import simulate_traffic

    sys.stdout.write(simulate_traffic(json.loads(_flag_line(fields)), traffic).model_dump_json() + "\n")
    sys.stdout.flush()
    return 0


def _file_lines(source: str) -> Iterator[str]:
    from pathlib import Path

    from advisor.errors import FileProblem
    from advisor.prediction import read_lines

    if source == "-":
        yield from read_lines(sys.stdin)
        return
    try:
        with Path(source).open(encoding="utf-8", errors="replace") as file:
            yield from read_lines(file)
    except OSError as error:
        raise FileProblem(f"the points cannot be read: {error.strerror}", where=source, hint="check the path") from None


def _flag_line(fields: dict[str, Any]) -> str:
    import json

    point = {name: value for name, value in fields.items() if value is not None}
    if isinstance(point.get("concurrency"), str) and point["concurrency"] != "max":
        try:
            point["concurrency"] = int(point["concurrency"])
        except ValueError:
            raise click.BadParameter("is a whole number or max", param_hint="--concurrency") from None
    if "speculation" in point:
        try:
            point["speculation"] = json.loads(point["speculation"])
        except json.JSONDecodeError as error:
            raise click.BadParameter(f"is not JSON: {error.msg}", param_hint="--speculation") from None
    return json.dumps(point)
