"""How long a report takes to show, and how large it is: `python benchmarks/report.py [REPORT.json ...]`.

Prints for each report and format the CPU time of the first rendering in a fresh process (imports included) and of later
ones, the size, and the peak memory of that process.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

STORED = Path(__file__).parents[1] / "tests" / "fixtures" / "reports"
FORMATS = ("text", "markdown", "html", "json")
LATER = 20

_CHILD = """
import json, resource, sys, time
from pathlib import Path
from advisor.types import Report
report = Report.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
start = time.process_time()
from advisor.report.rendering import render
page = render(report, sys.argv[2])
first = time.process_time() - start
start = time.process_time()
for _ in range(int(sys.argv[3])):
    render(report, sys.argv[2])
later = (time.process_time() - start) / int(sys.argv[3])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"first": first, "later": later, "peak": peak, "page": page}))
"""


def measure(report: Path, form: str) -> tuple[float, float, float, int, int]:
    """(first s, later s, peak MiB, bytes, bytes gzipped) of one format in a process of its own."""
    command = [sys.executable, "-c", _CHILD, str(report), form, str(LATER)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    page = found["page"].encode()
    return found["first"], found["later"], found["peak"], len(page), len(gzip.compress(page))


def main() -> None:
    """Measure the given reports, or those of the tests."""
    reports = [Path(name) for name in sys.argv[1:]] or sorted(STORED.glob("*.json"))
    print(f"{'report':<22}{'format':<10}{'first ms':>9}{'later ms':>10}{'peak MiB':>10}{'KiB':>8}{'gzip KiB':>10}")
    for report in reports:
        for form in FORMATS:
            first, later, peak, size, packed = measure(report, form)
            row = f"{first * 1e3:>9.1f}{later * 1e3:>10.2f}{peak:>10.1f}{size / 1024:>8.1f}{packed / 1024:>10.1f}"
            print(f"{report.stem:<22}{form:<10}{row}")


if __name__ == "__main__":
    main()
