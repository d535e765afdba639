"""What a training makes smaller: functions of a model and one sequence, the mean over its tokens in nats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Objective = Callable[[Any, Any], Any]
"""(model, token ids of shape [1, n]) -> a scalar tensor, nats a token"""


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
