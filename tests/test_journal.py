"""The journal: what is finished is found again, what is half-written is not believed, one run at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from advisor.errors import FileProblem
from advisor.executor.bookkeeping.journal import Journal, digest, file_errors, finished_stages


def _write(path: Path, text: str):
    def make():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return {"size": len(text)}, (path,)

    return make


def test_a_finished_stage_is_not_done_again(tmp_path: Path) -> None:
    with Journal(tmp_path / "work") as journal:
        value, was_there = journal.do("one", {"a": 1}, _write(journal.folder / "x", "hello"))
        assert (value["size"], was_there) == (5, False)
    with Journal(tmp_path / "work") as journal:
        value, was_there = journal.do("one", {"a": 1}, lambda: pytest.fail("done again"))
        assert (value["size"], was_there) == (5, True)
        assert finished_stages(journal.events) == ("one",)


def test_a_folder_in_which_nothing_was_begun_is_gone(tmp_path: Path) -> None:
    with Journal(tmp_path / "work"):
        assert (tmp_path / "work" / "lock").exists()
    assert not (tmp_path / "work").exists()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "notes").write_text("mine")
    with Journal(tmp_path / "work"):
        pass
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["notes"]


def test_a_stage_keeps_its_value_as_it_was_made(tmp_path: Path) -> None:
    with Journal(tmp_path / "work") as journal:
        assert journal.do("one", {}, lambda: ({"seconds": 7.5}, ()))[0] == {"seconds": 7.5}
        assert journal.do("one", {}, lambda: ({"seconds": 1}, ()))[0] == {"seconds": 7.5}
        value, _ = journal.do("one", {}, lambda: ({"seconds": 1}, ()), suffices=lambda value: value["seconds"] < 7)
        assert value == journal.find("one", {}) == {"seconds": 1}


def test_other_inputs_are_another_stage(tmp_path: Path) -> None:
    with Journal(tmp_path / "work") as journal:
        journal.do("one", {"a": 1}, _write(journal.folder / "x", "hello"))
        assert journal.find("one", {"a": 2}) is None


@pytest.mark.parametrize("damage", ["changed", "removed", "truncated"])
def test_a_file_that_is_not_what_it_was_is_not_believed(tmp_path: Path, damage: str) -> None:
    with Journal(tmp_path / "work") as journal:
        journal.do("one", {}, _write(journal.folder / "x", "hello"))
    path = tmp_path / "work" / "x"
    {"changed": lambda: path.write_text("jello"), "removed": path.unlink, "truncated": lambda: os.truncate(path, 2)}[damage]()
    with Journal(tmp_path / "work") as journal:
        assert journal.find("one", {}) is None
        assert journal.events[-1]["event"] == "discarded"
        _, was_there = journal.do("one", {}, _write(path, "hello"))
        assert not was_there


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    with Journal(tmp_path / "work") as journal:
        journal.do("one", {}, lambda: ({}, ()))
        whole = journal.path.read_bytes()
    for length in range(1, 60, 7):
        (tmp_path / "work" / "journal.jsonl").write_bytes(
            whole + b'{"at": 1, "event": "finished", "stage": "two", "key": "k", "files": {}}'[:length]
        )
        with Journal(tmp_path / "work") as journal:
            assert finished_stages(journal.events) == ("one",)
            journal.record("more")
        assert all(json.loads(line) for line in journal.path.read_text().splitlines())


def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    with Journal(tmp_path / "work") as journal:
        journal.record("one")
    path = tmp_path / "work" / "journal.jsonl"
    path.write_bytes(b"garbage\n" + path.read_bytes())
    with pytest.raises(FileProblem) as caught, Journal(tmp_path / "work"):
        pass
    assert caught.value.where == f"{path}:1"
    with pytest.raises(FileProblem), Journal(tmp_path / "work"):
        pass  # the lock was let go: it is the same error, not that of a lock


def test_one_run_at_a_time(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from advisor.executor.bookkeeping.journal import Journal\n"
        f"with Journal(Path({str(tmp_path)!r}) / 'work'):\n print('in', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "in\n"
        with pytest.raises(FileProblem, match=f"process {holder.pid}"), Journal(tmp_path / "work"):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with Journal(tmp_path / "work"):
        pass


def test_a_full_disk_is_said_and_what_is_finished_is_kept(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    with Journal(tmp_path / "work") as journal:
        journal.do("one", {}, lambda: ({}, ()))

        def make():
            with file_errors(full), full.open("w") as file:
                file.write("x")
            return {}, ()

        with pytest.raises(FileProblem, match="the disk is full") as caught:
            journal.do("two", {}, make)
        assert "--resume" in caught.value.hint
    with Journal(tmp_path / "work") as journal:
        assert finished_stages(journal.events) == ("one",)


def test_killed_at_random_points_it_goes_on(tmp_path: Path) -> None:
    """A child does ten stages of 20 ms; kill -9 at many points; in the end each was finished, none twice."""
    code = (
        "import sys, time; from pathlib import Path; from advisor.executor.bookkeeping.journal import Journal\n"
        "def make(n):\n"
        "    def run():\n"
        "        p = j.folder / f'file{n}'; p.write_text('x' * 50000); time.sleep(0.02)\n"
        "        p.write_text('y' * 50000 + str(n)); return {'n': n}, (p,)\n"
        "    return run\n"
        f"with Journal(Path({str(tmp_path)!r}) / 'work') as j:\n"
        "    for n in range(10): j.do(f's{n}', {'n': n}, make(n))\n"
        "print('done')"
    )
    kills, output = 0, ""
    for attempt in range(60):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(0.12 + 0.013 * (attempt % 17))
        if child.poll() is None:
            child.kill()
            kills += 1
        output, errors = child.communicate()
        assert "Error" not in errors
        if output == "done\n":
            break
    else:
        output, errors = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout, ""
    assert output == "done\n"
    with Journal(tmp_path / "work") as journal:
        ended = [event["stage"] for event in journal.events if event["event"] == "finished"]
        assert ended == [f"s{n}" for n in range(10)]
        assert all(journal.find(f"s{n}", {"n": n}) for n in range(10))


def test_equal_data_has_an_equal_digest() -> None:
    assert digest({"a": 1, "b": (1, 2)}) == digest({"b": [1, 2], "a": 1}) != digest({"a": 1, "b": [2, 1]})
