"""How fast, and in how much memory, a trace is read.

    python benchmarks/trace.py [ROWS]        default: 1,000,000

Writes a synthetic trace (fixed seed) as CSV with dates, as JSON lines, and as JSON lines with prefix hashes, reads each in
a process of its own with advisor.profiler.trace.read_trace, and prints rows per second and the peak memory of that process
beside the memory of one that only imports the reader.
"""

from __future__ import annotations

import datetime
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

READ = """
import resource, sys, time
from advisor.profiler.trace import read_trace
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
traffic, _ = read_trace(sys.argv[1])
seconds = time.perf_counter() - start
print(traffic.requests, seconds, base, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write(folder: Path, rows: int) -> list[tuple[str, Path]]:
    """Three traces of the same requests: Poisson arrivals, log-normal lengths, a fifth of the prompts continue another."""
    source = random.Random(1)
    start = datetime.datetime(2024, 5, 10, tzinfo=datetime.timezone.utc)
    files = [("CSV, dates", folder / "t.csv"), ("JSONL", folder / "t.jsonl"), ("JSONL, prefix hashes", folder / "h.jsonl")]
    now, fresh, recent = 0.0, 0, [[0]]
    with files[0][1].open("w") as table, files[1][1].open("w") as plain, files[2][1].open("w") as hashed:
        table.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for _ in range(rows):
            now += source.expovariate(50)
            isl = 1 + min(120_000, int(source.lognormvariate(7, 1)))
            osl = 1 + int(source.lognormvariate(5, 1))
            date = (start + datetime.timedelta(seconds=now)).strftime("%Y-%m-%d %H:%M:%S.%f")
            table.write(f"{date}0,{isl},{osl}\n")
            plain.write(json.dumps({"arrival_time": round(now, 6), "prompt_tokens": isl, "completion_tokens": osl}) + "\n")
            need = -(-isl // 512)
            blocks = list(source.choice(recent)[:need]) if source.random() < 0.2 else []
            blocks += range(fresh, fresh + need - len(blocks))
            fresh += need
            recent = [*recent[-99:], blocks]
            hashed.write(
                json.dumps({"timestamp": int(now * 1000), "input_length": isl, "output_length": osl, "hash_ids": blocks}) + "\n"
            )
    return files


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        files = write(Path(folder), rows)
        print(f"{rows:,} rows written three times in {time.perf_counter() - start:.0f} s")
        for name, path in files:
            out = subprocess.run([sys.executable, "-c", READ, str(path)], check=True, capture_output=True, text=True).stdout
            requests, seconds, base, peak = (float(part) for part in out.split())
            size = path.stat().st_size / 2**20
            print(
                f"{name:22} {size:6.0f} MiB  {seconds:5.2f} s  {requests / seconds:9,.0f} rows/s"
                f"  peak {peak / 1024:4.0f} MiB (imports alone {base / 1024:.0f} MiB)"
            )


if __name__ == "__main__":
    main()
