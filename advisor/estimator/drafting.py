"""Speculative decoding: what drafting costs, and steps that draft and verify.

    gain = tokens per step / ((verification(batch, k) + host(batch)) / decode(batch) + k * draft cost)

The verification's cost comes from step_time: k + 1 rows per sequence in every multiplication, the cache read once.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from advisor.errors import NotPossible
from advisor.estimator.acceptance import acceptance_of, expected_tokens, published
from advisor.estimator.remembering import by_identity
from advisor.estimator.shapes import bits_per_element, is_quantized, matrices
from advisor.estimator.step_time import Pace, StepParts, StepTime
from advisor.types import Deployment, Model, Speculation, WeightFormat

LONGEST_DRAFT = 8
"""longest draft that is considered: the longest that most published tables reach"""
DRAFT_VOCABULARY = 32000
"""tokens of an EAGLE-3 head: SpecForge's and ModelOpt's default draft vocabulary"""
DRAFT_BITS = 16.0
"""drafts are served at 16 bits (none of the published ones is quantized)"""


def draft_params(model: Model, speculation: Speculation) -> float | None:
    """Parameters that drafting one token reads; None when the draft model's size is not known.

    eagle3: a decoder layer that reads twice the hidden width, the fusion of three hidden states, a head of 32,000 tokens
    (425 M for Llama-3.1-8B, as EAGLE3-LLaMA3.1-Instruct-8B has). mtp: one of the model's own layers, its projection of two
    hidden states, and the model's head. ngram: none. draft: the draft model's parameters that one token uses.
    """
    hidden = model.hidden
    if speculation.method == "ngram":
        return 0.0
    if speculation.method == "draft":
        named = speculation.draft_params or params_in_name(speculation.draft_model or "")
        return None if named is None else float(named)
    if speculation.method == "mtp":
        return _layer_bytes(model, "bf16") / 2.0 + 2.0 * hidden * hidden + float(model.vocab) * hidden
    width = model.intermediate or 4 * hidden
    attention = 2 * hidden * (model.heads + 2 * model.kv_heads) * model.head_dim + model.heads * model.head_dim * hidden
    if model.mla is not None:  # published EAGLE-3 drafts of MLA models have plain attention of the hidden width
        attention = 2 * hidden * 3 * hidden + hidden * hidden
    mlp = (3 if model.gated_mlp else 2) * hidden * width
    return float(attention + mlp + 3 * hidden * hidden + min(model.vocab, DRAFT_VOCABULARY) * hidden)


def _layer_bytes(model: Model, weights: WeightFormat) -> float:
    """Bytes of weights that one token reads in one layer."""
    return (active_bytes(model, weights) - 2.0 * model.vocab * model.hidden) / model.layers


@cache
def params_in_name(name: str) -> int | None:
    """The parameters that a model's name states (Llama-3.2-1B: 1e9, SmolLM2-135M: 135e6), the active ones if it states them."""
    active = re.search(r"[-_]A(\d+(?:\.\d+)?)B\b", name, re.IGNORECASE)
    plain = re.search(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([BM])(?![A-Za-z0-9])", name, re.IGNORECASE)
    if active:
        return round(float(active[1]) * 1e9)
    return round(float(plain[1]) * (1e9 if plain[2].upper() == "B" else 1e6)) if plain else None


@by_identity(256)
def active_bytes(model: Model, weights: WeightFormat) -> float:
    """Bytes of weights that a decode step of one sequence reads (embedding rows left out, experts by those it is routed to)."""
    total = 0.0
    for matrix in matrices(model):
        if matrix.group in ("embedding", "other"):
            continue
        routed = model.moe.active / model.moe.experts if model.moe and matrix.group == "experts" else 1.0
        bits = bits_per_element(weights) if is_quantized(matrix, model, weights) else 16.0
        total += matrix.elements * routed * bits / 8
    return total + (2.0 * model.vocab * model.hidden if model.tied_embeddings else 0.0)


def draft_cost_ratio(model: Model, speculation: Speculation, weights: WeightFormat = "bf16") -> float | None:
    """Cost of drafting one token over a plain decode step of the model, as the ratio of the bytes that both read.

    None when the draft model's size is not known. n-grams are looked up by the host and cost nothing here.
    """
    params = draft_params(model, speculation)
    if params is None:
        return None
    read = params * DRAFT_BITS / 8
    if speculation.method == "mtp" and _quantized_mtp(model, weights):
        read -= _layer_bytes(model, "bf16") - _layer_bytes(model, weights)
    return read / active_bytes(model, weights)


def _quantized_mtp(model: Model, weights: WeightFormat) -> bool:
    """Whether the checkpoint's MTP layers have its format; NVIDIA's NVFP4 checkpoints leave them at 16 bits."""
    return model.quantized is not None and model.quantized.weights == weights and weights != "nvfp4"


def draft_weight_bytes(model: Model, speculation: Speculation) -> float:
    """Bytes of memory that the draft takes beside the model; MTP layers are in the checkpoint, their experts included."""
    if speculation.method == "ngram":
        return 0.0
    if speculation.method == "mtp":
        whole = sum(matrix.elements for matrix in matrices(model) if matrix.group not in ("embedding", "lm_head", "other"))
        return (whole / model.layers + 2.0 * model.hidden**2) * DRAFT_BITS / 8
    return (draft_params(model, speculation) or 0.0) * DRAFT_BITS / 8


class Speculating(NamedTuple):
    """A StepTime with drafts: `step` is seconds per token of a sequence, so that a scheduler need not know of them."""

    plain: StepTime
    verify: StepTime
    """the same with k + 1 queries a sequence, and no prompts' attention"""
    draft_len: int
    tokens: float
    """expected per step"""
    draft: float
    """cost of one drafted token over a plain decode step"""
    host_step: float
    host_sequence: float
    """seconds that drafting takes of the host, a step and a sequence"""

    @property
    def stages(self) -> int:
        """Pipeline stages."""
        return self.plain.stages

    @property
    def width(self) -> int:
        """Ranks that divide the sequences."""
        return self.plain.width

    @property
    def balance(self) -> float:
        """As StepTime.balance."""
        return self.plain.balance

    def parts(self, decode: float, context: float, prefill: float, length: float) -> StepParts:
        """One stage's verification step, drafts not counted. Arguments as StepTime.parts; the prompts' attention is added."""
        if decode <= 0:
            return self.plain.parts(decode, context, prefill, length)
        drafted = decode * self.draft_len
        rows = drafted + (prefill / length if prefill else 0.0)
        made = self.verify.parts(decode, context, drafted + prefill, (drafted + prefill) / rows if rows else 1.0)
        if prefill <= 0:
            return made
        prompts = sum(times * op.prefill(prefill / self.width, length) for op, times in self.plain.groups)
        return made._replace(attention=made.attention + prompts)

    def whole(self, decode: float, context: float, prefill: float = 0.0, length: float = 1.0) -> float:
        """Seconds of one step: drafts, verification, and `prefill` prompt tokens beside it."""
        if self.plain.apart and prefill > 0.0:
            return self.whole(decode, context) + self.plain.step(0.0, 1.0, prefill, length)
        stages = self.stages
        part = self.parts(decode / stages, context, prefill / stages, length)
        return self._total(part, prefill > 0.0, decode, self.plain.step(decode, context) if self.draft else 0.0)

    def _total(self, part: StepParts, prompts: bool, decode: float, plain: float) -> float:
        """As StepTime.total, with the drafts; plain: seconds of a plain decode step."""
        drafting = self.draft_len * self.draft * plain + self.host_step + self.host_sequence * decode
        return self.verify.total(part, prompts) + drafting

    def step(self, decode: float, context: float, prefill: float = 0.0, length: float = 1.0) -> float:
        """Seconds per token: a step that carries `tokens` times the prompt tokens, divided by its tokens per sequence."""
        if decode <= 0:
            return self.plain.step(decode, context, prefill, length)
        return self.whole(decode, context, prefill * self.tokens, length) / self.tokens

    def pace(self, decode: float, context: float) -> Pace:
        """A step without prompts, as `step`."""
        part = self.parts(decode / self.stages, context, 0.0, 1.0)
        plain = self.plain.step(decode, context) if self.draft else 0.0
        return Pace(self._total(part, False, decode, plain) / self.tokens, part)

    def prompt(self, tokens: float) -> Pace:
        """One prompt's prefill; no drafts before the first token."""
        return self.plain.prompt(tokens)

    def gain(self, decode: float, context: float) -> float:
        """Speed-up of the decode at this batch and mean context; as many times larger as more tokens are accepted."""
        plain, part = _plain_seconds(self.plain, decode, context), _verified(self.plain, self.draft_len, decode, context)
        return plain * self.tokens / self._total(part, False, decode, plain)


def speculating(step: StepTime, model: Model, deployment: Deployment) -> Speculating | StepTime:
    """The step times of a deployment with its speculation; unchanged without one. Raises NotPossible as with_draft."""
    if deployment.speculation is None:
        return step
    return with_draft(step, model, deployment.weights, deployment.speculation)


def with_draft(step: StepTime, model: Model, weights: WeightFormat, speculation: Speculation) -> Speculating:
    """The step times with a draft before each step.

    The acceptance is the speculation's own, else the typical published one. Raises NotPossible when the model has no such
    draft or the draft model's size is not known.
    """
    if not 1 <= speculation.draft_len <= 64:
        raise NotPossible(f"a draft of {speculation.draft_len} tokens", where="speculation.draft_len", hint="1 to 64")
    if speculation.method == "mtp" and not model.mtp_layers and published(model, "mtp") is None:
        raise NotPossible("this model brings no MTP layers", where="speculation.method", hint="eagle3, draft or ngram")
    cost = draft_cost_ratio(model, speculation, weights)
    if cost is None:
        raise NotPossible(
            f"the size of the draft model {speculation.draft_model!r} is not known",
            where="speculation.draft_model",
            hint="name a model with its size in the name, as Llama-3.2-1B",
        )
    acceptance = speculation.acceptance
    if acceptance is None:
        acceptance = acceptance_of(model, speculation.method, min(speculation.draft_len, LONGEST_DRAFT)).typical
    tokens = expected_tokens(acceptance, speculation.draft_len)
    per_step, per_sequence = 0.0, 0.0
    if speculation.method == "ngram":
        per_step, per_sequence = step.host_lookup, step.host_lookup_sequence
    elif speculation.method == "draft":
        per_step = step.host_draft * speculation.draft_len
    verify = _verifying(step, speculation.draft_len + 1)
    return Speculating(step, verify, speculation.draft_len, tokens, cost, per_step, per_sequence)


@by_identity(1024, values=2)
def _plain_seconds(plain: StepTime, decode: float, context: float) -> float:
    """Seconds of a step without drafts, the same for all of them."""
    return plain.step(decode, context)


@by_identity(1024, values=3)
def _verified(plain: StepTime, draft_len: int, decode: float, context: float) -> StepParts:
    """What a step takes that verifies drafts, the same for all of this length."""
    each = decode / plain.stages
    return _verifying(plain, draft_len + 1).parts(each, context, each * draft_len, 1.0)


@by_identity(512, values=1)
def _verifying(step: StepTime, queries: int) -> StepTime:
    """The step with so many queries a sequence, and no prompts' attention."""
    groups = tuple(
        (replace(op, flop_time=op.flop_time * queries, prefill_t0=0.0, prefill_pair=0.0, prefill_token=0.0), times)
        for op, times in step.groups
    )
    return replace(step, groups=groups)
