"""The web UI's process: the objects that all browser tabs share, the watched inbox, and the start of Streamlit."""

from __future__ import annotations

import ipaddress
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.config import load_settings, quiet
from app.errors import AppError
from app.services import Services
from ingest.inbox import ensure_folder

if TYPE_CHECKING:
    from ingest.sync import Event, Report

PAGE = Path(__file__).parent / "views" / "page.py"
# One section each, so that the browser's choice of light or dark is followed.
THEME = {"light.primaryColor": "#2f7d5b", "dark.primaryColor": "#4fb286"}


class Shared:
    """What every browser tab sees: the services, whether they are loaded yet, and what the inbox is doing."""

    def __init__(self, services: Services, watch: bool) -> None:
        self.services, self.watching = services, watch
        self.ready = threading.Event()
        self.fault: str | None = None  # why the model could not be loaded; tabs show it
        self.activity: dict[str, Event] = {}  # knowledge base -> how far its running ingest is
        services.ingestor.listener = self._hear
        self._threads = [threading.Thread(target=self._warm, daemon=True, name="warm")]
        if watch:
            self._threads.append(threading.Thread(target=self._follow, daemon=True, name="inbox"))
        for thread in self._threads:
            thread.start()

    def _warm(self) -> None:
        started = time.monotonic()
        try:
            self.services.warm()
        except Exception as error:
            self.fault = " ".join(str(error).split())
            click.echo(f"paddock: {self.fault}", err=True)
        else:
            click.echo(f"Model loaded in {time.monotonic() - started:.1f} s. Ready.", err=True)
        self.ready.set()

    def _hear(self, kb: str, event: Event) -> None:
        if event.kind == "done":
            self.activity.pop(kb, None)
        else:
            self.activity[kb] = event

    def _follow(self) -> None:
        """Brings every knowledge base in line, then follows the inbox. A fault is told and does not end it."""
        from ingest.watch import Watcher

        # First the watcher, so that nothing that changes during the first round is missed.
        Watcher(self.services.ingestor, _tell).start()
        for kb in self.services.ingestor.kbs():
            try:
                _tell(self.services.ingestor.sync(kb))
            except Exception as error:
                click.echo(f"paddock: {' '.join(str(error).split())}", err=True)


def _tell(report: Report) -> None:
    from app.ingestion import render

    if report.added or report.changed or report.renamed or report.deleted or report.failed:
        click.echo(render(report), err=True)


_shared: Shared | None = None
_making = threading.Lock()


def shared() -> Shared:
    """The process's one `Shared`; made from the settings when `serve` did not (a bare `streamlit run`)."""
    global _shared
    with _making:
        if _shared is None:
            quiet()
            _shared = Shared(Services(load_settings()), watch=True)
        return _shared


def serve(services: Services, watch: bool) -> None:
    """Starts the web UI and stays until interrupted.

    Raises AppError when the port is taken, or when other machines could reach it without a password.
    """
    global _shared
    settings = services.settings
    _check_host(settings.host, bool(settings.password))
    _check_port(settings.host, settings.port)
    ensure_folder(settings.inbox)
    address = f"[{settings.host}]" if ":" in settings.host else settings.host
    click.echo(f"Paddock is at http://{address}:{settings.port} (inbox: {settings.inbox}; Ctrl+C ends it)", err=True)
    _shared = Shared(services, watch)
    # app.main must be the module that the page imports, not a second copy of it.
    sys.modules.setdefault("app.main", sys.modules[__name__])
    from streamlit.web import cli

    cli.main(["run", str(PAGE), *_flags(settings.host, settings.port, settings.max_file_mb)], standalone_mode=False)


def _flags(host: str, port: int, max_file_mb: int) -> list[str]:
    options: dict[str, object] = {
        "server.address": host,
        "server.port": port,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "server.maxUploadSize": max_file_mb,
        "server.showEmailPrompt": "false",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": "false",
        "logger.level": "error",
        **{f"theme.{key}": value for key, value in THEME.items()},
    }
    flags = [f"--{key}={value}" for key, value in options.items()]
    if _is_loopback(host):
        # A web page elsewhere must not reach this server through a name that it points at 127.0.0.1.
        flags += [f"--server.allowedHosts={name}" for name in ("localhost", "127.0.0.1", "[::1]")]
    return flags


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_host(host: str, has_password: bool) -> None:
    if not _is_loopback(host) and not has_password:
        raise AppError(
            f"other machines could read your documents at {host}; set `password` in paddock.toml "
            "(or PADDOCK_PASSWORD), or leave --host away"
        )


def _check_port(host: str, port: int) -> None:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        free = "" if isinstance(error, socket.gaierror) else f"; choose another with --port, {port + 1} for one"
        raise AppError(f"port {port} of {host} cannot be used ({error.strerror}){free}") from error
