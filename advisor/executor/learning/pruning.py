"""Depth pruning: the blocks of a model that change their input least, and the model without them.

Block influence is 1 - the cosine similarity of a block's input and output, mean over tokens (Men et al. 2024, arXiv 2403.03853,
section 3.1). One block goes at a time and the rest are measured again: what a block does depends on those before it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.errors import NotPossible
from advisor.executor.quantizing import causal_model


@dataclass(frozen=True)
class Cut:
    """What was taken out."""

    kept: tuple[int, ...]
    """the teacher's block behind each of the student's"""
    dropped: tuple[int, ...]
    """in the order in which they went"""
    influence: tuple[float, ...]
    """of each of the teacher's blocks, before any went"""
    lost: tuple[float, ...]
    """influence of each dropped block when it went"""


def cut_depth(model: Any, sequences: Sequence[tuple[int, ...]], layers: int, tick: Callable[[int], None]) -> Cut:
    """Take blocks out of the model, in place, until `layers` are left. Raises NotPossible for a model without such blocks."""
    blocks = find_blocks(model)
    kept = list(range(len(blocks)))
    first: tuple[float, ...] = ()
    dropped, lost = [], []
    while len(kept) > layers:
        found = measure_influence(model, blocks, sequences)
        first = first or found
        least = min(range(len(kept)), key=lambda index: found[index])
        dropped.append(kept.pop(least))
        lost.append(found[least])
        _take_out(model, blocks, least)
        tick(len(dropped))
    return Cut(tuple(kept), tuple(dropped), first, tuple(lost))


def find_blocks(model: Any) -> Any:
    """The list of the model's blocks. Raises NotPossible where there is none, or layers that read another layer's cache."""
    import torch

    count = model.config.num_hidden_layers
    lists = [each for each in model.modules() if isinstance(each, torch.nn.ModuleList) and len(each) == count]
    if len(lists) != 1 or getattr(model.config, "num_kv_shared_layers", None):
        raise NotPossible(
            f"the layers of a {type(model).__name__} cannot be dropped one by one",
            where=f"{count} layers",
            hint="take a smaller sibling, or prune it with ModelOpt's Minitron",
        )
    return lists[0]


def measure_influence(model: Any, blocks: Any, sequences: Sequence[tuple[int, ...]]) -> tuple[float, ...]:
    """The block influence of each block over all tokens of the sequences, 0 (does nothing) to 2."""
    import torch

    sums, tokens = [0.0] * len(blocks), 0

    def watch(index: int) -> Callable[..., None]:
        def hook(_module: Any, given: tuple[Any, ...], named: dict[str, Any], made: Any) -> None:
            before = given[0] if given else named["hidden_states"]
            after = made[0] if isinstance(made, tuple) else made
            sums[index] += float((1 - torch.cosine_similarity(before.float(), after.float(), dim=-1)).sum())

        return hook

    hooks = [block.register_forward_hook(watch(index), with_kwargs=True) for index, block in enumerate(blocks)]
    try:
        with torch.inference_mode():
            device = next(model.parameters()).device
            for sequence in sequences:
                model(input_ids=torch.tensor([sequence], device=device))
                tokens += len(sequence)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(total / tokens for total in sums)


def write_model(model: Any, source: Path, folder: Path) -> tuple[Path, ...]:
    """A Hugging Face checkpoint of the model with the tokenizer of `source`, whole or not at all."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(str(partial))
    causal_model.copy_beside(source, partial)
    partial.rename(folder)
    return tuple(path for path in sorted(folder.rglob("*")) if path.is_file())


def check_same(model: Any, other: Any, sequence: tuple[int, ...]) -> None:
    """Raise NotPossible unless both compute the same logits: then what was cut in memory is what the files say."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor([sequence])
        one, two = (each(input_ids=ids.to(next(each.parameters()).device)).logits.float().cpu() for each in (model, other))
    if not torch.equal(one, two):
        raise NotPossible(
            f"a {type(model).__name__} with fewer layers does not read back as it was",
            where=f"logits differ by up to {float((one - two).abs().max()):.3g}",
            hint="take a smaller sibling, or prune it with ModelOpt's Minitron",
        )


def _take_out(model: Any, blocks: Any, index: int) -> None:
    """Remove one block, renumber the others' caches, and shorten what the config says for each layer."""
    config, count = model.config, len(blocks)
    del blocks[index]
    for number, block in enumerate(blocks):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == count:
            setattr(config, name, value[:index] + value[index + 1 :])
    config.num_hidden_layers = count - 1
