"""Measures on the GPU of this machine what the advisor assumes about it, into one JSON file.

    python measure.py --out results.json [--sections nvml,gemm,...] [--tiny] [--limit SECONDS]

Every section runs in a process of its own with a time limit, and the file is rewritten after each: a section that fails
or hangs costs only itself. --tiny runs everything in toy sizes (with TRITON_INTERPRET=1 on a CPU, too): a dry run, whose
figures mean nothing. Nothing on the device is changed: no clock, power or mode settings.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SECTIONS: dict[str, tuple[str, str, int]] = {
    "nvml": ("machine", "record_nvml", 60),
    "versions": ("machine", "versions", 60),
    "check": ("own_kernels", "check", 150),
    "bandwidth": ("rates", "bandwidth", 60),
    "launches": ("rates", "launches", 60),
    "gemm": ("rates", "gemm", 260),
    "decode": ("step", "decode", 260),
    "attention": ("rates", "attention", 150),
    "verify": ("step", "verify", 120),
    "prefill": ("step", "prefill", 120),
    "prefill_attention": ("rates", "prefill_attention", 60),
    "elementwise": ("rates", "elementwise", 60),
    "library_gemm": ("library", "library_gemm", 200),
    "library_attention": ("library", "library_attention", 120),
    "ptq": ("ptq", "costs", 300),
    "train": ("trained", "train_both", 180),
    "accuracy": ("trained", "accuracy", 300),
    "speculation": ("trained", "speculation", 150),
    "batching": ("batching", "compare", 180),
}
"""name -> module, function, seconds it may take"""


def run_section(name: str, tiny: bool, out: Path) -> None:
    """One section in this process; its rows as JSON into `out`."""
    module, function, _ = SECTIONS[name]
    work = getattr(importlib.import_module(module), function)
    result = work() if module == "machine" else work(tiny) if function != "check" else work()
    out.write_text(json.dumps(result))


def measure(names: list[str], tiny: bool, out: Path, limit: float) -> int:
    """All sections in turn, within `limit` seconds altogether. The number of sections that did not finish."""
    began = time.monotonic()
    results: dict[str, Any] = {"tiny": tiny, "command": " ".join(["measure.py", *sys.argv[1:]]), "sections": {}}
    failed = 0
    for name in names:
        left = limit - (time.monotonic() - began)
        start = time.monotonic()
        entry: dict[str, Any] = {}
        if left < 10:
            entry["error"] = "no time was left"
        else:
            part = Path(tempfile.mkdtemp()) / "part.json"
            partial = part.with_name("partial.json")
            command = [sys.executable, "-W", "ignore", __file__, "--section", name, "--out", str(part)]
            command += ["--tiny"] if tiny else []
            try:
                done = subprocess.run(
                    command,
                    timeout=min(left, SECTIONS[name][2]),
                    capture_output=True,
                    text=True,
                    cwd=Path(__file__).parent,
                    env={**os.environ, "MEASURE_PARTIAL": str(partial)},
                )
                if part.exists():
                    entry["result"] = json.loads(part.read_text())
                else:
                    entry["error"] = (done.stderr or done.stdout)[-1500:]
            except subprocess.TimeoutExpired as error:
                tail = error.stderr[-500:] if isinstance(error.stderr, bytes) else b""
                entry["error"] = f"stopped after {error.timeout:.0f} s: {tail.decode(errors='replace')}"
                if partial.exists():
                    entry["result"] = json.loads(partial.read_text())
        entry["seconds"] = round(time.monotonic() - start, 1)
        failed += "error" in entry
        results["sections"][name] = entry
        out.write_text(json.dumps(results))
        rows = entry.get("result", [])
        bad = [row for row in rows if isinstance(row, dict) and "error" in row] if isinstance(rows, list) else []
        if name == "check":
            bad = [row for row in bad if not row["error"] < 0.01]
        print(f"{name}: {entry['seconds']} s, {len(rows)} rows, {len(bad)} failed", entry.get("error", "")[-800:], flush=True)
        for row in bad[:2]:
            print("   ", str(row)[:400], flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--limit", type=float, default=570.0)
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if options.section:
        run_section(options.section, options.tiny, options.out)
        return 0
    return 1 if measure(options.sections.split(","), options.tiny, options.out, options.limit) else 0


if __name__ == "__main__":
    sys.exit(main())
