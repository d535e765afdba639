"""The examples run as far as they can on a machine without the services they are for: real shells, the real command."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import click
import pytest
import yaml
from smollm import needed, prompts_file, prose, tiny_llama

from advisor.profiler.stored import load_report
from advisor.reasoner.policy_file import read_policy
from advisor.sweep import read_sweep

GIVEN_BY_THE_PROGRAM = ("version", "question", "limits", "checkpoint_bytes", "shelves")
ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def _yaml(name: str) -> Any:
    return yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8"))


@pytest.fixture
def shell(tmp_path: Path) -> Any:
    """Runs a script with `advise` of this checkout on PATH; (status, stdout, stderr)."""
    programs = tmp_path / "bin"
    programs.mkdir()
    work = tmp_path / "work"
    work.mkdir()

    def program(name: str, text: str) -> None:
        (programs / name).write_text(text, encoding="utf-8")
        (programs / name).chmod(0o755)

    program(
        "advise", f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom advisor.cli import main\nmain()\n"
    )
    program("srun", '#!/usr/bin/env bash\nwhile [[ "$1" == --* ]]; do shift; done\nexec "$@"\n')

    def run(script: str, interpreter: str = "bash", *arguments: str, **variables: str) -> tuple[int, str, str]:
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(tmp_path)} | variables
        done = subprocess.run(
            [interpreter, "-c", script, "script", *arguments],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    run.work = work  # type: ignore[attr-defined]
    return run


def test_the_example_policy_and_sweep_are_read() -> None:
    policy = read_policy(EXAMPLES / "advise.yaml")
    assert policy.training == "never" and policy.deployment["speculation"] == ("eagle3", "mtp")
    assert len(read_sweep(EXAMPLES / "sweep.yaml").questions) == 2 * 5 * 3 * 2


# ---------------------------------------------------------------- GitHub


def _action(shell: Any, **inputs: str) -> tuple[int, dict[str, str], str, str]:
    action = _yaml("github/action.yml")
    step = action["runs"]["steps"][0]
    given = {name: str(spec.get("default", "")) for name, spec in action["inputs"].items()} | inputs
    variables = {
        name: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda found: given[found[1]], value) for name, value in step["env"].items()
    }
    output, summary = shell.work / "output", shell.work / "summary"
    status, _, err = shell(step["run"], **variables, GITHUB_OUTPUT=str(output), GITHUB_STEP_SUMMARY=str(summary))
    told = dict(line.split("=", 1) for line in output.read_text().splitlines()) if output.exists() else {}
    return status, told, summary.read_text() if summary.exists() else "", err


def test_the_action_takes_its_inputs_only_through_the_environment() -> None:
    action = _yaml("github/action.yml")
    assert action["runs"]["using"] == "composite"
    for step in action["runs"]["steps"]:
        assert "${{" not in step["run"] and step["shell"] == "bash"
    used = set(re.findall(r"inputs\.(\w+)", (EXAMPLES / "github/action.yml").read_text(encoding="utf-8")))
    assert used == set(action["inputs"])
    workflow = _yaml("github/workflow.yml")
    given = next(step["with"] for step in workflow["jobs"]["advise"]["steps"] if step.get("uses", "").endswith("/advise"))
    assert set(given) <= set(action["inputs"])


def test_the_action_advises_and_then_checks(shell: Any) -> None:
    shutil.copy(EXAMPLES / "advise.yaml", shell.work)
    status, told, summary, err = _action(shell, model=MODEL, gpu="h100", policy="advise.yaml", package="")
    assert (status, told["status"]) == (0, "0"), err
    report = load_report(shell.work / told["report"])
    assert report.policy is not None and "FP8" in summary and (shell.work / "advice" / "report.html").exists()
    (shell.work / "old.json").write_bytes((shell.work / "advice" / "report.json").read_bytes())
    same = {"model": MODEL, "gpu": "h100", "package": "", "check": "old.json"}
    assert _action(shell, **same, policy="advise.yaml")[0] == 0
    status, told, summary, _ = _action(shell, **same | {"gpu": "a100"})
    assert status == 3 and told["status"] == "3" and "is not possible there" in summary


def test_the_action_passes_the_status_of_limits_and_faults_on(shell: Any) -> None:
    status, told, summary, _ = _action(shell, model="meta-llama/Llama-3.3-70B-Instruct", gpu="t4", package="")
    assert status == 4 and told["status"] == "4" and "memory" in summary
    status, told, _, err = _action(shell, model=MODEL, gpu="h101; touch hacked", package="")
    assert status == 1 and told["status"] == "1" and "unknown GPU" in err and not (shell.work / "hacked").exists()
    assert _action(shell, model=MODEL, gpu="h100", arguments="--concurrency 1 --objective latency", package="")[0] == 0
    assert load_report(shell.work / "advice" / "report.json").profile.goal.objective == "latency"


# ---------------------------------------------------------------- GitLab


def test_the_gitlab_job(shell: Any) -> None:
    job = _yaml("gitlab/advise.yml")[".advise"]
    assert job["allow_failure"]["exit_codes"] == [3] and job["artifacts"]["paths"] == [f"{job['variables']['OUT']}/"]
    shutil.copy(EXAMPLES / "advise.yaml", shell.work)
    script = "set -e\n" + "\n".join([*job["before_script"], *job["script"]])
    variables = job["variables"] | {"ADVISE_PACKAGE": "", "MODEL": MODEL, "GPU": "h100", "POLICY": "advise.yaml"}
    status, _, err = shell(script, "sh", **variables)
    assert status == 0, err
    report = shell.work / "advice" / "report.json"
    assert load_report(report).policy is not None
    report.rename(shell.work / "old.json")
    assert shell(script, "sh", **variables | {"CHECK": "old.json"})[0] == 0
    assert shell(script, "sh", **variables | {"CHECK": "old.json", "GPU": "a100", "POLICY": ""})[0] == 3


# ---------------------------------------------------------------- Kubernetes, Argo


def _container(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"]
    spec = spec.get("jobTemplate", {}).get("spec", spec)
    found: dict[str, Any] = spec["template"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("name", ["job.yaml", "watch.yaml", "apply.yaml"])
def test_manifests_are_safe_and_whole(name: str) -> None:
    document = _yaml(f"kubernetes/{name}")
    container = _container(document)
    assert container["securityContext"]["readOnlyRootFilesystem"] and container["resources"]["limits"]
    template = document["spec"].get("jobTemplate", document)["spec"]["template"]["spec"]
    assert template["restartPolicy"] == "Never" and template["securityContext"]["runAsNonRoot"]
    assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in template["volumes"]}
    validator = pytest.importorskip("kubernetes_validate", reason="the API's schema is not installed")
    validator.validate(document, "1.31", strict=True)


def _in_folder(arguments: list[str], folder: Path) -> list[str]:
    """Arguments of a container with its mounted paths in a folder of this machine."""
    return [re.sub(r"(^|=)/(policy|out|tmp)/", lambda found: f"{found[1]}{folder}/", one) for one in arguments]


def test_the_jobs_arguments_work(shell: Any) -> None:
    shutil.copy(EXAMPLES / "advise.yaml", shell.work)
    job = _yaml("kubernetes/job.yaml")
    status, _, err = shell('advise "$@"', "bash", *_in_folder(_container(job)["args"], shell.work))
    assert status == 0, err
    assert load_report(shell.work / "report.json").plan.feasible
    failing = job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert failing["containerName"] == _container(job)["name"] and failing["values"] == [1, 2, 3, 4]
    watch = [
        one.replace("http://server.serving.svc:8000", "http://127.0.0.1:9").replace("--every=600", "--every=0")
        for one in _in_folder(_container(_yaml("kubernetes/watch.yaml"))["args"], shell.work)
    ]
    status, out, err = shell('advise "$@"', "bash", *watch)
    rounds = [json.loads(line) for line in out.splitlines()]
    assert status == 1 and len(rounds) == 2 and all(one["problem"] for one in rounds), err


def test_the_job_that_applies_says_what_the_command_takes() -> None:
    """The command itself is run with a real model, policy and S3 server in test_delivery.py."""
    from advisor.cli.apply_command import command
    from advisor.reasoner.policing import check_places

    job = _yaml("kubernetes/apply.yaml")
    container = _container(job)
    name, *words = container["args"]
    parsed, rest, _ = command.make_parser(click.Context(command)).parse_args(words)
    assert name == "apply" and rest == [] and parsed["auto"] and parsed["replace"]
    check_places(tuple(parsed["publish"]), read_policy(EXAMPLES / "advise.yaml"))
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert all(
        any(parsed[one].startswith(f"{mount}/") for mount in mounts) for one in ("model", "policy", "calibration", "out")
    )
    failing = job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert failing["containerName"] == container["name"] and failing["values"] == [1, 2, 3, 4]


def test_the_workflows_container_command_works(shell: Any) -> None:
    workflow = _yaml("argo/workflow.yaml")
    values = {one["name"]: one["value"] for one in workflow["spec"]["arguments"]["parameters"]}
    template = workflow["spec"]["templates"][0]
    assert workflow["spec"]["entrypoint"] == template["name"]
    assert [one["name"] for one in template["inputs"]["parameters"]] == list(values)
    container = template["container"]
    filled = [re.sub(r"\{\{inputs\.parameters\.(\w+)\}\}", lambda found: values[found[1]], one) for one in container["args"]]
    status, _, err = shell('"$@"', "bash", *container["command"], *_in_folder(filled, shell.work))
    assert status == 0, err
    assert load_report(shell.work / "report.json").profile.traffic.concurrency == 64


# ---------------------------------------------------------------- Slurm, container


def test_the_slurm_script(shell: Any) -> None:
    script = (EXAMPLES / "slurm" / "advise.sh").read_text(encoding="utf-8")
    assert script.splitlines()[1].startswith("#SBATCH") and os.access(EXAMPLES / "slurm" / "advise.sh", os.X_OK)
    shutil.copy(EXAMPLES / "advise.yaml", shell.work)
    variables = {"MODEL": MODEL, "GPU": "h100", "GPUS": "2", "POLICY": "advise.yaml", "SLURM_JOB_ID": "17"}
    status, _, err = shell(script, "bash", "--concurrency", "200", **variables)
    assert status == 0, err
    report = load_report(shell.work / "advice-17" / "report.json")
    assert report.profile.gpu.count == 2 and report.profile.traffic.concurrency == 200 and report.policy is not None
    assert (shell.work / "advice-17" / "report.html").exists()
    assert (
        shell(script, "bash", **variables | {"MODEL": "meta-llama/Llama-3.3-70B-Instruct", "GPU": "t4", "POLICY": ""})[0] == 4
    )
    status, _, err = shell(script, "bash", GPU="h100")
    assert status != 0 and "set MODEL" in err


def test_the_dockerfile() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    steps = [line.split(" ", 1) for line in lines if line and not line.startswith("#")]
    assert [words for name, words in steps if name == "FROM"] == ["python:3.12-slim AS build", "python:3.12-slim"]
    for name, words in steps:
        if name == "COPY" and not words.startswith("--from"):
            for source in words.split()[:-1]:
                assert (ROOT / source).exists(), source
                kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
                assert f"!{source}" in kept
    names = [name for name, _ in steps]
    assert names.index("USER") < names.index("ENTRYPOINT") and ["ENTRYPOINT", '["advise"]'] in steps
    (extras,) = set(re.findall(r"^ARG EXTRAS=(.*)$", text, re.MULTILINE))
    assert text.count("[${EXTRAS}]") == 2
    extras = extras.split(",") + re.findall(r"--build-arg EXTRAS=([\w,]+)", text)[0].split(",")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras)


def test_the_dockerfile_passes_hadolint(tmp_path: Path) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /src && apt-get install curl\n")
    done = subprocess.run([hadolint, "Dockerfile"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "DL3006" in done.stdout, "it notices what is wrong"


@pytest.mark.slow
def test_the_dockerfiles_build_steps(tmp_path: Path) -> None:
    """Its COPY, wheel and install lines in a folder and an environment of their own."""
    source, wheels = tmp_path / "src", tmp_path / "wheels"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("advisor", "rules", "profiles"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-q", "--wheel-dir", str(wheels), ".[hub,s3,serve]"], cwd=source, check=True)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = tmp_path / "env" / "bin" / "python"
    install = ["-m", "pip", "install", "-q", "--no-index", "--find-links", str(wheels), "inference-advisor[hub,s3,serve]"]
    subprocess.run([str(python), *install], check=True)
    ask = [str(tmp_path / "env" / "bin" / "advise"), "--model", MODEL, "--gpu", "h100"]
    done = subprocess.run(ask, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"Serve {MODEL}")


# ---------------------------------------------------------------- docs


def test_the_api_script_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "docs" / "api.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "forbidden by the policy" in out and "stale: 1 of 1" in out and "NoPlanFits 4" in out


@needed("torch", "modelopt", "transformers")
@pytest.mark.slow
def test_the_api_scripts_cell_that_applies_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODEL_FOLDER", str(tiny_llama(tmp_path / "model")))
    monkeypatch.setenv("PROMPTS", str(prompts_file(tmp_path / "prompts.jsonl", prose(60))))
    runpy.run_path(str(ROOT / "docs" / "api.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "the checkpoint is served as it is" in out and "published.json" in out and "reused: True" in out


def test_the_api_is_typed(tmp_path: Path) -> None:
    """The options of advisor.apply are those of the request, with their types; a wrong one is found by mypy."""
    from advisor.executor.request import Options, Request

    theirs, ours = get_type_hints(Request), get_type_hints(Options)
    assert ours == {name: theirs[name] for name in theirs if name not in GIVEN_BY_THE_PROGRAM}
    (tmp_path / "wrong.py").write_text(
        "from pathlib import Path\nimport advisor\n"
        "report = advisor.advise(advisor.profile('x', gpu='h100'))\n"
        "made, outcome = advisor.apply(report, out=Path('out'), publish=('hf://a/b',))\n"
        "print(made.plan.verdict, outcome.places)\n"
        "advisor.apply(report, out=1)\nadvisor.apply(report, out=Path('o'), sede=1)\nadvisor.predict(3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(tmp_path / "cache"), "wrong.py",
         str(ROOT / "docs" / "api.py")],
        cwd=tmp_path, env=dict(os.environ) | {"MYPYPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    faults = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert [line.split(":")[:2] for line in faults] == [["wrong.py", "6"], ["wrong.py", "7"], ["wrong.py", "8"]], done.stdout


def test_the_commands_of_the_page_work(shell: Any) -> None:
    page = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    shutil.copy(EXAMPLES / "advise.yaml", shell.work)
    shutil.copy(EXAMPLES / "sweep.yaml", shell.work)
    lines = [
        json.dumps({"timestamp": at * 0.1, "input_length": 900 + at % 300, "output_length": 200 + at % 100})
        for at in range(300)
    ]
    for name in ("trace.jsonl", "today.jsonl"):
        (shell.work / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for line in "".join(blocks).splitlines():
        line = line.replace("./model", MODEL).replace("--every 600", "--every 0")
        status, out, err = shell(line)
        expected = 1 if "http://server" in line else 0
        assert status == expected, f"{line}\n{out}\n{err}"
    assert (shell.work / "sweep.html").exists() and len((shell.work / "sweep.jsonl").read_text().splitlines()) == 60


def test_the_pages_apply_command_is_one() -> None:
    """Run with a real model, a hub and an S3 server in test_delivery.py; here its options are held against the command's."""
    from advisor.cli.apply_command import command

    page = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```sh\nadvise apply (.*?)```", page, re.DOTALL)
    words = shlex.split(block.replace("\\\n", " "))
    parsed = command.make_parser(click.Context(command)).parse_args(words)
    assert parsed[0]["publish"] == ["hf://our-org/model-fp8", "s3://ours/models/model-fp8"] and parsed[1] == []


def test_the_page_names_every_key_of_a_policy() -> None:
    from advisor.reasoner.policy_file import KEYS

    page = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
    assert all(f"| `{key}" in page for key in KEYS)
