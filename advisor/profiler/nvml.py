"""What NVML says about the GPUs of this machine, as plain values.

The only file that knows pynvml (distribution nvidia-ml-py). A query that a GPU, driver or permission does not allow
leaves its value None and its name in `Device.missing`; only a GPU that cannot be used at all stops the reading.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from advisor.errors import GpuProblem, MissingExtra

ELSEWHERE = "name the GPUs to plan for: --gpu h100-sxm-80gb --gpus 1"
GIB = 2**30


@dataclass(frozen=True)
class Process:
    """A process that holds GPU memory; memory in bytes, None when the driver does not say."""

    pid: int
    memory: int | None


@dataclass(frozen=True)
class Slice:
    """A MIG device: NVML's name, memory in bytes and its multiprocessors, None where NVML does not say."""

    name: str
    memory: int | None
    free: int | None
    multiprocessors: int | None


@dataclass(frozen=True)
class Device:
    """One GPU. Memory in bytes, power in W, clock in MHz, bus width in bits; None: NVML would not say."""

    index: int
    name: str
    sm: int | None
    """compute capability without the dot"""
    memory: int | None
    free: int | None
    links: int | None
    """active NVLink links; 0 none, None not known"""
    peers: frozenset[int] | None
    """indices of the GPUs that NVLink reaches, None not known"""
    pcie_generation: int | None
    pcie_lanes: int | None
    mig: bool | None
    slices: tuple[Slice, ...]
    ecc: bool | None
    power_limit: float | None
    bus_width: int | None
    memory_clock: int | None
    processes: tuple[Process, ...] | None
    missing: tuple[str, ...]
    """what could not be read, with NVML's reason"""


@dataclass(frozen=True)
class Machine:
    """All GPUs that this process may use."""

    devices: tuple[Device, ...]
    driver: str | None
    cuda: str | None
    """highest CUDA version of the driver, "13.0" """
    hidden: int
    """GPUs of the machine that CUDA_VISIBLE_DEVICES hides"""
    notes: tuple[str, ...] = ()


@dataclass
class _Questions:
    """Asks NVML and keeps what it would not answer."""

    nvml: Any
    missing: list[str] = field(default_factory=list)

    def ask(self, what: str, call: str, *arguments: Any) -> Any:
        """The answer, or None with the reason kept; a lost GPU stops everything."""
        try:
            return getattr(self.nvml, call)(*arguments)
        except AttributeError:
            self.missing.append(f"{what}: this NVML binding has no {call}")
        except self.nvml.NVMLError as error:
            if error.value in (self.nvml.NVML_ERROR_GPU_IS_LOST, self.nvml.NVML_ERROR_RESET_REQUIRED):
                raise
            self.missing.append(f"{what}: {error}")
        return None


def read_machine() -> Machine:
    """The GPUs of this machine that CUDA_VISIBLE_DEVICES leaves visible.

    Raises MissingExtra without nvidia-ml-py, GpuProblem when there is no driver, no permission, no GPU or a lost one.
    """
    try:
        import pynvml
    except ImportError:
        raise MissingExtra(
            "nvidia-ml-py, which reads the GPUs, is not installed", hint=f"pip install nvidia-ml-py, or {ELSEWHERE}"
        ) from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise _refusal(pynvml, error, "the GPUs of this machine") from None
    try:
        return _machine(pynvml)
    except pynvml.NVMLError as error:
        raise _refusal(pynvml, error, "the GPUs of this machine") from None
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _machine(nvml: Any) -> Machine:
    system = _Questions(nvml)
    driver = _text(system.ask("driver version", "nvmlSystemGetDriverVersion"))
    cuda = system.ask("CUDA version", "nvmlSystemGetCudaDriverVersion_v2")
    count = nvml.nvmlDeviceGetCount()
    if not count:
        raise GpuProblem("the NVIDIA driver is there, but no GPU", where="the GPUs of this machine", hint=ELSEWHERE)
    handles: dict[int, Any] = {}
    unusable: dict[int, Exception] = {}
    for index in range(count):
        try:
            handles[index] = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:
            unusable[index] = error  # matters only if CUDA_VISIBLE_DEVICES leaves this GPU in
    visible, notes = _visible(nvml, count, handles)
    devices = []
    for index in visible:
        try:
            if index in unusable:
                raise unusable[index]
            devices.append(_device(nvml, index, handles))
        except nvml.NVMLError as error:
            raise _refusal(nvml, error, f"GPU {index} of {count}") from None
    return Machine(
        devices=tuple(devices),
        driver=driver,
        cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
        hidden=count - len(devices),
        notes=(*notes, *system.missing),
    )


def _device(nvml: Any, index: int, handles: dict[int, Any]) -> Device:
    """Every fact of one GPU; raises NVMLError only when the GPU is lost or not even its name can be read."""
    handle = handles[index]
    questions = _Questions(nvml)
    ask = questions.ask
    capability = ask("compute capability", "nvmlDeviceGetCudaComputeCapability", handle)
    memory = ask("memory", "nvmlDeviceGetMemoryInfo", handle)
    links = _active_links(nvml, questions, handle)
    mig = ask("MIG mode", "nvmlDeviceGetMigMode", handle)
    ecc = ask("ECC", "nvmlDeviceGetEccMode", handle)
    power = ask("power limit", "nvmlDeviceGetEnforcedPowerLimit", handle)
    held = ask("processes", "nvmlDeviceGetComputeRunningProcesses", handle)
    sliced = bool(mig and mig[0])
    return Device(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)) or "",
        sm=capability[0] * 10 + capability[1] if capability else None,
        memory=memory.total if memory else None,
        free=memory.free if memory else None,
        links=links,
        peers=_peers(nvml, questions, index, handles) if links else frozenset() if links == 0 else None,
        pcie_generation=ask("PCIe generation", "nvmlDeviceGetMaxPcieLinkGeneration", handle),
        pcie_lanes=ask("PCIe width", "nvmlDeviceGetMaxPcieLinkWidth", handle),
        mig=sliced if mig else None,
        slices=_slices(nvml, questions, handle) if sliced else (),
        ecc=bool(ecc[0]) if ecc else None,
        power_limit=power / 1000 if power else None,
        bus_width=ask("memory bus width", "nvmlDeviceGetMemoryBusWidth", handle),
        memory_clock=ask("memory clock", "nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_MEM),
        processes=None if held is None else tuple(Process(p.pid, p.usedGpuMemory) for p in held),
        missing=tuple(questions.missing),
    )


def _active_links(nvml: Any, questions: _Questions, handle: Any) -> int | None:
    """How many NVLink links are up: 0 for a GPU without NVLink, None when NVML does not let us ask."""
    active = 0
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        try:
            active += nvml.nvmlDeviceGetNvLinkState(handle, link) == 1
        except nvml.NVMLError as error:
            if error.value in (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_INVALID_ARGUMENT):
                return active  # past this GPU's last link
            if error.value == nvml.NVML_ERROR_GPU_IS_LOST:
                raise
            questions.missing.append(f"NVLink: {error}")
            return None
    return active


def _peers(nvml: Any, questions: _Questions, index: int, handles: dict[int, Any]) -> frozenset[int] | None:
    """The other GPUs that this one reaches over NVLink, through a switch or directly."""
    reached = set()
    for other, handle in handles.items():
        if other == index:
            continue
        status = questions.ask(
            f"NVLink to GPU {other}", "nvmlDeviceGetP2PStatus", handles[index], handle, nvml.NVML_P2P_CAPS_INDEX_NVLINK
        )
        if status is None:
            return None
        if status == nvml.NVML_P2P_STATUS_OK:
            reached.add(other)
    return frozenset(reached)


def _slices(nvml: Any, questions: _Questions, handle: Any) -> tuple[Slice, ...]:
    """The MIG devices of a GPU whose MIG mode is on."""
    found = []
    for index in range(questions.ask("number of MIG devices", "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
        try:
            mig = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except nvml.NVMLError as error:
            if error.value == nvml.NVML_ERROR_NOT_FOUND:
                continue  # a slot without a device
            questions.missing.append(f"MIG device {index}: {error}")
            continue
        memory = questions.ask(f"memory of MIG device {index}", "nvmlDeviceGetMemoryInfo", mig)
        attributes = questions.ask(f"size of MIG device {index}", "nvmlDeviceGetAttributes_v2", mig)
        found.append(
            Slice(
                name=_text(questions.ask(f"name of MIG device {index}", "nvmlDeviceGetName", mig)) or "MIG device",
                memory=memory.total if memory else None,
                free=memory.free if memory else None,
                multiprocessors=attributes.multiprocessorCount if attributes else None,
            )
        )
    return tuple(found)


def _visible(nvml: Any, count: int, handles: dict[int, Any]) -> tuple[list[int], list[str]]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, as CUDA reads it: up to the first entry that is no GPU."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return list(range(count)), []
    uuids = {}
    if "GPU-" in wanted:
        with suppress(nvml.NVMLError):
            uuids = {index: _text(nvml.nvmlDeviceGetUUID(handle)) or "" for index, handle in handles.items()}
    chosen: list[int] = []
    for entry in (part.strip() for part in wanted.split(",")):
        if entry.startswith("MIG-"):
            return list(range(count)), ["CUDA_VISIBLE_DEVICES names a MIG device; all MIG devices of the machine were read"]
        named = [index for index, uuid in uuids.items() if entry.startswith("GPU-") and uuid.startswith(entry)]
        if entry.isdigit() and int(entry) < count:
            named = [int(entry)]
        if len(named) != 1:
            break
        chosen += named
    if not chosen:
        raise GpuProblem(
            "CUDA_VISIBLE_DEVICES hides every GPU of this machine",
            where=f"CUDA_VISIBLE_DEVICES={wanted}",
            hint=f"unset it, or {ELSEWHERE}",
        )
    return sorted(set(chosen)), []


def _refusal(nvml: Any, error: Exception, where: str) -> GpuProblem:
    """What an NVML error that stops the reading means to a user."""
    answers: dict[int, tuple[str, str]] = {
        nvml.NVML_ERROR_LIBRARY_NOT_FOUND: ("this machine has no NVIDIA driver: NVML's library was not found", ELSEWHERE),
        nvml.NVML_ERROR_DRIVER_NOT_LOADED: (
            "the NVIDIA driver is installed but not loaded",
            f"see that nvidia-smi works (in a container: start it with GPUs), or {ELSEWHERE}",
        ),
        nvml.NVML_ERROR_NO_PERMISSION: (
            "this user may not read the GPUs",
            f"allow access to /dev/nvidia* (in a container: start it with GPUs), or {ELSEWHERE}",
        ),
        nvml.NVML_ERROR_GPU_IS_LOST: (
            "a GPU is lost: it has fallen off the bus and cannot be used",
            f"look for Xid 79 in the kernel log and restart the machine, or leave it out: CUDA_VISIBLE_DEVICES, or {ELSEWHERE}",
        ),
        nvml.NVML_ERROR_RESET_REQUIRED: ("a GPU must be reset before it can be used", f"reset or restart it, or {ELSEWHERE}"),
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
            "NVML's library and the loaded driver have different versions",
            f"restart the machine after the driver's update, or {ELSEWHERE}",
        ),
    }
    what, hint = answers.get(getattr(error, "value", -1), (f"NVML cannot read the GPUs: {error}", ELSEWHERE))
    return GpuProblem(what, where=where, hint=hint)


def _text(value: Any) -> str | None:
    """NVML's strings, which older bindings return as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
