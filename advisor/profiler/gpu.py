"""The GPUs to serve on: read through NVML, or named.

NVML gives what is there (memory, links, driver, who holds memory); profiles/gpus gives what a GPU of that name can do
(bandwidth, dense tensor-core rates). Every fact's source is returned beside it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

from advisor import library
from advisor.errors import GpuProblem
from advisor.profiler.catalogue import gpu_names, identify, relatives, unknown
from advisor.profiler.nvml import ELSEWHERE, GIB, Device, Machine, Slice, read_machine
from advisor.types import Gpu, GpuProcess, TensorRates

__all__ = ["find_gpu", "gpu_names", "read_gpus"]

Link = Literal["nvlink", "pcie", "c2c"] | None
ARCHITECTURES = {70: "Volta", 72: "Volta", 75: "Turing", 89: "Ada", 90: "Hopper"}
NVLINK_GB_S = {70: 25.0, 80: 25.0, 86: 14.0625, 90: 25.0, 100: 50.0, 103: 50.0}
"""GB/s per NVLink link and direction by compute capability: the datasheets' bandwidth over their number of links."""
PCIE_GB_S_PER_LANE = {1: 0.25, 2: 0.5, 3: 0.984375, 4: 1.96875, 5: 3.9375, 6: 7.875}
"""GB/s per PCIe lane and direction after line coding, by generation."""
OTHER_VARIANT = 0.1
"""A share of memory or bandwidth by which a GPU may differ from the profile of its name before it is another variant."""


def find_gpu(name: str, count: int = 1) -> tuple[Gpu, dict[str, str]]:
    """`count` GPUs of a machine that is elsewhere, by id, usual short name or NVML's name, and each fact's source.

    Case, spaces, dashes and underscores don't matter. Raises UnknownName (with the nearest names) and GpuProblem (count).
    """
    if count < 1:
        raise GpuProblem(f"{count} GPUs cannot serve a model", where=f"--gpus {count}", hint="give 1 or more")
    identity, taken = identify(name)
    if identity is None:
        raise unknown(name)
    facts = library.profile("gpus", identity)
    assert facts is not None  # a test holds _names.yaml to the profiles
    path = f"profiles/gpus/{identity}.yaml"
    notes = [f"{name} taken as {identity}"] if taken else []
    if taken and relatives(identity):
        notes = [f"{name} taken as {identity}, not {' or '.join(relatives(identity))}"]
    notes += [*facts["discrepancies"], *facts["notes"]]
    link, link_gb_s = facts["link"], facts["link_gb_s"]
    if count > facts.get("link_reach", count):
        link, link_gb_s = "pcie", facts["pcie"]["gb_s"]
        notes.append(f"NVLink joins at most {facts['link_reach']} of these GPUs; {count} talk over PCIe")
    if count > facts["gpus_per_node"]:
        notes.append(
            f"{count} GPUs are more than the {facts['gpus_per_node']} of one node; the network between nodes is not known"
        )
    gpu = Gpu(
        id=identity,
        name=facts["name"],
        architecture=facts["architecture"],
        sm=facts["sm"],
        count=count,
        gpus_per_node=facts["gpus_per_node"],
        memory_gib=facts["memory_gib"],
        bandwidth_gb_s=facts["bandwidth_gb_s"],
        tflops=TensorRates(**facts["tflops"]),
        link=link,
        link_gb_s=link_gb_s,
        tdp_w=facts["tdp_w"],
        notes=tuple(notes),
    )
    sources = {
        **_sources(gpu, path),
        "gpu.id": f"flag --gpu {name}",
        "gpu.count": "flag --gpus" if count > 1 else "flag --gpus or its default",
    }
    return gpu, sources


def read_gpus() -> tuple[Gpu, dict[str, str]]:
    """The GPUs of this machine through NVML, and each fact's source.

    A GPU that profiles/gpus does not know keeps its NVML facts, with id None and its unknowns named in the notes.
    With MIG on, one slice is planned for. Raises MissingExtra without nvidia-ml-py and GpuProblem when there is no
    driver, no permission, no GPU, a lost one, GPUs of different kinds, or MIG without (or with unequal) instances.
    """
    machine = read_machine()
    devices = machine.devices
    if any(device.mig for device in devices):
        return _one_slice(machine)
    kinds = Counter(_kind(device) for device in devices)
    if len(kinds) > 1:
        first, number = kinds.most_common(1)[0]
        identity = identify(first[0])[0]
        raise GpuProblem(
            "this machine has different GPUs: " + ", ".join(f"{n} x {name} ({gib} GiB)" for (name, gib), n in kinds.items()),
            where="NVML",
            hint=f"plan for one kind: --gpu {identity or 'ID'} --gpus {number}, or hide the others: CUDA_VISIBLE_DEVICES",
        )
    facts, path, notes = _match(devices[0])
    link, link_gb_s, link_source = _link(devices, facts, notes)
    limits = [device.power_limit for device in devices if device.power_limit]
    tdp = facts.get("tdp_w")
    if limits and tdp and min(limits) < 0.95 * tdp:
        notes.append(f"the power limit of {min(limits):.0f} W is below the {tdp:.0f} W that its rates are published for")
    if machine.hidden:
        notes.append(f"CUDA_VISIBLE_DEVICES hides {machine.hidden} more GPUs of this machine")
    gpu = Gpu(
        id=facts.get("id"),
        name=devices[0].name,
        count=len(devices),
        gpus_per_node=len(devices) + machine.hidden,
        link=link,
        link_gb_s=link_gb_s,
        tdp_w=tdp,
        notes=(*notes, *_unread(machine)),
        **_live(machine, facts),
    )
    return gpu, _live_sources(gpu, path, link_source)


def _kind(device: Device) -> tuple[str, int | None]:
    """What tells GPUs apart: NVML's name and whole GiB of memory."""
    return device.name, round(device.memory / GIB) if device.memory else None


def _match(device: Device) -> tuple[dict[str, Any], str, list[str]]:
    """The profile of a GPU as NVML names it (empty when there is none), its path, and what to note about the match."""
    identity = identify(device.name)[0]
    reckoned = _reckoned_bandwidth(device)
    if identity is None:
        lacking = "tensor-core rates and TDP" if reckoned else "memory bandwidth, tensor-core rates and TDP"
        notes = [f"{device.name} is not in profiles/gpus: its {lacking} are not known"]
    else:
        facts = library.profile("gpus", identity)
        assert facts is not None
        memory = device.memory / GIB if device.memory else None
        if memory is None or abs(memory / facts["memory_gib"] - 1) <= OTHER_VARIANT:
            notes = [*facts["discrepancies"], *facts["notes"]]
            if reckoned and abs(reckoned / facts["bandwidth_gb_s"] - 1) > OTHER_VARIANT:
                notes.append(
                    f"NVML's bus width and clock give {reckoned:.0f} GB/s, the profile {facts['bandwidth_gb_s']:.0f} GB/s"
                )
            return {**facts, "id": identity}, f"profiles/gpus/{identity}.yaml", notes
        notes = [
            f"{device.name} has {memory:.1f} GiB here and {facts['memory_gib']:.1f} GiB in profiles/gpus/{identity}.yaml: "
            "another variant, whose tensor-core rates and TDP are not known"
        ]
    if reckoned:
        notes.append(f"its bandwidth of {reckoned:.0f} GB/s is arithmetic from NVML's memory bus width and clock")
    return {"bandwidth_gb_s": reckoned}, "nvml, memory bus width x clock", notes


def _reckoned_bandwidth(device: Device) -> float | None:
    """GB/s from bus width and memory clock, two transfers a cycle as NVML counts them for HBM and GDDR alike.

    Checked against the profiles: 3352 for an H100 (3350 published), 2039 A100 80GB (2039), 320 T4 (320), 1008 RTX 4090 (1008).
    """
    if not device.bus_width or not device.memory_clock:
        return None
    return device.bus_width / 8 * device.memory_clock * 2 / 1000


def _link(devices: tuple[Device, ...], facts: dict[str, Any], notes: list[str]) -> tuple[Link, float | None, str]:
    """What joins the GPUs, GB/s per GPU and direction, and the source; adds to the notes what holds only for some."""
    if facts.get("link") == "c2c":
        return "c2c", facts["link_gb_s"], f"profiles/gpus/{facts['id']}.yaml"
    links = [device.links for device in devices]
    everyone = {device.index for device in devices}
    joined = [device.peers is not None and device.peers >= everyone - {device.index} for device in devices]
    rate = NVLINK_GB_S.get(devices[0].sm or 0)
    known_links = [number for number in links if number]
    if len(known_links) == len(devices) and all(joined) and rate:
        least = min(known_links)
        if facts.get("link") == "nvlink" and least * rate < 0.95 * facts["link_gb_s"]:
            notes.append(
                f"{least} NVLink links are up, {least * rate:.0f} of the published {facts['link_gb_s']:.0f} GB/s per direction"
            )
        return "nvlink", least * rate, f"nvml, {least} active NVLink links"
    if any(number is None for number in links) and facts.get("link") == "nvlink":
        return "nvlink", facts["link_gb_s"], f"profiles/gpus/{facts['id']}.yaml"
    if known_links and len(devices) > 1:
        notes.append("NVLink joins only some pairs of these GPUs; across pairs they talk over PCIe, which is planned with")
    lanes = min((device.pcie_lanes or 0 for device in devices), default=0)
    generation = min((device.pcie_generation or 0 for device in devices), default=0)
    if lanes and generation in PCIE_GB_S_PER_LANE:
        return "pcie", lanes * PCIE_GB_S_PER_LANE[generation], f"nvml, PCIe {generation}.0 x{lanes}"
    if "pcie" in facts:
        return "pcie", facts["pcie"]["gb_s"], f"profiles/gpus/{facts['id']}.yaml"
    return None, None, "nvml"


def _live(machine: Machine, facts: dict[str, Any]) -> dict[str, Any]:
    """The fields of Gpu that whole GPUs and MIG slices read alike."""
    devices = machine.devices
    sm = facts.get("sm", devices[0].sm)
    total = [device.memory for device in devices if device.memory]
    free = [device.free for device in devices if device.free is not None]
    ecc = {device.ecc for device in devices}
    limits = [device.power_limit for device in devices if device.power_limit]
    return {
        "architecture": facts.get("architecture") or _architecture(sm),
        "sm": sm,
        "memory_gib": round(min(total) / GIB, 2) if total else facts.get("memory_gib"),
        "free_memory_gib": round(min(free) / GIB, 2) if free else None,
        "bandwidth_gb_s": facts.get("bandwidth_gb_s"),
        "tflops": TensorRates(**facts.get("tflops", {})),
        "power_limit_w": min(limits) if limits else None,
        "driver": machine.driver,
        "cuda": machine.cuda,
        "mig": any(device.mig for device in devices) if any(device.mig is not None for device in devices) else None,
        "ecc": ecc.pop() if len(ecc) == 1 else None,
        "processes": tuple(
            GpuProcess(
                pid=process.pid,
                used_memory_gib=None if process.memory is None else round(process.memory / GIB, 2),
                device=device.index,
            )
            for device in devices
            for process in device.processes or ()
        ),
    }


def _architecture(sm: int | None) -> str | None:
    if sm is None:
        return None
    return ARCHITECTURES.get(sm) or {8: "Ampere", 10: "Blackwell", 11: "Blackwell", 12: "Blackwell"}.get(sm // 10)


def _one_slice(machine: Machine) -> tuple[Gpu, dict[str, str]]:
    """One MIG slice: its own memory, and its share of the GPU's bandwidth (by memory) and rates (by multiprocessors).

    Slices have no peer-to-peer path (NVIDIA's MIG guide), so one slice is one deployment and the others can only repeat it.
    """
    slices = [piece for device in machine.devices for piece in device.slices]
    listed = "; ".join(
        f"GPU {device.index} ({device.name}): "
        + (", ".join(piece.name for piece in device.slices) if device.mig else "MIG off")
        + ("no MIG device" if device.mig and not device.slices else "")
        for device in machine.devices
    )
    if not slices:
        raise GpuProblem(
            "MIG mode is on and no MIG device exists, so nothing can run here",
            where=listed,
            hint=f"create one (nvidia-smi mig -cgi ... -C), turn MIG off, or {ELSEWHERE}",
        )
    kinds = {(piece.name, piece.multiprocessors) for piece in slices}
    if len(kinds) > 1 or not all(device.mig for device in machine.devices):
        raise GpuProblem(
            "MIG is on and the devices are not equal",
            where=listed,
            hint=f"make them equal, show one GPU only (CUDA_VISIBLE_DEVICES), or {ELSEWHERE}",
        )
    whole, path, notes = _match(machine.devices[0])
    piece = slices[0]
    facts = _share(whole, machine.devices[0], piece)
    notes.append(
        f"MIG is on ({listed}); the plan is for one of {len(slices)} equal slices with its share of bandwidth and rates, "
        "and slices cannot be joined"
    )
    live = _live(machine, {**whole, **facts})
    free = [s.free for s in slices if s.free is not None]
    live["memory_gib"] = round(piece.memory / GIB, 2) if piece.memory else None
    live["free_memory_gib"] = round(min(free) / GIB, 2) if free else None
    gpu = Gpu(id=None, name=piece.name, count=1, gpus_per_node=1, notes=(*notes, *_unread(machine)), **live)
    sources = _live_sources(gpu, path, "nvml")
    for fact in ("gpu.bandwidth_gb_s", "gpu.tflops"):
        if fact in sources:
            sources[fact] = f"{path}, the slice's share"
    return gpu, sources


def _share(whole: dict[str, Any], device: Device, piece: Slice) -> dict[str, Any]:
    """A slice's bandwidth and rates; None where a share is not known."""
    memory = piece.memory / device.memory if piece.memory and device.memory else None
    cores = whole.get("multiprocessors")
    compute = piece.multiprocessors / cores if piece.multiprocessors and cores else None
    bandwidth = whole.get("bandwidth_gb_s")
    return {
        "bandwidth_gb_s": round(bandwidth * memory, 1) if bandwidth and memory else None,
        "tflops": {
            form: round(rate * compute, 1) if rate and compute else None for form, rate in whole.get("tflops", {}).items()
        },
    }


def _unread(machine: Machine) -> tuple[str, ...]:
    """What NVML would not say, once per reason."""
    where: dict[str, list[int]] = {}
    for device in machine.devices:
        for reason in device.missing:
            where.setdefault(reason, []).append(device.index)
    every = len(machine.devices)
    spots = {reason: "" if len(on) == every else f" (GPU {', '.join(map(str, on))})" for reason, on in where.items()}
    return (*machine.notes, *(f"not read through NVML: {reason}{spot}" for reason, spot in spots.items()))


def _sources(gpu: Gpu, path: str) -> dict[str, str]:
    """A source for every fact that has a value: `path`."""
    facts = ("name", "architecture", "sm", "gpus_per_node", "memory_gib", "bandwidth_gb_s", "link", "link_gb_s", "tdp_w")
    known = [fact for fact in facts if getattr(gpu, fact) is not None]
    if any(rate is not None for _, rate in gpu.tflops):
        known.append("tflops")
    return {f"gpu.{fact}": path for fact in known}


def _live_sources(gpu: Gpu, path: str, link_source: str) -> dict[str, str]:
    """Sources of GPUs read through NVML: their own readings, and `path` for what only a profile knows."""
    sources = _sources(gpu, path)
    live = (
        "name", "sm", "count", "gpus_per_node", "memory_gib", "free_memory_gib", "power_limit_w", "driver", "cuda", "mig",
        "ecc", "processes",
    )  # fmt: skip
    sources.update({f"gpu.{fact}": "nvml" for fact in live if getattr(gpu, fact) is not None})
    if gpu.free_memory_gib is None and "gpu.memory_gib" in sources:
        sources["gpu.memory_gib"] = path  # NVML tells both or neither
    if gpu.id is not None:
        sources["gpu.id"] = "nvml name"
    for fact in ("gpu.link", "gpu.link_gb_s"):
        if fact in sources:
            sources[fact] = link_source
    if gpu.id is None and gpu.architecture is not None:
        sources["gpu.architecture"] = "nvml"
    return sources
