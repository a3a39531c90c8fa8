"""The address of a Redis or Valkey, and clients for it: one per event loop.

    redis://user:password@host:6379/0            also rediss:// (TLS), valkey://, valkeys://, unix:///path
    redis+sentinel://host:26379,host:26379/service/0
    redis+cluster://host:6379,host:6379          rediss+… for TLS

What stands after `?` goes to redis-py, such as `ssl_ca_certs=/etc/ca.pem`; `sentinel_username` and
`sentinel_password` are for the Sentinels themselves.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

from p2l_plugins.errors import ConfigError

#: Seconds that connecting, or one answer, may take where nobody waits for it: past it the connection is closed.
SOCKET_TIMEOUT_S = 1.0

#: Connections of one client.
MAX_CONNECTIONS = 32

SCHEMES = {"redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"}


class Address(NamedTuple):
    """A parsed address.

    Attributes:
        kind: `single`, `sentinel` or `cluster`.
        nodes: host and port of the Sentinels or of nodes of the cluster; empty for `single`.
        service: the name that the Sentinels know.
        url: of a single server, for redis-py: it carries user, password, database, TLS and options.
        sentinel: user name and password of the Sentinels.
    """

    kind: str
    nodes: tuple[tuple[str, int], ...]
    service: str
    url: str
    sentinel: dict[str, str]


def shown(url: str) -> str:
    """The address without user, password and options, for messages."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the address"
    if not parts.scheme or not (parts.netloc or parts.path):
        return "the address"
    return f"{parts.scheme}://{parts.netloc.rsplit('@', 1)[-1]}{parts.path}"


def parse(url: str) -> Address:
    """Reads an address.

    Raises:
        ConfigError: not an address; the message never holds the user, the password or the options.
    """
    try:
        parts = urlsplit(url)
        scheme = parts.scheme.replace("valkeys", "rediss").replace("valkey", "redis")
        if scheme not in SCHEMES:
            # without a word of it: what stands here may be a password
            raise ConfigError(f"the cache's address must begin with one of {', '.join(sorted(SCHEMES))}, then ://")
        base, _, kind = scheme.partition("+")
        if not kind:
            return Address("single", (), "", scheme + url.strip()[len(parts.scheme) :], {})
        user, _, hosts = parts.netloc.rpartition("@")
        default_port = 26379 if kind == "sentinel" else 6379
        nodes = tuple(_host_and_port(host, default_port) for host in hosts.split(","))
        path = parts.path.strip("/").split("/")
        if kind == "sentinel" and not path[0]:
            raise ConfigError(f"{shown(url)} lacks the service: redis+sentinel://host:26379/SERVICE")
        options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        apart = {
            key: options.pop(f"sentinel_{key}") for key in ("username", "password") if f"sentinel_{key}" in options
        }
        host, port = nodes[0]
        shown_host = f"[{host}]" if ":" in host else host
        database = f"/{path[1]}" if kind == "sentinel" and len(path) > 1 else ""
        single = f"{base}://{user + '@' if user else ''}{shown_host}:{port}{database}"
        query = f"?{urlencode(options)}" if options else ""
        return Address(kind, nodes, path[0] if kind == "sentinel" else "", single + query, apart)
    except ValueError:
        raise ConfigError(f"{shown(url)} is not an address of a Redis, such as redis://host:6379/0") from None


def _host_and_port(text: str, default: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text.strip()}")
    if not parts.hostname:
        raise ValueError("no host")
    return parts.hostname, parts.port or default


def connect(url: str) -> Any:
    """A redis-py asyncio client, not connected yet, for the running event loop.

    Raises:
        ConfigError: not an address, an option that redis-py does not know, or redis-py is missing.
    """
    address = parse(url)
    try:
        import redis.asyncio as aioredis
        from redis.asyncio.cluster import ClusterNode
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError:
        raise ConfigError("a shared cache needs the extra 'cache': pip install 'p2l-plugins[cache]'") from None
    # one try more: a connection from before a server's restart fails at its first command
    common: dict[str, Any] = {
        "socket_timeout": SOCKET_TIMEOUT_S,
        "socket_connect_timeout": SOCKET_TIMEOUT_S,
        "max_connections": MAX_CONNECTIONS,
        "retry": Retry(NoBackoff(), 1),
    }
    try:
        if address.kind == "single":
            return aioredis.Redis.from_url(address.url, **common)
        given: dict[str, Any] = dict(aioredis.connection.parse_url(address.url))
        ssl: dict[str, Any] = {"ssl": True} if given.pop("connection_class", None) is aioredis.SSLConnection else {}
        given.pop("host"), given.pop("port")
        if address.kind == "cluster":
            nodes = [ClusterNode(host, port) for host, port in address.nodes]
            return aioredis.RedisCluster(startup_nodes=nodes, **common, **given, **ssl)
        keyed = {key: value for key, value in given.items() if key.startswith("ssl_")}
        # redis-py does not type it
        sentinels: Any = aioredis.Sentinel(  # type: ignore[no-untyped-call]
            address.nodes, sentinel_kwargs=common | keyed | ssl | address.sentinel
        )
        return sentinels.master_for(address.service, **common, **given, **ssl)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{shown(url)}: {type(error).__name__} in its options: see redis-py's arguments") from None


class Clients:
    """Clients of one address: a connection belongs to the event loop that opened it, so each loop has its own.

    Raises:
        ConfigError: not an address, or redis-py is missing.
    """

    def __init__(self, url: str) -> None:
        parse(url)
        self._url = url
        self._clients: dict[asyncio.AbstractEventLoop, Any] = {}

    def __call__(self) -> Any:
        """The client of the running event loop."""
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            self._clients = {other: kept for other, kept in self._clients.items() if not other.is_closed()}
            client = self._clients[loop] = connect(self._url)
        return client

    async def aclose(self) -> None:
        """Closes the client of the running event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()
