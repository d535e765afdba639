"""The loss that a budget limits: from logits with blocks of tokens, from scores document by document, from a command."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import pytest

from advisor.errors import InputError
from advisor.executor.judging.evaluation import Block, judge, loss_pct, measure
from advisor.executor.judging.scoring import loss_of_score, run_command, scored


def blocks(rise: float, count: int = 60, spread: float = 0.05) -> list[Block]:
    """Blocks whose perplexity rises by `rise` percent on the mean, exactly."""
    draw = random.Random(0)
    moved = [draw.uniform(-spread, spread) for _ in range(count)]
    middle = sum(moved) / count
    each = math.log(1 + rise / 100)
    return [Block(32, 64.0, 64.0 + 32 * (each + one - middle), 1.6, 24) for one in moved]


def test_the_rise_of_perplexity_is_exact_and_inside_its_interval() -> None:
    value, low, high = loss_pct(blocks(3.0), "perplexity")
    assert value == pytest.approx(3.0) and low < 3.0 < high
    assert loss_pct(blocks(3.0), "kl") == pytest.approx((5.0, 5.0, 5.0))
    assert loss_pct(blocks(3.0), "top1") == pytest.approx((25.0, 25.0, 25.0))


def test_more_text_makes_the_interval_narrower_as_the_root_of_it() -> None:
    few, many = (loss_pct(blocks(3.0, count), "perplexity") for count in (40, 640))
    assert (few[2] - few[1]) / (many[2] - many[1]) == pytest.approx(4.0, rel=0.25)


@pytest.mark.parametrize(
    ("loss", "verdict"), [((1, 0.5, 2.0), "passed"), ((1, 0.5, 2.01), "inconclusive"), ((3, 2.1, 4), "failed")]
)
def test_what_straddles_the_budget_is_inconclusive(loss: tuple[float, float, float], verdict: str) -> None:
    assert judge(loss, 2.0) == verdict


def test_only_the_metric_of_the_budget_carries_its_limit() -> None:
    found = {one.metric: one for one in measure(blocks(3.0), "exported files", limit_on="kl", budget_pct=2.0)}
    assert found["kl"].limit == 0.02 and found["perplexity"].limit is None and found["top1"].limit is None


def test_a_fall_of_score_is_percent_of_the_original_and_paired() -> None:
    original, other = [1.0] * 80 + [0.0] * 20, [1.0] * 76 + [0.0] * 24
    value, low, high = loss_of_score(original, other)
    assert value == pytest.approx(5.0) and 0 < low < 5 < high < 12
    assert loss_of_score(original, other, higher=False)[0] == pytest.approx(-5.0)


def test_where_no_document_moved_the_rule_of_three_holds() -> None:
    assert loss_of_score([1.0, 0.0] * 30, [1.0, 0.0] * 30) == pytest.approx((0.0, -10.0, 10.0))


def test_a_single_score_has_no_interval_and_a_zero_is_no_base() -> None:
    assert loss_of_score([4.0], [3.0]) == (25.0, 25.0, 25.0)
    with pytest.raises(InputError, match="scores 0"):
        loss_of_score([0.0, 0.0], [0.0, 1.0])


def test_a_command_prints_its_score_last_and_gets_the_folder(tmp_path: Path) -> None:
    code = "import sys; print('score of', sys.argv[1]); print(0.25)"
    assert run_command(f'{sys.executable} -c "{code}" {{checkpoint}}', tmp_path, timeout=30) == 0.25


@pytest.mark.parametrize(
    ("code", "words"),
    [("raise SystemExit(3)", "status 3"), ("print('none')", "no number"), ("print('nan')", "printed nan"), ("0", "no number")],
)
def test_a_command_that_scores_nothing_is_an_error(tmp_path: Path, code: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        run_command(f'{sys.executable} -c "{code}"', tmp_path, timeout=30)


def test_a_command_that_does_not_end_is_ended(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did not run"):
        run_command(f'{sys.executable} -c "import time; time.sleep(60)"', tmp_path, timeout=0.3)


def test_which_metrics_are_scores() -> None:
    assert [scored(each) for each in ("perplexity", "kl", "top1", "command", "task:mmlu")] == [False] * 3 + [True] * 2
