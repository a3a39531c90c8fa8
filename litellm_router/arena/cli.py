"""The command `p2l arena`."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from p2l_plugins.console import read_keys, stderr
from p2l_plugins.errors import ConfigError

if TYPE_CHECKING:
    from litellm_router.arena.votes import VotesFile
    from litellm_router.ask.calls import Models

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def arena(
    config: Annotated[Path, typer.Argument(help="The proxy's config.yaml.", metavar="CONFIG")],
    votes: Annotated[Path, typer.Option(help="Append votes, with their prompts, to this .jsonl.", metavar="FILE")],
    group: Annotated[str | None, typer.Option(help="Only the models of this group. Default: all that chat.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8090,
    name: Annotated[
        list[str] | None, typer.Option(help="A name by which browsers call the arena. Repeatable.", metavar="HOST")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the key; several keys with commas.")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File that holds the keys, one per line.")] = None,
    per_minute: Annotated[float, typer.Option(help="Prompts of one key and address in a minute.", min=0.1)] = 10.0,
    budget: Annotated[
        float | None, typer.Option(help="Spend no more until the arena ends.", metavar="USD", min=0)
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Of an answer, at most.", min=1)] = 2048,
    concurrency: Annotated[int, typer.Option(help="Comparisons answered at the same time; others wait.", min=1)] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds of an answer, retries included.", min=0.1)] = 120.0,
) -> None:
    """Serve a page on which people compare two anonymous answers of your models, and vote.

    Prompts go to the models of CONFIG, through LiteLLM. When somebody votes, the prompt and the vote are stored in
    FILE, and the names are shown. Who answers is chosen for what the comparison tells.
    """
    try:
        import uvicorn

        from litellm_router.arena.app import create_app
        from p2l_plugins.service.run import LOGGING, listen
    except ImportError as error:
        raise ConfigError(f"p2l arena needs {error.name}: pip install 'p2l-plugins[litellm,serve]'") from None
    from litellm_router.arena.votes import VotesFile
    from p2l_plugins.votes.litellm_config import read_config_models

    keys = read_keys(api_key_env, api_key_file)
    hosts = _hosts(host, name or [], bool(keys))
    read_config_models(config, group)  # what is wrong with it is said before LiteLLM is imported, which takes seconds
    with VotesFile(votes) as file:
        from litellm_router.arena.state import Arena, Limits
        from litellm_router.ask.calls import of_config

        names, calls = of_config(config, group, [], timeout)
        _need_models(names, calls, budget)
        made = Arena(tuple(names), calls, file, Limits(max_tokens, streaming=concurrency, budget=budget))
        app = create_app(made, keys, hosts, per_minute)
        with listen(host, port) as listening:
            _begin(names, calls, file, made.votes, listening, bool(keys))
            server = uvicorn.Server(
                uvicorn.Config(
                    app,
                    log_config=LOGGING | {"loggers": LOGGING["loggers"] | {"litellm_router": {"level": "INFO"}}},
                    access_log=False,
                    server_header=False,
                    limit_concurrency=1024,
                    timeout_graceful_shutdown=5,
                )
            )
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # after uvicorn has ended: that is no failure
            asyncio.run(server.serve([listening]))


def _hosts(host: str, names: list[str], keys: bool) -> list[str]:
    """By which names browsers may call an address.

    Raises:
        ConfigError: an address that others can reach without a key, or one that tells no name.
    """
    if _local(host):
        return [*_LOOPBACK, *names]
    if not keys:
        raise ConfigError(
            f"--host {host} can be reached from other machines, and a stranger's prompts cost you money: "
            "set a key with --api-key-env NAME or --api-key-file FILE, or leave out --host"
        )
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 - refused, unless there is a name
        if not names:
            raise ConfigError(f"--host {host} is no name: say with --name HOST how browsers call the arena")
        return [*_LOOPBACK, *names]
    return [host, *names]


def _local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _need_models(names: list[str], calls: Models, budget: float | None) -> None:
    if len(names) < 2:
        raise ConfigError(f"CONFIG has one model, {', '.join(names)!r}; a comparison needs two")
    unpriced = [name for name in names if calls.price(name) is None]
    if budget is not None and unpriced:
        raise ConfigError(
            f"--budget needs the price of {', '.join(unpriced)}: set input_cost_per_token and output_cost_per_token "
            "in CONFIG, or leave --budget out"
        )


def _begin(names: list[str], calls: Models, file: VotesFile, count: int, listening: socket.socket, keys: bool) -> None:
    """Says what happens to prompts and votes, and where the page is."""
    address = listening.getsockname()
    shown = f"[{address[0]}]" if listening.family == socket.AF_INET6 else address[0]
    others = 0 if file.votes is None else len(file.votes) - count
    lines = [f"prompts go to {name} at {', '.join(calls.places(name))}" for name in names]
    lines += [f"{name} is not set" for name in calls.missing_keys()]
    lines.append(f"votes are appended to {file.path} with the prompts that people type; answers are not stored")
    lines.append(f"{count} votes on these models so far" + (f", and {others} on others" if others else ""))
    lines += file.notes
    lines.append(f"p2l arena: http://{shown}:{address[1]}" + ("" if keys else ", without a key"))
    for line in lines:
        stderr.print(line, markup=False, soft_wrap=True)
