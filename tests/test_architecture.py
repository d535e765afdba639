"""Who may import whom, and which foreign library lives in which file: kept as docs/architecture.md says."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "advisor"
FOUNDATION = {"types", "errors", "library"}
ALLOWED = {
    "types": set(),
    "errors": set(),
    "library": {"errors"},
    "estimator": FOUNDATION,
    "profiler": FOUNDATION | {"estimator"},
    "reasoner": FOUNDATION | {"estimator"},
    "executor": {"types", "errors", "library"},
    "report": {"types", "errors"},
    "prediction": FOUNDATION | {"profiler", "estimator"},
    "pipeline": FOUNDATION | {"profiler", "estimator", "reasoner", "executor", "report", "gathering", "undertaking", ""},
    "gathering": FOUNDATION | {"profiler", "reasoner", "executor"},
    "undertaking": FOUNDATION | {"acceptance", "measurement", "estimator", "reasoner", "executor", "report", ""},
    "freshness": FOUNDATION | {"pipeline", "gathering", "profiler", "reasoner", ""},
    "rounds": FOUNDATION | {"freshness", "profiler"},
    "served": FOUNDATION | {"executor", "freshness"},
    "sweep": FOUNDATION | {"pipeline", "gathering", "profiler", "reasoner", ""},
    "acceptance": FOUNDATION | {"profiler", "estimator", "reasoner", "executor"},
    "drafting": FOUNDATION | {"pipeline", "acceptance", "reasoner", "executor", "report", ""},
    "measurement": FOUNDATION | {"observations", "ways", "profiler", "estimator", "reasoner", "executor", "report"},
    "ways": FOUNDATION | {"profiler", "estimator", "reasoner", "executor"},
    "observations": {"types", "executor"},
    "cli": FOUNDATION
    | {
        "drafting",
        "measurement",
        "observations",
        "pipeline",
        "prediction",
        "report",
        "profiler",
        "freshness",
        "rounds",
        "served",
        "sweep",
        "",
    },
    "": FOUNDATION | {"pipeline", "prediction", "freshness"},
}
PARTS = {
    "bookkeeping": set(),
    "quantizing": set(),
    "learning": {"bookkeeping", "quantizing"},
    "judging": {"bookkeeping", "quantizing", "learning"},
    "speculating": {"bookkeeping", "quantizing", "learning", "judging"},
    "emitting": {"speculating"},
    "servers": {"emitting"},
    "publishing": {"bookkeeping", "emitting"},
    "remedies": {"bookkeeping", "quantizing", "learning", "judging", "request", "run"},
}
"""of the executor: who may import which other part, or file beside them; those files may import any"""
FOREIGN = {
    "aiconfigurator_core": 1,
    "pynvml": 1,
    "huggingface_hub": 2,
    "fsspec": 1,
    "jinja2": 1,
    "yaml": 2,
    "modelopt": 2,  # quantization and draft heads: two subjects that share nothing
    "tensorrt_llm": 1,
    "jsonschema": 1,
    "lm_eval": 1,
    "transformers": 1,
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def _stage(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return "" if relative.name == "__init__.py" and len(relative.parts) == 1 else relative.parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module in ("advisor", "advisor.executor"):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            else:
                names.add(node.module)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_stage_imports_only_what_it_may(path: Path) -> None:
    stage = _stage(path)
    assert stage in ALLOWED, f"{stage} is not a stage of docs/architecture.md"
    for name in _imports(path):
        if name.split(".")[0] != "advisor":
            continue
        other = [*name.split("."), ""][1]
        other = "" if other.startswith("__") else other
        assert other == stage or other in ALLOWED[stage], f"{path.name} imports {name}"


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_executor_imports_only_what_it_may(part: str) -> None:
    folder = PACKAGE / "executor" / part
    names = {name for path in folder.glob("*.py") for name in _imports(path) if name.startswith("advisor.executor.")}
    assert {name.split(".")[2] for name in names} - {part} == PARTS[part]


def test_every_folder_of_the_executor_is_a_part() -> None:
    assert {path.parent.name for path in (PACKAGE / "executor").glob("*/__init__.py")} == set(PARTS)


@pytest.mark.parametrize("library", FOREIGN)
def test_a_foreign_library_lives_in_few_files(library: str) -> None:
    files = [path for path in MODULES if any(name.split(".")[0] == library for name in _imports(path))]
    assert len(files) <= FOREIGN[library], [str(path.relative_to(PACKAGE)) for path in files]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_is_called_after_nothing(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "core", "manager", "common", "base", "misc"}


def test_advising_imports_nothing_heavy() -> None:
    """`advise --model X --gpu Y --format json` must answer in a blink: only these libraries are loaded."""
    code = (
        "import sys; from advisor import pipeline\n"
        "report = pipeline.advise(pipeline.profile('meta-llama/Llama-3.1-8B-Instruct', gpu='h100'))\n"
        "report.model_dump_json()\n"
        "heavy = {'numpy','torch','transformers','modelopt','huggingface_hub','pynvml','jinja2','click',\n"
        "         'asyncio','urllib.request'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
