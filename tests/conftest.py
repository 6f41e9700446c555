"""What every test may ask for: the default models, a fresh state folder, settings. No test leaves this machine."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app import config

ROOT = Path(__file__).resolve().parent.parent

# The caller's settings must not reach a test; only the place of the models is kept (see models_dir).
CALLERS_HOME = config.state_folder(os.environ, ROOT)
for name in [name for name in os.environ if name.startswith("PADDOCK_")]:
    del os.environ[name]
# Compiled once for all state folders that tests make; each would take a quarter of a minute of its own.
os.environ.setdefault("NUMBA_CACHE_DIR", str(CALLERS_HOME / "cache" / "numba"))
# Of several processes of one run, each computes with its share of the cores.
if processes := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(processes))))
config.quiet()


@pytest.fixture(scope="session", autouse=True)
def offline() -> Iterator[None]:
    """Refuses every connection that leaves this machine, so that a library that calls home is noticed."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"a test reached for the network: {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The folder of the default models, complete; pulled when it is not (`make setup` does that beforehand)."""
    from app.errors import AppError
    from app.models import pull

    folder = CALLERS_HOME / "models"
    try:
        pull(folder)
    except AppError as error:
        pytest.fail(f"the default models are missing from {folder}: {error}", pytrace=False)
    return folder


@pytest.fixture(scope="session")
def gguf_path(models_dir: Path) -> Path:
    """The default LLaMA."""
    return models_dir / config.DEFAULT_MODEL


@pytest.fixture(scope="session")
def embedder_path(models_dir: Path) -> Path:
    """The default embedder."""
    return models_dir / config.DEFAULT_EMBEDDER


@pytest.fixture(scope="session")
def chromium() -> str:
    """The Chromium that the browser tests drive: the system's, else Playwright's own."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        with sync_playwright() as playwright:
            found = playwright.chromium.executable_path
    if not Path(found).exists():
        pytest.skip("no Chromium: apt-get install chromium fonts-noto-cjk, or .venv/bin/playwright install chromium")
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A fresh state folder with an empty inbox and no models."""
    folder = tmp_path / "home"
    (folder / "inbox").mkdir(parents=True)
    return folder


@pytest.fixture
def home_with_models(home: Path, models_dir: Path) -> Path:
    """A fresh state folder that shares the default models."""
    (home / "models").symlink_to(models_dir.resolve(), target_is_directory=True)
    return home


@pytest.fixture
def settings(home_with_models: Path) -> config.Settings:
    """Default settings over a fresh state folder with the default models."""
    return config.load_settings({"PADDOCK_HOME": str(home_with_models)})
