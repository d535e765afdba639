"""An advisor for LLM inference on NVIDIA GPUs: which optimizations, in which order, what each gives, and why.

advise(profile)   judge a Profile by the rules: a Report          profile(model, gpu=...)   look at machine, model and traffic
predict(points)   Estimates of deployments, one a Point           errors, types             what goes in and out
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["advise", "predict", "profile"]


def __getattr__(name: str) -> Any:
    if name in ("advise", "profile"):
        from advisor import pipeline

        return getattr(pipeline, name)
    if name == "predict":
        from advisor.prediction import predict

        return predict
    raise AttributeError(f"module 'advisor' has no attribute {name!r}")
