"""A local page that shows a study while it goes on: read-only, and on the loopback address only.

What a page on the loopback address has to fear is other pages in the same browser. So there is
nothing to write to; requests under another host name are refused (a name that an attacker owns may
be made to point here); no other origin may read an answer or frame the page; and the page runs no
script and takes no style but its own files, so that a hostile name could do nothing even unescaped.
"""

from __future__ import annotations

import math
import socketserver
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trimtab.core.errors import SpecError, StoreError, TrimtabError
from trimtab.records.reports.page import asset, text
from trimtab.records.reports.study_tree import course_svg, tree_svg
from trimtab.records.reports.study_view import StudyRun, StudyView, read_view
from trimtab.records.store.encoding import to_json
from trimtab.records.store.store import Store

LOOPBACK = "127.0.0.1"
"""The only address that the page is served on."""

_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
_LAST_PORT = 65535
_FRESH_SECONDS = 1.0  # a state that is younger is given again, however many pages are open
_MOST_GOING, _MOST_OVER = 50, 50
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class WatchServer(ThreadingHTTPServer):
    """Serves the page of one study until it is closed.

    Args:
        study: Its name.
        store: Database URL, or path of an SQLite file; it is only read.
        port: 0 for one that is free.

    Raises:
        UnknownNameError: There is no study of that name.
        StoreError: The store cannot be read.
        SpecError: The port cannot be used.
    """

    daemon_threads = True

    def __init__(self, study: str, store: str | Path, port: int = 0) -> None:
        if not 0 <= port <= _LAST_PORT:
            raise SpecError(
                f"--port: {port} is not in 0..{_LAST_PORT}; choose another, or 0 for one that is "
                "free"
            )
        self._study, self._lock = study, threading.Lock()
        self._store = Store(store)
        self._state, self._read_at = b"", -math.inf
        try:
            self.state()  # a study that is not there is told before anything is served
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            self._store.close()
            raise SpecError(
                f"--port: {port} cannot be used on {LOOPBACK} ({error.strerror or error}); choose "
                "another, or 0 for one that is free"
            ) from error
        except BaseException:
            self._store.close()
            raise

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{LOOPBACK}:{self.server_address[1]}/"

    def server_bind(self) -> None:
        """Bind to the address, without asking the network for its name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, int(self.server_address[1])

    def server_close(self) -> None:
        """Stop listening, and let go of the store."""
        super().server_close()
        self._store.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a page that was closed while it was answered."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def state(self) -> bytes:
        """Return the study as it stands, as JSON.

        Raises:
            UnknownNameError: The study is not there any more.
            StoreError: The store cannot be read.
        """
        with self._lock:
            if time.monotonic() - self._read_at >= _FRESH_SECONDS:
                state = watch_state(read_view(self._store, self._study))
                self._state, self._read_at = to_json(state).encode(), time.monotonic()
            return self._state

    def page(self) -> bytes:
        """Return the page; what it shows comes from its script."""
        return asset("watch.html").replace("{study}", text(self._study)).encode()


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD under a loopback name; refuses everything else."""

    server: WatchServer
    server_version, sys_version = "trimtab", ""
    timeout = 20.0  # seconds for a request that is sent slowly

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # any method, whatever it is called
            return self._refuse_method
        raise AttributeError(name)

    def do_GET(self) -> None:
        """Answer with what was asked for."""
        if not self._is_local():
            words = f"this page is at http://{LOOPBACK} only\n"
            self._answer(403, "text/plain; charset=utf-8", words.encode())
            return
        try:
            found = self._found(urlsplit(self.path).path)
        except TrimtabError as error:
            status = 503 if isinstance(error, StoreError) else 404
            self._answer(status, "application/json", to_json({"error": str(error)}).encode())
            return
        if found is None:
            self._answer(404, "text/plain; charset=utf-8", b"there is no such page\n")
        else:
            self._answer(200, *found)

    do_HEAD = do_GET  # noqa: N815 - as the base class wants it

    def _found(self, path: str) -> tuple[str, bytes] | None:
        """Return the type and content of a path; None if there is nothing."""
        if path == "/":
            return "text/html; charset=utf-8", self.server.page()
        if path == "/study.json":
            return "application/json", self.server.state()
        if path == "/watch.js":
            return "text/javascript; charset=utf-8", asset("watch.js").encode()
        if path == "/watch.css":
            sheets = ("report.css", "study.css", "watch.css")
            return "text/css; charset=utf-8", "".join(map(asset, sheets)).encode()
        return None

    def _is_local(self) -> bool:
        """Whether the request names this machine by its loopback address or name."""
        given = self.headers.get_all("Host") or []
        if len(given) != 1:
            return False
        try:
            parts = urlsplit(f"//{given[0].strip()}")
            is_plain = not parts.path and not parts.query and parts.username is None
            return is_plain and parts.port is not None and parts.hostname in _HOSTS
        except ValueError:
            return False

    def _refuse_method(self) -> None:
        self._answer(405, "text/plain; charset=utf-8", b"this page can only be read\n")

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if status == 405:
            self.send_header("Allow", "GET, HEAD")
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal belongs to whoever watches."""


def watch_state(view: StudyView) -> dict[str, Any]:
    """Return what the page shows of a study, as plain data; drawings are SVG with escaped texts."""
    best = view.best
    going = [run for run in view.runs if not run.is_over]
    over = [run for run in view.runs if run.is_over]
    best_labels = {run.label for run in view.best_path}
    listed = [*going[:_MOST_GOING], *reversed(over[-_MOST_OVER:])]
    return {
        "study": view.record.name,
        "task": view.record.task,
        "method": view.record.method,
        "seed": view.record.seed,
        "status": view.status,
        "budget": view.record.budget,
        "spent": view.spent,
        "monitor": view.monitor,
        "workers": view.workers,
        "seconds_left": view.seconds_left,
        "over": len(over),
        "known": len(view.runs),
        "best": None if best is None else _row(best, set()),
        "rows": [_row(run, best_labels) for run in listed],
        "tree": tree_svg(view),
        "course": course_svg(view),
    }


def _row(run: StudyRun, best: set[str]) -> dict[str, Any]:
    choices: Mapping[str, Any] = run.choices
    return {
        "unit": run.label,
        "kind": run.kind,
        "status": run.status,
        "begins": run.begins,
        "ends": run.ends,
        "choices": {str(name): value for name, value in choices.items()},
        "change": run.change,
        "error": run.error,
        "validation": run.validation if math.isfinite(run.validation) else None,
        "spent": run.spent if run.is_over else None,
        "is_best": run.label in best,
    }
