"""A headless browser, driven through a pipe by the protocol of its developer tools: no driver, no port, no network."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
FLAGS += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"]


class Page:
    """One page of the browser."""

    def __init__(self, send, receive):
        self._out, self._in = send, os.fdopen(receive, "rb")
        self._number, self._held, self.session, self.events = 0, b"", None, []

    def __call__(self, method, **arguments):
        """Run a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": arguments}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def _next(self):
        while b"\0" not in self._held:
            part = os.read(self._in.fileno(), 1 << 20)
            assert part, "the browser is gone"
            self._held += part
        text, _, self._held = self._held.partition(b"\0")
        return json.loads(text)

    def open(self, path):
        """Open a local file and wait until it is loaded."""
        self("Network.enable")
        self("Runtime.enable")
        self("Log.enable")
        self("Page.enable")
        self("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def look(self, *, width, height=900, scheme="light"):
        """Give the page a size in CSS pixels and a colour scheme."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def value(self, expression):
        """Return the value of an expression."""
        return self("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def press(self, key):
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if len(key) == 1 and kind == "keyDown" else {}
            self("Input.dispatchKeyEvent", type=kind, key=key, **text)

    def requests(self):
        """Return the addresses that were asked for, pictures inside the page aside."""
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [address for address in asked if not address.startswith("data:")]

    def complaints(self):
        """Return what the browser has logged: errors, and what the page's policy has kept out."""
        entries = [e["params"]["entry"]["text"] for e in self.events if e.get("method") == "Log.entryAdded"]
        return entries + [str(e["params"]) for e in self.events if e.get("method") == "Runtime.exceptionThrown"]

    def photograph(self, path, *, whole=False):
        """Save what is seen, or the whole page, as a PNG."""
        data = self("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        Path(path).write_bytes(base64.b64decode(data))


@contextmanager
def browser():
    """Yield a page of a new browser."""
    (to_child, from_us), (from_child, to_us) = os.pipe(), os.pipe()
    given = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (to_child, to_us)]  # apart from 3 and 4, which they become
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        start = f'exec "$0" "$@" 3<&{given[0]} 4>&{given[1]}'
        command = ["bash", "-c", start, PROGRAM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, pass_fds=given, env=os.environ | {"HOME": profile}, **quiet)
        for end in (to_child, to_us, *given):
            os.close(end)
        page = Page(from_us, from_child)
        try:
            target = page("Target.createTarget", url="about:blank")["targetId"]
            page.session = page("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            yield page
        finally:
            process.kill()
            process.wait()
            os.close(from_us)
            page._in.close()
