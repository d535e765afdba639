"""A stand-in for an engine: a process that listens, is healthy after a while and streams tokens at a fixed pace.

    python stand_in_engine.py --port 8000 [--healthy-after S] [--crash] [--stubborn] [--child] [--step S] [--prefill S]

It stands in for the hardware that an engine needs; everything that talks to it is real. Its pace is known, so what a client
measures can be checked. /seen has what was asked for: the largest number of requests at once, and the bodies.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class State:
    """What was seen, under one lock."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.began = time.monotonic()
        self.lock = threading.Lock()
        self.running = self.most = self.served = 0
        self.bodies: list[dict[str, object]] = []


class Handler(BaseHTTPRequestHandler):
    """Health, models, metrics, completions."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # many small writes: each would wait for the acknowledgement of the one before
    state: State

    def log_message(self, format: str, *arguments: object) -> None:
        sys.stderr.write(format % arguments + "\n")

    def do_GET(self) -> None:
        state = self.state
        if self.path == "/health":
            late = time.monotonic() - state.began < state.arguments.healthy_after
            self._answer(503 if late else 200, "")
        elif self.path == "/v1/models":
            self._answer(200, json.dumps({"data": [{"id": "stand-in"}]}))
        elif self.path == "/metrics":
            lines = [f"vllm:num_requests_running {state.running}", "vllm:kv_cache_usage_perc 0.25"]
            lines += [
                f"vllm:num_preemptions_total {state.served // 4}",
                f"vllm:spec_decode_num_drafts_total {state.served * 10}",
            ]
            lines += [f"vllm:spec_decode_num_draft_tokens_total {state.served * 40}"]
            lines += [f"vllm:spec_decode_num_accepted_tokens_total {state.served * 20}"]
            self._answer(200, "\n".join(lines) + "\n")
        elif self.path == "/seen":
            self._answer(200, json.dumps({"most": state.most, "bodies": state.bodies}))
        else:
            self._answer(404, "")

    def do_POST(self) -> None:
        state = self.state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with state.lock:
            state.running += 1
            state.most = max(state.most, state.running)
            state.bodies.append(body)
        try:
            self._complete(body)
        finally:
            with state.lock:
                state.running -= 1
                state.served += 1

    def _complete(self, body: dict[str, object]) -> None:
        asked = int(str(body["max_tokens"]))
        if asked == state_of(self).refuse:
            self._answer(400, '{"error": {"message": "too long"}}')
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        time.sleep(state_of(self).prefill)
        for index in range(asked):
            if index:
                time.sleep(state_of(self).step)
            self._chunk({"object": "text_completion", "choices": [{"text": " a", "index": 0}]})
            if asked == state_of(self).cut:
                self.close_connection = True
                return
        self._chunk({"object": "text_completion", "choices": [], "usage": {"completion_tokens": asked}})
        self._raw(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, event: dict[str, object]) -> None:
        self._raw(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _raw(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def state_of(handler: Handler) -> argparse.Namespace:
    """The arguments."""
    return handler.state.arguments


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--healthy-after", type=float, default=0.0)
    parser.add_argument("--crash", action="store_true")
    parser.add_argument("--stubborn", action="store_true", help="ignore SIGTERM")
    parser.add_argument("--child", action="store_true", help="start a process in a session of its own, as engines do")
    parser.add_argument("--step", type=float, default=0.01)
    parser.add_argument("--prefill", type=float, default=0.02)
    parser.add_argument("--refuse", type=int, default=-1, help="answer 400 to requests of so many tokens")
    parser.add_argument("--cut", type=int, default=-1, help="close the connection after the first token of such requests")
    arguments = parser.parse_args()
    print("stand-in engine starts", flush=True)
    if arguments.crash:
        raise SystemExit("RuntimeError: no memory left")
    if arguments.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if arguments.child:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    Handler.state = State(arguments)
    ThreadingHTTPServer.request_queue_size = 256
    ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
