"""What the machine is: versions, and its NVML facts in the recording format of tests/recordings/nvml.

Serial numbers, UUIDs, PCI addresses, host names and process ids are never asked for or left out.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from typing import Any

PACKAGES = ("torch", "triton", "transformers", "nvidia-modelopt", "accelerate", "tokenizers", "nvidia-ml-py", "numpy")


def versions() -> dict[str, str]:
    """Name -> version of what the measurements ran on."""
    found = {"python": platform.python_version(), "processors": str(os.cpu_count())}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    try:
        import torch

        found["cuda of torch"] = str(torch.version.cuda)
        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            found["gpu"] = properties.name
            found["multiprocessors"] = str(properties.multi_processor_count)
            found["l2 bytes"] = str(properties.L2_cache_size)
            found["cuda sees bytes"] = str(properties.total_memory)
    except ImportError:
        pass
    return found


def record_nvml() -> dict[str, Any]:
    """Every NVML answer that the GPU profiler asks for, by pynvml's function names."""
    import pynvml

    def ask(call: str, *arguments: Any) -> Any:
        try:
            return _plain(getattr(pynvml, call)(*arguments))
        except pynvml.NVMLError as error:
            names = [n for n in dir(pynvml) if n.startswith("NVML_ERROR_") and getattr(pynvml, n) == error.value]
            return {"error": names[0] if names else str(error)}

    recording: dict[str, Any] = {
        "what": "one real machine, as its NVML answered",
        "origin": f"recorded {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d} by benchmarks/gpu/measure.py",
    }
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        names = [n for n in dir(pynvml) if n.startswith("NVML_ERROR_") and getattr(pynvml, n) == error.value]
        return {**recording, "init": {"error": names[0]}}
    try:
        recording["system"] = {call: ask(call) for call in ("nvmlSystemGetDriverVersion", "nvmlSystemGetCudaDriverVersion_v2")}
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        recording["devices"] = [_device(pynvml, ask, index, handles) for index in range(len(handles))]
    finally:
        pynvml.nvmlShutdown()
    return recording


def _device(pynvml: Any, ask: Any, index: int, handles: list[Any]) -> dict[str, Any]:
    handle = handles[index]
    calls = (
        "nvmlDeviceGetName", "nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetMaxPcieLinkGeneration", "nvmlDeviceGetMaxPcieLinkWidth", "nvmlDeviceGetMigMode",
        "nvmlDeviceGetEccMode", "nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetMemoryBusWidth",
        "nvmlDeviceGetCurrPcieLinkGeneration", "nvmlDeviceGetCurrPcieLinkWidth", "nvmlDeviceGetNumGpuCores",
        "nvmlDeviceGetMaxMigDeviceCount", "nvmlDeviceGetArchitecture",
    )  # fmt: skip
    facts = {call: ask(call, handle) for call in calls}
    facts["nvmlDeviceGetMaxClockInfo"] = ask("nvmlDeviceGetMaxClockInfo", handle, pynvml.NVML_CLOCK_MEM)
    processes = ask("nvmlDeviceGetComputeRunningProcesses", handle)
    if isinstance(processes, list):
        processes = [{"pid": number, "usedGpuMemory": p["usedGpuMemory"]} for number, p in enumerate(processes, 1)]
    facts["nvmlDeviceGetComputeRunningProcesses"] = processes
    states: list[Any] = []
    end: Any = {"error": "NVML_ERROR_NOT_SUPPORTED"}
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        state = ask("nvmlDeviceGetNvLinkState", handle, link)
        if isinstance(state, dict):
            end = state
            break
        states.append(state)
    facts["nvmlDeviceGetNvLinkState"] = states or end
    if len(handles) > 1:
        facts["nvmlDeviceGetP2PStatus"] = {
            str(other): ask("nvmlDeviceGetP2PStatus", handle, handles[other], pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
            for other in range(len(handles))
            if other != index
        }
    return facts


def _plain(value: Any) -> Any:
    """NVML's answers as JSON values; of structs only the fields that name no machine."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "total") and hasattr(value, "free"):
        return {"total": value.total, "free": value.free, "used": value.used}
    if hasattr(value, "usedGpuMemory"):
        return {"usedGpuMemory": value.usedGpuMemory}
    return value
