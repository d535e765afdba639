"""A model on the Hugging Face hub: config.json, hf_quant_config.json and the safetensors headers; weights are never fetched.

The only file that imports huggingface_hub, which reads HF_TOKEN, HF_HOME and proxies itself. HF_ENDPOINT and HF_HUB_OFFLINE
are read here at each call, so that they count even when the library was imported before they were set.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from advisor.errors import AdvisorError, FileProblem, MissingExtra, ModelProblem
from advisor.profiler.configuration import LARGEST_CONFIG, parse_json_object, read_config
from advisor.profiler.folder import combine
from advisor.profiler.safetensors import LARGEST_INDEX, Tensor, read_tensors
from advisor.types import Model

REQUEST_SECONDS = 10.0
"""for one answer of the server"""
FILE_SECONDS = 30.0
"""for one small file, retries included"""
HEADER_SECONDS = 60.0
"""for all safetensors headers of a repository; without them sizes are computed from config.json"""
CONNECTIONS = 8
MOST_SHARDS = 1_000
NETWORK_MODULES = ("huggingface_hub", "requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2")
"""whose exceptions mean that the hub could not be asked: requests with huggingface_hub 0.x, httpx later"""
INDEX = "model.safetensors.index.json"
FOLDER_HINT = "download config.json (and hf_quant_config.json where there is one) and give their folder"
Answer = TypeVar("Answer")


def read_hub(repository: str) -> tuple[Model, dict[str, str]]:
    """The model of a hub id ("org/name") and the sources of its facts.

    Raises MissingExtra without huggingface_hub, ModelProblem for a repository that is not there, gated, unreachable or not a
    language model, FileProblem for files that are not what they should be.
    """
    hub = _Hub(repository)
    config_path = hub.fetch("config.json", largest=LARGEST_CONFIG)
    if config_path is None:
        raise ModelProblem(
            "this repository has no config.json",
            where=hub.page,
            hint="give the repository of the original model (GGUF and adapter repositories have none)",
        )
    config = read_config(config_path)
    quant_path = hub.fetch("hf_quant_config.json", largest=LARGEST_CONFIG)
    hf_quant = read_config(quant_path) if quant_path is not None else None
    tensors, note = hub.headers(config_path.parent)
    model, sources = combine(config, hf_quant, lambda: tensors, name=repository, where=f"{hub.page}/config.json", source="hub")
    return model.model_copy(update={"notes": (*model.notes, *note)}), sources


class _Hub:
    """One repository at one endpoint."""

    def __init__(self, repository: str) -> None:
        try:
            import huggingface_hub
            import huggingface_hub.errors
        except ImportError:
            raise MissingExtra(
                f"{repository} is neither a folder nor a known name, and the hub cannot be asked without huggingface_hub",
                hint=f"pip install 'inference-advisor[hub]', or {FOLDER_HINT}",
            ) from None
        self.library = huggingface_hub
        self.repository = repository
        self.endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        self.offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        self.page = f"{self.endpoint}/{repository}"

    def fetch(self, name: str, *, largest: int) -> Path | None:
        """A small file of the repository in the hub's own cache, None when the repository has none. Raises ModelProblem."""
        errors = self.library.errors
        try:
            return Path(within(FILE_SECONDS, lambda: self._download(name, largest)))
        except errors.LocalEntryNotFoundError as error:
            if self.offline and name != "config.json":
                return None
            raise self._unreachable(error) from None
        except errors.EntryNotFoundError:
            return None
        except AdvisorError:
            raise
        except Exception as error:
            raise self._translated(error) from None

    def _download(self, name: str, largest: int) -> str:
        api = self.library.HfApi(endpoint=self.endpoint)
        if not self.offline:
            url = self.library.hf_hub_url(self.repository, name, endpoint=self.endpoint)
            found = api.get_hf_file_metadata(url=url, timeout=REQUEST_SECONDS)
            if found.size is not None and found.size > largest:
                raise FileProblem(
                    f"{name} has {found.size / 2**20:,.0f} MiB, more than the {largest / 2**20:,.0f} MiB that are read",
                    where=self.page,
                    hint="check that it is the repository you meant",
                )
        path: str = api.hf_hub_download(self.repository, name, etag_timeout=REQUEST_SECONDS, local_files_only=self.offline)
        return path

    def headers(self, cached: Path) -> tuple[list[Tensor] | None, list[str]]:
        """The tensors by the headers of all shards, and a note when there are none to be had."""
        with contextlib.suppress(FileProblem):
            found = read_tensors(cached)
            if found is not None:
                return list(found), []
        if self.offline:
            return None, ["Offline, and no safetensors in the hub's cache: sizes are computed from config.json."]
        try:
            return within(HEADER_SECONDS, self._remote_headers), []
        except self.library.errors.EntryNotFoundError:
            return None, ["The repository has no safetensors files; sizes are computed from config.json."]
        except Exception as error:
            problem = error if isinstance(error, AdvisorError) else self._translated(error)
            return None, [f"The safetensors headers could not be read ({problem.what}); sizes are computed from config.json."]

    def _remote_headers(self) -> list[Tensor]:
        try:
            index = Path(self._download(INDEX, LARGEST_INDEX))
        except self.library.errors.EntryNotFoundError:
            return list(self._header("model.safetensors"))
        placed = parse_json_object(index.read_text(encoding="utf-8"), where=f"{self.page}/{INDEX}").get("weight_map")
        files = sorted({str(name) for name in placed.values()}) if isinstance(placed, dict) else []
        if not files or len(files) > MOST_SHARDS:
            raise FileProblem(f"the index names {len(files)} shards", where=self.page, hint="check the repository")
        return [tensor for shard in at_once(lambda name: list(self._header(name)), files) for tensor in shard]

    def _header(self, name: str) -> Iterator[Tensor]:
        api = self.library.HfApi(endpoint=self.endpoint)
        for tensor, entry in api.parse_safetensors_file_metadata(self.repository, name).tensors.items():
            first, last = entry.data_offsets
            shape = tuple(entry.shape)
            if not all(type(value) is int and value >= 0 for value in (first, last, *shape)) or last < first:
                raise FileProblem(
                    f"tensor {tensor[:80]!r} of {name} has no usable shape", where=self.page, hint="check the repository"
                )
            yield Tensor(tensor, str(entry.dtype), shape, last - first)

    def _unreachable(self, error: Exception) -> ModelProblem:
        if self.offline:
            return ModelProblem(
                "HF_HUB_OFFLINE is set and this model is not in the hub's cache",
                where=self.repository,
                hint=f"unset HF_HUB_OFFLINE, or {FOLDER_HINT}",
            )
        return ModelProblem(
            f"the hub cannot be reached: {_first_line(error.__cause__ or error)}",
            where=self.page,
            hint=f"check the network, or {FOLDER_HINT}",
        )

    def _translated(self, error: Exception) -> AdvisorError:
        """The user's error for one of the library's or of its HTTP client's; any other exception is raised as it is."""
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in NETWORK_MODULES:
            raise error
        errors = self.library.errors
        if isinstance(error, errors.GatedRepoError):
            return ModelProblem(
                "this model is gated: its owner wants a login and an accepted licence",
                where=self.page,
                hint=f"accept the licence on that page and set HF_TOKEN, or {FOLDER_HINT}",
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            return ModelProblem(
                "there is no such model on the hub, or it is private",
                where=self.page,
                hint=f"check the name; for a private model set HF_TOKEN, or {FOLDER_HINT}",
            )
        if isinstance(error, errors.HFValidationError):
            return ModelProblem("this is not a hub id", where=self.repository, hint="a hub id is org/name")
        if isinstance(error, (TimeoutError,)) or "Timeout" in type(error).__name__:
            return ModelProblem("the hub did not answer in time", where=self.page, hint=f"try again, or {FOLDER_HINT}")
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            return ModelProblem(
                f"the hub refuses this model ({status})",
                where=self.page,
                hint=f"set HF_TOKEN to a token that may read it, or {FOLDER_HINT}",
            )
        if status is not None:
            return ModelProblem(
                f"the hub answered with status {status}", where=self.page, hint=f"try again later, or {FOLDER_HINT}"
            )
        return self._unreachable(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def at_once(work: Callable[[str], Answer], names: list[str]) -> list[Answer]:
    """`work` of every name, a few at a time, in order; the first error of any is raised.

    Daemon threads, because those of concurrent.futures are waited for at exit even when a server never answers.
    """
    left = list(enumerate(names))
    done: dict[int, Answer] = {}
    errors: list[BaseException] = []

    def run() -> None:
        while left and not errors:
            try:
                number, name = left.pop()
            except IndexError:
                return
            try:
                done[number] = work(name)
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(CONNECTIONS, len(names)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [done[number] for number in range(len(names))]


def within(seconds: float, work: Callable[[], Answer]) -> Answer:
    """What `work` returns or raises, or TimeoutError after so many seconds.

    The library retries by itself, so that a server which never answers could hold a command for minutes: the work runs in
    a daemon thread, which ends with the process.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = work()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError
    if "error" in outcome:
        raise outcome["error"]
    value: Answer = outcome["value"]
    return value
