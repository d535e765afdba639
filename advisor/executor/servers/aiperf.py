"""NVIDIA's aiperf as the load client: our own requests, sent as they are, its own records as answers.

Only closed loops: a static admission and a trace's arrival times go through load.py, since aiperf 0.13 has no gate between
batches, and takes no times with requests that it sends as they are.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from advisor.errors import AdvisorError, InputError
from advisor.executor.servers.engines import Server
from advisor.executor.servers.load import Admission, Answer, Request, Round, body_of

PROGRAM = "ADVISE_AIPERF"
"""environment variable: the aiperf program, where it has an environment of its own"""
SPARE = 120.0
"""seconds that aiperf may take to start and to write"""


class ClientFailed(AdvisorError):
    """aiperf ended without records."""


def find(given: str | None = None) -> str | None:
    """The aiperf program: the given one, ADVISE_AIPERF, or the one on PATH; None where there is none.

    Raises InputError for a given one that is not there.
    """
    named = given or os.environ.get(PROGRAM)
    program = shutil.which(named or "aiperf")
    if named and program is None:
        where = "--aiperf" if given else PROGRAM
        raise InputError(f"there is no such program: {named}", where=where, hint="give the path of an environment's bin/aiperf")
    return program


def sender(program: str, tokenizer: str) -> Callable[[Server, Sequence[Request], Admission, int, float], Round]:
    """A sender for measuring.measure. tokenizer: a folder or hub id, for aiperf's own counts."""

    def send(server: Server, requests: Sequence[Request], admission: Admission, slots: int, seconds: float) -> Round:
        if admission != "in-flight":
            raise ValueError(f"aiperf does not send {admission}")
        with tempfile.TemporaryDirectory(prefix="advise-aiperf-") as name:
            return _run(program, tokenizer, Path(name), server, requests, slots, seconds)

    return send


def _run(
    program: str, tokenizer: str, folder: Path, server: Server, requests: Sequence[Request], slots: int, seconds: float
) -> Round:
    payloads = folder / "inputs.json"
    sessions = [{"session_id": str(index), "payloads": [body_of(server, each)]} for index, each in enumerate(requests)]
    payloads.write_text(json.dumps({"data": sessions}), encoding="utf-8")
    command = [
        program, "profile", "--model", server.served_name, "--url", server.url, "--endpoint-type", "completions",
        "--streaming", "--custom-dataset-type", "inputs_json", "--input-file", str(payloads), "--tokenizer", tokenizer,
        "--concurrency", str(min(slots, len(requests))), "--request-count", str(len(requests)), "--use-server-token-count",
        "--no-server-metrics", "--no-gpu-telemetry", "--ui-type", "none", "--output-artifact-dir", str(folder / "out"),
    ]  # fmt: skip
    status, output = _finished(command, folder, seconds + SPARE)
    records = next(iter(sorted((folder / "out").rglob("profile_export.jsonl"))), None)
    if records is None:
        tail = "\n       ".join(output.splitlines()[-8:])
        raise ClientFailed(f"aiperf ended with status {status} and no records", where=program, hint=tail)
    answers = [answer_of(json.loads(line)) for line in records.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not answers:
        raise ClientFailed("aiperf recorded no request", where=program, hint="try --own-client")
    started, ended = min(a.sent for a in answers), max(a.last for a in answers)
    return Round(tuple(answers), slots, started, ended, cut=len(answers) < len(requests))


def _finished(command: Sequence[str], folder: Path, seconds: float) -> tuple[int, str]:
    """Status and output of a command in a session of its own; whatever ends the wait ends all of that session's group."""
    log = folder / "aiperf.log"
    with log.open("wb") as file:
        try:
            process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        except OSError as error:
            what = f"aiperf cannot be started: {error.strerror}"
            raise ClientFailed(what, where=command[0], hint="try --own-client") from None
    try:
        status = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        what = f"aiperf did not end within {seconds:,.0f} s"
        raise ClientFailed(what, where=command[0], hint="try --own-client") from None
    finally:
        if process.poll() is None:  # only while it lives is the number certainly that of its group
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return status, log.read_text(encoding="utf-8", errors="replace")


def answer_of(record: dict[str, object]) -> Answer:
    """An Answer from one line of aiperf's profile_export.jsonl; its times are nanoseconds since 1970."""
    about, metrics = record.get("metadata"), record.get("metrics")
    about, metrics = about if isinstance(about, dict) else {}, metrics if isinstance(metrics, dict) else {}
    sent, last = about.get("request_start_ns", 0) / 1e9, about.get("request_end_ns", 0) / 1e9
    if record.get("error"):
        return Answer(sent, None, last or sent, 0, str(record["error"])[:300])

    def number(*names: str) -> float | None:
        return next((metrics[name]["value"] for name in names if name in metrics), None)

    first, latency = number("time_to_first_token"), number("request_latency")
    tokens = number("output_sequence_length", "usage_completion_tokens", "output_token_count")
    if first is None or latency is None or tokens is None:
        return Answer(sent, None, last or sent, 0, "aiperf has no latency of this request")
    return Answer(sent, sent + first / 1e3, sent + latency / 1e3, int(tokens))
