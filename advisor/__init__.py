"""An advisor for LLM inference on NVIDIA GPUs."""

__version__ = "0.1.0"
