"""The service as a process that `p2l serve` starts, and as a server in a thread where a test needs another bundle."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import threadpoolctl
import uvicorn

from helpers.forking import Forked, command
from p2l_plugins.scoring.bundle import Bundle, find_bundle, sha256

ROOT = Path(__file__).resolve().parent.parent.parent
PRICES = ROOT / "examples" / "prices.json"


class Served:
    """A `p2l serve` process on a free port."""

    def __init__(self, folder: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        self.log = folder / "log"
        arguments = ["serve", *options, *([] if "--port" in options else ["--port", "0"])]
        environment = os.environ | (environment or {})
        with self.log.open("wb") as log:
            if "--workers" in options:  # which are started by a supervisor from the command that it was started by
                words = [sys.executable, "-m", "p2l_plugins.cli", *arguments]
                self.process = subprocess.Popen(words, stderr=log, stdout=log, cwd=ROOT, env=environment)
            else:
                self.process = Forked(command, arguments, log, environment, cwd=ROOT)

    @property
    def url(self) -> str:
        until(lambda: re.search(r"http://\S+", self.text()) or self.process.poll() is not None)
        found = re.search(r"p2l serve: (http://\S+)", self.text())
        assert found, self.text()
        return found[1]

    def text(self) -> str:
        return self.log.read_text()

    def ready(self, seconds: float = 60.0):
        until(lambda: status(self.url + "/readyz") == 200 or self.process.poll() is not None, seconds)
        assert self.process.poll() is None, self.text()
        return self

    def end(self, number: int = signal.SIGTERM, seconds: float = 30.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)


def until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def status(url: str) -> int:
    """The status that a path answers with; 0 where nobody does."""
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5).status_code
    return 0


@contextlib.contextmanager
def served(folder: Path, *options: str, environment: dict[str, str] | None = None) -> Iterator[Served]:
    process = Served(folder, *options, environment=environment)
    try:
        yield process.ready()
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.end()
        if process.process.poll() is None:
            process.process.kill()
            process.process.wait(10)


@contextlib.contextmanager
def in_thread(app, wait_ready: bool = True, **options) -> Iterator[str]:
    """The address of an application that a real server serves from a thread of this process."""
    options = {"lifespan": "on", **options}
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False, **options))
    thread = threading.Thread(target=server.run, daemon=True)
    blas = threadpoolctl.threadpool_limits(1, user_api="blas")  # as in a process of `p2l serve`
    thread.start()
    until(lambda: server.started or not thread.is_alive())
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        if wait_ready:
            until(lambda: status(url + "/readyz") == 200)
        yield url
    finally:
        server.should_exit = True
        thread.join(30)
        blas.restore_original_limits()


def as_family(family: str, folder: Path) -> Path:
    """The starter's graph under another family's manifest; `bt` loses the output that it does not have."""
    starter = Bundle.open(find_bundle("starter"))
    for name in starter.manifest.files:
        shutil.copy(starter.folder / name, folder / name)
    if family == "bt":
        import onnx

        model = onnx.load(folder / "model.onnx")
        (output,) = (output for output in model.graph.output if output.name == "raw_eta")
        model.graph.output.remove(output)
        onnx.save(model, folder / "model.onnx")
    files = {name: sha256(folder / name) for name in starter.manifest.files}
    starter.manifest.model_copy(update={"family": family, "files": files, "ungrounded": ()}).write(folder)
    return folder
