"""Our own Triton kernels, for what PyTorch does not bring: W4A16 GEMM, paged decode attention, fused elementwise.

int4_gemm: weights of 4 bits, symmetric, one bf16 scale per group of 128 along K (AWQ's layout in substance).
decode_attention: paged flash-decoding (split over the context, then a combine), bf16 or fp8 (e4m3) cache.
Each is checked against PyTorch in float32 by `check`; with TRITON_INTERPRET=1 they run on a CPU.
"""

# ruff: noqa: N803 (Triton writes compile-time parameters in capitals)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from timing import DEVICE, relative_error

GROUP = 128
PAGE = 64


# ---------------------------------------------------------------- W4A16 GEMM


@triton.jit(do_not_specialize=["m"])
def _int4_kernel(
    a, packed, scales, out, m, n, k,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, SPLIT: tl.constexpr, FINAL: tl.constexpr, BF16: tl.constexpr,
):  # fmt: skip
    """out[m, n] = a[m, k] @ dequantized[k, n], as its transpose so that the dequantized tile is the register operand."""
    pid_n = tl.program_id(0)
    pid_m = tl.program_id(1)
    part = tl.program_id(2)
    rn = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    rm = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    rk = tl.arange(0, 64)
    groups = k // 128
    per = tl.cdiv(groups, SPLIT)
    first = part * per
    last = tl.minimum(first + per, groups)
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    row = a + rm[None, :].to(tl.int64) * k + rk[:, None]
    keep = (rm < m)[None, :]
    for g in range(first, last):
        bytes_ = tl.load(packed + (g * n + rn[:, None]) * 64 + rk[None, :])
        scale = tl.load(scales + g * n + rn).to(tl.float32)
        if BF16:  # 0x4300 | v is 128 + v in bfloat16: no integer conversion is needed
            low = ((bytes_ & 15).to(tl.int16) | 0x4300).to(tl.bfloat16, bitcast=True) - 136.0
            high = ((bytes_ >> 4).to(tl.int16) | 0x4300).to(tl.bfloat16, bitcast=True) - 136.0
        else:  # 0x6400 | v is 1024 + v in float16
            low = ((bytes_ & 15).to(tl.int16) | 0x6400).to(tl.float16, bitcast=True) - 1032.0
            high = ((bytes_ >> 4).to(tl.int16) | 0x6400).to(tl.float16, bitcast=True) - 1032.0
        a_low = tl.load(row + g * 128, mask=keep, other=0.0)
        a_high = tl.load(row + g * 128 + 64, mask=keep, other=0.0)
        dots = tl.dot(low, a_low)
        dots = tl.dot(high, a_high, dots)
        total += dots * scale[:, None]
    where = rm[None, :].to(tl.int64) * n + rn[:, None]
    if FINAL:
        tl.store(out + where, total.to(out.dtype.element_ty), mask=keep)
    else:
        tl.store(out + part.to(tl.int64) * m * n + where, total, mask=keep)


@triton.jit
def _sum_kernel(parts, out, numel, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for part in tl.static_range(SPLIT):
        total += tl.load(parts + part * numel + at, mask=at < numel, other=0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=at < numel)


def pack_int4(values: torch.Tensor) -> torch.Tensor:
    """values [k, n] of 0..15 -> [k // 128, n, 64] bytes; byte j of a group holds rows j (low) and 64 + j (high)."""
    k, n = values.shape
    grouped = values.to(torch.uint8).view(k // GROUP, 2, 64, n)
    return (grouped[:, 0] | (grouped[:, 1] << 4)).transpose(1, 2).contiguous()


Tiling = tuple[int, int, int, int, int]
"""BLOCK_N, BLOCK_M, SPLIT, warps, stages"""


def int4_tilings(m: int) -> list[Tiling]:
    """The tilings worth trying for m rows."""
    if m <= 16:
        return [(bn, 16, split, 4, stages) for bn in (64, 128) for split in (1, 2, 4, 8) for stages in (4, 6)]
    if m <= 32:
        return [(bn, 32, split, 4, 4) for bn in (64, 128) for split in (1, 2, 4)]
    if m <= 64:
        return [(bn, 64, split, 4, stages) for bn in (64, 128) for split in (1, 2, 4) for stages in (3, 4)]
    if m <= 128:
        return [(128, bm, split, warps, 3) for bm in (64, 128) for split in (1, 2) for warps in (4, 8)]
    return [(128, 128, 1, 4, 3), (128, 128, 1, 8, 3), (128, 256, 1, 8, 3), (256, 128, 1, 8, 3)]


def int4_gemm(a: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """a [m, k] bf16 (or fp16), packed [k // 128, n, 64] uint8, scales [k // 128, n] -> [m, n] like a."""
    m, k = a.shape
    n = packed.shape[1]
    block_n, block_m, split, warps, stages = tiling
    out = torch.empty((m, n), dtype=a.dtype, device=a.device)
    target = out if split == 1 else torch.empty((split, m, n), dtype=torch.float32, device=a.device)
    grid = (triton.cdiv(n, block_n), triton.cdiv(m, block_m), split)
    _int4_kernel[grid](
        a, packed, scales, target, m, n, k,
        BLOCK_N=block_n, BLOCK_M=block_m, SPLIT=split, FINAL=split == 1, BF16=a.dtype == torch.bfloat16,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    if split > 1:
        _sum_kernel[(triton.cdiv(m * n, 1024),)](target, out, m * n, SPLIT=split, BLOCK=1024)
    return out


# ---------------------------------------------------------------- paged decode attention


@triton.jit(do_not_specialize=["pages", "splits"])
def _decode_kernel(
    q, keys, values, table, parts, maxima, sums, pages, splits, scale,
    KV_HEADS: tl.constexpr, ROWS: tl.constexpr, PADDED: tl.constexpr, PAGE_TOKENS: tl.constexpr, DIM: tl.constexpr,
    FP8: tl.constexpr,
):  # fmt: skip
    """One sequence, one kv head, one part of its pages: softmax(q k) v of that part, with its maximum and sum."""
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    rows = tl.arange(0, PADDED)
    tokens = tl.arange(0, PAGE_TOKENS)
    dims = tl.arange(0, DIM)
    inside = rows < ROWS
    base = (sequence * KV_HEADS + head).to(tl.int64)
    query = tl.load(q + (base * ROWS + rows[:, None]) * DIM + dims[None, :], mask=inside[:, None], other=0.0)
    per = tl.cdiv(pages, splits)
    first = split * per
    last = tl.minimum(first + per, pages)
    top = tl.full((PADDED,), -1e30, dtype=tl.float32)
    weight = tl.zeros((PADDED,), dtype=tl.float32)
    total = tl.zeros((PADDED, DIM), dtype=tl.float32)
    for index in range(first, last):
        page = tl.load(table + sequence * pages + index).to(tl.int64)
        at = ((page * KV_HEADS + head) * PAGE_TOKENS + tokens[:, None]) * DIM + dims[None, :]
        key = tl.load(keys + at)
        value = tl.load(values + at)
        if FP8:
            key = key.to(tl.float16)
            value = value.to(tl.float16)
        scores = tl.dot(query, tl.trans(key)) * scale
        peak = tl.maximum(top, tl.max(scores, 1))
        decay = tl.exp2(top - peak)
        share = tl.exp2(scores - peak[:, None])
        weight = weight * decay + tl.sum(share, 1)
        total = total * decay[:, None] + tl.dot(share.to(value.dtype), value)
        top = peak
    spot = (base * splits + split) * PADDED + rows
    tl.store(parts + spot[:, None] * DIM + dims[None, :], total)
    tl.store(maxima + spot, top)
    tl.store(sums + spot, weight)


@triton.jit(do_not_specialize=["splits"])
def _combine_kernel(
    parts, maxima, sums, out, splits, ROWS: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr, FP8_OUT: tl.constexpr
):  # fmt: skip
    base = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1)
    dims = tl.arange(0, DIM)
    top = tl.full((), -1e30, dtype=tl.float32)
    for split in range(splits):
        top = tl.maximum(top, tl.load(maxima + (base * splits + split) * PADDED + row))
    weight = tl.full((), 0.0, dtype=tl.float32)
    total = tl.zeros((DIM,), dtype=tl.float32)
    for split in range(splits):
        spot = (base * splits + split) * PADDED + row
        decay = tl.exp2(tl.load(maxima + spot) - top)
        weight += tl.load(sums + spot) * decay
        total += tl.load(parts + spot * DIM + dims) * decay
    total = total / weight
    at = out + (base * ROWS + row) * DIM + dims
    if FP8_OUT:
        tl.store(at, total.to(tl.float8e4nv))
    else:
        tl.store(at, total.to(tl.bfloat16))


def splits_for(sequences: int, kv_heads: int, pages: int, blocks: int = 264) -> int:
    """Parts of the context: enough programs to fill the device twice, at least four pages each."""
    wanted = max(1, blocks // (sequences * kv_heads))
    return max(1, min(wanted, (pages + 3) // 4, 128))


def decode_attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, table: torch.Tensor, *, splits: int, fp8_out: bool = False
) -> torch.Tensor:
    """q [b, kv heads, rows, d], keys and values [pool pages, kv heads, 64, d], table [b, pages] int32 -> like q.

    rows: query heads of one kv head times query tokens. All sequences have pages * 64 tokens.
    """
    batch, kv_heads, rows, dim = q.shape
    pages = table.shape[1]
    padded = max(16, triton.next_power_of_2(rows))
    fp8 = keys.dtype == torch.float8_e4m3fn
    parts = torch.empty((batch, kv_heads, splits, padded, dim), dtype=torch.float32, device=q.device)
    maxima = torch.empty((batch, kv_heads, splits, padded), dtype=torch.float32, device=q.device)
    sums = torch.empty_like(maxima)
    out = torch.empty(q.shape, dtype=torch.float8_e4m3fn if fp8_out else torch.bfloat16, device=q.device)
    _decode_kernel[(batch, kv_heads, splits)](
        q, keys, values, table, parts, maxima, sums, pages, splits, dim**-0.5 * 1.4426950408889634,
        KV_HEADS=kv_heads, ROWS=rows, PADDED=padded, PAGE_TOKENS=PAGE, DIM=dim, FP8=fp8,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    _combine_kernel[(batch * kv_heads, rows)](
        parts, maxima, sums, out, splits, ROWS=rows, PADDED=padded, DIM=dim, FP8_OUT=fp8_out, num_warps=4
    )
    return out


# ---------------------------------------------------------------- fused elementwise


@triton.jit
def _norm_kernel(x, residual, gain, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr, FP8_OUT: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    keep = at < WIDTH
    total = tl.load(x + row * WIDTH + at, mask=keep, other=0.0).to(tl.float32)
    total += tl.load(residual + row * WIDTH + at, mask=keep, other=0.0).to(tl.float32)
    tl.store(residual + row * WIDTH + at, total.to(tl.bfloat16), mask=keep)
    scaled = total * tl.rsqrt(tl.sum(total * total, 0) / WIDTH + 1e-5)
    scaled = scaled * tl.load(gain + at, mask=keep, other=0.0).to(tl.float32)
    if FP8_OUT:
        tl.store(out + row * WIDTH + at, scaled.to(tl.float8e4nv), mask=keep)
    else:
        tl.store(out + row * WIDTH + at, scaled.to(tl.bfloat16), mask=keep)


@triton.jit
def _silu_kernel(gate_up, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr, FP8_OUT: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    keep = at < WIDTH
    gate = tl.load(gate_up + row * 2 * WIDTH + at, mask=keep, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDTH + WIDTH + at, mask=keep, other=0.0).to(tl.float32)
    product = gate / (1 + tl.exp(-gate)) * up
    if FP8_OUT:
        tl.store(out + row * WIDTH + at, product.to(tl.float8e4nv), mask=keep)
    else:
        tl.store(out + row * WIDTH + at, product.to(tl.bfloat16), mask=keep)


def add_norm(x: torch.Tensor, residual: torch.Tensor, gain: torch.Tensor, *, fp8: bool) -> torch.Tensor:
    """residual += x; RMS norm of it, in bf16 or (static scale 1) fp8."""
    out = torch.empty(x.shape, dtype=torch.float8_e4m3fn if fp8 else torch.bfloat16, device=x.device)
    width = x.shape[1]
    block = triton.next_power_of_2(width)
    _norm_kernel[(x.shape[0],)](x, residual, gain, out, WIDTH=width, BLOCK=block, FP8_OUT=fp8, num_warps=8)
    return out


def silu_mul(gate_up: torch.Tensor, *, fp8: bool) -> torch.Tensor:
    """silu(gate) * up of [m, 2 f], in bf16 or fp8."""
    width = gate_up.shape[1] // 2
    out = torch.empty((gate_up.shape[0], width), dtype=torch.float8_e4m3fn if fp8 else torch.bfloat16, device=gate_up.device)
    _silu_kernel[(gate_up.shape[0], triton.cdiv(width, 2048))](gate_up, out, WIDTH=width, BLOCK=2048, FP8_OUT=fp8, num_warps=8)
    return out


@triton.jit
def _read_kernel(x, out, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK * STEPS + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for step in range(STEPS):
        total += tl.load(x + at + step * BLOCK).to(tl.float32)
    tl.store(out + tl.program_id(0), tl.sum(total, 0))


def read_all(x: torch.Tensor, out: torch.Tensor) -> None:
    """Reads every element of x (a multiple of 65536 elements) once; the sums keep the compiler honest."""
    _read_kernel[(x.numel() // 65536,)](x, out, BLOCK=4096, STEPS=16, num_warps=8)


# ---------------------------------------------------------------- correctness


HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16
"""Triton's interpreter has no bfloat16 arithmetic, so a dry run uses float16."""


def check() -> list[dict[str, object]]:
    """Relative error of each kernel against float32 PyTorch on fresh random data."""
    rows: list[dict[str, object]] = []
    for m in (1, 5, 33, 130, 300):
        k, n = 512, 512
        values = torch.randint(0, 16, (k, n), device=DEVICE)
        scales = (torch.rand(k // GROUP, n, device=DEVICE) * 0.02 + 0.01).bfloat16()
        a = torch.randn(m, k, device=DEVICE).to(HALF)
        dense = (values.float() - 8) * scales.float().repeat_interleave(GROUP, 0)
        reference = a.float() @ dense
        packed = pack_int4(values)
        tilings = int4_tilings(m)
        for tiling in (tilings[0], tilings[-1]):
            if n % tiling[0]:
                continue
            out = int4_gemm(a, packed, scales, tiling)
            rows.append({"kernel": "int4_gemm", "m": m, "tiling": str(tiling), "error": relative_error(out, reference)})
    for dtype in (HALF, torch.float8_e4m3fn):
        for batch, pages, rows_ in ((1, 7, 4), (3, 4, 8), (2, 5, 20)):
            keys = torch.randn(64, 2, PAGE, 128, device=DEVICE).to(dtype)
            values_ = torch.randn(64, 2, PAGE, 128, device=DEVICE).to(dtype)
            table = torch.randperm(64, device=DEVICE)[: batch * pages].view(batch, pages).int()
            kind = torch.float16 if dtype == torch.float8_e4m3fn else HALF
            q = torch.randn(batch, 2, rows_, 128, device=DEVICE).to(kind)
            gathered = [x.float()[table.long()].transpose(1, 2).reshape(batch, 2, -1, 128) for x in (keys, values_)]
            reference = torch.softmax(q.float() @ gathered[0].transpose(2, 3) * 128**-0.5, -1) @ gathered[1]
            for splits in (1, 2):
                out = decode_attention(q, keys, values_, table, splits=splits)
                row = {"kernel": "decode_attention", "cache": str(dtype), "rows": rows_, "splits": splits}
                rows.append({**row, "error": relative_error(out.float(), reference)})
    x, residual = (torch.randn(5, 640, device=DEVICE).bfloat16() for _ in range(2))
    gain = torch.randn(640, device=DEVICE).bfloat16()
    summed = x.float() + residual.float()
    reference = torch.nn.functional.rms_norm(summed, (640,), gain.float(), 1e-5)
    rows.append({"kernel": "add_norm", "error": relative_error(add_norm(x, residual.clone(), gain, fp8=False), reference)})
    gate_up = torch.randn(5, 2 * 3000, device=DEVICE).bfloat16()
    reference = torch.nn.functional.silu(gate_up[:, :3000].float()) * gate_up[:, 3000:].float()
    rows.append({"kernel": "silu_mul", "error": relative_error(silu_mul(gate_up, fp8=False), reference)})
    return rows
