"""What the tensors of a checkpoint add up to, and what they say that config.json does not."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable

from advisor.profiler.safetensors import Tensor
from advisor.types import Model, Quantized

OTHER_MODALITIES = re.compile(
    r"(^|\.)(visual|vision\w*|vit|vpm|vqmodel|img_processor|image_\w+|audio\w*|apm|speech\w*|multi_modal_projector|mm_projector|"
    r"mlp1|resampler|connector|embed_vision|embed_audio|patch_merge_mlp)\."
)
MTP = re.compile(r"(^|\.)(mtp\w*|nextn\w*|eh_proj|enorm|hnorm)(\.|$)")
SCALES = re.compile(
    r"(weight_scale\w*|input_scale\w*|output_scale|[kvq]_scale|kv_scale|scales|qzeros|g_idx|zeros|weight_zero_point|zero_point|"
    r"weight_shape|weight_g_idx|\w+_scales|absmax|quant_map|nested_\w+|quant_state\w*|SCB|pre_quant_scale|\w+_scale_inv)$"
)
HEADS = re.compile(
    r"^(\w+\.){0,2}(lm_head|embed_out|output_layer|head)\.(weight|qweight|weight_packed)$|^(\w+\.)?output\.weight$"
)
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
PACKED = re.compile(r"(qweight|weight_packed|_blocks|\.weight)$")
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
FOUR_BITS = ("int4_awq", "int4_gptq", "w4a8_awq", "nvfp4", "mxfp4")
BIG_DIFFERENCE = 0.01
"""share of the parameters above which checkpoint and arithmetic are said to disagree"""


class Census:
    """Counts over the tensors of one checkpoint."""

    def __init__(self, layers: int, bits: int) -> None:
        """layers: of the model, to tell the multi-token-prediction layers after them; bits: of a packed weight."""
        self.layers, self.bits = layers, bits
        self.bytes_by_dtype: Counter[str] = Counter()
        self.elements: Counter[str] = Counter()
        """parameters of "language", "mtp" and "vision" """
        self.plain: Counter[str] = Counter()
        """bytes by dtype of the language model's matrices that are not quantized"""
        self.has_head = False
        self.block_scales = False
        self.tensors = 0

    def add(self, tensor: Tensor) -> None:
        """Count one tensor."""
        self.tensors += 1
        self.bytes_by_dtype[tensor.dtype] += tensor.size
        self.has_head = self.has_head or HEADS.search(tensor.name) is not None
        if SCALES.search(tensor.name):
            self.block_scales = self.block_scales or (tensor.name.endswith("scale_inv") and len(tensor.shape) == 2)
            return
        part = self._part(tensor.name)
        self.elements[part] += math.prod(tensor.shape) * self._per_element(tensor)
        if part == "language" and len(tensor.shape) > 1 and tensor.dtype in DTYPES:
            self.plain[tensor.dtype] += tensor.size

    def _part(self, name: str) -> str:
        if OTHER_MODALITIES.search(name):
            return "vision"
        layer = LAYER.search(name)
        beyond = layer is not None and int(layer[1]) >= self.layers
        return "mtp" if beyond or MTP.search(name) else "language"

    def _per_element(self, tensor: Tensor) -> int:
        """Weights in one stored element: 4-bit formats pack two in a byte, eight in 32 bits."""
        if not PACKED.search(tensor.name) or self.bits >= 16:
            return 1
        return {"I32": 32 // self.bits, "U8": 8 // self.bits}.get(tensor.dtype, 1)


def take_census(tensors: Iterable[Tensor], model: Model) -> Census:
    """Count the tensors of this model's checkpoint."""
    bits = 16
    if model.quantized is not None:
        bits = 4 if model.quantized.weights in FOUR_BITS or model.quantized.method == "bitsandbytes" else 8
    census = Census(model.layers, bits)
    for tensor in tensors:
        census.add(tensor)
    return census


def with_weights(model: Model, census: Census) -> tuple[Model, set[str]]:
    """The model with what its tensors say (bytes, parameters, the unquantized type) and a note on what contradicts
    config.json; and the names of the fields that now come from the tensors."""
    notes = list(model.notes)
    parts = dict(model.params_by_part)
    counted, computed = census.elements["language"], model.params or 0
    changes: dict[str, object] = {
        "weight_bytes": sum(census.bytes_by_dtype.values()),
        "bytes_by_dtype": dict(sorted(census.bytes_by_dtype.items())),
    }
    differs = abs(counted - computed) > BIG_DIFFERENCE * computed
    if differs:
        notes.append(f"The checkpoint holds {counted / 1e9:.3f}e9 parameters, config.json adds up to {computed / 1e9:.3f}e9.")
    packed = model.quantized is not None and census.bits == 4
    if not (differs and packed):
        changes["params"] = counted
        changes["active_params"] = (model.active_params or computed) + counted - computed
        parts = _balanced(parts, counted - computed)
    parts |= {part: census.elements[part] for part in ("mtp", "vision") if census.elements[part]}
    changes["params_by_part"] = parts
    if model.mtp_layers and not census.elements["mtp"]:
        changes["mtp_layers"] = 0
        notes.append("config.json names multi-token-prediction layers that the checkpoint does not hold.")
    if census.plain:
        changes["dtype"] = DTYPES[census.plain.most_common(1)[0][0]]
    return model.model_copy(update={**changes, "notes": tuple(notes)}), set(changes)


def _balanced(parts: dict[str, int], difference: int) -> dict[str, int]:
    """The parts with the difference to the checkpoint's own count, so that they add up to it."""
    other = parts.get("other", 0) + difference
    if other < 0:
        largest = max(parts, key=lambda part: parts[part])
        parts[largest] = max(0, parts[largest] + other)
        other = 0
    if other:
        parts["other"] = other
    else:
        parts.pop("other", None)
    return parts


def quantized_by_dtype(census: Census) -> Quantized | None:
    """The quantization that the tensors show though no record names it; None when most bytes are 16 or 32 bits wide."""
    eight = sum(size for dtype, size in census.bytes_by_dtype.items() if dtype.startswith("F8_E"))
    if 2 * eight <= sum(census.bytes_by_dtype.values()):
        return None
    return Quantized(weights="fp8_block" if census.block_scales else "fp8", method="safetensors dtypes")
