"""The linear layers of Llama-3 8B and 70B, (K, N), that GEMMs are measured at."""

from __future__ import annotations

LAYERS: dict[str, dict[str, tuple[int, int]]] = {
    "8b": {"qkv": (4096, 6144), "o": (4096, 4096), "gate_up": (4096, 28672), "down": (14336, 4096)},
    "70b": {"qkv": (8192, 10240), "o": (8192, 8192), "gate_up": (8192, 57344), "down": (28672, 8192)},
}
