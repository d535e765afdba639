"""A small Llama trained here for minutes on the machine's own Python sources: real weights for accuracy and speculation.

No checkpoint travels with the measurements, and on random weights neither accuracy nor acceptance means anything. The
model is small and young: its losses say how the schemes rank and that they run, not what a large model would lose.
"""

from __future__ import annotations

import copy
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from ptq import auto_quantize, exported, measured, schemes
from rates import Row, attempt
from timing import CUDA, DEVICE, wait

KEPT = Path(tempfile.gettempdir()) / "small-llama.pt"
VOCABULARY = 8192
LENGTH = 1024
TARGET = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16, "num_attention_heads": 16,
          "num_key_value_heads": 4, "head_dim": 64}  # fmt: skip
DRAFT = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 2, "num_attention_heads": 8,
         "num_key_value_heads": 2, "head_dim": 64}  # fmt: skip
SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 64}  # fmt: skip


def corpus(megabytes: float) -> tuple[list[str], list[str]]:
    """Python sources of this interpreter and its packages: (training, held out), every 40th file held out."""
    roots = [Path(entry) for entry in sys.path if "python3" in entry and Path(entry).is_dir()]
    files = sorted({path for root in roots for path in root.rglob("*.py") if 1000 < path.stat().st_size < 400_000})
    training: list[str] = []
    held_out: list[str] = []
    size = 0
    step = max(1, len(files) // int(megabytes * 90))
    for number, path in enumerate(files[::step]):
        text = path.read_text(encoding="utf-8", errors="ignore")
        (held_out if number % 40 == 0 else training).append(text)
        size += len(text)
        if size > megabytes * 1e6:
            break
    return training, held_out


def tokenizer_of(texts: list[str]) -> Any:
    """A byte-level BPE of 8192 tokens, trained on at most 20 MB."""
    from tokenizers import ByteLevelBPETokenizer

    sample, size = [], 0
    for text in texts[:: max(1, len(texts) // 3000)]:
        sample.append(text)
        size += len(text)
        if size > 20e6:
            break
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(sample, vocab_size=VOCABULARY, min_frequency=2, special_tokens=["<end>"])
    return tokenizer


def stream(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """All texts as one row of token ids, <end> (0) between them."""
    ids: list[int] = []
    for start in range(0, len(texts), 500):
        for encoding in tokenizer.encode_batch(texts[start : start + 500]):
            ids += encoding.ids
            ids.append(0)
    return torch.tensor(ids, dtype=torch.int32)


def train(sizes: dict[str, int], data: torch.Tensor, seconds: float, batch: int) -> tuple[Any, Row]:
    """AdamW in bf16 autocast for so many seconds, the learning rate falling with the time used."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**sizes, vocab_size=VOCABULARY, max_position_embeddings=2048, tie_word_embeddings=False)
    config.architectures = ["LlamaForCausalLM"]
    config.eos_token_id = config.bos_token_id = None
    torch.manual_seed(3)
    model = LlamaForCausalLM(config).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05, fused=CUDA)
    length = min(LENGTH, len(data) // 4)
    windows = (len(data) - 1) // length
    start, steps, loss = time.perf_counter(), 0, torch.zeros(())
    while (used := (time.perf_counter() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (steps + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * used)))
        picks = torch.randint(0, windows, (batch,)).tolist()
        ids = torch.stack([data[i * length : i * length + length] for i in picks]).to(DEVICE).long()
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
        if steps % 10 == 0:
            wait()
    row = {"steps": steps, "tokens": steps * batch * length, "seconds": round(time.perf_counter() - start, 1)}
    parameters = sum(p.numel() for p in model.parameters())
    return model.to(torch.bfloat16).eval(), {**row, "parameters": parameters, "last_loss": round(float(loss), 3)}


def held_out_logits(model: Any, batches: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(batch).logits.float() for batch in batches]


def distance(model: Any, base: list[torch.Tensor], batches: list[torch.Tensor]) -> Row:
    """Perplexity ratio, mean KL(base || model) in nats and top-1 agreement on held-out windows."""
    kl = same = ours = theirs = tokens = 0.0
    with torch.no_grad():
        for batch, reference in zip(batches, base, strict=True):
            logits = model(batch).logits.float()
            log_p, log_q = functional.log_softmax(reference, -1), functional.log_softmax(logits, -1)
            kl += float((log_p.exp() * (log_p - log_q)).sum(-1)[:, :-1].sum())
            same += float((logits.argmax(-1) == reference.argmax(-1))[:, :-1].sum())
            target = batch[:, 1:, None]
            theirs -= float(log_p[:, :-1].gather(-1, target).sum())
            ours -= float(log_q[:, :-1].gather(-1, target).sum())
            tokens += target.numel()
    return {
        "perplexity": round(math.exp(ours / tokens), 4),
        "ppl_ratio": round(math.exp((ours - theirs) / tokens), 5),
        "kl": round(kl / tokens, 6),
        "top1": round(same / tokens, 5),
    }


def kept() -> dict[str, Any]:
    """What train_both kept."""
    found: dict[str, Any] = torch.load(KEPT, weights_only=False, map_location=DEVICE)
    return {**found, "data": found["data"].cpu(), "held_out": found["held_out"].cpu()}


def accuracy(tiny: bool) -> list[Row]:
    """Each scheme's distance from the bf16 model, and what distillation (QAD) recovers of INT4 and NVFP4."""
    import modelopt.torch.quantization as mtq

    files = kept()
    model, data, held_out = files["target"], files["data"], files["held_out"]
    rows: list[Row] = []
    length = 64 if tiny else 512
    evaluation = [w.to(DEVICE).long() for w in held_out[: (4 if tiny else 32) * length].view(-1, 2 if tiny else 16, length)]
    first = data[: (4 if tiny else 32) * length].view(-1, 2 if tiny else 16, length)
    calibration = [w.to(DEVICE).long() for w in first]
    base = held_out_logits(model, evaluation)
    rows.append({"scheme": "bf16", **distance(model, base, evaluation)})

    def loop(m: Any) -> None:
        with torch.no_grad():
            for batch in calibration:
                m(batch)

    for name, config in schemes().items():

        def quantize(name: str = name, config: dict[str, Any] = config) -> Row:
            made = copy.deepcopy(model)
            _, row = measured(lambda: mtq.quantize(made, config, loop))
            row.update(distance(made, base, evaluation))
            if name in ("int4_rtn", "nvfp4"):
                distilled(made, model, data, tiny)
                row["after_qad"] = distance(made, base, evaluation)
            elif name in ("fp8", "int4_awq"):
                row.update(exported(made))
            return row

        attempt(rows, {"scheme": name, "calibration_tokens": sum(b.numel() for b in calibration)}, quantize)
    for bits in (6.0,):

        def search(bits: float = bits) -> Row:
            formats = [mtq.INT4_AWQ_CFG if tiny else mtq.NVFP4_DEFAULT_CFG, mtq.FP8_DEFAULT_CFG]
            made, row = auto_quantize(copy.deepcopy(model), calibration, bits, formats, len(calibration))
            return {**row, **distance(made, base, evaluation)}

        attempt(rows, {"scheme": f"auto_quantize nvfp4+fp8, {bits} bits"}, search)
    return rows


def distilled(student: Any, teacher: Any, data: torch.Tensor, tiny: bool) -> None:
    """Quantization-aware distillation: 100 steps, KL to the bf16 model, scales frozen."""
    length = 64 if tiny else 512
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, weight_decay=0.0)
    for step in range(2 if tiny else 100):
        at = (step * 8 * length) % (len(data) - 8 * length - 1)
        ids = data[at : at + 8 * length].view(8, length).to(DEVICE).long()
        with torch.no_grad():
            wanted = functional.softmax(teacher(ids).logits.float(), -1)
        logits = student(ids).logits.float()
        loss = functional.kl_div(functional.log_softmax(logits, -1), wanted, reduction="batchmean") / length
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def speculation(tiny: bool) -> list[Row]:
    """Greedy generation of single prompts with a draft model and with prompt look-up, against plain generation.

    Target forwards are counted, so tokens per verification step and the acceptance that follows from them are measured;
    the gain that acceptance and the costs of single forwards predict stands beside the measured one.
    """
    files = kept()
    target, draft, held_out = files["target"], files["draft"], files["held_out"]
    rows: list[Row] = []
    number, prompt, new = (1, 32, 8) if tiny else (8, 256, 64)
    prompts = [held_out[i * 2000 : i * 2000 + prompt][None].to(DEVICE).long() for i in range(number)]
    forwards = {"target": 0, "draft": 0}
    hooks = [
        model.register_forward_pre_hook(lambda *_, name=name: forwards.__setitem__(name, forwards[name] + 1))
        for name, model in (("target", target), ("draft", draft))
    ]

    def run(**options: Any) -> Row:
        for ids in prompts[:1]:
            target.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0, **options)
        forwards.update(target=0, draft=0)
        wait()
        start = time.perf_counter()
        tokens = 0
        for ids in prompts:
            out = target.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
                pad_token_id=0, **options,
            )  # fmt: skip
            tokens += out.shape[1] - ids.shape[1]
        wait()
        seconds = time.perf_counter() - start
        return {
            "tokens_per_s": round(tokens / seconds, 2),
            "ms_per_target_step": round(1000 * seconds / forwards["target"], 3),
            "tokens_per_target_step": round(tokens / forwards["target"], 4),
            "draft_forwards": forwards["draft"],
        }

    attempt(rows, {"method": "none"}, run)
    for length in (1, 3, 5):
        draft.generation_config.num_assistant_tokens = length
        draft.generation_config.num_assistant_tokens_schedule = "constant"
        draft.generation_config.assistant_confidence_threshold = 0.0
        attempt(rows, {"method": "draft", "draft_len": length}, lambda: run(assistant_model=draft))
        attempt(rows, {"method": "ngram", "draft_len": length}, lambda n=length: run(prompt_lookup_num_tokens=n))
    for hook in hooks:
        hook.remove()
    return rows


def train_both(tiny: bool) -> list[Row]:
    """Trains target and draft and keeps them, with their data, for the sections that follow."""
    started = time.perf_counter()
    training, held_texts = corpus(1 if tiny else 30)
    tokenizer = tokenizer_of(training)
    data, held_out = stream(tokenizer, training), stream(tokenizer, held_texts)
    rows: list[Row] = [
        {"what": "corpus", "files": len(training), "tokens": len(data), "held_out_tokens": len(held_out),
         "seconds": round(time.perf_counter() - started, 1)}
    ]  # fmt: skip
    target, row = train(SMALL if tiny else TARGET, data, 3 if tiny else 50, 2 if tiny else 48)
    rows.append({"what": "target", **row})
    draft, row = train(SMALL if tiny else DRAFT, data, 2 if tiny else 12, 2 if tiny else 48)
    rows.append({"what": "draft", **row})
    torch.save({"target": target, "draft": draft, "data": data, "held_out": held_out}, KEPT)
    return rows
