"""An EAGLE-3 head for a model that nobody has published one for: trained with ModelOpt, exported, and its files checked.

The model is frozen. ModelOpt unrolls the head over its own guesses while training (as EAGLE-3 does, arXiv 2503.01840) and
takes the cross-entropy to the model's distribution as the loss.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from advisor.executor.bookkeeping.journal import Journal, digest, file_errors
from advisor.executor.bookkeeping.progress import Progress
from advisor.executor.learning.training import Settings, Trained, train
from advisor.executor.quantizing import causal_model
from advisor.executor.quantizing.checkpoint import read_modules
from advisor.library import read_text

NAME = "eagle3"
FROZEN = ("model.*", "lm_head.*")
CAPTURED = 3
"""hidden states that the head reads: of an early, a middle and a late layer"""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Head:
    """A head's exported files and how they came about."""

    folder: Path
    training: Trained
    params: int
    """that were trained"""
    problems: tuple[str, ...]
    """why an engine would not load the files, as far as they tell; none: they are as they must be"""


def make_head(
    target: Path,
    sequences: Sequence[tuple[int, ...]],
    settings: Settings,
    *,
    journal: Journal,
    progress: Progress,
    max_seconds: float | None = None,
) -> tuple[Head, Any]:
    """Train a head on sequences and export it into the journal's folder; with it the model that has it, to draft with.

    A killed training goes on. Raises FileProblem, NotPossible.
    """
    settings = Settings(**{**asdict(settings), "frozen": FROZEN})
    causal_model.set_seed(settings.seed)
    model = attach(causal_model.load_model(target).float())
    inputs = {"target": str(target), "sequences": digest(list(sequences))}
    trained = train(
        model, sequences, own_loss, settings, journal=journal, name=NAME, inputs=inputs, progress=progress,
        max_seconds=max_seconds,
    )  # fmt: skip
    model.eval()
    folder = journal.folder / NAME / "checkpoint"
    with file_errors(folder):
        export(model, folder)
    count = sum(one.numel() for one in model.eagle_module.parameters())
    return Head(folder, trained, count, check_head(folder, model.config)), model


def attach(model: Any) -> Any:
    """The model with an untrained head of its own proportions: ModelOpt's are those of Llama-3.1-8B."""
    import modelopt.torch.speculative as speculative
    import torch
    from modelopt.torch.speculative.config import EAGLE3_DEFAULT_CFG

    config = model.config
    config.dtype = torch.float32  # the head's attention mask takes its width from here
    shape = {
        "torch_dtype": "float32",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "vocab_size": config.vocab_size,
        "draft_vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
    }
    defaults = EAGLE3_DEFAULT_CFG["config"]
    head = {
        **defaults,
        "eagle_architecture_config": {**defaults["eagle_architecture_config"], **shape},
        "eagle_use_torch_compile": False,
        "eagle_export_rope_scaling": {},  # else the files say positions that the head was not trained with
    }
    speculative.convert(model, [("eagle", head)])
    return model


def own_loss(model: Any, ids: Any) -> Any:
    """What ModelOpt trains a head by, nats a token, summed over the unrolled steps with their weights."""
    model._cached_attn_blk_masks.clear()  # ModelOpt keeps masks by step and not by length; ours differ
    return model(input_ids=ids, labels=ids).loss


def export(model: Any, folder: Path) -> None:
    """The head alone, 16 bits, as TensorRT-LLM, vLLM and SGLang read it; whole or not at all."""
    import torch
    from modelopt.torch.export import export_speculative_decoding

    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir(parents=True)
    export_speculative_decoding(model, dtype=torch.bfloat16, export_dir=partial)
    partial.rename(folder)


class HeadDrafter:
    """The head beside the model that it was trained for: guesses on from its own guesses, all read anew each time."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def propose(self, text: Sequence[int], draft_len: int) -> tuple[tuple[int, ...], Any]:
        """As decoding.Drafter's. The last token was chosen by the target and not yet read by it, as when serving."""
        import torch

        seen = torch.tensor([text[:-1]], device=next(self.model.parameters()).device)
        _, guesses = self.model.pseudo_speculative_generate(seen, steps=draft_len)
        return tuple(guesses[0].tolist()), None


def check_head(folder: Path, target: Any) -> tuple[str, ...]:
    """What TensorRT-LLM's loader would stumble over (tensorrt_llm/_torch/models/modeling_speculative.py @ 00679c66).

    Its Eagle3DraftModel has these tensors in these shapes, `layers.0.` for its one layer, and the target's embedding.
    """
    config = json.loads(read_text(folder / "config.json", what="config of a draft head"))
    found = {
        f"{module}.{name}": tuple(value.shape) for module, tensors in read_modules(folder) for name, value in tensors.items()
    }
    wanted = _shapes(config)
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys() - {"lm_head.weight"})]
    problems += [f"{name} has no place in an EAGLE-3 head" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name} is {found[name]}, wanted {shape}" for name, shape in sorted(wanted.items()) if found.get(name, shape) != shape
    ]
    for field in ("hidden_size", "vocab_size"):
        if config.get(field) != getattr(target, field):
            problems.append(f"config.json: {field} is {config.get(field)}, the target's {getattr(target, field)}")
    layers = (config.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
    if layers is not None and not all(0 <= layer < target.num_hidden_layers for layer in layers):
        problems.append(f"config.json: reads hidden states of layers {layers} of {target.num_hidden_layers}")
    return tuple(problems)


def _shapes(config: dict[str, Any]) -> dict[str, Shape]:
    """Tensor -> shape of an EAGLE-3 head with this config."""
    hidden, width = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    captured = len((config.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids") or range(CAPTURED))
    draft_vocab = config.get("draft_vocab_size") or config["vocab_size"]
    layer: dict[str, Shape] = {
        "self_attn.q_proj": (queries, 2 * hidden),
        "self_attn.k_proj": (keys, 2 * hidden),
        "self_attn.v_proj": (keys, 2 * hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (width, hidden),
        "mlp.up_proj": (width, hidden),
        "mlp.down_proj": (hidden, width),
        "hidden_norm": (hidden,),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    whole = {f"layers.0.{name}.weight": shape for name, shape in layer.items()}
    whole |= {"fc.weight": (hidden, captured * hidden), "norm.weight": (hidden,), "lm_head.weight": (draft_vocab, hidden)}
    return whole | ({} if draft_vocab == config["vocab_size"] else {".d2t": (draft_vocab,)})
