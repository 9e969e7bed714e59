"""The cockpit in a browser: matplotlib's WebAgg, for a training on a server, through a tunnel of ssh. Needs tornado.

Only this machine can reach the port, and only under its own name, so that no page of the web can have a browser look. What is
served is a picture; the browser sends back clicks and the size of its window. Whoever may use this machine may look.
"""

from __future__ import annotations

import getpass
import html
import io
import json
import socket
import time
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends import backend_webagg_core as webagg
from matplotlib.figure import Figure
from rich.console import Console
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.web import Application, HTTPError, RequestHandler, StaticFileHandler
from tornado.websocket import WebSocketHandler

from cockpit_lite.errors import SetupError
from cockpit_lite.plots.follow import Follower
from cockpit_lite.plots.pace import Pace
from cockpit_lite.plots.page import PAGE_SIZE, Page
from cockpit_lite.plots.painter import Painter

_new_manager = getattr(webagg, "new_figure_manager_given_figure")  # noqa: B009 - the backend's class decorator puts it there

HOST = "127.0.0.1"
#: The names by which a browser on this machine, or at the other end of a tunnel, calls it.
_NAMES = r"(127\.0\.0\.1|localhost)"
#: Seconds between two looks at the run, and between two of what is left to be drawn.
_INTERVALS, _SOON = (1.0, 3.0), 0.2
_FORMATS = {"png": "image/png", "svg": "image/svg+xml", "pdf": "application/pdf"}

_DOCUMENT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<link rel="stylesheet" href="_static/css/page.css">
<link rel="stylesheet" href="_static/css/boilerplate.css">
<link rel="stylesheet" href="_static/css/fbm.css">
<link rel="stylesheet" href="_static/css/mpl.css">
<style>body {{ margin: 0; background: #f3f4f6; }} #figure {{ margin: 8px auto; width: max-content; }}</style>
<script src="_static/js/mpl_tornado.js"></script>
<script src="mpl.js"></script>
</head>
<body>
<noscript>This page needs JavaScript.</noscript>
<div id="figure" role="img" aria-label="{title}"></div>
<script>
var address = (location.protocol === "https:" ? "wss://" : "ws://") + location.host + "/ws";
new mpl.figure(1, new WebSocket(address), mpl_ondownload, document.getElementById("figure"));
</script>
</body>
</html>
"""


class BrowserPage:
    """The page of a run on a canvas that browsers look at."""

    def __init__(self, follower: Follower):
        self.follower = follower
        self.figure = Figure(figsize=PAGE_SIZE, dpi=100)
        self.manager: Any = _new_manager(1, self.figure)
        self.manager.set_window_title(self.title)
        self._painter = Painter(Page(figure=self.figure))
        self._painter.refresh(follower.run, follower.state)
        self._state = follower.state
        self._pace = Pace(*_INTERVALS)
        self._look_again = 0.0

    @property
    def title(self) -> str:
        """Title of the page in the browser."""
        return f"cockpit-lite: {self.follower.folder.resolve().name}"

    def tick(self) -> None:
        """Bring the picture up to date, if anybody looks and there is something new."""
        if not self.manager.web_sockets:
            return
        due = time.monotonic() >= self._look_again
        with self._pace:
            changed = due and (self.follower.refresh() or self._state != self.follower.state)
            if changed or self._painter.waiting:
                self._state = self.follower.state
                if self._painter.refresh(self.follower.run, self._state):
                    self.manager.canvas.blit()
        if due:
            self._look_again = time.monotonic() + self._pace.rest()


class _Document(RequestHandler):
    """The page itself."""

    def initialize(self, page: BrowserPage) -> None:
        self.page = page

    def set_default_headers(self) -> None:
        self.set_header("X-Frame-Options", "DENY")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cache-Control", "no-store")

    def get(self) -> None:
        self.write(_DOCUMENT.format(title=html.escape(self.page.title)))


class _Script(RequestHandler):
    """matplotlib's side of the browser."""

    def get(self) -> None:
        self.set_header("Content-Type", "application/javascript")
        self.write(webagg.FigureManagerWebAgg.get_javascript())


class _Download(RequestHandler):
    """The picture as a file, for the button below it."""

    def initialize(self, page: BrowserPage) -> None:
        self.page = page

    def get(self, form: str) -> None:
        if form not in _FORMATS:
            raise HTTPError(404)
        file = io.BytesIO()
        self.page.figure.savefig(file, format=form, facecolor=self.page.figure.get_facecolor())
        self.set_header("Content-Type", _FORMATS[form])
        self.write(file.getvalue())


class _Socket(WebSocketHandler):
    """Sends pictures, takes clicks. Tornado refuses pages of another origin by itself."""

    supports_binary = True

    def initialize(self, page: BrowserPage) -> None:
        self.page = page

    def open(self, *_: str, **__: str) -> None:
        self.page.manager.add_web_socket(self)
        self.set_nodelay(True)

    def on_close(self) -> None:
        self.page.manager.remove_web_socket(self)

    def on_message(self, message: str | bytes) -> None:
        event = json.loads(message)
        if event["type"] == "supports_binary":
            self.supports_binary = bool(event["value"])
        else:
            self.page.manager.handle_json(event)

    def send_json(self, content: Any) -> None:
        """Called by matplotlib."""
        self.write_message(json.dumps(content))

    def send_binary(self, blob: bytes) -> None:
        """Called by matplotlib with a picture."""
        self.write_message(blob, binary=True)


def application(page: BrowserPage) -> Application:
    """Return what is served."""
    served = Application()
    images = Path(matplotlib.get_data_path(), "images")
    served.add_handlers(
        _NAMES,
        [
            (r"/", _Document, {"page": page}),
            (r"/ws", _Socket, {"page": page}),
            (r"/mpl\.js", _Script),
            (r"/1/download\.([a-z]+)", _Download, {"page": page}),
            (r"/_static/(.*)", StaticFileHandler, {"path": webagg.FigureManagerWebAgg.get_static_file_path()}),
            (r"/_images/(.*)", StaticFileHandler, {"path": str(images)}),
        ],
    )
    return served


def serve(follower: Follower, port: int, console: Console | None = None) -> None:
    """Serve the page of a run until Ctrl-C.

    Args:
        follower: The run.
        port: Where; 0: any that is free.
        console: Where the address is printed.

    Raises:
        SetupError: if the port is taken.
    """
    try:
        listening = socket.create_server((HOST, port), backlog=16)
    except OSError as error:
        raise SetupError(f"Port {port} cannot be used ({error.strerror or error}). Choose another with --port.") from error
    page = BrowserPage(follower)
    server = HTTPServer(application(page))
    listening.setblocking(False)
    server.add_socket(listening)
    callback = PeriodicCallback(page.tick, 1000 * _SOON)
    callback.start()
    said = directions(listening.getsockname()[1])
    (console or Console()).print(said, markup=False, highlight=False, soft_wrap=True)
    try:
        IOLoop.current().start()
    finally:
        callback.stop()
        server.stop()


def directions(port: int) -> str:
    """Return where to look, from here and from elsewhere."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # this user's number has no name: containers
        user = "you"
    return (
        f"http://{HOST}:{port}/\n"
        f"From another machine, in a terminal there:  ssh -N -L {port}:{HOST}:{port} {user}@{socket.gethostname()}\n"
        "and then open the same address there. Ctrl-C ends."
    )
