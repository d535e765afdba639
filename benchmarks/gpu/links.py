"""All-reduce between the GPUs of this machine: NCCL's, and vLLM's own one-shot and two-shot kernels, over message sizes.

    python links.py OUT.json [--gpus 2,4]

Times are of one all-reduce among many in a CUDA graph, bf16 sums. NVLink multicast stays off (NCCL_NVLS_ENABLE=0). Needs torch
with NCCL; vLLM's kernels are left out where vllm is not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SIZES = [2**power for power in range(13, 28)]
"""bytes of one GPU's message: 8 KiB (one token of an 8B) to 128 MiB"""
OWN_LIMIT = 8 * 2**20
REPEATS, REPLAYS = 20, 7


def timed(step: Callable[[torch.Tensor], Any], size: int, capture: Callable[[], Any]) -> float:
    """Microseconds of one step, the median over replays of a graph of REPEATS steps."""
    x = torch.ones(size // 2, dtype=torch.bfloat16, device="cuda")
    step(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with capture(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(REPEATS):
            step(x)
    found = []
    for _ in range(REPLAYS + 1):
        dist.barrier()
        torch.cuda.synchronize()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) * 1e3 / REPEATS)
    return statistics.median(found[1:])


def worker(rank: int, world: int, folder: str) -> None:
    """One GPU's process; rank 0 writes the rows."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29500 + world), "NCCL_NVLS_ENABLE": "0"}
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=world, timeout=timedelta(seconds=60))
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        rows.append({"gpus": world, "kernel": "NCCL", "bytes": size, "us": round(timed(dist.all_reduce, size, nullcontext), 2)})
    try:
        from vllm.distributed.device_communicators.custom_all_reduce import CustomAllreduce

        own = CustomAllreduce(dist.new_group(backend="gloo"), torch.device("cuda", rank), OWN_LIMIT)
        if own.disabled:
            raise RuntimeError("vLLM's all-reduce is disabled here")
        for size in (size for size in SIZES if size <= OWN_LIMIT // 2):
            us = timed(own.custom_all_reduce, size, own.capture)
            rows.append({"gpus": world, "kernel": "vLLM", "bytes": size, "us": round(us, 2)})
    except Exception as error:
        rows.append({"gpus": world, "kernel": "vLLM", "error": f"{type(error).__name__}: {error}"[:400]})
    if rank == 0:
        Path(folder, f"links-{world}.part").write_text(json.dumps(rows))
    dist.barrier()
    os._exit(0)  # vLLM's communicator takes NCCL's down with it otherwise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--gpus", default="2,4")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for world in (int(part) for part in options.gpus.split(",")):
        if world > torch.cuda.device_count():
            continue
        began = time.monotonic()
        part = options.out.parent / f"links-{world}.part"
        mp.spawn(worker, (world, str(options.out.parent)), nprocs=world)  # type: ignore[no-untyped-call]
        rows += json.loads(part.read_text())
        part.unlink()
        options.out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}))
        print(world, "GPUs", round(time.monotonic() - began, 1), "s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
