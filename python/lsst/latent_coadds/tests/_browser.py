# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""A browser without a window, to try pages in."""

from __future__ import annotations

__all__ = ("Browser", "find_browser", "open_browser")

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def find_browser() -> str | None:
    """Return the path of Chromium or Chrome, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextlib.contextmanager
def open_browser(path: str) -> Iterator[Browser]:
    """Run a browser with an empty profile of its own.

    Parameters
    ----------
    path : `str`
        Its program; see `find_browser`.

    Yields
    ------
    browser : `Browser`
        The browser, with one empty page.
    """
    to_read, to_write = os.pipe()
    of_read, of_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        # The browser reads descriptor 3 and writes descriptor 4.
        script = f'exec "$@" 3<&{to_read} 4>&{of_write}'
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", path, *arguments, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_read, of_write),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(of_write)
        browser = Browser(to_write, of_read)
        try:
            target = browser.call("Target.createTarget", url="about:blank")["targetId"]
            browser.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)[
                "sessionId"
            ]
            for domain in ("Page", "Runtime", "Log"):
                browser.call(f"{domain}.enable")
            yield browser
        finally:
            process.terminate()
            process.wait(timeout=20)
            os.close(to_write)
            os.close(of_read)


@dataclasses.dataclass
class Browser:
    """Chromium, spoken to through its debugging pipe.

    Parameters
    ----------
    to, of : `int`
        File descriptors to write requests to and read answers of.
    """

    to: int
    of: int
    session: str = ""
    number: int = 0
    buffer: bytes = b""
    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask for something, and return the answer."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            more = os.read(self.of, 1 << 16)
            if not more:
                raise RuntimeError("The browser closed its pipe.")
            self.buffer += more
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path) -> None:
        """Open a file, and wait until all of it is there."""
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        self.wait_for(f"document.readyState === 'complete' && location.href === {path.as_uri()!r}")

    def wait_for(self, condition: str, seconds: float = 20.0) -> None:
        """Wait until an expression is true, or raise `TimeoutError`."""
        found = self.evaluate(
            f"new Promise(done => {{ const end = Date.now() + {1000 * seconds}; const look = () => "
            f"({condition}) ? done(true) : Date.now() > end ? done(false) : setTimeout(look, 20); look(); }})"
        )
        if not found:
            raise TimeoutError(f"After {seconds:g} s this is not true yet: {condition}")

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key, and let it go."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key)

    @property
    def errors(self) -> list[str]:
        """What the page complained of since it was opened (`list` [`str`])."""
        bad = ("Runtime.exceptionThrown", "Log.entryAdded")
        return [str(event["params"]) for event in self.events if event.get("method") in bad]
