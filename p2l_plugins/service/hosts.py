"""By which names the service may be asked, and by pages of which sites: what a browser says of a page elsewhere.

A page whose name is made to lead here reads what it likes, since to the browser it is the same site: its `Host` is
another name than ours. A page that only sends has an `Origin` of its own. An address in figures can't be made to lead
elsewhere, so any of these will do.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

#: In place of names: any.
ANY = "*"


class Hosts:
    """The names of a service.

    Args:
        bound: what it listens on.
        allowed: other names, without ports; `*` for any.
    """

    def __init__(self, bound: str, allowed: Iterable[str] = ()) -> None:
        self._allowed = frozenset(_name(name) for name in allowed)
        self._names = self._allowed | {"localhost", _name(bound), _name(socket.gethostname())}

    def serve(self, host: str) -> bool:
        """Whether a `Host` is one of them; what is no browser may leave it out."""
        found = name_and_port(f"//{host}")
        if found is None:
            return False
        name, _ = found
        return not host or ANY in self._names or name in self._names or _is_address(name)

    def trust(self, origin: str, host: str) -> bool:
        """Whether a page of this `Origin` may send to this `Host`: it is the same site, or one that is allowed."""
        page, here = name_and_port(origin), name_and_port(f"//{host}")
        if page is None or here is None or not page[0]:
            return False
        return page == here or page[0] in self._allowed


#: Name or address, and a port: what else `urlsplit` would make something of is none.
_HOST_AND_PORT = re.compile(r"([a-z][a-z0-9+.-]*:)?//(\[[^\[\]]*\]|[^\[\]/?#@\s]*)(:[0-9]*)?", re.IGNORECASE)


def name_and_port(address: str) -> tuple[str, int | None] | None:
    """Name and port of an address, the usual ports as none; None where it has no such form."""
    if not _HOST_AND_PORT.fullmatch(address):
        return None
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return None
    return _name(parts.hostname or ""), None if port in (80, 443) else port


def _name(name: str) -> str:
    return name.strip().strip("[]").rstrip(".").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True
