"""What an operator can set of the cache: one frozen model, nested as `cache` in an adapter's settings."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from p2l_plugins.cache.address import Clients
from p2l_plugins.cache.entry import NAMESPACE
from p2l_plugins.cache.memory import MemoryCache
from p2l_plugins.cache.redis import RedisCache
from p2l_plugins.cache.tiered import TieredCache
from p2l_plugins.errors import ConfigError

#: No ':', which parts keys; no '{', which pins keys to one slot of a cluster; nothing that SCAN reads as a mask.
NAMESPACE_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"

#: How LiteLLM's configuration names an environment variable.
ENVIRON = "os.environ/"


class CacheSettings(BaseModel):
    """Settings of the cache; every one has a default.

    Attributes:
        shared: whether scores are shared through Redis; false keeps them in this process.
        url: of a Redis or Valkey (see `p2l_plugins.cache.address`), or os.environ/NAME; where it is not set, LiteLLM's
            own Redis, if it has one.
        namespace: first part of every key.
        secret: keys the hash of the prompts, or os.environ/NAME. Services with another one share nothing, and whoever
            reads the store can't test whether a prompt was asked.
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

    @field_validator("url", "secret")
    @classmethod
    def _set_where_named(cls, value: SecretStr | None) -> SecretStr | None:
        # LiteLLM puts null in the place of an environment variable that is not set
        if value is None:
            raise ValueError("is empty: the environment variable that it names is not set")
        return value

    def key_secret(self) -> bytes:
        """The secret that keys the hash; empty where none is set.

        Raises:
            ConfigError: the environment variable is not set.
        """
        return b"" if self.secret is None else derive_secret(resolved(self.secret, "cache.secret"))

    def build(self, fallback: Callable[[], Any] | None = None) -> TieredCache:
        """The cache of these settings.

        Args:
            fallback: gives the client of the running event loop, or None, where no `url` is set.

        Raises:
            ConfigError: the url is not an address, or its environment variable is not set.
        """
        memory = MemoryCache(self.entries, self.memory_ttl_s, max_bytes=self.max_bytes)
        client = self.client(fallback)
        return TieredCache(memory, client and RedisCache(client, self.ttl_s, self.deadline_ms / 1e3))

    def client(self, fallback: Callable[[], Any] | None = None) -> Callable[[], Any] | None:
        """What gives the client of the running event loop; None where nothing is shared.

        Raises:
            ConfigError: as `build`.
        """
        if not self.shared:
            return None
        return fallback if self.url is None else Clients(resolved(self.url, "cache.url"))


def derive_secret(secret: str) -> bytes:
    """A hash key of 32 bytes from a secret of any length."""
    return hashlib.blake2b(secret.encode(), digest_size=32, person=b"p2l cache keys").digest()


def resolved(value: SecretStr, key: str) -> str:
    """The text of a setting, or of the environment variable that it names as os.environ/NAME.

    Args:
        key: of the setting, for the message.

    Raises:
        ConfigError: the variable is not set.
    """
    text = value.get_secret_value()
    if not text.startswith(ENVIRON):
        return text
    name = text.removeprefix(ENVIRON)
    found = os.environ.get(name)
    if not found:
        raise ConfigError(f"{key} is {text}, but the environment variable {name} is not set")
    return found
