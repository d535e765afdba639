"""Replays recorded NVML facts through a module that stands in for pynvml.

A recording (recordings/nvml/*.json) holds, by pynvml's function names, what each call answered: `system` for the machine,
`devices[i]` for a GPU, `devices[i].mig[j]` for its MIG devices. {"error": "NVML_ERROR_..."} stands for the NVMLError that
was raised; a call that a recording lacks answers as an old driver does, "Function Not Found". Errors and constants are
the real pynvml's, so the profiler's own path runs unchanged.
"""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pynvml
import pytest

RECORDINGS = Path(__file__).parent / "recordings" / "nvml"


class Replay(types.ModuleType):
    """A stand-in for pynvml; `open` tells whether nvmlShutdown is still owed."""

    def __init__(self, recording: dict[str, Any]) -> None:
        super().__init__("pynvml")
        self.open = 0
        for name in dir(pynvml):
            if name.startswith(("NVML_", "NVMLError")):
                setattr(self, name, getattr(pynvml, name))
        self._recording = recording
        for name in dir(pynvml):
            if name.startswith(("nvmlDeviceGet", "nvmlSystemGet")):
                setattr(self, name, self._answerer(name))

    def nvmlInit(self) -> None:  # noqa: N802
        self._answer(self._recording.get("init"))
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def _answerer(self, call: str) -> Any:
        def answer(*arguments: Any) -> Any:
            assert self.open == 1, f"{call} outside nvmlInit and nvmlShutdown"
            devices = self._recording.get("devices", [])
            if call == "nvmlDeviceGetCount":
                return len(devices)
            if call == "nvmlDeviceGetHandleByIndex":
                self._answer(devices[arguments[0]].get("handle"))
                return {"index": arguments[0], **devices[arguments[0]]}
            if call == "nvmlDeviceGetMigDeviceHandleByIndex":
                slices = arguments[0].get("mig", [])
                return slices[arguments[1]] if arguments[1] < len(slices) else self._answer({"error": "NVML_ERROR_NOT_FOUND"})
            source = self._recording.get("system", {}) if call.startswith("nvmlSystem") else arguments[0]
            recorded = source.get(call, {"error": "NVML_ERROR_FUNCTION_NOT_FOUND"})
            if call == "nvmlDeviceGetNvLinkState":
                recorded = recorded[arguments[1]] if isinstance(recorded, list) and arguments[1] < len(recorded) else recorded
                recorded = {"error": "NVML_ERROR_INVALID_ARGUMENT"} if isinstance(recorded, list) else recorded
            if call == "nvmlDeviceGetP2PStatus" and isinstance(recorded, dict) and "error" not in recorded:
                recorded = recorded[str(arguments[1]["index"])]
            return self._answer(recorded)

        return answer

    def _answer(self, recorded: Any) -> Any:
        if isinstance(recorded, dict) and "error" in recorded:
            raise pynvml.NVMLError(getattr(pynvml, recorded["error"]))
        if isinstance(recorded, dict):
            return types.SimpleNamespace(**recorded)
        if isinstance(recorded, list):
            return [types.SimpleNamespace(**item) if isinstance(item, dict) else item for item in recorded]
        return recorded


def replay(monkeypatch: pytest.MonkeyPatch, name: str) -> Replay:
    """Puts the recording `name` in pynvml's place for one test."""
    recording = json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))
    module = Replay(recording)
    monkeypatch.setitem(__import__("sys").modules, "pynvml", module)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return module
