"""config.json: reading it, finding the language model inside a wrapper, and looking values up under any of their names.

Nothing in a config.json is trusted: every number that is used is checked for its kind and its range first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from advisor.errors import FileProblem, ModelProblem
from advisor.library import read_text

LARGEST_CONFIG = 8 * 2**20
"""bytes; the largest real ones (per-layer quantization lists) have about 2 MiB"""
TEXT_CONFIGS = (
    "text_config", "llm_config", "language_config", "thinker_config", "language_model_config", "llm", "language_model",
    "text_model_config", "decoder_config", "pretrained_config",
)  # fmt: skip
"""keys under which multimodal wrappers keep the language model's own configuration"""
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers")
HIDDEN_KEYS = ("hidden_size", "n_embd", "n_embed", "d_model", "model_dim", "dim", "hidden_dim", "embed_dim")
LIMITS = {
    "layers": 2_000, "hidden": 2**20, "heads": 2**16, "head_dim": 2**16, "intermediate": 2**24, "vocab": 2**27,
    "experts": 2**16, "context": 2**40, "any": 2**31,
}  # fmt: skip
"""largest value believed for each kind of size; well beyond any published model"""


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in config.json. Raises FileProblem."""
    return parse_json_object(read_text(path, largest=LARGEST_CONFIG, what="config.json"), where=str(path))


def parse_json_object(text: str, *, where: str) -> dict[str, Any]:
    """The JSON object that `text` holds. Raises FileProblem with line and column."""
    try:
        value = json.loads(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise FileProblem(
            f"not valid JSON: {error.msg}", where=f"{where}:{error.lineno}:{error.colno}", hint="fetch the file again"
        ) from None
    except RecursionError:
        raise FileProblem("not a model's JSON: nested too deeply", where=where, hint="fetch the file again") from None
    except ValueError as error:
        raise FileProblem(f"not valid JSON: {error}", where=where, hint="fetch the file again") from None
    if not isinstance(value, dict):
        raise FileProblem(
            f"a JSON object is expected here, not {_kind(value)}", where=where, hint="check that it is the file you meant"
        )
    return value


class Configuration:
    """The values of one (nested) configuration, under any of their usual names, checked.

    A dotted name reaches into a nested object ("ffn_config.moe_top_k"). `defaults` are those of the architecture's own
    configuration class, used for keys that the file leaves out; `defaulted` lists which were. `implied` is what the
    architecture has though no key says so.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        where: str,
        implied: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.values = values
        self.where = where
        self.implied = implied or {}
        self.defaults = defaults or {}
        self.defaulted: dict[str, Any] = {}

    def overridden(self, values: Mapping[str, Any]) -> Configuration:
        """The same with some values replaced, for one layer."""
        return Configuration({**self.values, **values}, where=self.where, implied=self.implied, defaults=self.defaults)

    def find(self, *names: str) -> tuple[str, Any]:
        """The first of the names that is there and not null, with its value; ("", None) when none is."""
        for name in names:
            value: Any = self.values
            for part in name.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if value is not None:
                return name, value
        for name in names:
            if self.implied.get(name) is not None:
                return name, self.implied[name]
        if any(name in self.values for name in names):
            return "", None
        for name in names:
            if self.defaults.get(name) is not None:
                self.defaulted[name] = self.defaults[name]
                return name, self.defaults[name]
        return "", None

    def trait(self, name: str) -> int | None:
        """What the architecture always has and no key of config.json ever says (1 for true); see profiles/architectures."""
        value = self.implied.get(name)
        return None if value is None else int(value)

    def has(self, *names: str) -> bool:
        """Whether any of the names is there, or a default, and not null."""
        before = dict(self.defaulted)
        found = self.find(*names)[1] is not None
        self.defaulted = before
        return found

    def number(self, *names: str, kind: str = "any", low: int = 1) -> int | None:
        """A whole number of `low` to the largest of its kind, None when no name is there. Raises ModelProblem."""
        name, value = self.find(*names)
        return None if value is None else self.checked(name, value, kind=kind, low=low)

    def needed(self, what: str, *names: str, kind: str) -> int:
        """Like number, but its absence is a ModelProblem that lists the names looked for."""
        value = self.number(*names, kind=kind)
        if value is None:
            raise ModelProblem(
                f"config.json does not say the {what}; looked for {', '.join(names)}",
                where=self.where,
                hint="give the folder of a decoder language model with its own config.json",
            )
        return value

    def checked(self, name: str, value: object, *, kind: str = "any", low: int = 1) -> int:
        """`value` as a whole number within the bounds of its kind. Raises ModelProblem."""
        whole = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(value, float) and math.isfinite(value) and value == int(value):
            whole, value = True, int(value)
        if not whole or not isinstance(value, int):
            raise self.problem(name, value, f"a whole number from {low} to {LIMITS[kind]:,} is expected")
        if not low <= value <= LIMITS[kind]:
            raise self.problem(name, value, f"{low} to {LIMITS[kind]:,} is possible")
        return value

    def ratio(self, *names: str) -> float | None:
        """A positive finite number, None when no name is there. Raises ModelProblem."""
        name, value = self.find(*names)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            raise self.problem(name, value, "a positive number is expected")
        return float(value)

    def flag(self, *names: str) -> bool | None:
        """A truth value, None when no name is there. Raises ModelProblem."""
        name, value = self.find(*names)
        if value is None or isinstance(value, bool):
            return value
        raise self.problem(name, value, "true or false is expected")

    def text(self, *names: str) -> str | None:
        """A string, None when no name is there or it is something else."""
        value = self.find(*names)[1]
        return value if isinstance(value, str) else None

    def items(self, *names: str, length: int | None = None) -> list[Any] | None:
        """A list (of exactly `length` entries), None when no name is there or it is not a list. Raises ModelProblem."""
        name, value = self.find(*names)
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            return None
        if length is not None and len(value) < length:
            raise self.problem(name, f"{len(value)} entries", f"{length} are expected, one for each layer")
        return list(value[:length])

    def problem(self, name: str, value: object, expected: str) -> ModelProblem:
        """The error for a value that cannot be used."""
        shown = value if isinstance(value, str) and value.endswith("entries") else _kind(value)
        return ModelProblem(f"{name} is {shown}; {expected}", where=self.where, hint="fetch the model's own config.json again")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= 10**15:
        return "a number of absurd size"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:37] + "...")
    return "a list" if isinstance(value, list) else "an object"


def language_model(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """The language model's part of a configuration, and whether it was inside a wrapper with other modalities.

    What only the wrapper says (tie_word_embeddings, quantization_config, dtype) is carried over: engines read it there.
    """
    inner: Mapping[str, Any] = config
    for _ in range(3):
        nested = next((inner[key] for key in TEXT_CONFIGS if _describes_language_model(inner.get(key))), None)
        if nested is None:
            break
        inner = {**{key: inner[key] for key in ("torch_dtype", "dtype") if key in inner}, **nested}
    if inner is config:
        return config, any(key in config for key in ("vision_config", "audio_config", "vision_tower", "mm_vision_tower"))
    carried = {key: config[key] for key in ("tie_word_embeddings", "quantization_config") if config.get(key) is not None}
    return {**inner, **carried}, True


def _describes_language_model(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    return any(key in value for key in (*LAYER_KEYS, *HIDDEN_KEYS, "model_type", *TEXT_CONFIGS))
