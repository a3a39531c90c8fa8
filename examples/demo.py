"""`python examples/demo.py`: a real LiteLLM proxy on this machine, and what it does with a few real prompts.

No keys and no network: the deployments of `examples/proxy.yaml` answer with a fixed text. What is shown is measured:
the choice, the prediction and the time of each request are the `x-p2l-*` headers of its response.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NoReturn

import httpx
import yaml
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from p2l_plugins.cells import plain

EXAMPLES = Path(__file__).resolve().parent
START_S = 90.0
WARM_UP_S = 60.0


class DemoError(Exception):
    """The demo can't go on; the message is one sentence for the user."""


@dataclass(frozen=True)
class Proxy:
    """A running proxy: where it listens, its master key, the file that takes its output, and its process."""

    url: str
    key: str
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def headers(self) -> dict[str, str]:
        """The authorisation of a request."""
        return {"Authorization": f"Bearer {self.key}"}

    def fail(self, sentence: str) -> NoReturn:
        """Raises a `DemoError` with the end of the proxy's output."""
        tail = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
        raise DemoError(f"{sentence}\nThe end of the proxy's output:\n{tail}")


def litellm(options: Sequence[str], output: IO[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """LiteLLM's command as a process of its own."""
    command = [sys.executable, "-c", "import litellm; litellm.run_server()", *options]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


@contextmanager
def running_proxy(
    config: Path,
    port: int | None = None,
    env: Mapping[str, str] | None = None,
    more: Sequence[str] = (),
    start_s: float = START_S,
    start: Callable[[Sequence[str], IO[bytes], Mapping[str, str]], subprocess.Popen[bytes]] = litellm,
) -> Iterator[Proxy]:
    """Starts LiteLLM's proxy on loopback with a strong generated key, waits until it answers, and stops it at the end.

    Args:
        config: of the proxy; its `master_key` must be `os.environ/LITELLM_MASTER_KEY`.
        port: to listen on; None takes a free one.
        env: more environment variables for it; a `LITELLM_MASTER_KEY` among them is its key.
        more: options for it.
        start_s: seconds in which it must answer.
        start: runs LiteLLM's command with options, an open file for its output, and its environment.

    Raises:
        DemoError: it ended, or did not answer in time.
    """
    port = _free_port() if port is None else port
    key = (env or {}).get("LITELLM_MASTER_KEY") or "sk-" + secrets.token_urlsafe(32)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "STORE_MODEL_IN_DB")
    }
    environment |= {"LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True", **(env or {})}
    options = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False", *more]
    with tempfile.TemporaryDirectory(prefix="p2l-proxy-") as folder:
        log = Path(folder) / "proxy.log"
        with log.open("wb") as output:
            process = start(options, output, environment)
        proxy = Proxy(f"http://127.0.0.1:{port}", key, log, process)
        try:
            _wait_until_it_answers(proxy, start_s)
            yield proxy
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(proxy: Proxy, start_s: float) -> None:
    end = time.monotonic() + start_s
    while time.monotonic() < end:
        if proxy.process.poll() is not None:
            proxy.fail(f"The proxy ended with exit status {proxy.process.returncode} before it answered.")
        try:
            if httpx.get(f"{proxy.url}/health/liveliness", timeout=2).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    proxy.fail(f"The proxy did not answer within {start_s:g} seconds.")


def ask(client: httpx.Client, proxy: Proxy, group: str, prompt: str) -> httpx.Response:
    """One chat request.

    Raises:
        DemoError: the proxy answered with an error, or not at all.
    """
    body = {"model": group, "messages": [{"role": "user", "content": prompt}]}
    try:
        response = client.post(f"{proxy.url}/v1/chat/completions", json=body, headers=proxy.headers)
    except httpx.HTTPError as error:
        proxy.fail(f"A request failed: {type(error).__name__}.")
    if response.status_code != httpx.codes.OK:
        proxy.fail(f"A request failed with status {response.status_code}.")
    return response


def warm_up(client: httpx.Client, proxy: Proxy, group: str) -> None:
    """Sends requests until P2L decides them: the proxy loads the bundle while it already answers.

    Raises:
        DemoError: P2L decides none within 60 seconds.
    """
    end = time.monotonic() + WARM_UP_S
    reason = None
    while time.monotonic() < end:
        headers = ask(client, proxy, group, "Are you there?").headers
        if "x-p2l-model" in headers:
            return
        reason = headers.get("x-p2l-error")
        time.sleep(0.1)
    proxy.fail(f"P2L decided no request within {WARM_UP_S:g} seconds (x-p2l-error: {reason}).")


def p2l_group(config: Mapping[str, Any]) -> str:
    """The first model group with two or more deployments that take part in the ranking.

    Raises:
        DemoError: there is none.
    """
    counts = Counter(
        deployment["model_name"]
        for deployment in config.get("model_list") or []
        if (deployment.get("model_info") or {}).get("p2l_model") is not False
    )
    for group, count in counts.items():
        if count > 1:
            return str(group)
    raise DemoError("The config has no model group with two deployments to choose from.")


def literal(text: str) -> Text:
    """Text in a cell of a table as it is: no markup, and nothing that a terminal acts on."""
    return Text(plain(text))


def show(console: Console, title: str, prompts: Sequence[str], responses: Sequence[httpx.Response]) -> None:
    """One row per prompt, from the headers of its response."""
    caption = "Win rate: predicted share of wins against the group's models, itself included; a tie is not a win."
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for name in ("prompt", "chosen", "answered", "runner-up"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for name in ("win rate", "cost, USD", "cache", "ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for prompt, response in zip(prompts, responses, strict=True):
        headers = response.headers
        ranking = headers["x-p2l-ranking"].split(",")
        shown = prompt if len(prompt) <= 40 else prompt[:39] + "…"
        predicted = headers.get("x-p2l-win-rate") or headers.get("x-p2l-usable")
        table.add_row(
            *map(literal, (shown, ranking[0], headers["x-p2l-model"], ranking[1])),
            f"{float(predicted):.1%}" if predicted else "",
            headers.get("x-p2l-cost", "unknown"),
            headers["x-p2l-cache"],
            headers["x-p2l-ms"],
        )
    console.print(table)


def run(config_path: Path, prompts_path: Path) -> None:
    """Both passes over the prompts, the shares of the models, and the leaderboard of the prompts.

    Raises:
        DemoError: a request failed, P2L did not decide one, or the second pass missed the cache.
    """
    config = yaml.safe_load(config_path.read_text(encoding="utf-8"))
    group = p2l_group(config)
    prompts = [line for line in prompts_path.read_text(encoding="utf-8").splitlines() if line.strip()]
    # a table as wide as its content where nobody watches: a log keeps every column
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 175)
    console.print(f"Starting a LiteLLM proxy with {config_path} …")
    with running_proxy(config_path) as proxy, httpx.Client(timeout=30) as client:
        warm_up(client, proxy, group)
        for title, expected in (("First pass", None), ("The same prompts again", "hit")):
            responses = [ask(client, proxy, group, prompt) for prompt in prompts]
            for prompt, response in zip(prompts, responses, strict=True):
                if "x-p2l-model" not in response.headers:
                    proxy.fail(f"P2L did not decide {prompt!r} (x-p2l-error: {response.headers.get('x-p2l-error')}).")
                if expected and response.headers["x-p2l-cache"] != expected:
                    proxy.fail(f"The scores of {prompt!r} were not in the cache the second time.")
            show(console, title, prompts, responses)
    chosen = Counter(response.headers["x-p2l-ranking"].split(",")[0] for response in responses)
    followed = sum(
        response.headers["x-p2l-ranking"].split(",")[0] == response.headers["x-p2l-model"] for response in responses
    )
    shares = ", ".join(f"{model} {count}" for model, count in chosen.most_common())
    cost = sum(float(response.headers.get("x-p2l-cost", "nan")) for response in responses)
    console.print(f"Chosen over {len(prompts)} prompts: {shares}; expected cost {cost:.4g} USD")
    console.print(f"The chosen model answered {followed} of {len(prompts)} (LiteLLM {version('litellm')})\n")

    from p2l_plugins import P2L

    bundle = ((config.get("litellm_settings") or {}).get("p2l_settings") or {}).get("bundle", "starter")
    console.print(f"Leaderboard of these prompts, over all models of the bundle {bundle}:")
    console.print(Markdown(P2L.load(bundle).score(prompts).leaderboard().to_markdown(top=10)))


def serve(config_path: Path, port: int) -> None:
    """Keeps the proxy running until it is interrupted.

    Raises:
        DemoError: the proxy did not start, or ended.
    """
    config = yaml.safe_load(config_path.read_text(encoding="utf-8"))
    group = p2l_group(config)
    with running_proxy(config_path, port or None) as proxy, httpx.Client(timeout=30) as client:
        warm_up(client, proxy, group)
        body = f'{{"model": "{group}", "messages": [{{"role": "user", "content": "Prove that 2 + 2 = 4."}}]}}'
        print(
            f"The proxy listens on {proxy.url}; Ctrl-C stops it. Try:\n\n"
            f"curl -i {proxy.url}/v1/chat/completions -H 'Authorization: Bearer {proxy.key}' "
            f"-H 'Content-Type: application/json' -d '{body}'\n",
            flush=True,
        )
        status = proxy.process.wait()
        proxy.fail(f"The proxy ended with exit status {status}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python examples/demo.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=EXAMPLES / "proxy.yaml", help="the proxy's config")
    parser.add_argument("--prompts", type=Path, default=EXAMPLES / "demo_prompts.txt", help="one prompt per line")
    parser.add_argument("--serve", action="store_true", help="keep the proxy running and print a curl line")
    parser.add_argument("--port", type=int, default=0, help="port for --serve; a free one by default")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)  # so that the proxy is stopped too
    try:
        for path in (options.config, options.prompts):
            if not path.is_file():
                raise DemoError(f"{path}: there is no such file; give one with --config or --prompts.")
        if options.serve:
            serve(options.config, options.port)
        else:
            run(options.config, options.prompts)
    except DemoError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0 if options.serve else 130
    return 0


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
