"""A running `paddock serve` over a fresh state folder, and Chromium to drive it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Server:
    url: str
    home: Path
    ready_s: float


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Starts the web UI as a user does and waits until its model is loaded."""
    home = tmp_path_factory.mktemp("home")
    (home / "inbox").mkdir()
    (home / "models").symlink_to(models_dir.resolve(), target_is_directory=True)
    port, log = free_port(), home / "serve.log"
    started = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "serve", "--port", str(port)],
            # The bare model talks long enough to be seen streaming and to be stopped; the reader says a word or two.
            env={**os.environ, "PADDOCK_HOME": str(home), "PADDOCK_ADAPTER": "none"},
            stderr=file,
            stdout=file,
        )
    try:
        while "Ready." not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() - started < 180, log.read_text()
            time.sleep(0.2)
        yield Server(f"http://127.0.0.1:{port}", home, time.monotonic() - started)
    finally:
        process.terminate()
        process.wait(20)
        print(log.read_text())


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()
