"""What the router works with under one configuration: built from the settings, and swapped whole when they change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from litellm_router.collect.collector import Collector
from litellm_router.collect.store import FileStore, RedisStore, Store
from litellm_router.redis_client import close_soon, litellm_client, master_secret
from litellm_router.scoring import Scoring
from litellm_router.settings import KEY, P2LSettings
from litellm_router.shared import SharedTraffic
from litellm_router.traffic import Traffic
from p2l_plugins.errors import ConfigError
from p2l_plugins.scoring.engine import Scorer

#: What a change of makes the scoring start anew.
_OF_THE_SCORING = ("bundle", "endpoint", "endpoint_key", "threads", "cache", "personal", "unknown_limit")


@dataclass(frozen=True)
class State:
    """One configuration at work.

    Attributes:
        raw: the settings as they were given, to notice a change.
        settings: the same, checked.
        scoring: the bundle and its cache.
        traffic: what is remembered of the requests.
        shared: hands it to other proxies; None where there is no Redis.
        collector: compares answers; None where none are.
    """

    raw: object
    settings: P2LSettings
    scoring: Scoring
    traffic: Traffic
    shared: SharedTraffic | None
    collector: Collector | None

    @classmethod
    def of(cls, raw: object, load: Callable[[P2LSettings], Scorer], before: State | None) -> State:
        """The state for settings, with all of the one before it that they leave as it is.

        Raises:
            ConfigError: a wrong key or value.
        """
        settings = raw if isinstance(raw, P2LSettings) else P2LSettings.read(raw)
        raw = dict(raw) if isinstance(raw, Mapping) else raw  # which its owner may change
        if before is not None and before.settings == settings:
            return replace(before, raw=raw)
        scoring = None if before is None else before.scoring
        if scoring is not None and any(
            getattr(scoring.settings, key) != getattr(settings, key) for key in _OF_THE_SCORING
        ):
            scoring.close()
            scoring = None
        if before is not None and before.shared is not None:
            close_soon(before.shared.aclose)
        if before is not None and before.collector is not None:
            close_soon(before.collector.aclose)
        scoring = scoring or Scoring(settings, load, client=litellm_client)
        try:
            client, secret = settings.cache.client(litellm_client), settings.cache.key_secret()
        except ConfigError:  # the scoring says so, and goes on without
            client, secret = None, b""
        shared = client and SharedTraffic(client, settings.cache.namespace)
        traffic = Traffic(settings, secret or master_secret(), client)
        return cls(raw, settings, scoring, traffic, shared, collector_of(settings, traffic, client))


def collector_of(settings: P2LSettings, traffic: Traffic, client: Callable[[], Any] | None) -> Collector | None:
    """What collects votes by some settings; None where they ask for none.

    Raises:
        ConfigError: its store can't be used.
    """
    if settings.collect is None:
        return None
    if settings.collect.store != "redis":
        store: Store = FileStore(Path(settings.collect.store))
    elif client is None:
        raise ConfigError(f"{KEY}.collect.store = 'redis', but {KEY}.cache.shared is false; name a file, or share")
    else:
        store = RedisStore(client, settings.cache.namespace)
    return Collector(settings.collect, store, traffic.lengths.expected)
