"""How long the rules take: loading, judging a profile, running every case and moving every threshold.

    python benchmarks/rules.py

CPU milliseconds of this process, the least of several runs; the first judging includes loading the GPU's constants.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from advisor.pipeline import profile
from advisor.reasoner.cases import check_rule, mutants
from advisor.reasoner.diagnosis import diagnose
from advisor.reasoner.rulebook import load_rules

RUNS = 7


def cpu_ms(work: Callable[[], object]) -> float:
    """CPU time of one call, ms."""
    started = time.process_time()
    work()
    return (time.process_time() - started) * 1e3


def main() -> None:
    """Prints the table."""
    here = profile("meta-llama/Llama-3.3-70B-Instruct", gpu="h100", gpus=4)
    first_load = cpu_ms(load_rules)
    rulebook = load_rules()
    first = cpu_ms(lambda: diagnose(here, rulebook))
    cases = sum(len(rule.tests) for rule in rulebook.rules)
    moved = sum(len(list(mutants(rule))) for rule in rulebook.rules)
    print(f"{len(rulebook.rules)} rules, {cases} cases, {moved} moved thresholds")
    print(f"load        first {first_load:6.1f} ms   then {min(cpu_ms(load_rules) for _ in range(RUNS)):6.1f} ms")
    fresh = [here.model_copy(update={"gpu": here.gpu.model_copy()}) for _ in range(RUNS)]
    print(f"diagnose    first {first:6.1f} ms   then {min(cpu_ms(partial(diagnose, one, rulebook)) for one in fresh):6.1f} ms")
    check = min(cpu_ms(lambda: [check_rule(rule) for rule in rulebook.rules]) for _ in range(RUNS))
    print(f"check rules       {check:6.1f} ms")


if __name__ == "__main__":
    main()
