"""The Hugging Face model: loaded from local safetensors, its tokenizer, its memory. The only file that imports transformers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from advisor.errors import MissingExtra, ModelProblem, NotPossible

EXTRA = "pip install 'inference-advisor[apply]'"
RUNTIME_GIB = 0.9
"""what Python, PyTorch and ModelOpt hold before a model is loaded; measured on a CPU: 0.35 to 0.9 GiB"""
WORKING = {"max": 1.6, "awq": 4.0, "qat": 11.0, "qad": 12.0}
"""peak memory over the bytes of the weights, by what is done to them; measured on SmolLM2-135M (facts of ModelOpt on a CPU):
max calibration 1.1 GB and AWQ 1.65 GB for weights of 0.27 GB, less RUNTIME_GIB, rounded up; qad 4.0 GiB (docs/training.md),
of which weights, gradients and two moments in 32 bits are 8 and the teacher, which qat lacks, 1"""


_NO_MEMORY = ("allocate memory", "not enough memory", "out of memory")


NEEDED = ("torch", "transformers", "accelerate", "safetensors", "modelopt", "requests")

COPIED = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json", "LICENSE", "NOTICE",
)  # fmt: skip
"""of the model's own files, those that the export does not write"""


def require_libraries(*needed: str) -> None:
    """Raise MissingExtra unless these are installed; without any: everything that `advise apply` needs."""
    from importlib.util import find_spec

    missing = [name for name in needed or NEEDED if not find_spec(name)]
    if missing:
        raise MissingExtra(f"this needs {', '.join(missing)}", hint=f"install it: {EXTRA}")


def copy_beside(model: Path, target: Path) -> tuple[Path, ...]:
    """Copy the files of a model's folder that no export writes and that are not in `target` yet; what was copied."""
    names = [name for name in COPIED if (model / name).is_file() and not (target / name).exists()]
    return tuple(Path(shutil.copyfile(model / name, target / name)) for name in names)


def check_folder(folder: Path) -> None:
    """Raise ModelProblem unless the folder holds a 16-bit model as safetensors with its tokenizer."""
    config = folder / "config.json"
    if not config.is_file():
        raise ModelProblem(
            "advise apply works on a local folder with the model's files", where=str(folder), hint="download it first"
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelProblem(
            "there are no safetensors files here", where=str(folder), hint="pickled weights are not read: convert them"
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelProblem(
            "there is no tokenizer here", where=str(folder), hint="copy the model's tokenizer files beside its weights"
        )
    if (folder / "hf_quant_config.json").is_file() or "quantization_config" in _json(config):
        raise ModelProblem(
            "this checkpoint is quantized already", where=str(folder), hint="give the 16-bit one it was made from"
        )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder. Raises ModelProblem."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelProblem(
            f"the tokenizer does not load: {_first_line(error)}", where=str(folder), hint="fetch its files again"
        ) from None


def load_model(folder: Path, *, whole: bool = False) -> Any:
    """The model in its own dtype, in evaluation mode; shard by shard over all GPUs and, where these are too small, the CPU's
    memory, by accelerate's device map.

    whole: its weights are to be overwritten, which a part that accelerate has put aside does not allow: all of it on the GPUs,
    or none. No code of the model's repository is run. Raises ModelProblem.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    fits = not whole or weight_gib(folder) < 0.9 * _gpu_gib()
    spread = {"device_map": "auto"} if torch.cuda.is_available() and fits else {}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype="auto", local_files_only=True, trust_remote_code=False, use_safetensors=True, **spread
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelProblem(
            f"the model does not load: {_first_line(error)}", where=str(folder), hint="fetch its files again"
        ) from None
    if not model.config.architectures:
        model.config.architectures = [type(model).__name__]
    model.config.use_cache = False
    return model.eval()


def load_skeleton(folder: Path) -> Any:
    """The model's modules without their weights, in a moment. Raises ModelProblem."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelProblem(
            f"the model is not one that transformers knows: {_first_line(error)}", where=str(folder), hint="take another model"
        ) from None


def chat_renderer(tokenizer: Any, where: str, *, to_answer: bool = False) -> Callable[[list[dict[str, str]]], str]:
    """messages -> text by the model's chat template. What it gives raises ModelProblem when there is none.

    to_answer: the text up to where the model's own turn begins; what an assistant said last is left out.
    """

    def render(messages: list[dict[str, str]]) -> str:
        if not getattr(tokenizer, "chat_template", None):
            raise ModelProblem("this model has no chat template for messages", where=where, hint='give {"text": …} lines')
        if to_answer and len(messages) > 1 and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=to_answer))

    return render


def weight_gib(folder: Path) -> float:
    """GiB of the safetensors files."""
    return float(sum(path.stat().st_size for path in folder.glob("*.safetensors"))) / 2**30


def check_memory(folder: Path, kind: str, *, vocab: int, tokens: int, widths: Iterable[int] = ()) -> float:
    """GiB that the work will need at once, by estimate. Raises NotPossible where the machine has not that much free.

    widths: inputs of the layers that GPTQ keeps a matrix of second moments of, in 32 bits, all at once.
    """
    need = RUNTIME_GIB + weight_gib(folder) * WORKING[kind] + 4 * 4 * vocab * tokens / 2**30
    need += sum(4 * width**2 for width in widths) / 2**30
    free = free_gib()
    if free is not None and need > free:
        raise NotPossible(
            f"about {need:.1f} GiB of memory are needed and {free:.1f} GiB are free",
            where=f"{weight_gib(folder):.1f} GiB of weights, {kind} calibration, prompts of {tokens} tokens",
            hint="free memory, use a larger machine, or shorter prompts (--prompt-tokens)",
        )
    return need


def check_disk(folder: Path, work: Path, *, vocab: int, tokens: int) -> None:
    """Raise NotPossible unless the work folder's disk has room for the unquantized model's logits of so many tokens, at 16
    bits, and for one checkpoint of the model's size; what a run that is resumed left there counts as room."""
    need = weight_gib(folder) + 2 * vocab * tokens / 2**30
    there = sum(path.stat().st_size for path in work.rglob("*") if path.is_file()) / 2**30
    free = shutil.disk_usage(work).free / 2**30 + there
    if need > free:
        raise NotPossible(
            f"about {need:.2f} GiB of disk are needed and {free:.2f} GiB are free",
            where=str(work.parent),
            hint="free space, give an --out on another disk, or judge by fewer prompts (--evaluation-prompts)",
        )


def check_decoding(folders: Sequence[Path]) -> None:
    """Raise NotPossible unless the models fit at once as they are decoded with: 32 bits a weight without a GPU."""
    import torch

    width = 1.0 if torch.cuda.is_available() else 2.0
    need = RUNTIME_GIB + sum(map(weight_gib, folders)) * width
    free = free_gib()
    if free is not None and need > free:
        raise NotPossible(
            f"about {need:.1f} GiB of memory are needed and {free:.1f} GiB are free",
            where=", ".join(map(str, folders)),
            hint="free memory, or use a larger machine",
        )


def free_gib() -> float | None:
    """Memory that can be had now: of the host and of all GPUs. None: not known."""
    import torch

    free: float | None = None
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(rows["MemAvailable"].split()[0]) / 2**20
        limit = Path("/sys/fs/cgroup/memory.max")
        used = Path("/sys/fs/cgroup/memory.current")
        if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
            free = min(free, (int(limit.read_text()) - int(used.read_text())) / 2**30)
    return (free or 0.0) + _gpu_gib() if torch.cuda.is_available() else free


def _gpu_gib() -> float:
    """Memory of all GPUs that is free now."""
    import torch

    return float(sum(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())) / 2**30)


def peak_gib() -> float:
    """The most memory that this process has held so far, GiB."""
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out, on the host or a GPU."""
    return (
        isinstance(error, MemoryError)
        or "OutOfMemory" in type(error).__name__
        or any(word in str(error) for word in _NO_MEMORY)
    )


def gpus() -> int:
    """GPUs of this machine that PyTorch sees: `load_model` takes them all."""
    from importlib.util import find_spec

    if not find_spec("torch"):
        return 0
    import torch

    return int(torch.cuda.device_count())


def versions() -> dict[str, str]:
    """The versions of what does the work."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "transformers", "nvidia-modelopt", "accelerate", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def set_seed(seed: int) -> None:
    """Seed every generator that calibration and search use, and keep PyTorch to deterministic kernels where it has them."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        raise ModelProblem("config.json is not JSON", where=str(path), hint="fetch it again") from None
    return found if isinstance(found, dict) else {}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def round_cache(model: Any, scales: dict[str, tuple[float, float]], rounding: Callable[[Any, float], Any]) -> None:
    """Let attention read keys and values as a quantized cache would give them back.

    scales: attention module -> (key scale, value scale). rounding: (values, scale) -> values. Works on every model that takes
    its attention from transformers' interface; raises ModelProblem for a module that is not there.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = "sdpa_rounded_cache"
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(module: Any, query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> Any:
        pair = getattr(module, "_cache_scales", None)
        if pair is not None:
            key, value = (rounding(each, scale).to(each.dtype) for each, scale in zip((key, value), pair, strict=True))
        return plain(module, query, key, value, *rest, **named)

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    modules = dict(model.named_modules())
    for module, pair in scales.items():
        if module not in modules:
            raise ModelProblem("the cache has scales for a module that the model has not", where=module, hint="export it again")
        modules[module]._cache_scales = pair
    model.set_attn_implementation(name)
