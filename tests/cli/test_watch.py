"""The watch page: it shows a study, changes nothing, and answers nobody but this machine."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.records.reports.test_run import too_wide
from tests.records.study_rows_made import SPITE, made_study
from trimtab.cli.main import main
from trimtab.core.errors import SpecError, StoreError
from trimtab.records.reports.page import asset
from trimtab.records.reports.watch import WatchServer
from trimtab.records.store.transactions import Transactions

ROOT = Path(__file__).parents[2]
TIMEOUT = 120.0  # seconds; processes start slowly where others are at work


@contextlib.contextmanager
def watching(store: Path) -> Iterator[WatchServer]:
    """Serve the study ``made`` of a store from a thread."""
    with WatchServer("made", store) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchServer]:
    """A page of a running study in which every name is hostile."""
    path = tmp_path_factory.mktemp("watch") / "runs.db"
    made_study(path, 12, text=SPITE, going=2, status="running")
    with watching(path) as made:
        yield made


def ask(
    server: WatchServer, path: str = "/", method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=TIMEOUT)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, answer.headers, answer.read().decode()
    connection.close()
    return found


# What it shows.


def test_the_state_tells_progress_best_tree_and_time_left(server: WatchServer) -> None:
    status, headers, text = ask(server, "/study.json")
    state = json.loads(text)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert (state["study"], state["status"]) == ("made", "running")
    assert (state["over"], state["known"], state["workers"]) == (10, 12, 2)
    assert state["best"]["validation"] == min(row["validation"] or 9 for row in state["rows"])
    assert isinstance(state["seconds_left"], float)
    assert state["tree"].count('<g class="run ') == 12
    going = [row for row in state["rows"] if row["status"] == "running"]
    assert [row["ends"] for row in going] == [0.9, 0.9]


def test_the_page_and_its_files_are_there_and_nothing_else(server: WatchServer) -> None:
    _, _, page = ask(server)
    assert "<title>made · trimtab</title>" in page
    for path in re.findall(r'(?:src|href)="(/[^"]*)"', page):
        assert ask(server, path)[0] == 200
    for path in ("/runs.db", "/../cli.py", "/%2e%2e/watch.py", "/watch.py"):
        assert ask(server, path)[0] == 404


def test_a_study_that_goes_on_is_shown_as_it_stands(tmp_path: Path) -> None:
    from trimtab.records.store.models import studies

    made_study(tmp_path / "r.db", 3, status="running")
    with watching(tmp_path / "r.db") as server:
        assert json.loads(ask(server, "/study.json")[2])["status"] == "running"
        written = Transactions(tmp_path / "r.db")
        query = studies.update().values(status="finished")
        written.change(lambda connection: connection.execute(query))
        written.close()
        time.sleep(1.1)
        assert json.loads(ask(server, "/study.json")[2])["status"] == "finished"


def test_a_store_that_cannot_be_read_is_said_and_the_page_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreError("the store is away")

    made_study(tmp_path / "r.db", 2)
    with watching(tmp_path / "r.db") as server:
        monkeypatch.setattr("trimtab.records.reports.watch.read_view", fail)
        monkeypatch.setattr("trimtab.records.reports.watch._FRESH_SECONDS", 0.0)
        status, _, text = ask(server, "/study.json")
        assert (status, json.loads(text)) == (503, {"error": "the store is away"})
        assert ask(server)[0] == 200


@pytest.mark.parametrize(("error", "is_told"), [(BrokenPipeError(), False), (KeyError("x"), True)])
def test_a_page_that_is_closed_too_early_says_nothing(
    server: WatchServer, capsys: pytest.CaptureFixture[str], error: Exception, is_told: bool
) -> None:
    try:
        raise error
    except (BrokenPipeError, KeyError):
        server.handle_error(None, ("127.0.0.1", 1))
    assert bool(capsys.readouterr().err) == is_told


# What it refuses.


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize("path", ["/", "/study.json", "/elsewhere"])
def test_nothing_can_be_written(server: WatchServer, method: str, path: str) -> None:
    status, headers, _ = ask(server, path, method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_head_answers_without_content(server: WatchServer) -> None:
    status, headers, text = ask(server, "/study.json", "HEAD")
    assert (status, text) == (200, "")
    assert int(headers["Content-Length"]) > 100


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "localhost.evil.example:80",
        "127.0.0.1.evil.example:80",
        "127.0.0.1",  # a page on the usual port is not this one
        "127.0.0.1@evil.example:80",
        "evil.example:80/127.0.0.1",
        "0.0.0.0:80",
        "[::2]:80",
        "127.0.0.1:port",
        "[",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/", "/study.json"])
def test_another_host_name_is_refused(server: WatchServer, host: str, path: str) -> None:
    status, _, text = ask(server, path, Host=host)
    assert status == 403
    assert "made" not in text


@pytest.mark.parametrize("host", ["localhost:80", "LOCALHOST:80", "127.0.0.1:9000", "[::1]:80"])
def test_a_loopback_name_is_answered_through_a_tunnel_too(server: WatchServer, host: str) -> None:
    assert ask(server, Host=host)[0] == 200


@pytest.mark.parametrize("hosts", [(), ("127.0.0.1:80", "evil.example:80")])
def test_no_host_name_and_two_are_refused(server: WatchServer, hosts: tuple[str, ...]) -> None:
    lines = "".join(f"Host: {host}\r\n" for host in hosts)
    with socket.create_connection(("127.0.0.1", server.server_port), TIMEOUT) as raw:
        raw.sendall(f"GET / HTTP/1.0\r\n{lines}\r\n".encode())
        assert raw.makefile("rb").readline().split()[1] == b"403"


def test_only_the_loopback_address_is_bound(server: WatchServer) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"
    with pytest.raises(OSError, match=r"refused|unreachable|assign"):
        socket.create_connection(("127.0.0.2", server.server_port), 5)


def test_the_policy_lets_the_page_run_nothing_but_its_own_files(server: WatchServer) -> None:
    for path in ("/", "/study.json", "/watch.js", "/nowhere"):
        headers = ask(server, path)[1]
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Access-Control-Allow-Origin"] is None


def test_every_name_that_a_user_chose_is_escaped(server: WatchServer) -> None:
    state = json.loads(ask(server, "/study.json")[2])
    drawings = state["tree"] + state["course"]
    assert "alert(1)" in drawings
    assert "<script" not in drawings
    assert "<img" not in drawings
    assert "innerHTML" not in ask(server, "/watch.js")[2]  # the rest goes in as text


def test_a_hostile_name_of_a_study_is_escaped_in_the_page(tmp_path: Path) -> None:
    made_study(tmp_path / "r.db", 2, name=SPITE)
    with WatchServer(SPITE, tmp_path / "r.db") as server:
        page = server.page().decode()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page


# The command.


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("watch", "made"), 1, "there is no store at trimtab.db"),
        (("watch", "mode", "--store", "r.db"), 2, "unknown study 'mode'; did you mean 'made'"),
        (("watch", "made", "--store", "none"), 2, "none keeps no study to watch"),
        (("watch", "made", "--port", "70000"), 2, "--port: 70000 is not in 0..65535"),
    ],
)
def test_what_cannot_be_watched_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRIMTAB_STORE", raising=False)
    made_study(tmp_path / "r.db", 2)
    with pytest.raises(SystemExit) as ended:
        main(words)
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (status, "")
    assert message in printed.err
    assert len(printed.err.strip().splitlines()) == 1


def test_a_port_that_is_taken_is_refused(server: WatchServer, tmp_path: Path) -> None:
    made_study(tmp_path / "r.db", 2)
    with pytest.raises(SpecError, match=f"--port: {server.server_port} cannot be used"):
        WatchServer("made", tmp_path / "r.db", server.server_port)


def test_the_help_is_the_golden_text(
    capsys: pytest.CaptureFixture[str],
    golden: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRIMTAB_STORE", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main(("watch", "--help"))
    golden("cli-help-watch.txt", capsys.readouterr().out)


def test_ctrl_c_ends_with_0_and_json_tells_the_address(tmp_path: Path) -> None:
    made_study(tmp_path / "r.db", 2)
    words = ["watch", "made", "--store", str(tmp_path / "r.db"), "--no-browser", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "trimtab", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    try:
        told = "".join(process.stdout.readline() for _ in range(4))
        address = json.loads(told)["url"]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        with socket.create_connection(("127.0.0.1", int(address[17:-1])), TIMEOUT):
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, out) == (0, "")
        assert err == "trimtab: no longer watching\n"
    finally:
        process.kill()


@pytest.mark.framework
def test_the_page_in_a_browser_shows_the_study_and_its_runs(
    server: WatchServer, tmp_path: Path
) -> None:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--virtual-time-budget=9000",
    ]
    options += ["--dump-dom", f"--user-data-dir={tmp_path / 'profile'}", server.url]
    done = subprocess.run(
        [program, *options], capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    assert 'data-shown="12"' in done.stdout
    assert '<span id="name">made</span>' in done.stdout
    assert done.stdout.count('class="run ') == 12
    listed = re.findall(r'<tr(?: class="best")?><td>(\d+)</td>', done.stdout)
    assert sorted(map(int, listed)) == list(range(12))
    assert "<script>alert" not in done.stdout
    assert "&lt;script&gt;alert" in done.stdout


@pytest.mark.framework
@pytest.mark.parametrize("width", [1300, 420])
def test_nothing_is_wider_than_the_window(server: WatchServer, tmp_path: Path, width: int) -> None:
    page = server.page().decode()  # as a file: the served one lets nobody frame it
    styles = "".join(asset(name) for name in ("report.css", "study.css", "watch.css"))
    told = json.dumps(server.state().decode()).replace("<", "\\u003c")
    answer = f"const fetch = async () => ({{ ok: true, text: async () => {told} }});"
    script = asset("watch.js").replace('"use strict";', f'"use strict";{answer}')
    page = page.replace('<link rel="stylesheet" href="/watch.css">', f"<style>{styles}</style>")
    page = page.replace('<script src="/watch.js" defer></script>', "")
    path = tmp_path / "watch.html"
    path.write_text(page.replace("</body>", f"<script>{script}</script></body>"))
    assert too_wide(path, width) == []
