"""Results sent to a hub, an S3 server, a folder: whole or plainly not, only where the policy lets them, and read back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub, serving
from smollm import Silent, forced_report, needed, prompts_file, prose, tiny_llama

from advisor import pipeline
from advisor.cli import main
from advisor.errors import AdvisorError, FileProblem, InputError, PolicyProblem
from advisor.executor.bookkeeping.progress import Progress
from advisor.executor.publishing.delivery import deliver, fetch, open_shelf
from advisor.executor.publishing.object_store import BEGUN
from advisor.executor.publishing.seal import SEAL, Seal, read_seal, seal_folder
from advisor.reasoner.policing import check_places
from advisor.types import Policy

ROOT = Path(__file__).parents[1]
REPOSITORY = "our-org/llama-fp8"
HUB = f"hf://{REPOSITORY}"
INPUTS = {"model": "1", "prompts": "2", "question": "3", "options": "4", "versions": "5"}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder as `advise apply` publishes it: advice and serving files as they are, a checkpoint of a few kilobytes."""
    folder = tmp_path / "out"
    report = pipeline.advise(pipeline.profile("meta-llama/Llama-3.1-8B-Instruct", gpu="h100"))
    pipeline.emit(report, folder)
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "config.json").write_text("{}")
    (folder / "checkpoint" / "README.md").write_text("# Made by advise apply\n")
    (folder / "checkpoint" / "model-1.safetensors").write_bytes(b"one" * 10_000)
    (folder / "checkpoint" / "model-2.safetensors").write_bytes(b"two" * 20_000)
    (folder / "report.json").write_text(report.model_dump_json())
    (folder / "measured.json").write_text("{}")
    (folder / "journal.jsonl").write_text(json.dumps({"event": "inputs", "model": {}}) + "\n")
    seal_folder(folder, INPUTS, "fp8: loss of 0.5 %; published.")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # the server takes LFS uploads
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving(Hub(token="hf_secret")) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A real S3 server on the loopback interface (moto); the bucket "ours" is there."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        import fsspec

        fsspec.filesystem("s3").mkdir("ours")
        yield "s3://ours"
    server.stop()


def _deliver(place: str, folder: Path) -> tuple[str, list[dict[str, Any]]]:
    stream = Silent()
    where = deliver(open_shelf(place), folder, Progress("json", stream))  # type: ignore[arg-type]
    return where, [json.loads(line) for line in stream.said.splitlines()]


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["advise", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


# ---------------------------------------------------------------- a hub


def test_a_hub_gets_one_commit_with_everything(hub: Hub, published: Path) -> None:
    where, said = _deliver(HUB, published)
    assert where == f"{hub.url}/{REPOSITORY}/commit/{hub.head(REPOSITORY)}" and hub.private[REPOSITORY]
    assert len(hub.commits) == 1 and hub.commits[0]["header"]["summary"] == "fp8: loss of 0.5 %; published."
    files = hub.files[REPOSITORY]
    assert files["model-2.safetensors"] == b"two" * 20_000 and files["README.md"].startswith(b"# Made by")
    assert files["advice/report.json"] == (published / "report.json").read_bytes()
    assert {"config.json", "advice/serve.sh", "advice/journal.jsonl", SEAL} <= set(files)
    assert len(files) == len(read_seal(published).files) + 1  # type: ignore[union-attr]
    assert said[-1]["event"] == "sent" and said[-1]["where"] == where and {one["event"] for one in said} == {"progress", "sent"}
    where, said = _deliver(HUB, published)
    assert len(hub.commits) == 1 and said[-1]["again"]


def test_another_result_follows_in_one_commit_that_takes_the_old_files_away(hub: Hub, published: Path) -> None:
    _deliver(HUB, published)
    hub.files[REPOSITORY]["NOTES.md"] = b"somebody's own"
    (published / "checkpoint" / "model-2.safetensors").unlink()
    (published / "checkpoint" / "model-1.safetensors").write_bytes(b"new" * 10_000)
    seal_folder(published, INPUTS | {"model": "x"}, "int8: published.")
    _deliver(HUB, published)
    assert len(hub.commits) == 2 and hub.commits[1]["gone"] == ["model-2.safetensors"]
    assert hub.commits[1]["header"]["parentCommit"] == f"{1:040x}"
    assert hub.files[REPOSITORY]["model-1.safetensors"] == b"new" * 10_000 and "NOTES.md" in hub.files[REPOSITORY]


@pytest.mark.parametrize("upload", [0, 1])
def test_an_upload_that_fails_leaves_the_hub_as_it_was(
    hub: Hub, published: Path, upload: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fail_upload = upload
    with pytest.raises(FileProblem, match="the hub does not answer") as caught:
        _deliver(HUB, published)
    assert "run the same command again" in caught.value.hint
    assert hub.commits == [] and hub.files[REPOSITORY] == {}
    assert _run(monkeypatch, "check", HUB) == 3 and "half-written" in capsys.readouterr().out
    hub.fail_upload = None
    _deliver(HUB, published)
    assert len(hub.commits) == 1 and _run(monkeypatch, "check", HUB) == 0


def test_a_commit_by_somebody_else_meanwhile_is_not_written_over(hub: Hub, published: Path) -> None:
    def somebody(server: Hub) -> None:
        server.commits.append({"repository": REPOSITORY})
        server.before_commit = lambda _: None

    hub.before_commit = somebody
    with pytest.raises(FileProblem, match="A commit has happened since") as caught:
        _deliver(HUB, published)
    assert "somebody committed there" in caught.value.hint and hub.files[REPOSITORY] == {}


def test_killed_while_it_uploads_nothing_is_seen_and_the_rest_goes_on(hub: Hub, published: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from advisor.executor.publishing.delivery import *\n"
        "from advisor.executor.bookkeeping.progress import Progress\n"
        "deliver(open_shelf(sys.argv[1]), Path(sys.argv[2]), Progress('json'))"
    )
    first = hub.url
    hub.hold_upload = threading.Event()
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    child = subprocess.Popen([sys.executable, "-c", code, HUB, str(published)], env=environment, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not any(method == "PUT" for method, _ in hub.requests) and time.monotonic() < until:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.returncode == -signal.SIGKILL and hub.commits == [] and hub.files[REPOSITORY] == {}
    hub.hold_upload.set()
    hub.hold_upload = None
    _deliver(HUB, published)
    assert len(hub.commits) == 1 and first == hub.url


def test_a_hub_that_would_not_take_it_is_known_before_the_work(
    hub: Hub, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(FileProblem) as caught:
        open_shelf(HUB).check_writable()
    assert caught.value.hint == "HF_TOKEN is not one of this hub's"
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(InputError, match="without a token"):
        open_shelf(HUB).check_writable()


# ---------------------------------------------------------------- stores without a commit


@pytest.fixture(params=["s3", "memory", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place of each kind, empty."""
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/models/{tmp_path.name}"
    return f"memory://models/{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path}/share"


def test_what_is_sent_is_there_and_comes_back_the_same(
    place: str, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf = open_shelf(place)
    shelf.check_writable()
    assert shelf.seal() is None
    where, _ = _deliver(place, published)
    assert where == place
    seal = read_seal(published)
    assert seal is not None
    sizes = open_shelf(place).sizes()
    assert sizes.pop(SEAL) and sizes == {name: file.size for name, file in seal.files.items()}
    assert fetch(open_shelf(place), tmp_path / "back", keep=True) == ()
    assert not seal.broken(tmp_path / "back", content=True)
    assert _deliver(place, published)[1][-1]["again"]
    assert _run(monkeypatch, "check", place, "--hashes") == 0
    assert capsys.readouterr().out == "fresh: the advice holds; nothing moved\n"
    assert _run(monkeypatch, "check", place, "--concurrency", 1) == 3
    seal_folder(published, INPUTS | {"model": "x"}, "another")
    with pytest.raises(FileProblem, match=r"(another result|something) is (published )?there"):
        _deliver(place, published)


def test_a_place_of_somebody_elses_is_left_alone(s3: str, published: Path) -> None:
    import fsspec

    fsspec.filesystem("s3").pipe_file(f"{s3}/theirs/data.csv", b"1,2")
    with pytest.raises(FileProblem, match=r"the place is not empty: data\.csv"):
        open_shelf(f"{s3}/theirs").check_writable()
    with pytest.raises(FileProblem, match="the place is not empty"):
        _deliver(f"{s3}/theirs", published)
    assert fsspec.filesystem("s3").ls("ours/theirs") == ["ours/theirs/data.csv"]


def test_a_bucket_that_is_not_there_is_said_before_the_work(s3: str) -> None:
    with pytest.raises(FileProblem, match="the store does not answer") as caught:
        open_shelf("s3://nobodys/models").check_writable()
    assert caught.value.where == "s3://nobodys/models"


def test_killed_at_any_file_a_store_has_no_seal_and_the_same_command_ends_it(
    s3: str, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 after each number of objects, on a real S3 server: half-written to every reader, until the seal is there."""
    code = (
        "import sys, os; from pathlib import Path; from advisor.executor.publishing.delivery import *\n"
        "from advisor.executor.bookkeeping.progress import Progress\n"
        "shelf = open_shelf(sys.argv[1]); put = shelf.system.put_file\n"
        "count = 0\n"
        "def some(*a, **k):\n"
        "    global count\n"
        "    if count == int(sys.argv[3]): os.kill(os.getpid(), 9)\n"
        "    count += 1; return put(*a, **k)\n"
        "shelf.system.put_file = some; deliver(shelf, Path(sys.argv[2]), Progress('json'))"
    )
    seal = read_seal(published)
    assert seal is not None
    place = f"{s3}/killed"
    for number in (0, 1, len(seal.files) - 1):
        child = [sys.executable, "-c", code, place, str(published), str(number)]
        done = subprocess.run(child, env=dict(os.environ) | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        there = open_shelf(place).sizes()
        assert SEAL not in there and BEGUN in there
        assert fetch(open_shelf(place), tmp_path / "half") is None
        assert _run(monkeypatch, "check", place) == 3
        assert capsys.readouterr().out.splitlines()[0] == f"stale  {place}: half-written: there is no {SEAL}, do not serve it"
    (published / "checkpoint" / "model-2.safetensors").unlink()  # another result comes instead: nothing of the old one stays
    seal_folder(published, INPUTS | {"model": "x"}, "another")
    _deliver(place, published)
    there = open_shelf(place).sizes()
    assert SEAL in there and BEGUN not in there and "checkpoint/model-2.safetensors" not in there
    assert _run(monkeypatch, "check", place) == 0


def test_of_two_runs_that_publish_to_one_place_the_first_gives_way(s3: str, published: Path, tmp_path: Path) -> None:
    place, other = f"{s3}/both", tmp_path / "other"
    shutil.copytree(published, other)
    (other / "checkpoint" / "model-1.safetensors").write_bytes(b"new" * 10_000)
    theirs = seal_folder(other, INPUTS | {"model": "x"}, "another")
    first = open_shelf(place)
    put = first.system.put_file  # type: ignore[attr-defined]

    def second_comes_between(*given: Any, **more: Any) -> None:
        first.system.put_file = put  # type: ignore[attr-defined]
        put(*given, **more)
        _deliver(place, other)

    first.system.put_file = second_comes_between  # type: ignore[attr-defined]
    with pytest.raises(FileProblem, match=r"the store does not answer|another run publishes there"):
        deliver(first, published, Progress("json", Silent()))  # type: ignore[arg-type]
    assert open_shelf(place).seal() == theirs and fetch(open_shelf(place), tmp_path / "back", keep=True) == ()


def test_an_object_that_is_damaged_or_gone_is_a_drift(
    s3: str, published: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import fsspec

    place, system = f"{s3}/damaged", fsspec.filesystem("s3")
    _deliver(place, published)
    system.pipe_file(f"{place}/checkpoint/model-1.safetensors", b"oNe" * 10_000)
    assert _run(monkeypatch, "check", place, "--hashes") == 3
    assert "checkpoint/model-1.safetensors: not there as it was published" in capsys.readouterr().out
    system.rm_file(f"{place}/checkpoint/model-2.safetensors")
    assert _run(monkeypatch, "check", place) == 3
    assert "checkpoint/model-2.safetensors: not there as it was published" in capsys.readouterr().out


# ---------------------------------------------------------------- who may be told


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("our-org/model", "no place"), ("hf://our-org", "org/name"), ("hf://our-org/../theirs", "no place"),
        ("s3://", "no place"), ("s3://ours/*", "no place"), ("nowhere://x/y", "no file system is called nowhere"),
    ],
)  # fmt: skip
def test_what_is_no_place_is_said(place: str, said: str) -> None:
    with pytest.raises(AdvisorError, match=said):
        open_shelf(place)


def test_results_go_only_where_the_policy_lets_them() -> None:
    policy = Policy(file="advise.yaml", tell=("hf://our-org/*", "s3://ours/models/*"), lines={"tell": 7})
    check_places(("hf://our-org/llama", "s3://ours/models/a/b"), policy)
    for place in ("hf://our-org-2/llama", "s3://ours/other", "file:///tmp/x"):
        with pytest.raises(PolicyProblem) as caught:
            check_places((place,), policy)
        assert (caught.value.where, caught.value.hint) == ("advise.yaml:7", "allowed: hf://our-org/*, s3://ours/models/*")
    with pytest.raises(PolicyProblem) as caught:
        check_places(("hf://our-org/llama",), Policy())
    assert caught.value.hint == "allowed: nobody beyond the output folder"


@needed("torch", "modelopt", "transformers")
@pytest.mark.slow
def test_apply_publishes_what_passed_and_a_fresh_machine_gets_it_back(
    hub: Hub, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command, from the policy to the places: forbidden, gate failed, published to two, reused from a place."""
    model, prompts = tiny_llama(tmp_path / "model"), prompts_file(tmp_path / "prompts.jsonl", prose(60))
    plan, place = tmp_path / "report.json", f"{s3}/models/llama"

    def planned(budget: float, *tell: str) -> None:
        report = forced_report(model, "fp8", budget, rule="weights-slow-decode/fp8-weights")
        plan.write_text(report.model_copy(update={"policy": Policy(tell=tell)}).model_dump_json())

    asked = ["apply", plan, "--calibration", prompts, "--out", tmp_path / "out", "--auto", "--no-serve", "--max-rounds", 1]
    asked += ["--evaluation-prompts", 12, "--prompt-tokens", 64, "--calibration-prompts", 6]
    asked += ["--publish", HUB, "--publish", place]
    planned(20, "hf://our-org/*")
    assert _run(monkeypatch, *asked) == 1
    assert f"lets no result go to {place}" in capsys.readouterr().err and not (tmp_path / "out.work").exists()

    planned(0, "hf://our-org/*", "s3://ours/models/*")
    assert _run(monkeypatch, *asked) == 3
    assert hub.commits == [] and open_shelf(place).sizes() == {}

    planned(20, "hf://our-org/*", "s3://ours/models/*")
    capsys.readouterr()
    assert _run(monkeypatch, *asked) == 0
    made = capsys.readouterr()
    lines = [json.loads(line) for line in made.err.splitlines()]
    assert [one["place"] for one in lines if one["event"] == "sent"] == [HUB, place]
    assert len(hub.commits) == 1 and isinstance(open_shelf(place).seal(), Seal)

    (tmp_path / "out").rename(tmp_path / "lost")
    assert _run(monkeypatch, *asked) == 0
    again = capsys.readouterr()
    assert '"event": "reused"' in again.err and '"event": "round"' not in again.err and again.out == made.out
    assert len(hub.commits) == 1 and not read_seal(tmp_path / "out").broken(tmp_path / "out", content=True)  # type: ignore[union-attr]
    for where in (HUB, place, tmp_path / "out"):
        assert _run(monkeypatch, "check", where, "--hashes") == 0, capsys.readouterr().out
