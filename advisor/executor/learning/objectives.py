"""What a training makes smaller: functions of a model and sequences of one length, the mean over their tokens in nats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Objective = Callable[[Any, Any], Any]
"""(model, token ids of shape [sequences, n]) -> a scalar tensor, nats a token"""


def predict_next(model: Any, ids: Any) -> Any:
    """Cross-entropy of each next token."""
    return model(input_ids=ids, labels=ids).loss


def imitate(teacher: Any, temperature: float = 1.0) -> Objective:
    """KL(teacher || student) over the vocabulary, times temperature^2 (Hinton et al. 2015, arXiv 1503.02531, section 2)."""

    def divergence(model: Any, ids: Any) -> Any:
        import torch

        given = (model(input_ids=ids).logits.float() / temperature).log_softmax(-1)
        with torch.no_grad():
            device = next(teacher.parameters()).device
            wanted = (teacher(input_ids=ids.to(device)).logits.float() / temperature).log_softmax(-1).to(given.device)
        return (wanted.exp() * (wanted - given)).sum(-1).mean() * temperature**2

    return divergence


def imitate_layers(teacher: Any, kept: tuple[int, ...], weight: float) -> Objective:
    """As `imitate`, and `weight` times how far each of the student's layers is from reading what its original read in the
    teacher: squared distance of the hidden states over the teacher's square, mean over layers.

    kept: the teacher's layer behind each of the student's. The states of the logits are the logits' own affair.
    """

    def divergence(model: Any, ids: Any) -> Any:
        import torch

        given = model(input_ids=ids, output_hidden_states=True)
        with torch.no_grad():
            wanted = teacher(input_ids=ids.to(next(teacher.parameters()).device), output_hidden_states=True)
        states = [
            (mine.float(), wanted.hidden_states[layer].float().to(mine.device))
            for mine, layer in zip(given.hidden_states[1:-1], kept[1:], strict=True)
        ]
        far = [(mine - its).pow(2).sum() / its.pow(2).sum() for mine, its in states]
        ours, theirs = given.logits.float().log_softmax(-1), wanted.logits.float().log_softmax(-1).to(given.logits.device)
        logits = (theirs.exp() * (theirs - ours)).sum(-1).mean()
        return logits + weight * torch.stack(far).mean() if far else logits

    return divergence
