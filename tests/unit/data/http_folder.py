"""A web server over a folder, as slow, faulty and poor in features as a test wants it."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


class Folder(ThreadingHTTPServer):
    """Serves files; counts what it is asked."""

    daemon_threads = True

    def __init__(self, folder: Path, *, ranges: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.ranges = folder, ranges
        self.asked: list[tuple[str, str | None]] = []
        self.failures = 0
        self.delay_s = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Folder

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        path = self.server.folder / self.path.lstrip("/")
        if path.suffix == ".tar":
            time.sleep(self.server.delay_s)
            if self.server.failures:
                self.server.failures -= 1
                self.send_error(503)
                return
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted or "") if self.server.ranges else None
        if span:
            data = data[int(span[1]) : int(span[2]) + 1]
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serve(folder: Path, *, ranges: bool = True) -> Iterator[Folder]:
    with Folder(folder, ranges=ranges) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
