"""A small server that speaks the hub's download API on the loopback interface: resolve URLs with HEAD, ETag and ranges,
/api/models, and the error codes that the real one sends (X-Error-Code)."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server holds, and what it was asked."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """repository -> name -> bytes"""
    gated: set[str] = field(default_factory=set)
    token: str | None = None
    """token that opens the gated ones"""
    status: int | None = None
    """answer everything with this status"""
    delay: float = 0.0
    """seconds before any answer"""
    lie_about_size: int | None = None
    requests: list[tuple[str, str]] = field(default_factory=list)
    """method and path"""
    sent: int = 0
    """bytes of bodies"""
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub = self.hub
        hub.requests.append((self.command, self.path))
        if hub.delay:
            time.sleep(hub.delay)
        if hub.status is not None:
            return self._send(hub.status, b"{}", body=body)
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)(\?.*)?", self.path)
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", self.path)
        repository = resolve[1] if resolve else api[1] if api else ""
        if repository not in hub.files:
            return self._send(401, b"{}", body=body, error="RepoNotFound")
        allowed = self.headers.get("Authorization") == f"Bearer {hub.token}"
        if repository in hub.gated and not allowed:
            return self._send(403 if self.headers.get("Authorization") else 401, b"{}", body=body, error="GatedRepo")
        if not resolve:
            record = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in hub.files[repository]]}
            return self._send(200, json.dumps(record).encode(), body=body)
        content = hub.files[repository].get(resolve[3])
        if content is None:
            return self._send(404, b"{}", body=body, error="EntryNotFound")
        return self._file(content, body=body)

    def _file(self, content: bytes, *, body: bool) -> None:
        part, status, extra = content, 200, {}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            part, status = content[first : last + 1], 206
            extra["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        size = self.hub.lie_about_size
        self._send(status, part, body=body, etag=hashlib.sha1(content).hexdigest(), extra=extra, size=size)

    def _send(
        self, status: int, content: bytes, *, body: bool, error: str = "", etag: str = "", extra: dict[str, str] | None = None,
        size: int | None = None,
    ) -> None:  # fmt: skip
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if size is None else size))
        self.send_header("X-Repo-Commit", COMMIT)
        if error:
            self.send_header("X-Error-Code", error)
            self.send_header("X-Error-Message", error)
        if etag:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("Accept-Ranges", "bytes")
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.hub.sent += len(content)
            self.wfile.write(content)


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub at hub.url while the context lasts."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
