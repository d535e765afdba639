"""Times of device work: medians over replays of a CUDA graph, or over plain calls where a graph cannot hold them.

Inputs are rotated by the caller (a list of closures, each over its own tensors) so that what a real step reads from
device memory is not found in the L2 cache.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

Call = Callable[[], object]
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def wait() -> None:
    """Until the device has done all that it was given."""
    if CUDA:
        torch.cuda.synchronize()


def graph_us(calls: Sequence[Call], *, target_ms: float = 12.0, repeats: int = 7, at_most: int = 256) -> float:
    """Median microseconds of one call inside a CUDA graph of many, calls taken in turn. On a CPU: of one plain pass."""
    for call in calls[:3]:
        call()
    wait()
    if not CUDA:
        return plain_us(calls, repeats=2)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    calls[-1]()
    end.record()
    wait()
    rough_ms = max(start.elapsed_time(end), 0.002)
    number = int(min(max(target_ms / rough_ms, min(len(calls), 4)), at_most))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(number):
            calls[index % len(calls)]()
    for _ in range(2):
        graph.replay()
    times = []
    for _ in range(repeats):
        start.record()
        graph.replay()
        end.record()
        wait()
        times.append(start.elapsed_time(end) * 1000 / number)
    del graph
    return statistics.median(times)


def plain_us(calls: Sequence[Call], *, repeats: int = 5, passes: int = 1) -> float:
    """Median microseconds of one call on the host's clock, the device awaited after each pass over all calls."""
    times = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        for _ in range(passes):
            for call in calls:
                call()
        wait()
        times.append((time.perf_counter() - start) * 1e6 / (passes * len(calls)))
    return statistics.median(times)


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """‖out - reference‖ / ‖reference‖; NaN stays NaN."""
    out, reference = out.double(), reference.double()
    return float((out - reference).norm() / reference.norm())
