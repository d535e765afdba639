"""The evidence store: a real SQLite file, several real writers, and what is learned from it."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from advisor import observations, pipeline
from advisor.errors import FileProblem
from advisor.estimator.correction import corrected
from advisor.executor.servers.evidence import Observation, corrections, errors_so_far, evidence_file, read, record
from advisor.types import Correction

MODEL, GPU = "meta-llama/Llama-3.1-8B-Instruct", "h100-sxm-80gb"
SEEN = Observation(
    at="2026-11-23T15:00:00Z", gpu=GPU, gpus=1, model=MODEL, engine="tensorrt-llm", engine_version="1.2.1", deployment="{}",
    isl=1155, osl=211, load="concurrency 32", metric="itl_ms", predicted=10.0, measured=15.0, low=14.0, high=16.0, client="own",
)  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "evidence.sqlite"


def test_what_is_recorded_is_read_by_gpu_model_and_engine(file: Path) -> None:
    others = [replace(SEEN, gpu="a100-sxm-80gb"), replace(SEEN, model="other"), replace(SEEN, engine="vllm")]
    record(file, [SEEN, *others])
    record(file, [replace(SEEN, at="2026-11-22T00:00:00Z", predicted=None, low=None, high=None)])
    assert len(read(file)) == 5
    found = read(file, gpu=GPU, model=MODEL, engine="tensorrt-llm")
    assert [each.at for each in found] == ["2026-11-22T00:00:00Z", SEEN.at]
    assert found[1] == SEEN
    assert [each.name for each in file.parent.iterdir()] == [file.name]  # nothing beside it that a deletion would leave


def test_names_are_data_not_sql(file: Path) -> None:
    hostile = replace(SEEN, model="'; DROP TABLE observations; --")
    record(file, [hostile, SEEN])
    assert read(file, model=hostile.model) == (hostile,)


def test_without_a_file_nothing_is_known_and_deleting_it_is_safe(file: Path) -> None:
    assert read(file) == ()
    assert not file.exists()
    record(file, [SEEN])
    file.unlink()
    assert read(file) == ()
    record(file, [SEEN])
    assert len(read(file)) == 1


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_evidence import SEEN
from advisor.executor.servers.evidence import record
for number in range(10):
    record(Path({file!r}), [replace(SEEN, load=f"{{sys.argv[1]}} {{number}} {{k}}") for k in range(3)])
"""


def test_several_programs_may_write_at_once(file: Path) -> None:
    code = WRITER.format(tests=str(Path(__file__).parent), file=str(file))
    root = Path(__file__).parents[1]
    writers = [subprocess.Popen([sys.executable, "-c", code, str(number)], cwd=root) for number in range(4)]
    assert [writer.wait(timeout=120) for writer in writers] == [0] * 4
    assert len({each.load for each in read(file)}) == 4 * 10 * 3


@pytest.mark.parametrize("content", [b"not a database, but long enough to be taken for one" * 50, b"\0" * 4096])
def test_a_damaged_file_is_told_with_what_to_do(file: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(FileProblem, match="cannot be used") as error:
        read(file)
    assert "delete the file" in error.value.hint
    with pytest.raises(FileProblem):
        record(file, [SEEN])


def test_a_later_version_is_not_touched(file: Path) -> None:
    import sqlite3

    record(file, [SEEN])
    with sqlite3.connect(file) as store:
        store.execute("PRAGMA user_version = 9")
    store.close()
    with pytest.raises(FileProblem, match="version 9"):
        record(file, [SEEN])


# ---------------------------------------------------------------- what is learned


@pytest.mark.parametrize(("count", "share"), [(1, 1 / 3), (2, 1 / 2), (8, 8 / 10)])
def test_a_correction_is_shrunk_by_how_little_is_known(count: int, share: float) -> None:
    found = corrections([SEEN] * count)["itl_ms"]
    assert found.factor == pytest.approx(1.5**share)
    assert found.count == count and found.low == found.high == 1.5


def test_the_correction_is_a_geometric_mean_and_needs_predictions() -> None:
    half = replace(SEEN, measured=10.0 / 1.5)
    assert corrections([SEEN, half])["itl_ms"].factor == pytest.approx(1.0)
    assert corrections([replace(SEEN, predicted=None)]) == {}
    assert corrections([replace(SEEN, metric="idle_share")]) == {}
    assert corrections([]) == {}


def test_later_estimates_are_corrected_and_say_so(file: Path) -> None:
    record(file, [SEEN, replace(SEEN, metric="output_tokens_per_s", predicted=4000.0, measured=3000.0)])
    plain, taught = (pipeline.advise(pipeline.profile(MODEL, gpu="h100", evidence=each)) for each in ("none", str(file)))
    for name in ("expected", "baseline"):
        before, after = getattr(plain.plan, name), getattr(taught.plan, name)
        assert after.itl_ms == pytest.approx(before.itl_ms * 1.5 ** (1 / 3))
        assert after.output_tokens_per_s_per_gpu == pytest.approx(before.output_tokens_per_s_per_gpu * 0.75 ** (1 / 3))
        assert after.ttft_ms == before.ttft_ms and after.memory_gib == before.memory_gib
        assert after.basis["itl_ms"] == "measured" and before.basis["itl_ms"] != "measured"
        assert any("corrected by what was measured" in note for note in after.notes)
        low, high = after.range["itl_ms"]
        assert low < after.itl_ms < high
    assert taught.profile.sources["corrections.itl_ms"] == f"{file}: 1 measured"
    elsewhere = pipeline.profile(MODEL, gpu="a100", evidence=str(file))
    assert elsewhere.corrections == {}


def test_a_correction_can_change_the_plan(file: Path) -> None:
    """A limit that the estimator thinks is kept is missed by what was measured: then no plan keeps it."""
    plain = pipeline.advise(pipeline.profile(MODEL, gpu="h100", evidence="none"))
    assert plain.plan.expected.itl_ms is not None
    limit = plain.plan.expected.itl_ms * 1.2
    record(file, [replace(SEEN, measured=100.0)] * 20)
    held, missed = (
        pipeline.advise(pipeline.profile(MODEL, gpu="h100", itl_ms=limit, evidence=each)) for each in ("none", str(file))
    )
    assert held.plan.feasible and not missed.plan.feasible


def test_correcting_by_nothing_changes_nothing() -> None:
    estimate = pipeline.advise(pipeline.profile(MODEL, gpu="h100", evidence="none")).plan.expected
    assert corrected(estimate, {}) is estimate
    assert corrected(estimate, {"nothing": Correction(factor=2.0, count=1, low=2, high=2)}) is estimate


# ---------------------------------------------------------------- what is shown


def test_our_own_error_so_far(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVISE_EVIDENCE", str(file))
    assert evidence_file() == file and evidence_file("other") == Path("other")
    assert observations.evidence().startswith("nothing was measured yet")
    record(file, [SEEN, replace(SEEN, measured=12.5), replace(SEEN, predicted=None)])
    ((gpu, model, metric, count, ratio, error),) = errors_so_far(read(file))
    assert (gpu, model, metric, count) == (GPU, MODEL, "itl_ms", 2)
    assert ratio == pytest.approx(1.375)
    assert error == pytest.approx(((1 - 1 / 1.5) + (1 - 1 / 1.25)) / 2)
    text = observations.evidence()
    assert "itl_ms measured / predicted 1.38 (median of 2), error 27%" in text
    assert math.isfinite(error)
