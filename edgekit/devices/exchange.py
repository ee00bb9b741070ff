"""One job offered over HTTP to one page, and the one result that it posts back.

Everything is under a path that starts with a token made for this job. Only the files of a fixed
table are given out; whoever does not know the token is told 404, as for a file that is not there.
"""

import contextlib
import hmac
import json
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# A result holds the outputs of all rows: 3,000 texts with 128 answers of 20 numbers are 40 MB.
MOST_RESULT_BYTES = 128 * 2**20

# A connection that says nothing for so long is closed.
_SILENT_SECONDS = 30
_BEAT_SECONDS = 1.0
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".json": "application/json",
    ".wasm": "application/wasm",
}
# A page gets threads and a fine clock only when it lets nothing of others in.
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass
class Exchange:
    """``files`` by the names that the page asks for; "" is the page itself.

    done: set when the result is there. lost: set when the page, once it was there, is gone.
    """

    files: Mapping[str, Path | bytes]
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    url: str = ""
    result: bytes = b""
    done: threading.Event = field(default_factory=threading.Event)
    lost: threading.Event = field(default_factory=threading.Event)
    _taking: threading.Lock = field(default_factory=threading.Lock)

    def take(self, body: bytes) -> bool:
        """Keep the result, unless there is one already."""
        with self._taking:
            if self.result:
                return False
            self.result = body
        return True


@contextlib.contextmanager
def offer(files: Mapping[str, Path | bytes], host: str, port: int = 0) -> Iterator[Exchange]:
    """Serve ``files`` on one address of this machine (any free port for 0) while in the block.

    Raises OSError when the address is not this machine's, or the port is taken.
    """
    exchange = Exchange(files)

    class Handler(_Handler):
        offered = exchange

    with ThreadingHTTPServer((host, port), Handler) as server:
        exchange.url = f"http://{host}:{server.server_address[1]}/{exchange.token}/"
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield exchange
        finally:
            exchange.done.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    offered: Exchange
    timeout = _SILENT_SECONDS
    server_version = "edgekit"
    sys_version = ""

    def do_GET(self) -> None:
        name = self._name()
        if name == "alive":
            self._beat()
        elif name is None or name not in self.offered.files:
            self._answer(HTTPStatus.NOT_FOUND)
        else:
            self._give(name, self.offered.files[name])

    def do_POST(self) -> None:
        if self._name() != "result":
            return self._answer(HTTPStatus.NOT_FOUND)
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            return self._answer(HTTPStatus.LENGTH_REQUIRED)
        if int(length) > MOST_RESULT_BYTES:
            return self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        body = self.rfile.read(int(length))
        if len(body) != int(length) or not _is_result(body):
            return self._answer(HTTPStatus.BAD_REQUEST)
        if not self.offered.take(body):
            return self._answer(HTTPStatus.CONFLICT)
        # First the answer: once all is done nobody waits for this thread.
        self._answer(HTTPStatus.NO_CONTENT)
        return self.offered.done.set()

    def _name(self) -> str | None:
        """What is asked for under the token; None without the right token."""
        token, slash, name = self.path.removeprefix("/").partition("/")
        given, wanted = token.encode("latin-1"), self.offered.token.encode()
        return name if hmac.compare_digest(given, wanted) and slash else None

    def _answer(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _give(self, name: str, content: Path | bytes) -> None:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        self._head(Path(name).suffix if name else ".html")
        self.send_header("Content-Length", str(size))
        self.end_headers()
        with contextlib.suppress(OSError):  # the page may leave before it has everything
            if isinstance(content, bytes):
                self.wfile.write(content)
            else:
                with content.open("rb") as stream:
                    shutil.copyfileobj(stream, self.wfile)

    def _beat(self) -> None:
        """A byte a second until all is done: how both sides notice that the other is there."""
        self._head("")
        self.end_headers()
        try:
            while not self.offered.done.wait(_BEAT_SECONDS):
                self.wfile.write(b"\n")
        except OSError:
            self.offered.lost.set()

    def _head(self, suffix: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", _TYPES.get(suffix, "application/octet-stream"))
        for header, value in _HEADERS.items():
            self.send_header(header, value)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: requests are no news to the person who waits for the result."""


def _is_result(body: bytes) -> bool:
    try:
        result = json.loads(body)
    except ValueError:
        return False
    return (
        isinstance(result, dict)
        and isinstance(result.get("passes"), dict)
        and isinstance(result.get("error"), str | None)
    )
