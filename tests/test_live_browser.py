"""A run in a browser: real requests, a real web socket, and only this machine may look."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from cockpit_lite import live
from cockpit_lite.errors import SetupError
from cockpit_lite.plots.follow import Follower
from cockpit_lite.run_log import RunWriter

pytest.importorskip("tornado", reason="watch --serve is an extra: needs tornado")

from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.websocket import websocket_connect

from cockpit_lite.live_browser import HOST, BrowserPage, application, directions, serve


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunWriter]:
    made = RunWriter(tmp_path / "<run>", {"model": {"class": "Net"}, "status": "running"})
    made.block(list(range(20)), {"loss": [2.0 / (1 + step) for step in range(20)]})
    made.flush()
    yield made
    made.abandon()


class Served:
    """A page that is served, for one test."""

    def __init__(self, writer: RunWriter):
        self.page = BrowserPage(Follower(writer.folder))
        sockets = bind_sockets(0, HOST)
        self.port = sockets[0].getsockname()[1]
        self._server = HTTPServer(application(self.page))
        self._server.add_sockets(sockets)

    async def get(self, path: str, **headers: str) -> Any:
        request = HTTPRequest(f"http://{HOST}:{self.port}{path}", headers=headers)
        return await AsyncHTTPClient().fetch(request, raise_error=False)

    async def close(self) -> None:
        self._server.stop()
        await self._server.close_all_connections()


async def pictures(socket: Any) -> AsyncIterator[bytes]:
    while True:
        message = await asyncio.wait_for(socket.read_message(), 30)
        assert message is not None
        if isinstance(message, bytes):
            yield message
            await socket.write_message(json.dumps({"type": "ack"}))
        elif json.loads(message)["type"] == "draw":  # what the script in the browser does
            await socket.write_message(json.dumps({"type": "draw"}))


def test_a_browser_gets_the_page_and_new_pictures_as_the_run_grows(writer: RunWriter) -> None:
    async def look() -> None:
        served = Served(writer)
        page = await served.get("/")
        assert page.code == 200 and b"cockpit-lite: &lt;run&gt;" in page.body and b"<run>" not in page.body
        for path in ("/mpl.js", "/_static/css/mpl.css", "/_images/home.png", "/1/download.png"):
            assert (await served.get(path)).code == 200, path
        socket = await websocket_connect(f"ws://{HOST}:{served.port}/ws")
        await socket.write_message(json.dumps({"type": "supports_binary", "value": True}))
        await socket.write_message(json.dumps({"type": "refresh"}))
        seen = pictures(socket)
        assert (await anext(seen))[:4] == b"\x89PNG"
        writer.block([20, 21], {"loss": [5.0, 6.0]})
        writer.flush()
        served.page._looked = 0.0
        served.page.tick()
        assert (await anext(seen))[:4] == b"\x89PNG"
        assert served.page.follower.run.last_step == 21
        socket.close()
        await served.close()

    asyncio.run(look())


def test_nobody_else_may_look(writer: RunWriter) -> None:
    async def look() -> None:
        served = Served(writer)
        assert (await served.get("/", Host="evil.example")).code == 404  # a name that was made to point here
        assert (await served.get("/", Host=f"localhost:{served.port}")).code == 200
        for path in ("/../run.json", "/_static/../../run.json", "/1/download.pgf", "/readings.jsonl"):
            assert (await served.get(path)).code in (403, 404), path
        request = HTTPRequest(f"ws://{HOST}:{served.port}/ws", headers={"Origin": "http://evil.example"})
        with pytest.raises(Exception, match="403"):
            await websocket_connect(request)
        await served.close()

    asyncio.run(look())


def test_nothing_is_drawn_where_nobody_looks(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    async def tick() -> None:
        page = BrowserPage(Follower(writer.folder))
        monkeypatch.setattr(page.follower, "refresh", lambda: pytest.fail("the run was read"))
        page.tick()

    asyncio.run(tick())


def test_the_directions_name_the_tunnel() -> None:
    said = directions(1234)
    assert said.startswith("http://127.0.0.1:1234/\n")
    assert "ssh -N -L 1234:127.0.0.1:1234 " in said


def test_a_port_that_is_taken_is_named(writer: RunWriter) -> None:
    (taken,) = bind_sockets(0, HOST)
    with pytest.raises(SetupError, match=r"Port \d+ cannot be used .*--port"):
        serve(Follower(writer.folder), taken.getsockname()[1])
    taken.close()


def test_the_command_says_where_and_serves(writer: RunWriter) -> None:
    command = [sys.executable, "-m", "cockpit_lite", "watch", str(writer.folder), "--serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http"), process.stdout.read()

        async def ask() -> int:
            return int((await AsyncHTTPClient().fetch(address)).code)

        until = time.monotonic() + 30
        while True:
            try:
                assert asyncio.run(ask()) == 200
                break
            except OSError:
                assert time.monotonic() < until
    finally:
        process.terminate()
        process.communicate()


def test_without_tornado_the_extra_is_named(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cockpit_lite.live_browser", None)
    with pytest.raises(SetupError, match=r'pip install "cockpit-lite\[serve\]"'):
        live.watch(writer.folder, "serve")
