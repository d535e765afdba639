"""`advise predict`: one Point in, one Estimate out, in the order given; what cannot be estimated does not stop the rest."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NoReturn, TextIO, get_args

from pydantic import ValidationError

from advisor.errors import AdvisorError, InputError
from advisor.estimator.answer import made
from advisor.estimator.batching import published_requests
from advisor.estimator.deployment import estimate
from advisor.profiler.gpu import find_gpu
from advisor.profiler.model import read_model
from advisor.types import Engine, Estimate, Gpu, KvFormat, Load, Model, Point, Simulated, Speculation, WeightFormat

LONGEST_LINE = 1 << 20
"""characters of a line; a Point takes a few hundred"""
MOST = {
    "isl": 100_000_000, "osl": 100_000_000, "concurrency": 10_000_000, "requests": 10**12, "rate": 1.0e9,
    "tensor_parallel": 4096, "pipeline_parallel": 4096, "expert_parallel": 4096, "replicas": 1_000_000,
    "max_batch_size": 10_000_000, "max_num_tokens": 100_000_000,
}  # fmt: skip
"""largest values that are taken for a load or a deployment rather than for a slip"""
MOST_SIMULATED = 100_000
"""requests of one simulation: some seconds"""
LOAD = ("isl", "osl", "concurrency", "rate", "requests")
"""fields of a Point that say what is asked of the deployment"""
SYNONYMS = {
    "fp16": "bf16 stands for any 16-bit weights",
    "float16": "bf16 stands for any 16-bit weights",
    "bfloat16": "write bf16",
    "fp32": "there is no 32-bit format; write bf16",
    "int8": "write int8_sq (weights and activations) or int8_wo (weights only)",
    "w8a8": "write fp8 or int8_sq",
    "w8a16": "write int8_wo",
    "int4": "write int4_awq or int4_gptq",
    "w4a16": "write int4_awq or int4_gptq",
    "w4a16_awq": "write int4_awq",
    "awq": "write int4_awq",
    "gptq": "write int4_gptq",
    "w4a8": "write w4a8_awq",
    "fp4": "write nvfp4 or mxfp4",
    "w4a4": "write nvfp4 or mxfp4",
}
KV_SYNONYMS = {
    "fp16": "bf16 stands for any 16-bit cache",
    "auto": "name the format: bf16 when the checkpoint has no scales for the cache",
}
POINT_KEYS, SPECULATION_KEYS = tuple(Point.model_fields), tuple(Speculation.model_fields)
WEIGHT_FORMATS, KV_FORMATS = get_args(WeightFormat), get_args(KvFormat)
Failure = dict[str, str]
"""{"error": …, "hint": …}"""


def predict(points: Iterable[Point | Mapping[str, Any]]) -> Iterator[Estimate | Failure]:
    """An Estimate for each Point, in order; {"error": …, "hint": …} in place of one that cannot be estimated.

    Models and GPUs are read once per name. A mapping is checked as a line of `advise predict` is.
    """
    for point in points:
        try:
            yield _predicted(_checked(point) if isinstance(point, Point) else _point(point))
        except Exception as error:  # as in _answer
            yield _failure(error)


def predict_lines(lines: Iterable[str], *, silicon: bool = False) -> Iterator[str]:
    """JSON lines of Estimates (or errors) for JSON lines of Points; blank lines are left out. Memory is that of one line.

    silicon: times by NVIDIA's measured operations, where they have them. Raises MissingExtra at once where it cannot.
    """
    if silicon:
        from advisor.estimator.silicon import require

        require()
    for line in lines:
        text = line.strip().lstrip("\ufeff")
        if text:
            yield _answer(text, silicon)


def simulate_traffic(row: Mapping[str, Any], traffic: str) -> Simulated:
    """The deployment of a Point under single requests: those of a trace as they arrived, or, where the Point names lengths or a
    load and for any other traffic, requests with the traffic's lengths at that load (else at the traffic's own).

    Raises as read_traffic and simulate; InputError for what is no Point.
    """
    from advisor.estimator.arrivals import from_trace
    from advisor.estimator.simulation import simulate
    from advisor.profiler.trace import read_arrivals
    from advisor.profiler.traffic import adjust, is_trace, read_traffic

    known, _ = read_traffic(traffic)
    as_it_was = is_trace(traffic) and not any(name in row for name in LOAD)
    asked = {name: row.get(name) for name in ("isl", "osl", "rate")}
    most = row.get("concurrency") == "max"
    known, _ = adjust(known, {}, **asked, concurrency=None if most else row.get("concurrency"))
    point = _point({**row, "isl": max(1, round(known.isl.mean)), "osl": max(1, round(known.osl.mean))})
    load = Load(
        isl=known.isl.mean,
        osl=known.osl.mean,
        concurrency=None if most else known.concurrency,
        rate=None if most or known.concurrency is not None else known.rate,
        requests=point.requests,
        shared_prefix=known.shared_prefix or 0.0,
        lengths=known.lengths,
    )
    _check_size(load)
    requests = from_trace(read_arrivals(traffic, MOST_SIMULATED)) if as_it_was else None
    gpu = _gpu(point.gpu, point.tensor_parallel * point.pipeline_parallel * point.replicas)
    engine = _engine(point.engine, point.engine_version)
    made = simulate(_model(point.model), gpu, point, load, engine, requests=requests)
    if requests is not None:
        said = f"the first {len(requests):,} requests of {known.name} as they arrived"
    else:
        rate = f"{load.rate:g} a second" if load.rate is not None else "all there at the start"
        how = f"{load.concurrency:g} at a time" if load.concurrency is not None else rate
        said = f"requests with the lengths of {known.name}, {how}"
    return made.model_copy(update={"notes": (said, *made.notes)})


def _check_size(load: Load) -> None:
    from advisor.estimator.simulation import TURNS

    count = load.requests or TURNS * (load.concurrency or 0.0)
    if count > MOST_SIMULATED:
        raise InputError(
            f"{count:,.0f} requests are more than the {MOST_SIMULATED:,} that are simulated",
            where="--requests" if load.requests else f"--concurrency, {TURNS} requests each",
            hint="give fewer, or leave --traffic out for an estimate",
        )


def read_lines(stream: TextIO) -> Iterator[str]:
    """The lines of a stream, each cut after LONGEST_LINE characters (a cut line is reported, not parsed)."""
    while line := stream.readline(LONGEST_LINE + 1):
        yield line
        while len(line) > LONGEST_LINE and not line.endswith("\n"):
            line = stream.readline(LONGEST_LINE + 1)


def _answer(text: str, silicon: bool) -> str:
    try:
        return _predicted(_point(_parsed(text)), silicon).model_dump_json()
    except Exception as error:  # a fault of ours on one line must not cost the thousands behind it
        return json.dumps(_failure(error), ensure_ascii=False)


def _failure(error: Exception) -> Failure:
    if not isinstance(error, AdvisorError):
        return {"error": f"this point made the estimator fail: {type(error).__name__}: {error}", "hint": "please report it"}
    # a flag is no place in a line of JSON
    where = f" ({error.where})" if error.where and not error.where.startswith("--") and error.where not in error.what else ""
    return {"error": f"{error.what}{where}", "hint": error.hint}


# ---------------------------------------------------------------- from text to a Point


def _parsed(text: str) -> Mapping[str, Any]:
    if len(text) > LONGEST_LINE:
        raise InputError(f"a line of more than {LONGEST_LINE:,} characters", hint="one Point a line, as the contract shows")
    try:
        found = DECODER.decode(text)
    except RecursionError:
        raise InputError("not a Point: nested too deeply", hint="one flat JSON object a line") from None
    except ValueError as error:
        place = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise InputError(f"not JSON{place}: {reason}", hint="one JSON object a line") from None
    if not isinstance(found, dict):
        raise InputError(f"a Point is a JSON object, this is {_kind(found)}", hint='{"model": …, "gpu": …, "isl": …, "osl": …}')
    return found


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


DECODER = json.JSONDecoder(parse_constant=_not_json)


def _kind(value: object) -> str:
    names: dict[type, str] = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _point(row: Mapping[str, Any]) -> Point:
    _check_names(row, POINT_KEYS, "")
    speculation = row.get("speculation")
    if isinstance(speculation, Mapping):
        _check_names(speculation, SPECULATION_KEYS, "speculation.")
        _check_draft(speculation.get("draft_len"), speculation.get("acceptance"))
    _check_format(row, "weights", WEIGHT_FORMATS, SYNONYMS)
    _check_format(row, "kv_cache", KV_FORMATS, KV_SYNONYMS)
    for name, most in MOST.items():
        if name in row:
            _check_number(name, row[name], most)
    try:
        return Point.model_validate(row)
    except ValidationError as error:
        raise _refused(error) from None


def _checked(point: Point) -> Point:
    """A Point that was built in Python, its numbers held to what a line's are."""
    for name, most in MOST.items():
        _check_number(name, getattr(point, name), most)
    if point.speculation is not None:
        _check_draft(point.speculation.draft_len, point.speculation.acceptance)
    return point


def _check_draft(draft_len: object, acceptance: object) -> None:
    _check_number("speculation.draft_len", draft_len, 64)
    if isinstance(acceptance, bool) or (isinstance(acceptance, int | float) and not 0 <= acceptance <= 1):
        raise InputError(f"speculation.acceptance is {_shown(acceptance)}", hint="a probability, 0 to 1")


def _check_names(row: Mapping[str, Any], known: tuple[str, ...], prefix: str) -> None:
    for name in row:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(known)}"
            raise InputError(f"unknown key {prefix + str(name)[:60]!r}", hint=hint)


def _check_format(row: Mapping[str, Any], field: str, known: tuple[str, ...], synonyms: Mapping[str, str]) -> None:
    value = row.get(field, known[0])
    if isinstance(value, str) and value in known:
        return
    word = value.lower() if isinstance(value, str) else ""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    hint = synonyms.get(word) or (f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}")
    raise InputError(f"unknown {field} format {_shown(value)}", hint=hint)


def _check_number(name: str, value: object, most: float) -> None:
    """Positive, finite, no true or false, not beyond reason. What may be null or a word is left to the Point itself."""
    if value is None or isinstance(value, str | list | dict):
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise InputError(f"{name} is {_shown(value)}", hint=f"a number above 0 and at most {most:,.0f}")


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _refused(error: ValidationError) -> InputError:
    """The first thing that pydantic found, in our words."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        hint = "it needs a method" if where.startswith("speculation") else "a Point needs model, gpu, isl and osl"
        return InputError(f"{where} is missing", hint=hint)
    what = f"{where} is {_shown(first['input'])}"
    if where.startswith("concurrency"):
        return InputError(f"concurrency is {_shown(first['input'])}", hint='a whole number above 0, or "max"')
    if first["type"] == "literal_error":
        return InputError(what, hint=f"one of {first['ctx']['expected']}")
    if where == "speculation":
        return InputError(what, hint='null, or {"method": "ngram|draft|eagle3|mtp", "draft_len": 4, "acceptance": 0.7}')
    return InputError(what, hint=first["msg"].replace("Input should be", "it should be"))


# ---------------------------------------------------------------- from a Point to an Estimate


def _predicted(point: Point, silicon: bool = False) -> Estimate:
    model = _model(point.model)
    gpu = _gpu(point.gpu, point.tensor_parallel * point.pipeline_parallel * point.replicas)
    closed = point.rate is None and point.concurrency != "max"
    requests = point.requests
    if requests is None and point.rate is None and not closed:
        requests = point.replicas * published_requests(point.isl, point.osl)
    numbers = {
        "isl": float(point.isl), "osl": float(point.osl), "concurrency": float(point.concurrency) if closed else None,
        "rate": point.rate, "requests": requests, "shared_prefix": 0.0, "lengths": (),
    }  # fmt: skip
    load = made(Load, numbers)
    engine = _engine(point.engine, point.engine_version)
    ours = estimate(model, gpu, point, load, engine)
    if not silicon:
        return ours
    from advisor.estimator.opinion import instead

    return instead(ours, model, gpu, point, load, engine)


@lru_cache(maxsize=64)
def _engine(name: str, version: str | None) -> Engine:
    return Engine.model_validate({"name": name} if version is None else {"name": name, "version": version})


@lru_cache(maxsize=256)
def _read(name: str) -> Model | AdvisorError:
    """The model, or why it can't be read: a name is looked up once, found or not."""
    try:
        return read_model(name)[0]
    except AdvisorError as error:
        return error


@lru_cache(maxsize=512)
def _found(name: str, count: int) -> Gpu | AdvisorError:
    try:
        return find_gpu(name, count)[0]
    except AdvisorError as error:
        return error


def _model(name: str) -> Model:
    found = _read(name)
    if isinstance(found, AdvisorError):
        raise found
    return found


def _gpu(name: str, count: int) -> Gpu:
    found = _found(name, count)
    if isinstance(found, AdvisorError):
        raise found
    return found
