"""At the start of a proxy: the bundle is loaded and the configuration checked, ahead of the first request."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from litellm_router.check import problems
from litellm_router.router import P2LRouter
from litellm_router.routers import TESTED, is_tested, litellm_version, proxy_router, settings_of
from litellm_router.scoring import Loaded, sentence_of
from p2l_plugins.errors import ConfigError, without_credentials

log = logging.getLogger("litellm_router")

#: Seconds that the proxy may take to read its config before the bundle is no longer loaded ahead of the first request.
STARTUP_S = 120.0


def warm_up_in_proxy(router: P2LRouter) -> None:
    """Loads the bundle as soon as the proxy that imports this has read its config, ahead of the first request.

    LiteLLM calls no hook at start, and imports callbacks before it reads their settings; it makes its router after
    both. So a daemon thread looks for that router, and gives up after a while: then the first request starts the load.
    """
    if "litellm.proxy.proxy_server" not in sys.modules:
        return
    _say_what_happens()

    def wait() -> None:
        end = time.monotonic() + STARTUP_S
        while time.monotonic() < end:
            llm_router = proxy_router()
            if llm_router is not None:
                _name_litellm()
                router.set_up_failover(llm_router)
                warm_up(router, deployments_of(llm_router), aliases_of(llm_router))
                return
            time.sleep(0.05)

    threading.Thread(target=wait, name="p2l-warm-up", daemon=True).start()


def _say_what_happens() -> None:
    """Has the few lines of the start shown in a proxy, which configures only loggers of its own."""
    if log.level == logging.NOTSET and not log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s - %(name)s:%(levelname)s: %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


def _name_litellm() -> None:
    version = litellm_version()
    if is_tested(version):
        log.info("p2l routes on LiteLLM %s", version)
    else:
        log.warning(
            "p2l: LiteLLM %s is a version that no test of this p2l-plugins runs on (tested: %s); "
            "p2l check --live URL tells whether routing works",
            version,
            ", ".join(TESTED),
        )


def warm_up(router: P2LRouter, deployments: Sequence[Mapping[str, Any]], aliases: object = None) -> None:
    """Begins to load the bundle, and says what is wrong with the configuration, each problem once.

    Args:
        router: that decides.
        deployments: of all groups.
        aliases: `model_group_alias` of LiteLLM's router.
    """

    def say(sentence: str) -> None:
        router.health.misconfigured(without_credentials(sentence))

    try:
        state = router.state()
    except ConfigError as error:
        say(f"{error}; LiteLLM's own strategy decides")
        return

    settings = state.settings

    def check(loaded: Future[Loaded]) -> None:
        error = loaded.exception()
        if error is not None:
            say(f"{settings.scored_by}: {sentence_of(error)}; LiteLLM's own strategy decides")
            return
        try:
            found = problems(settings, deployments, loaded.result().scorer, aliases)
        except Exception as odd:  # deployments of an unknown form, which requests may do without
            found = [f"model_list could not be checked ({type(odd).__name__})"]
        for sentence in found:
            say(sentence)

    state.scoring.start(check)


def deployments_of(llm_router: Any) -> list[Mapping[str, Any]]:
    """All deployments of a LiteLLM router; none where it does not say."""
    try:
        return [one for one in llm_router.get_model_list() or [] if isinstance(one, Mapping)]
    except Exception as error:  # of a LiteLLM that has another router
        log.debug("p2l: model_list could not be read (%s)", type(error).__name__)
        return []


def aliases_of(llm_router: Any) -> object:
    """The aliases of a LiteLLM router; none where it does not say."""
    return getattr(settings_of(llm_router), "model_group_alias", None) or getattr(llm_router, "model_group_alias", None)


#: The callback that `litellm_router.p2l_router` names.
p2l_router = P2LRouter()
warm_up_in_proxy(p2l_router)
