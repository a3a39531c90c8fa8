"""What can happen to the best model of a group, and who must answer then: the rows of the matrix of LiteLLM's versions.

`python tests/helpers/scenarios.py` runs all of them in the environment at hand and prints JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # before the first import of litellm: no network
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import litellm

from helpers.upstream import Upstream, upstream
from helpers.word_bundle import write_bundle
from litellm_router import P2LRouter, P2LRoutingStrategy, P2LSettings
from litellm_router.routers import litellm_version

#: The ranking of the prompt "code" with the bundle of `word_bundle`, all of one price.
BEST, SECOND, THIRD = "beta", "gamma", "alpha"
LONG = "code " * 200


@dataclass(frozen=True)
class Scenario:
    """Attributes:
    name: of the row.
    how: what the provider of each deployment answers with, by its id; the ids begin with the name of the model.
    answers: ids of the deployments of which one must answer; sync_answers: where LiteLLM's sync calls differ.
    info, params: of single deployments, by id.
    router: arguments of `litellm.Router`; request: of the call.
    times: requests, of which the last counts.
    tried: most deployments that the last one may ask.
    """

    name: str
    how: dict[str, str] = field(default_factory=dict)
    answers: tuple[str, ...] = (SECOND,)
    ids: tuple[str, ...] = (THIRD, BEST, SECOND)
    info: dict[str, dict] = field(default_factory=dict)
    params: dict[str, dict] = field(default_factory=dict)
    router: dict = field(default_factory=dict)
    request: dict = field(default_factory=dict)
    sync_answers: tuple[str, ...] | None = None
    text: str = "code"
    times: int = 1
    tried: int = 2


def failing(how: str, name: str) -> Scenario:
    return Scenario(name, {BEST: how})


SCENARIOS = (
    *(failing(how, f"answers {how}") for how in ("500", "503", "429", "401", "403", "400", "404", "413", "422")),
    failing("hang", "times out"),
    failing("context", "answers that the context is too long"),
    failing("policy", "answers that the content is against its policy"),
    Scenario("is cooling down", {BEST: "429"}, times=2, tried=1),
    Scenario(
        "has too small a window",
        info={BEST: {"max_input_tokens": 50}} | {one: {"max_input_tokens": 100_000} for one in (SECOND, THIRD)},
        router={"enable_pre_call_checks": True},
        text=LONG,
        tried=1,
    ),
    Scenario(
        "lacks the tag of the request",
        params={BEST: {"tags": ["paid"]}, SECOND: {"tags": ["free"]}, THIRD: {"tags": ["free"]}},
        router={"enable_tag_filtering": True},
        request={"metadata": {"tags": ["free"]}},
        sync_answers=(BEST,),  # LiteLLM's sync calls know no tags
        tried=1,
    ),
    Scenario("is excluded by the request", request={"_excluded_deployment_ids": [f"id-{BEST}"]}, tried=1),
    Scenario(
        "has a later order of the operator's",
        params={BEST: {"order": 2}, SECOND: {"order": 1}, THIRD: {"order": 1}},
        tried=1,
    ),
    Scenario(
        "has a later order, and all of the first fail",
        {SECOND: "500", THIRD: "500"},
        params={BEST: {"order": 2}, SECOND: {"order": 1}, THIRD: {"order": 1}},
        answers=(BEST,),
        tried=3,
    ),
    Scenario("has two deployments", ids=(THIRD, f"{BEST}-1", f"{BEST}-2"), answers=(f"{BEST}-1", f"{BEST}-2"), tried=1),
    Scenario("fails with the second", {BEST: "500", SECOND: "503"}, answers=(THIRD,), tried=3),
    Scenario("is refused with the second", {BEST: "400", SECOND: "404"}, answers=(THIRD,), tried=3),
    Scenario("answers 500, under num_retries: 0", {BEST: "500"}, router={"num_retries": 0}),
    Scenario("answers", answers=(BEST,), tried=1),
)


def deployments(scenario: Scenario, provider: Upstream) -> list[dict]:
    return [
        {
            "model_name": "auto",
            "litellm_params": {
                # by a name of its own: LiteLLM shares what it knows of a window among all deployments of a name
                "model": f"openai/{abs(hash(scenario.name))}-{one}",
                "api_base": provider.base(scenario.how.get(one, one), one),
                "api_key": "k",
                "max_retries": 0,
                "timeout": 0.5 if scenario.how.get(one) == "hang" else 10,
                "input_cost_per_token": 1e-6,
                "output_cost_per_token": 1e-6,
            }
            | scenario.params.get(one, {}),
            # LiteLLM keeps prices by id too: one that is a model's name would be a price of that model in other tests
            "model_info": {"id": f"id-{one}", "p2l_model": one.partition("-")[0]} | scenario.info.get(one, {}),
        }
        for one in scenario.ids
    ]


@contextlib.contextmanager
def p2l_router(bundle: Path, **settings):
    """A callback over a bundle, alone in LiteLLM's lists while the block runs."""
    p2l = P2LRouter(P2LSettings(bundle=str(bundle), timeout_ms=20_000, **settings))
    litellm.callbacks = [p2l]
    try:
        yield p2l
    finally:
        litellm.callbacks = []


def answered(scenario: Scenario, provider: Upstream, p2l: P2LRouter, kind: str, stream: bool) -> tuple[str, list[str]]:
    """The text of the last answer, or the type of its error, and the deployments that were asked for it.

    Args:
        kind: `async` or `sync`.
    """
    router = litellm.Router(model_list=deployments(scenario, provider), **scenario.router)
    P2LRoutingStrategy.install(router, p2l)
    messages = [{"role": "user", "content": scenario.text}]

    def request():
        metadata = {k: dict(v) for k, v in scenario.request.items() if isinstance(v, dict)}
        return {"model": "auto", "messages": messages, "stream": stream} | scenario.request | metadata

    async def ask_async():
        response = await router.acompletion(**request())
        if not stream:
            return response.choices[0].message.content
        return "".join([chunk.choices[0].delta.content or "" async for chunk in response if chunk.choices])

    def ask_sync():
        response = router.completion(**request())
        if not stream:
            return response.choices[0].message.content
        return "".join([chunk.choices[0].delta.content or "" for chunk in response if chunk.choices])

    async def all_async():
        for _ in range(scenario.times):
            provider.taken.clear()
            try:
                text = await ask_async()
            except Exception as error:
                text = type(error).__name__
            await asyncio.sleep(0.05 if scenario.times > 1 else 0)  # a cooldown begins a moment after the failure
        return text

    def all_sync():
        for _ in range(scenario.times):
            provider.taken.clear()
            try:
                text = ask_sync()
            except Exception as error:
                text = type(error).__name__
        return text

    text = asyncio.run(all_async()) if kind == "async" else all_sync()
    return text, list(provider.taken)


def problem(scenario: Scenario, kind: str, text: str, taken: list[str]) -> str | None:
    """What is wrong with an outcome."""
    expected = (scenario.sync_answers if kind == "sync" else None) or scenario.answers
    if text not in expected:
        return f"{text} answered after {taken}, not {' or '.join(expected)}"
    models = [one.partition("-")[0] for one in taken]
    if len(models) != len(set(models)) or len(taken) > scenario.tried:
        return f"asked {taken}"
    return None


#: Ways to call: async or sync, streaming or not.
WAYS = [(kind, stream) for kind in ("async", "sync") for stream in (False, True)]

_PLACES = {BEST: "best", SECOND: "second", THIRD: "third"}


def main() -> None:
    outcomes: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder, upstream() as provider:
        bundle = write_bundle(Path(folder) / "bundle")
        for scenario in SCENARIOS:
            ways = outcomes[scenario.name] = {}
            for kind, stream in WAYS:
                with p2l_router(bundle) as p2l:
                    text, taken = answered(scenario, provider, p2l, kind, stream)
                ways[f"{kind}{' stream' if stream else ''}"] = {
                    "answered": _PLACES.get(text.partition("-")[0], text),
                    "problem": problem(scenario, kind, text, taken),
                }
    print(json.dumps({"litellm": litellm_version(), "outcomes": outcomes}))


if __name__ == "__main__":
    main()
