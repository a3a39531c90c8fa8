"""What an operator can set of the cache: one frozen model, nested as `cache` in an adapter's settings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from p2l_plugins.cache.address import Clients
from p2l_plugins.cache.entry import NAMESPACE
from p2l_plugins.cache.memory import MemoryCache
from p2l_plugins.cache.redis import RedisCache
from p2l_plugins.cache.tiered import TieredCache

#: No ':', which parts keys; no '{', which pins keys to one slot of a cluster; nothing that SCAN reads as a mask.
NAMESPACE_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"


class CacheSettings(BaseModel):
    """Settings of the cache; every one has a default.

    Attributes:
        shared: whether scores are shared through Redis; false keeps them in this process.
        url: of a Redis or Valkey (see `p2l_plugins.cache.address`).
        namespace: first part of every key.
        secret: keys the hash of the prompts and the seal of the values. Services with another one share nothing;
            whoever reads the store can't test whether a prompt was asked, and whoever writes to it can't make scores.
        ttl_s: seconds until a shared entry expires.
        deadline_ms: longest that a look into the shared store may take; past it the prompt is scored here.
        entries: most entries kept in this process.
        max_bytes: most memory of these, about.
        memory_ttl_s: seconds until one of these expires.
        lease_ms: how long other processes wait for the one that scores the same prompt; 0 lets each score it. For
            scorers that take much longer than a round trip.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shared: bool = True
    url: SecretStr | None = Field(default=None, min_length=1)
    namespace: str = Field(default=NAMESPACE, pattern=NAMESPACE_PATTERN)
    secret: SecretStr | None = Field(default=None, min_length=1)
    ttl_s: float = Field(default=7 * 24 * 3600.0, ge=1, allow_inf_nan=False)
    deadline_ms: float = Field(default=15.0, gt=0, le=60_000, allow_inf_nan=False)
    entries: int = Field(default=10_000, ge=1)
    max_bytes: int = Field(default=64 * 2**20, ge=2**16)
    memory_ttl_s: float = Field(default=3600.0, gt=0, allow_inf_nan=False)
    lease_ms: float = Field(default=0.0, ge=0, le=60_000, allow_inf_nan=False)

    def key_secret(self) -> bytes:
        """The secret that keys hashes and seals; empty where none is set.

        Raises:
            ConfigError: as `text_of`.
        """
        return b"" if self.secret is None else derive_secret(self.text_of(self.secret, "cache.secret"))

    def build(self, fallback: Callable[[], Any] | None = None) -> TieredCache:
        """The cache of these settings.

        Args:
            fallback: gives the client of the running event loop, or None, where no `url` is set.

        Raises:
            ConfigError: the url is not an address, or as `text_of`.
        """
        memory = MemoryCache(self.entries, self.memory_ttl_s, max_bytes=self.max_bytes)
        client = self.client(fallback)
        if client is None:
            return TieredCache(memory)
        return TieredCache(memory, RedisCache(client, self.ttl_s, self.deadline_ms / 1e3, self.key_secret()))

    def client(self, fallback: Callable[[], Any] | None = None) -> Callable[[], Any] | None:
        """What gives the client of the running event loop; None where nothing is shared.

        Raises:
            ConfigError: as `build`.
        """
        if not self.shared:
            return None
        return fallback if self.url is None else Clients(self.text_of(self.url, "cache.url"), "cache.url")

    def text_of(self, value: SecretStr, key: str) -> str:
        """The text of a setting; an adapter whose settings may name a place that has it says how it is found.

        Args:
            key: of the setting, for the message.

        Raises:
            ConfigError: the place has none.
        """
        return value.get_secret_value()


def derive_secret(secret: str) -> bytes:
    """A hash key of 32 bytes from a secret of any length."""
    return hashlib.blake2b(secret.encode(), digest_size=32, person=b"p2l cache keys").digest()
