"""A small server that speaks the hub's API on the loopback interface: resolve URLs with HEAD, ETag and ranges, /api/models, the
error codes that the real one sends (X-Error-Code); and what a commit takes: preupload, LFS batch, uploads, the commit."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

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
    commits: list[dict[str, Any]] = field(default_factory=list)
    """header, files and deletions of each commit that was taken"""
    blobs: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 -> content that was uploaded, of which a commit may name what it likes"""
    large: int = 4096
    """bytes from which on a file goes by LFS"""
    private: dict[str, bool] = field(default_factory=dict)
    """repository that was made here -> whether nobody else sees it"""
    fail_upload: int | None = None
    """the upload (of LFS content, counted from 0) that fails"""
    hold_upload: threading.Event | None = None
    """uploads wait for it"""
    before_commit: Callable[[Hub], None] = lambda hub: None
    """called when a commit arrives"""
    sent: int = 0
    """bytes of bodies"""
    url: str = ""

    def head(self, repository: str) -> str:
        """The commit that the repository's only branch is at."""
        made = sum(one["repository"] == repository for one in self.commits)
        return COMMIT if made == 0 else f"{made:040x}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    commit = COMMIT

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        self._take()

    def do_PUT(self) -> None:
        self._take()

    def _take(self) -> None:
        """Repositories made, modes of upload, uploads, commits: only with the token."""
        hub, sent = self.hub, self._body()
        hub.requests.append((self.command, self.path))
        path = self.path.split("?")[0]
        if self.command == "PUT":
            return self._upload(path.rpartition("/")[2], sent)
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._send(401, b'{"error": "Invalid credentials in Authorization header"}', body=True)
        if path == "/api/repos/create":
            asked = json.loads(sent)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if name in hub.files:
                return self._json(409, {"error": "You already created this model repo", "url": f"{hub.url}/{name}"})
            hub.files[name], hub.private[name] = {}, bool(asked.get("private") or asked.get("visibility") == "private")
            return self._json(200, {"url": f"{hub.url}/{name}", "name": name, "id": name})
        if path == "/api/validate-yaml":
            return self._json(200, {"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(\w+)", path):
            modes = [
                {"path": one["path"], "uploadMode": "lfs" if one["size"] >= hub.large else "regular", "shouldIgnore": False}
                for one in json.loads(sent)["files"]
            ]
            return self._json(200, {"files": modes})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = []
            for one in json.loads(sent)["objects"]:
                upload = {"upload": {"href": f"{hub.url}/upload/{one['oid']}"}}
                objects.append(one | ({} if one["oid"] in hub.blobs else {"actions": upload}))
            return self._json(200, {"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(\w+)", path):
            return self._commit(found[1], [json.loads(line) for line in sent.splitlines()])
        return self._send(404, b"{}", body=True)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _upload(self, oid: str, content: bytes) -> None:
        hub = self.hub
        if hub.hold_upload is not None:
            hub.hold_upload.wait(60)
        if hub.fail_upload == len(hub.blobs):
            return self._send(403, b"", body=True)
        assert hashlib.sha256(content).hexdigest() == oid
        hub.blobs[oid] = content
        return self._send(200, b"", body=True)

    def _commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        """All of it or nothing, and only onto the head that the writer had seen."""
        hub = self.hub
        hub.before_commit(hub)
        of_kind = {kind: [one["value"] for one in lines if one["key"] == kind] for kind in ("file", "lfsFile", "deletedFile")}
        header = next(one["value"] for one in lines if one["key"] == "header")
        if header.get("parentCommit") not in (None, hub.head(repository)):
            return self._json(412, {"error": "A commit has happened since. Please refresh and try again."})
        new = {one["path"]: base64.b64decode(one["content"]) for one in of_kind["file"]}
        new |= {one["path"]: hub.blobs[one["oid"]] for one in of_kind["lfsFile"]}
        gone = {one["path"] for one in of_kind["deletedFile"]}
        hub.files[repository] = {name: one for name, one in hub.files[repository].items() if name not in gone} | new
        hub.commits.append({"repository": repository, "header": header, "files": sorted(new), "gone": sorted(gone)})
        url = f"{hub.url}/{repository}/commit/{hub.head(repository)}"
        return self._json(200, {"success": True, "commitUrl": url, "commitOid": hub.head(repository), "hookOutput": ""})

    def _json(self, status: int, content: object) -> None:
        self._send(status, json.dumps(content).encode(), body=True)

    def _answer(self, *, body: bool) -> None:
        hub = self.hub
        hub.requests.append((self.command, self.path))
        if hub.delay:
            time.sleep(hub.delay)
        if hub.status is not None:
            return self._send(hub.status, b"{}", body=body)
        if self.path == "/api/whoami-v2":
            known = self.headers.get("Authorization") == f"Bearer {hub.token}"
            return self._send(200 if known else 401, b'{"name": "somebody", "type": "user"}', body=body)
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)(\?.*)?", self.path)
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", self.path)
        repository = resolve[1] if resolve else api[1] if api else ""
        if repository not in hub.files:
            return self._send(401, b"{}", body=body, error="RepoNotFound")
        allowed = self.headers.get("Authorization") == f"Bearer {hub.token}"
        if repository in hub.gated and not allowed:
            return self._send(403 if self.headers.get("Authorization") else 401, b"{}", body=body, error="GatedRepo")
        self.commit = hub.head(repository)
        if api and (api[2] or "").startswith("/tree/"):
            tree = [{"type": "file", "path": name, "size": len(one), "oid": ""} for name, one in hub.files[repository].items()]
            return self._send(200, json.dumps(tree).encode(), body=body)
        if not resolve:
            record = {"id": repository, "sha": self.commit, "siblings": [{"rfilename": name} for name in hub.files[repository]]}
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
        self.send_header("X-Repo-Commit", self.commit)
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
