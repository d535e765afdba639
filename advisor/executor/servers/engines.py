"""Engine processes: on loopback, in a session of their own, watched until healthy, always stopped.

A process that outlives the advisor (kill -9) is found again through the journal: one file a process, with its pid, its start
time and a marker that its whole family carries in the environment. Nothing is ever stopped by name.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from advisor.errors import AdvisorError, InputError
from advisor.executor.servers.cache import cache_folder
from advisor.library import write_whole

HOST = "127.0.0.1"
MARKER = "ADVISE_ENGINE_MARKER"
PATIENCE = 15.0
"""seconds between asking a process to end and ending it"""
LOG_LINES = 12


class EngineFailed(AdvisorError):
    """An engine that ended, or did not become healthy by the deadline; the hint has the end of its log."""


@dataclass(frozen=True)
class Launch:
    """How one engine is started for one deployment."""

    engine: str
    version: str
    command: tuple[str, ...]
    url: str
    served_name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    health: str = "/health"
    metrics: str = "/metrics"
    notes: tuple[str, ...] = ()
    """what of the deployment this engine was not given, one sentence each"""


@dataclass(frozen=True)
class Server:
    """A server that answers; `log` is None for one that was not started here."""

    url: str
    served_name: str
    metrics: str = "/metrics"
    log: Path | None = None
    seconds: float | None = None
    """from the start until healthy"""


def free_port() -> int:
    """A port of the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def serving(launch: Launch, *, log: Path, deadline: float = 600.0, journal: Path | None = None) -> Iterator[Server]:
    """Start an engine, yield it once it is healthy, and stop it, whatever happens in between.

    deadline: seconds until healthy. journal: folder of the journal. SIGTERM and SIGHUP end the advisor through here too.
    Raises EngineFailed.
    """
    folder = journal or cache_folder() / "engines"
    stop_left_over(folder)
    marker = secrets.token_hex(16)
    entry = folder / f"{marker}.json"
    # written before the start, so that no moment is left in which a process runs and nobody knows of it
    facts: dict[str, Any] = {
        "marker": marker,
        "owner": _identity(os.getpid()),
        "command": list(launch.command),
        "log": str(log),
    }
    write_whole(entry, json.dumps(facts))
    with _ends_by_exception():
        try:
            began = time.monotonic()
            process = _start(launch, log, marker)
            write_whole(entry, json.dumps(facts | {"process": _identity(process.pid)}))
            _wait(launch, process, log, began + deadline)
            yield Server(launch.url, launch.served_name, launch.metrics, log, time.monotonic() - began)
        finally:
            _stop(marker, _read(entry))
            entry.unlink(missing_ok=True)


def stop_left_over(journal: Path | None = None) -> tuple[str, ...]:
    """Stop engines whose advisor is gone; the commands that they were started with. Engines of a running advisor are left."""
    folder = journal or cache_folder() / "engines"
    stopped = []
    for entry in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        facts = _read(entry)
        if _alive(facts.get("owner")):
            continue
        if _stop(entry.stem, facts):
            stopped.append(" ".join(str(part) for part in facts.get("command", ())))
        entry.unlink(missing_ok=True)
    return tuple(stopped)


# ---------------------------------------------------------------- starting and waiting


def _start(launch: Launch, log: Path, marker: str) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    # setproctitle, which engines name their processes with, would overwrite the environment that /proc shows
    environment = {**os.environ, **launch.environment, MARKER: marker, "SPT_NOENV": "1"}
    with log.open("ab") as file:
        try:
            return subprocess.Popen(
                launch.command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
            )
        except OSError as error:
            raise EngineFailed(f"{launch.engine} cannot be started: {error.strerror}", where=launch.command[0]) from None


def _wait(launch: Launch, process: subprocess.Popen[bytes], log: Path, end: float) -> None:
    while True:
        if process.poll() is not None:
            _fail(f"{launch.engine} ended with status {process.returncode} before it was healthy", log)
        if answers(launch.url, launch.health):
            return
        if time.monotonic() > end:
            _fail(f"{launch.engine} was not healthy by the deadline", log)
        time.sleep(0.25)


def answers(url: str, path: str) -> bool:
    """Whether a server answers 200 there."""
    try:
        return fetch(url + path, timeout=5.0)[0] == 200
    except OSError:
        return False


def fetch(url: str, *, timeout: float = 10.0) -> tuple[int, str]:
    """Status and text behind an http(s) URL; no proxy. Raises OSError, InputError for another scheme."""
    import http.client

    connection, path = connect(url, timeout)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read(16 * 2**20).decode("utf-8", "replace")
    except http.client.HTTPException as error:
        raise OSError(f"not an HTTP server: {error}") from None
    finally:
        connection.close()


def connect(url: str, timeout: float) -> tuple[Any, str]:
    """An http.client connection, not yet open, and the path of the URL. Raises InputError."""
    import http.client
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or parts.scheme not in ("http", "https"):
        raise InputError(f"not the URL of a server: {url!r}", where="--url", hint="for example http://127.0.0.1:8000")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(host, port, timeout=timeout), (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _fail(what: str, log: Path) -> NoReturn:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if "Error" in line][-2:]
    tail = "\n       ".join([*errors, "its last lines:", *lines[-LOG_LINES:]])
    raise EngineFailed(what, where=str(log), hint=f"read the log; {tail}")


@contextlib.contextmanager
def _ends_by_exception() -> Iterator[None]:
    """SIGTERM and SIGHUP as exceptions, so that they pass through `finally`; only the main thread can ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kinds = [signal.SIGTERM, signal.SIGHUP]
    before = {kind: signal.signal(kind, _leave) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _leave(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


# ---------------------------------------------------------------- knowing and stopping processes


def _identity(pid: int) -> dict[str, Any]:
    return {"pid": pid, "started": _started(pid)}


def _started(pid: int) -> str | None:
    """When a process started, in a form that no later process with its number has; None: there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return done.stdout.strip() or None
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else f"{boot}:{fields[19]}"


def _alive(identity: object) -> bool:
    if not isinstance(identity, dict) or not isinstance(identity.get("pid"), int):
        return False
    started = _started(identity["pid"])
    return started is not None and started == identity.get("started")


def _members(marker: str, facts: Mapping[str, Any]) -> list[int]:
    """The living processes of one engine: those that carry its marker; without /proc the recorded one alone."""
    found = []
    wanted = f"{MARKER}={marker}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    process = facts.get("process")
    if not found and isinstance(process, dict) and _alive(process):
        found.append(int(process["pid"]))
    return [pid for pid in found if pid != os.getpid()]


def _stop(marker: str, facts: Mapping[str, Any]) -> bool:
    """Ask every process of an engine to end, then end what is left; whether there was any."""
    there = False
    for kind, patience in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, 5.0)):
        end = time.monotonic() + patience
        asked: set[int] = set()
        while members := _members(marker, facts):
            there = True
            for pid in set(members) - asked:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, kind)
            asked |= set(members)
            _reap(facts)
            if time.monotonic() > end:
                break
            time.sleep(0.05)
    _reap(facts)
    return there


def _reap(facts: Mapping[str, Any]) -> None:
    process = facts.get("process")
    with contextlib.suppress(ChildProcessError, OSError, TypeError, KeyError):
        os.waitpid(process["pid"], os.WNOHANG)  # type: ignore[index]


def _read(entry: Path) -> dict[str, Any]:
    try:
        found = json.loads(entry.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
