"""A small HTTP server on loopback for tests: range requests done right, and done wrong on purpose.

It runs in a process of its own, because GDAL reads some of what it asks for while it holds Python's lock. It serves the
files of a folder, answers a bounded number of requests, keeps a list of them, and ends with the `with` block or with
the process that started it.
"""

import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

MOST_REQUESTS = 5000  # a reader that never gives up fails its test instead of running for ever
LONGEST_WAIT_S = 20.0

CUT = "cut"  # half of the body, then the connection is closed
DROP = "drop"  # the connection is closed without an answer
HANG = "hang"  # no answer
STALL = "stall"  # half of the body, then nothing more


class Request(NamedTuple):
    """One request as it came; `number` counts from 1."""

    number: int
    method: str
    path: str
    range: str | None


class Server:
    """The server as the test sees it."""

    def __init__(self, process, address):
        self._process, self.address = process, address

    def url(self, name):
        return f"http://{self.address}/{name}"

    def fail(self, action, *, after=0, first=None, every=1, method=None):
        """From now on, answer by `action` (a status, or CUT, DROP, HANG, STALL) some requests.

        Counted from here: those after the first `after`, up to number `first`, each `every`-th, those by `method`.
        """
        plan = {"action": action, "after": after, "first": first, "every": every, "method": method}
        self._ask({"plan": plan})

    def heal(self):
        """From now on, answer well."""
        self._ask({"plan": None, "ranges": True, "claimed": 0})

    def odd(self, *, ranges=True, claimed=0):
        """From now on, send whole files only, or tell a length that is off by `claimed`."""
        self._ask({"ranges": ranges, "claimed": claimed})

    @property
    def requests(self):
        """All requests so far."""
        return [Request(*one) for one in self._ask({})]

    def _ask(self, command):
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextmanager
def serving(folder):
    """Serve the files of a folder on a free port of loopback."""
    command = [sys.executable, str(Path(__file__).resolve()), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Server(process, process.stdout.readline().strip())
        finally:
            process.kill()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = LONGEST_WAIT_S
    disable_nagle_algorithm = True
    folder = Path()
    requests: list = []  # noqa: RUF012 - one server to a process
    state: dict = {"plan": None, "ranges": True, "claimed": 0, "since": 0}  # noqa: RUF012
    lock = threading.Lock()

    def do_GET(self):
        self._answer(with_body=True)

    def do_HEAD(self):
        self._answer(with_body=False)

    def log_message(self, *_):
        pass

    def _answer(self, *, with_body):
        path = unquote(urlsplit(self.path).path).lstrip("/")
        with self.lock:
            number = len(self.requests) + 1
            self.requests.append(Request(number, self.command, path, self.headers.get("Range")))
            action = 503 if number > MOST_REQUESTS else self._planned(number - self.state["since"])
        file = self.folder / path
        if action is None and not file.is_file():
            action = 404
        if isinstance(action, int):
            self._refuse(action, with_body)
        elif action in (DROP, HANG):
            if action == HANG:
                threading.Event().wait(LONGEST_WAIT_S)
            self.close_connection = True
        else:
            self._send(file.read_bytes(), action, with_body)

    def _planned(self, number):
        plan = self.state["plan"]
        if plan is None or plan["method"] not in (None, self.command):
            return None
        meant = number > plan["after"] and number <= (plan["first"] or number) and number % plan["every"] == 0
        return plan["action"] if meant else None

    def _refuse(self, status, with_body):
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        if with_body:
            self.wfile.write(b"no")

    def _send(self, body, action, with_body):
        size, claimed, ranges = len(body), self.state["claimed"], self.state["ranges"]
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "") if ranges else None
        start, stop = 0, size
        if found:
            start, stop = int(found[1]), min(size, int(found[2]) + 1) if found[2] else size
            if start >= size:
                return self._refuse(416, with_body)
        self.send_response(206 if found else 200)
        if found:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size + claimed}")
        if ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start if found else size + claimed))
        self.end_headers()
        part = body[start:stop]
        if action in (CUT, STALL):
            part = part[: len(part) // 2]
        if with_body:
            self.wfile.write(part)
            self.wfile.flush()
            if action == STALL:
                threading.Event().wait(LONGEST_WAIT_S)
        self.close_connection = action is not None or (claimed != 0 and not found)
        return None


class _Listening(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """Readers that hang up early are no matter here."""


def _serve(folder):
    _Handler.folder = Path(folder)
    listening = _Listening(("127.0.0.1", 0), _Handler)
    threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    print(f"127.0.0.1:{listening.server_address[1]}", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        with _Handler.lock:
            if command:
                _Handler.state |= command | {"since": len(_Handler.requests)}
            text = json.dumps(_Handler.requests)
        print(text, flush=True)
    os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1])
