"""One benchmark of two checkouts of this repository, in turn on the same machine, and the ratio of their figures."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TURNS = 3


def show(script: str, doc: str | None, figures: Callable[[], Mapping[str, float]], unit: str, *, more_is_better: bool) -> None:
    """A benchmark's main: print its figures; with --against CHECKOUT those of both and how many times as fast this one is.

    The script itself is run in both, with the advisor of each; a figure is the median of its turns.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout of this repository")
    parser.add_argument("--json", action="store_true", help="the figures alone")
    given = parser.parse_args()
    if given.json:
        print(json.dumps(figures()))
    elif given.against is None:
        for name, figure in figures().items():
            print(f"{name:72} {figure:12,.1f} {unit}")
    else:
        print(f"{'':72} {'here':>12} {'there':>12}   times as fast")
        here, there = _medians(script, (ROOT, given.against.resolve()))
        for name, figure in here.items():
            ratio = figure / there[name] if more_is_better else there[name] / figure
            print(f"{name:72} {figure:12,.1f} {there[name]:12,.1f} {ratio:10.2f}   {unit}")


def _medians(script: str, checkouts: tuple[Path, Path]) -> tuple[dict[str, float], ...]:
    made: tuple[list[dict[str, float]], ...] = tuple([] for _ in checkouts)
    for _ in range(TURNS):
        for checkout, found in zip(checkouts, made, strict=True):
            environment = {**os.environ, "PYTHONPATH": str(checkout)}
            command = [sys.executable, script, "--json"]
            found.append(json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout))
    return tuple({name: statistics.median(one[name] for one in found) for name in found[0]} for found in made)
