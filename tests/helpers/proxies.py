"""Configurations of real LiteLLM proxies, and what their answers say."""

from __future__ import annotations

import contextlib

import demo

from helpers import forking
from p2l_plugins import P2L
from p2l_plugins.routing.policies import values

MODELS = ("gpt-4o-2024-08-06", "llama-3.1-8b-instruct", "qwen2.5-72b-instruct")
PROMPT = "Prove that the square root of 2 is irrational."

#: Writes what LiteLLM hands to every logger.
TAP = """
import json, os
from litellm.integrations.custom_logger import CustomLogger

class Tap(CustomLogger):
    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        logged = kwargs["standard_logging_object"]["metadata"].get("spend_logs_metadata")
        with open(os.environ["TAP"], "a") as stream:
            stream.write(json.dumps([kwargs["litellm_call_id"], logged]) + "\\n")

tap = Tap()
"""


def deployment(group, p2l_model, info=None, **params):
    params = {
        "model": f"openai/{p2l_model}",
        "api_key": "k",
        "input_cost_per_token": 1e-6,
        "output_cost_per_token": 2e-6,
        "mock_response": f"answer of {p2l_model}",
    } | params
    return {
        "model_name": group,
        "litellm_params": params,
        "model_info": {"id": f"{group}/{p2l_model}", "p2l_model": p2l_model} | (info or {}),
    }


def running_proxy(config, **options):
    """As the demo's, but forked."""
    return demo.running_proxy(config, **options, start=lambda *given: forking.Forked(forking.proxy, *given))


def at(provider, how, name=None, **params):
    """Parameters of a deployment that a real provider answers."""
    return {"api_base": provider.base(how, name), "mock_response": None, "max_retries": 0} | params


def config_of(callbacks, groups, **p2l_settings):
    return {
        "model_list": groups,
        "litellm_settings": {"callbacks": callbacks} | ({"p2l_settings": p2l_settings} if p2l_settings else {}),
        "router_settings": {"enable_pre_call_checks": True, "enable_tag_filtering": True, "cooldown_time": 60},
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
    }


def ranking_by_bundle(prompt):
    """The models by what the bundle gives, and the highest value."""
    p2l = P2L.load()
    scores = p2l.score([prompt])
    eta = None if scores.raw_eta is None else scores.raw_eta[0]
    value = values("win_rate", p2l.family, scores.coefs[0, [p2l.index(model) for model in MODELS]], eta)
    return [MODELS[i] for i in (-value).argsort()], float(value.max())


def delta_of(event):
    """The text that an event of any route adds."""
    if event.get("type") == "response.output_text.delta":
        return event["delta"]
    if event.get("type") == "content_block_delta":
        return event["delta"].get("text", "")
    choice = (event.get("choices") or [{}])[0]
    return choice.get("text") or (choice.get("delta") or {}).get("content") or ""


def entered(running):
    """The entered context of one of several proxies that start together, which closes with the stack it is put on."""
    stack = contextlib.ExitStack()
    proxy = stack.enter_context(running)

    @contextlib.contextmanager
    def kept():
        with stack:
            yield proxy

    return kept()
