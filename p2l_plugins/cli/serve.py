"""The command `serve`: the HTTP scorer and its page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from p2l_plugins.console import BundleArg, read_keys
from p2l_plugins.errors import ConfigError, DataError


def serve(
    bundle: BundleArg = "starter",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8080,
    workers: Annotated[int, typer.Option(help="Processes, each with the bundle in memory.", min=1)] = 1,
    threads: Annotated[int, typer.Option(help="Threads of one run of the model.", min=0)] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the key; several keys with commas.")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File that holds the keys, one per line.")] = None,
    feedback_key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the key of feedback, which may speak for users.")
    ] = None,
    feedback_key_file: Annotated[Path | None, typer.Option(help="File that holds such keys, one per line.")] = None,
    feedback_new_users: Annotated[
        int, typer.Option(help="New users that feedback makes boards of, per process and hour.", min=1)
    ] = 100,
    feedback_votes: Annotated[int, typer.Option(help="Votes of a user that count, per process and hour.", min=1)] = 60,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Another name by which the service is asked, such as behind a proxy; * for any. Repeatable."),
    ] = None,
    probe_port: Annotated[
        int | None, typer.Option(help="Port of a listener that has probes and metrics only.", min=0, max=65535)
    ] = None,
    max_connections: Annotated[int, typer.Option(help="Connections at the same time, per process.", min=1)] = 2048,
    max_per_address: Annotated[int, typer.Option(help="Of these, from one client's address.", min=1)] = 512,
    head_timeout: Annotated[
        float, typer.Option(help="Seconds in which a request's head must have come.", max=3600)
    ] = 10.0,
    idle_timeout: Annotated[
        float, typer.Option(help="Seconds that a connection may wait between requests.", max=3600)
    ] = 30.0,
    cache_url: Annotated[
        str | None, typer.Option(help="Redis that services share, as for `p2l cache`. Default: $P2L_CACHE_URL.")
    ] = None,
    cache_namespace: Annotated[str, typer.Option(help="First part of its keys.")] = "p2l",
    max_pending: Annotated[
        int, typer.Option(help="Prompts that may wait, per process; more are refused with 429.", min=1)
    ] = 1024,
    max_batch: Annotated[int, typer.Option(help="Most prompts of a request.", min=1)] = 256,
    max_body_bytes: Annotated[int, typer.Option(help="Most bytes of a request's body.", min=1024)] = 4 * 2**20,
    costs: Annotated[
        Path | None,
        typer.Option(help="JSON as for `p2l route`: costs for requests that bring none, and for the page."),
    ] = None,
    overall: Annotated[
        Path | None,
        typer.Option(help="Prompts of the board that others are compared with. Default: 32 everyday ones."),
    ] = None,
    drain: Annotated[
        float, typer.Option(help="Seconds to go on after SIGTERM, while /readyz says no.", min=0, max=3600)
    ] = 0.0,
    grace: Annotated[
        float, typer.Option(help="Seconds that requests under way may then take.", min=0, max=3600)
    ] = 60.0,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="Log a line per request: method, path, status, time.")
    ] = False,
) -> None:
    """Serve a bundle over HTTP: scores, leaderboards, routing, and a page. A cache's secret: $P2L_CACHE_SECRET."""
    try:
        from p2l_plugins.service.run import serve as run
        from p2l_plugins.service.settings import ServiceSettings
    except ImportError as error:
        raise ConfigError(f"p2l serve needs {error.name}: pip install 'p2l-plugins[serve]'") from None
    from pydantic import ValidationError

    from p2l_plugins.errors import first_problem
    from p2l_plugins.files.tables import read_json_object

    table = None if costs is None else read_json_object(costs)
    if table is not None and not table:
        raise DataError(f"{costs}: the file names no models")
    try:
        settings = ServiceSettings(
            bundle=bundle,
            device=device,  # type: ignore[arg-type] # pydantic checks it
            threads=threads,
            workers=workers,
            allowed_hosts=tuple(allowed_host or ()),
            keys=read_keys(api_key_env, api_key_file),  # type: ignore[arg-type] # pydantic makes secrets of them
            feedback_keys=read_keys(feedback_key_env, feedback_key_file, "--feedback-key"),  # type: ignore[arg-type]
            feedback_new_users=feedback_new_users,
            feedback_votes=feedback_votes,
            max_connections=max_connections,
            max_per_address=max_per_address,
            head_s=head_timeout,
            idle_s=idle_timeout,
            cache=_cache(cache_url, cache_namespace),  # type: ignore[arg-type]
            max_pending=max_pending,
            max_batch=max_batch,
            max_body_bytes=max_body_bytes,
            costs=table,
            overall=_overall(overall),
            drain_s=drain,
            grace_s=grace,
            access_log=access_log,
        )
    except ValidationError as error:
        raise ConfigError(first_problem(error, ServiceSettings)) from None
    run(settings, host, port, probe_port)


def _cache(url: str | None, namespace: str) -> dict[str, Any]:
    from p2l_plugins.cli.cache import cache_address
    from p2l_plugins.scoring.cached import SECRET, URL

    cache: dict[str, Any] = {"namespace": namespace}
    if url or os.environ.get(URL):
        cache["url"], _ = cache_address(url, "--cache-url")
    if secret := os.environ.get(SECRET):
        cache["secret"] = secret
    return cache


def _overall(path: Path | None) -> tuple[tuple[str, ...], ...]:
    from p2l_plugins.errors import PromptError
    from p2l_plugins.files.prompts import read_prompts
    from p2l_plugins.prompts import as_turns
    from p2l_plugins.scoring.scorer import EVERYDAY

    source = path or EVERYDAY
    texts, _ = read_prompts(source)
    turns = []
    for i, text in enumerate(texts):
        try:
            turns.append(as_turns(text))
        except PromptError as error:
            raise DataError(f"{source}: prompt {i + 1}: {error}") from None
    return tuple(turns)
