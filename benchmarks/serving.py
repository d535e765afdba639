"""What `advise measure` itself costs and adds: the overhead of its client, and seconds from a plan to a verified report.

    python benchmarks/serving.py [REPORT.json ENGINE_PYTHON]

Alone: tokens/s that the client can take from a stand-in server that streams as fast as it can, by requests at once. With a
report and an engine's Python: one whole run of `advise measure` with its figures.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from advisor import measurement
from advisor.executor.servers.engines import Launch, free_port, serving
from advisor.executor.servers.load import make_requests, send
from advisor.executor.servers.measuring import figures_of
from advisor.profiler.stored import load_report

STAND_IN = Path(__file__).resolve().parents[1] / "tests" / "stand_in_engine.py"


def client(folder: Path) -> None:
    """Tokens/s through the client; the stand-in takes part of the same processors, so this is a lower bound."""
    port = free_port()
    command = (sys.executable, str(STAND_IN), "--port", str(port), "--step", "0", "--prefill", "0")
    launch = Launch("stand-in", "1", command, f"http://127.0.0.1:{port}", "stand-in")
    with serving(launch, log=folder / "log", deadline=30, journal=folder / "journal") as server:
        for slots in (1, 8, 64):
            found = send(server, make_requests([(64, 64)], 4 * slots, vocab=1000), "in-flight", slots, 60)
            print(f"client, {slots:3d} at once: {figures_of(found)['output_tokens_per_s']:8,.0f} output tokens/s")


def whole(report: str, python: str, folder: Path) -> None:
    """One run from a plan to a verified report."""
    began = time.monotonic()
    made = measurement.measure(
        load_report(Path(report)), folder / "out", engine_python=python, static=True, rounds=3, seconds=120, own_client=True,
        no_evidence=True, tell=print,
    )  # fmt: skip
    for change in made.changes:
        print(change.detail)
    print(f"from plan to verified: {time.monotonic() - began:,.0f} s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        if len(sys.argv) == 3:
            whole(sys.argv[1], sys.argv[2], Path(name))
        else:
            client(Path(name))
