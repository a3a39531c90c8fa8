"""What the HTTP servers of tests share: a free loopback port, threads, JSON answers, a hold that a test lets go."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Loopback(ThreadingHTTPServer):
    """A server on a loopback port.

    Attributes:
        released: what waits goes on when it is set.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, handler, port=0):
        super().__init__(("127.0.0.1", port), handler)
        self.released = threading.Event()


class Answering(BaseHTTPRequestHandler):
    """Reads JSON and answers bytes."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def body(self):
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def send(self, status, content, kind="application/json"):
        with contextlib.suppress(OSError):  # the other side may have left
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)


@contextlib.contextmanager
def serving(server: Loopback) -> Iterator[None]:
    """The server answers while the block runs."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
