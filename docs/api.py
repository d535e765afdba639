# %% [markdown]
# # The Python API
# The same program as the command `advise`: values in, values out, nothing printed. Each cell runs by itself after the first
# (VS Code and Jupytext read the marks; `python docs/api.py` runs it all, and so do the tests). No GPU is needed.

# %%
import os
from pathlib import Path
from tempfile import mkdtemp

import advisor
from advisor.errors import AdvisorError, NoPlanFits, PolicyProblem, UnknownName
from advisor.executor.request import Options
from advisor.freshness import refresh
from advisor.pipeline import emit
from advisor.profiler.stored import load_report
from advisor.sweep import Sweep
from advisor.types import Answer, Estimate, Point, Policy, Profile, Report

# %% [markdown]
# ## Look at machine, model and traffic
# The arguments are the options of `advise`. Without `gpu` it reads the GPUs of this machine.

# %%
profile: Profile = advisor.profile("meta-llama/Llama-3.1-8B-Instruct", gpu="h100", isl=1024, osl=256, concurrency=32, itl_ms=20)
print(profile.gpu.name, profile.gpu.memory_gib, "GiB, from", profile.sources["gpu.memory_gib"])

# %% [markdown]
# ## Judge and plan
# Everything is in the Report; None means not known, never zero.

# %%
report: Report = advisor.advise(profile)
print(report.plan.verdict)
for step in report.plan.steps:
    print(" ", step.rule, step.changes)
for flip in report.plan.flips:
    print("  at", flip.fact, flip.at, "it would be", flip.then)

# %% [markdown]
# ## Within a policy
# A value, or the path of an advise.yaml. What it forbids is never planned, and its price is in `plan.rejected`.

# %%
policy = Policy(deployment={"weights": ("bf16",), "speculation": ()}, ttft_ms=500)
limited = advisor.advise(profile, policy=policy)
for rejection in limited.plan.rejected:
    if rejection.reason.startswith("forbidden"):
        print(rejection.rule, "-", rejection.reason)

# %% [markdown]
# ## Estimate deployments of your own
# A failure comes in its point's place and the rest go on.

# %%
grid = [
    Point(model=profile.model.name, gpu="h100", weights="fp8", kv_cache="fp8", isl=1024, osl=256, concurrency=many)
    for many in (1, 8, 64, 512)
]
for point, made in zip(grid, advisor.predict([*grid]), strict=True):
    if isinstance(made, Estimate):
        print(f"{point.concurrency:>4} at once: {made.output_tokens_per_s:,.0f} output tokens/s, ITL {made.itl_ms:.1f} ms")
    else:
        print(made["error"], made["hint"])

# %% [markdown]
# ## Keep the advice, and ask later whether it still holds

# %%
folder = Path(mkdtemp())
(folder / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
kept = load_report(folder / "report.json")
found = advisor.check(kept, refresh(kept.profile, concurrency=1))
print(found.summary)
for drift in found.drifts:
    print(" ", drift.fact, drift.advised, "->", drift.now, "-", drift.says)

# %% [markdown]
# ## The serving files

# %%
for path in emit(report, folder / "serving"):
    print(path.name)

# %% [markdown]
# ## Carry it out
# On a 16-bit model of this machine and prompts of yours, with `pip install 'inference-advisor[apply]'`; a CPU does for a small
# one. `publish=("hf://our-org/model",)` sends on what passed its gate. The same inputs again give the same result back at once.

# %%
if local := os.environ.get("MODEL_FOLDER"):
    allowed = Policy(deployment={"weights": ("bf16", "fp8")}, training="never", hours=1)
    here = advisor.advise(advisor.profile(local, gpu="h100"), policy=allowed)
    options: Options = {"out": folder / "out", "calibration": Path(os.environ["PROMPTS"]), "held_out": 12, "tokens": 64}
    applied, outcome = advisor.apply(here, unasked=True, **options)
    print(outcome.summary, sorted(path.name for path in outcome.folder.iterdir()))
    for change in applied.changes:
        print(" ", change.action, change.rule, change.gate)
    print("reused:", advisor.apply(here, unasked=True, **options)[1].reused)

# %% [markdown]
# ## Many questions in one process
# Prices are yours, per GPU and hour; none is built in.

# %%
asked = [{"model": profile.model.name, "gpu": gpu, "traffic": "chat", "objective": "cost"} for gpu in ("a100", "h100")]
answers: list[Answer] = list(Sweep(asked, prices={"a100-sxm-80gb": 1.5, "h100-sxm-80gb": 3.0}).answers())
for answer in answers:
    print(answer.question["gpu"], answer.gpus_used, answer.cost_per_million_output_tokens)

# %% [markdown]
# ## Errors
# One tree, drawn in advisor/errors.py. Each has `what`, `where`, `hint` and the exit status of the command.

# %%
for wrong in (
    lambda: advisor.profile("meta-llama/Llama-3.1-8B-Instruct", gpu="h101"),
    lambda: advisor.advise(profile, policy=Policy(engines={"vllm": ()})),
    lambda: advisor.advise(profile, policy=Policy(deployment={"weights": ("nvfp4",)})),
):
    try:
        wrong()
    except (UnknownName, PolicyProblem, NoPlanFits) as error:
        assert isinstance(error, AdvisorError)
        print(type(error).__name__, error.exit_status, "-", error.what, "-", error.hint)
