"""The address of a Redis or Valkey, and clients for it: one per event loop.

    redis://user:password@host:6379/0            also rediss:// (TLS), valkey://, valkeys://, unix:///path
    redis+sentinel://host:26379,host:26379/service/0
    redis+cluster://host:6379,host:6379          rediss+… for TLS

What stands after `?` goes to redis-py, such as `ssl_ca_certs=/etc/ca.pem`; `sentinel_username` and
`sentinel_password` are for the Sentinels themselves.

Addresses are read here and by nothing else: parsers take an unescaped `/`, `?` or `#` of a password for the end of the
host, and name what they find there in their errors.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlencode

from p2l_plugins.errors import ConfigError

#: Seconds that connecting, or one answer, may take where nobody waits for it: past it the connection is closed.
SOCKET_TIMEOUT_S = 1.0

#: Connections of one client.
MAX_CONNECTIONS = 32

SCHEMES = {"redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"}

#: What is wrong with most addresses that can't be read.
ESCAPE = (
    "what is special in a user name or password must be percent-encoded: / as %2F, ? as %3F, # as %23, @ as %40, "
    "% as %25"
)

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%[\w.~-]+)?\]|[\w.~-]+)(?::([0-9]{1,5}))?")

#: Forms of the path, by kind of address.
_PATHS = {
    "": re.compile(r"(/[0-9]*/?)?"),
    "cluster": re.compile(r"(/[0-9]*/?)?"),
    "sentinel": re.compile(r"/([^/]+)(?:/([0-9]*))?/?"),
}


class Malformed(ValueError):
    """Text that is no address; it holds nothing of that text."""


class Parts(NamedTuple):
    """The parts of an address as they stand in it.

    Attributes:
        scheme: in lower case.
        user: user name and password; empty where there is none.
        hosts: hosts with the port that they name.
        path: with its first `/`.
        query: without the `?`.
    """

    scheme: str
    user: str
    hosts: tuple[tuple[str, int | None], ...]
    path: str
    query: str

    def __repr__(self) -> str:
        """As `shown`."""
        return f"Parts({self.shown()})"

    def shown(self) -> str:
        """The address without user, password and options."""
        hosts = (_shown_host(host) + (f":{port}" if port is not None else "") for host, port in self.hosts)
        return f"{self.scheme}://{','.join(hosts)}{self.path}"


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

    def __repr__(self) -> str:
        """Without user, password and options."""
        return f"Address({shown(self.url) if self.kind == 'single' else (self.kind, self.nodes, self.service)})"


def split(url: str) -> Parts:
    """The parts of an address of any scheme.

    Raises:
        Malformed: it is none, or an `@`, which ends user and password, comes after the host: then one of the two holds
            what would have to be percent-encoded.
    """
    scheme, found, rest = url.strip().partition("://")
    if not found or not _SCHEME.fullmatch(scheme):
        raise Malformed("no scheme")
    end = re.search(r"[/?#]", rest)
    authority, tail = (rest, "") if end is None else (rest[: end.start()], rest[end.start() :])
    if "@" in tail or "#" in tail:
        raise Malformed("not percent-encoded")
    user, _, named = authority.rpartition("@")
    hosts = tuple(_host_and_port(host) for host in named.split(",")) if named else ()
    path, _, query = tail.partition("?")
    return Parts(scheme.lower(), user, hosts, path, query)


def _host_and_port(text: str) -> tuple[str, int | None]:
    found = _HOST.fullmatch(text.strip())
    if found is None or int(found[2] or 0) > 65_535:
        raise Malformed("not a host")
    return found[1].strip("[]"), int(found[2]) if found[2] else None


def _shown_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def shown(url: str) -> str:
    """The address without user, password and options, for messages; nothing of one that can't be read."""
    try:
        parts = split(url)
        _check(parts)
    except (Malformed, ConfigError):
        return "the address"
    return parts.shown()


def _check(parts: Parts, key: str = "the address") -> tuple[str, str]:
    """Base scheme and kind, of an address with hosts and a path of that kind.

    Raises:
        Malformed: hosts or path are of another form.
        ConfigError: the scheme is not known, or a service lacks.
    """
    scheme = parts.scheme.replace("valkeys", "rediss").replace("valkey", "redis")
    if scheme not in SCHEMES:
        # without a word of it: what stands here may be a password
        raise _unknown_scheme(key)
    base, _, kind = scheme.partition("+")
    if base == "unix":
        if parts.hosts or not parts.path.strip("/"):
            raise Malformed("not a path")
        return base, kind
    if kind == "sentinel" and parts.hosts and not parts.path.strip("/"):
        raise ConfigError(f"{key} ({parts.shown()}) lacks the service: redis+sentinel://host:26379/SERVICE")
    fewest, most = (1, len(parts.hosts)) if kind else (0, 1)  # redis-py has a default for a single host
    if not fewest <= len(parts.hosts) <= most or not _PATHS[kind].fullmatch(parts.path):
        raise Malformed("not hosts and a path")
    return base, kind


def _unknown_scheme(key: str) -> ConfigError:
    return ConfigError(f"{key} must begin with one of {', '.join(sorted(SCHEMES))}, then ://")


def parse(url: str, key: str = "the cache's address") -> Address:
    """Reads an address.

    Args:
        url: to read.
        key: that it stands under, for the message.

    Raises:
        ConfigError: not an address; the message never holds the user, the password or the options.
    """
    try:
        parts = split(url)
        base, kind = _check(parts, key)
    except Malformed:
        scheme, found, _ = url.strip().partition("://")
        if not found or not _SCHEME.fullmatch(scheme):
            raise _unknown_scheme(key) from None
        raise ConfigError(
            f"{key} is malformed: it must be an address such as redis://host:6379/0, and {ESCAPE}"
        ) from None
    # redis-py takes what is percent-encoded for what it stands for, and fails at some of what is not
    user = quote(parts.user, safe=":%") + "@" if parts.user else ""
    if not kind:
        query = f"?{parts.query}" if parts.query else ""
        hosts = ((_shown_host(host), port) for host, port in parts.hosts)
        host = "".join(f"{name}:{port}" if port is not None else name for name, port in hosts)
        return Address("single", (), "", f"{base}://{user}{host}{parts.path}{query}", {})
    default = 26379 if kind == "sentinel" else 6379
    nodes = tuple((host, port or default) for host, port in parts.hosts)
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    apart = {
        name: options.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in options
    }
    named = _PATHS[kind].fullmatch(parts.path)
    service, database = named.groups() if kind == "sentinel" and named is not None else ("", None)
    query = f"?{urlencode(options)}" if options else ""
    host, port = nodes[0]
    url = f"{base}://{user}{_shown_host(host)}:{port}{f'/{database}' if database else ''}{query}"
    return Address(kind, nodes, service, url, apart)


def connect(url: str, key: str = "the cache's address") -> Any:
    """A redis-py asyncio client, not connected yet, for the running event loop.

    Args:
        url: of the server.
        key: that it stands under, for messages.

    Raises:
        ConfigError: not an address, an option that redis-py does not know, or redis-py is missing.
    """
    address = parse(url, key)
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
            client: Any = aioredis.Redis.from_url(address.url, **common)
            client.connection_pool.make_connection()  # which connects nobody, and refuses what it does not know
            return client
        given: dict[str, Any] = dict(aioredis.connection.parse_url(address.url))
        ssl: dict[str, Any] = {"ssl": True} if given.pop("connection_class", None) is aioredis.SSLConnection else {}
        given.pop("host"), given.pop("port")
        if address.kind == "cluster":
            nodes = [ClusterNode(host, port) for host, port in address.nodes]
            return aioredis.RedisCluster(startup_nodes=nodes, **common, **given, **ssl)
        keyed = {name: value for name, value in given.items() if name.startswith("ssl_")}
        # redis-py does not type it
        sentinels: Any = aioredis.Sentinel(  # type: ignore[no-untyped-call]
            address.nodes, sentinel_kwargs=common | keyed | ssl | address.sentinel
        )
        return sentinels.master_for(address.service, **common, **given, **ssl)
    except (TypeError, ValueError, AttributeError) as error:
        raise _wrong_option(url, key, error) from None


def _wrong_option(url: str, key: str, error: Exception) -> ConfigError:
    # without its message, which names what it found there
    return ConfigError(f"{key} ({shown(url)}): {type(error).__name__} in its options: see redis-py's arguments")


def check(url: str, key: str = "the cache's address") -> None:
    """Says what is wrong with an address and its options, without connecting.

    Raises:
        ConfigError: as `connect`; also for an option that redis-py would refuse at the first command.
    """
    client = connect(url, key)
    pool = getattr(client, "connection_pool", None)  # a cluster has one per node
    try:
        if pool is not None:
            pool.make_connection()
    except (TypeError, ValueError, AttributeError) as error:
        raise _wrong_option(url, key, error) from None


class Clients:
    """Clients of one address: a connection belongs to the event loop that opened it, so each loop has its own.

    Args:
        url: of the server.
        key: that it stands under, for messages.

    Raises:
        ConfigError: not an address, or redis-py is missing.
    """

    def __init__(self, url: str, key: str = "the cache's address") -> None:
        parse(url, key)
        self._url, self._key = url, key
        self._clients: dict[asyncio.AbstractEventLoop, Any] = {}

    def __call__(self) -> Any:
        """The client of the running event loop."""
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            self._clients = {other: kept for other, kept in self._clients.items() if not other.is_closed()}
            client = self._clients[loop] = connect(self._url, self._key)
        return client

    async def aclose(self) -> None:
        """Closes the client of the running event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()
