import litellm
import pytest

from litellm_router.chat import prompt_tokens
from litellm_router.prices import Price, listed, price_of

INPUT, OUTPUT = "input_cost_per_token", "output_cost_per_token"
CACHED = "cache_read_input_token_cost"


def test_the_first_place_that_has_a_price_counts():
    deployment = {
        "litellm_params": {"model": "gpt-4o-mini", INPUT: 1.0},
        "model_info": {INPUT: 2.0, OUTPUT: 3.0},
    }
    assert price_of(deployment) == Price(1.0, 3.0)


def test_litellms_own_table_has_the_rest():
    entry = litellm.model_cost["gpt-4o-mini"]
    assert price_of({"litellm_params": {"model": "openai/gpt-4o-mini"}}) == Price(
        entry[INPUT], entry[OUTPUT], entry[CACHED]
    )


def test_base_model_names_the_entry_of_the_table():
    deployment = {"litellm_params": {"model": "azure/my-deployment"}, "model_info": {"base_model": "gpt-4o-mini"}}
    assert price_of(deployment) == price_of({"litellm_params": {"model": "gpt-4o-mini"}})


def test_a_deployment_that_litellm_registered_without_a_price_is_unknown_and_not_free():
    params = {"model": "openai/nobody-knows-this", "api_key": "k"}
    litellm.Router(model_list=[{"model_name": "auto", "litellm_params": params, "model_info": {"id": "x"}}])
    assert litellm.get_model_info("openai/nobody-knows-this")[INPUT] == 0  # what LiteLLM says about it
    assert price_of({"litellm_params": params}) is None


# names that no other test looks up: LiteLLM remembers what it found
@pytest.mark.parametrize(
    "model", ["openai/gpt-4.1-nano-2025-04-14", "openai/o3-2025-04-16", "anthropic/claude-haiku-4-5-20251001"]
)
def test_a_name_that_litellm_came_to_list_without_a_price_has_that_of_its_provider(monkeypatch, model):
    params = {"litellm_params": {"model": model}}
    provider, _, plain = model.partition("/")
    own = litellm.model_cost[plain]
    entry = {"litellm_provider": provider, "mode": "chat", INPUT: None, "max_input_tokens": 7}
    monkeypatch.setitem(litellm.model_cost, model, entry)
    assert price_of(params) == Price(own[INPUT], own[OUTPUT], own[CACHED])
    assert listed(params)["max_input_tokens"] == 7  # what it says itself counts


def test_another_providers_price_is_none_of_its_own(monkeypatch):
    monkeypatch.setitem(litellm.model_cost, "azure/ours", {"litellm_provider": "azure", "mode": "chat"})
    monkeypatch.setitem(litellm.model_cost, "ours", {"litellm_provider": "openai", INPUT: 1.0, OUTPUT: 1.0})
    assert price_of({"litellm_params": {"model": "azure/ours"}}) is None


def test_a_failure_that_says_nothing_of_a_model_is_not_remembered(monkeypatch):
    params = {"litellm_params": {"model": "openai/gpt-4.1-mini"}}

    def failing(model):
        raise RuntimeError("dictionary changed size during iteration")

    with monkeypatch.context() as patch:
        patch.setattr(litellm, "get_model_info", failing)
        assert price_of(params) is None
    assert price_of(params) is not None


def test_free_is_a_price():
    assert price_of({"litellm_params": {"model": "x", INPUT: 0, OUTPUT: 0}}) == Price(0.0, 0.0)


def test_a_price_that_yaml_read_as_text_counts():
    assert price_of({"litellm_params": {"model": "x", INPUT: "1e-6", OUTPUT: "2e-6"}}) == Price(1e-6, 2e-6)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), "much", True, [1]])
def test_what_is_not_a_number_of_at_least_zero_is_unknown(bad):
    assert price_of({"litellm_params": {"model": "gpt-4o-mini", INPUT: bad, OUTPUT: 1.0}}) is None


def test_expected_cost():
    assert Price(1e-6, 2e-6).cost(prompt_tokens=100, output_tokens=500) == pytest.approx(0.0011)


@pytest.mark.parametrize(
    ("messages", "tokens"),
    [
        ("abcdefgh", 2),
        ([{"role": "system", "content": "abcd"}, {"role": "user", "content": "abcde"}], 3),
        ([{"role": "user", "content": [{"type": "text", "text": "abcd"}, {"type": "image_url", "image_url": {}}]}], 1),
        ([{"role": "user", "content": None}, 7, None], 0),
        ("日本", 2),
        ("\ud800", 1),
        (None, 0),
    ],
)
def test_prompt_tokens_are_a_quarter_of_the_bytes_of_all_text(messages, tokens):
    assert prompt_tokens(messages) == tokens
