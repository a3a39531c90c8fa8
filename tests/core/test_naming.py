"""Which models of a bundle the names of providers mean: a wrong match is worse than none."""

import pytest

from p2l_plugins.naming import OTHER_NAMES, SETTINGS, ModelNames

MODELS = (
    *("gpt-5-2025-08-07", "gpt-5-mini-2025-08-07", "gpt-5@high", "gpt-5.2", "gpt-4o-2024-08-06", "gpt-4o-2024-11-20"),
    *("o4-mini-2025-04-16", "o4-mini-2025-04-16@high", "gpt-oss-120b"),
    *("claude-sonnet-4-5-20250929", "claude-sonnet-4-20250514", "claude-sonnet-4-20250514@thinking"),
    *("claude-opus-4-6", "claude-3-5-sonnet-20240620", "claude-3-5-sonnet-20241022"),
    *("gemini-2.5-pro", "gemini-2.5-flash", "gemini-2.5-flash-lite", "gemini-2.0-flash-001"),
    *("deepseek-v3", "deepseek-v3-0324", "deepseek-v3.1", "deepseek-r1", "deepseek-chat-2024"),
    *("qwen3-235b-a22b", "qwen3-30b-a3b-instruct-2507", "qwen3-8b", "qwen3-8b@thinking"),
    *("kimi-k2-instruct", "kimi-k2-instruct-0905", "glm-4.5", "glm-4.5-air", "grok-4-0709", "grok-4-fast@nothink"),
    *("llama-3.1-8b", "llama-3.1-8b-instruct", "llama-3.3-70b-instruct", "llama-4-maverick-17b-128e-instruct"),
    *("mistral-large-2411", "mistral-small-2503", "nova-pro-v1", "command-r", "command-r-plus"),
)
ALIASES = {"deepseek-chat": "deepseek-chat-2024", "Our-Model": "glm-4.5", "gone": "no-such-model"}
LISTED = (
    *("gpt-5-2025-08-07", "azure/gpt-5-mini-2025-08-07", "gpt-5.2-2025-12-11", "o4-mini-2025-04-16"),
    *("claude-opus-4-6-20260205", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "vertex_ai/claude-sonnet-4@20250514"),
    *("gpt-4o-2024-05-13", "gpt-4o-2024-08-06"),
)


@pytest.fixture(scope="module")
def names():
    return ModelNames(MODELS, ALIASES, LISTED)


@pytest.mark.parametrize(
    ("name", "model", "rule"),
    [
        ("openai/gpt-5", "gpt-5-2025-08-07", "only date"),
        ("openai/gpt-5-2025-08-07", "gpt-5-2025-08-07", "name"),
        ("gpt-5.2-2025-12-11", "gpt-5.2", "only date"),
        ("openai/gpt-4o", "gpt-4o-2024-08-06", "other name"),
        ("anthropic/claude-sonnet-4-5-20250929", "claude-sonnet-4-5-20250929", "name"),
        ("anthropic/claude-sonnet-4-5", "claude-sonnet-4-5-20250929", "only date"),
        ("anthropic/claude-sonnet-4-0", "claude-sonnet-4-20250514", "other name"),
        ("bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0", "claude-sonnet-4-5-20250929", "spelling"),
        (
            "bedrock/converse/arn:aws:bedrock:us-east-1:1:inference-profile/eu.anthropic.claude-sonnet-4-20250514-v1:0",
            "claude-sonnet-4-20250514",
            "spelling",
        ),
        ("bedrock/us.anthropic.claude-opus-4-6-v1", "claude-opus-4-6", "spelling"),
        ("bedrock/us.amazon.nova-pro-v1:0", "nova-pro-v1", "other name"),
        ("bedrock/us.deepseek.r1-v1:0", "deepseek-r1", "spelling"),
        ("bedrock/deepseek.v3-v1:0", "deepseek-v3.1", "spelling"),
        ("bedrock/openai.gpt-oss-120b-1:0", "gpt-oss-120b", "spelling"),
        ("bedrock/us.meta.llama4-maverick-17b-instruct-v1:0", "llama-4-maverick-17b-128e-instruct", "other name"),
        ("bedrock/meta.llama3-1-8b-instruct-v1:0", "llama-3.1-8b-instruct", "spelling"),
        ("vertex_ai/claude-sonnet-4-5@20250929", "claude-sonnet-4-5-20250929", "spelling"),
        ("vertex_ai/deepseek-ai/deepseek-v3.1-maas", "deepseek-v3.1", "spelling"),
        ("gemini/gemini-2.5-pro", "gemini-2.5-pro", "name"),
        ("gemini/gemini-2.0-flash", "gemini-2.0-flash-001", "other name"),
        ("openrouter/anthropic/claude-sonnet-4.5", "claude-sonnet-4-5-20250929", "only date"),
        ("openrouter/deepseek/deepseek-chat-v3-0324:free", "deepseek-v3-0324", "other name"),
        ("openrouter/x-ai/grok-4", "grok-4-0709", "other name"),
        ("anthropic/claude-sonnet-4:thinking", "claude-sonnet-4-20250514@thinking", "only date, setting thinking"),
        ("xai/grok-4-fast-non-reasoning", "grok-4-fast@nothink", "other name"),
        ("groq/llama-3.3-70b-versatile", "llama-3.3-70b-instruct", "other name"),
        ("groq/openai/gpt-oss-120b", "gpt-oss-120b", "name"),
        ("together_ai/meta-llama/Meta-Llama-3.1-8B-Instruct-Turbo", "llama-3.1-8b-instruct", "spelling"),
        ("together_ai/deepseek-ai/DeepSeek-V3.1", "deepseek-v3.1", "spelling"),
        ("fireworks_ai/accounts/fireworks/models/deepseek-v3p1", "deepseek-v3.1", "spelling"),
        ("fireworks_ai/accounts/fireworks/models/llama-v3p1-8b-instruct", "llama-3.1-8b-instruct", "spelling"),
        ("fireworks_ai/accounts/fireworks/models/glm-4p5-air", "glm-4.5-air", "spelling"),
        ("ollama/llama3.1:8b", "llama-3.1-8b-instruct", "spelling"),
        ("ollama_chat/qwen3:8b", "qwen3-8b", "spelling"),
        ("moonshot/kimi-k2-0905-preview", "kimi-k2-instruct-0905", "other name"),
        ("Our-Model", "glm-4.5", "name"),
    ],
)  # fmt: skip
def test_names_as_people_write_them(names, name, model, rule):
    found = names.find(name)
    assert found is not None
    assert (found.model, found.rule) == (model, rule)


@pytest.mark.parametrize(
    "name",
    [
        *("openai/gpt-5-chat", "openai/gpt-5-nano", "openai/gpt-5-codex", "gpt-5-pro", "gpt-5.1", "gpt-5-2025-09-01"),
        *("openai/gpt-4o-mini", "openai/gpt-4", "gpt-4o-audio-preview", "chatgpt-4o-latest"),
        *("anthropic/claude-opus-4-5", "anthropic/claude-3-5-sonnet", "claude-haiku-4-5", "claude-sonnet-4-6"),
        *("claude-opus-4-6-20260101", "gemini/gemini-2.5-flash-lite-preview-09-2025", "gemini/gemini-2.5-pro-preview"),
        *("qwen3-235b-a22b-2507", "qwen/qwen3-235b-a22b-thinking-2507", "qwen3-30b-a3b", "qwen3-30b-a3b-2507"),
        *("deepseek/deepseek-chat", "deepseek-v3.1-terminus", "deepseek-v3-2-251201", "ollama/deepseek-r1:8b"),
        *("deepseek-r1-0528", "deepseek-r1-distill-llama-8b", "glm-4.5v", "glm-4.5-flash", "kimi-k2-thinking"),
        *("cerebras/llama3.1-8b", "meta-llama/Llama-3.1-8B", "ollama/llama3.1", "ollama/llama3.1:latest"),
        *("ollama/llama3.1:8b-instruct-q2_K", "ollama/qwen3:30b", "mistral/mistral-large-latest", "mistral-large"),
        *("azure/gpt-5", "azure/gemini-2.5-pro", "sagemaker/gpt-oss-120b", "azure_ai/deepseek-r1", "openai/*"),
        *("openrouter/google/gemini-2.5-pro:online", "command-r+", "command-a", "gone", "", "/", "@", ":", "???"),
        *("grok-4-1-fast", "grok-4-fast", "grok-4.20", "llama-4-scout", "gpt-oss-20b", "gpt-oss-safeguard-120b"),
    ],
)  # fmt: skip
def test_another_model_is_no_match(names, name):
    found = names.find(name)
    assert found is None or (name == "command-r+" and found.model == "command-r-plus"), found


def test_a_base_model_counts_where_the_providers_names_are_the_operators_own(names):
    assert names.find("azure/gpt-5") is None
    assert names.find("azure/gpt-5", base=True).model == "gpt-5-2025-08-07"
    assert names.find("azure/us/gpt-5-mini-2025-08-07", base=True).model == "gpt-5-mini-2025-08-07"


@pytest.mark.parametrize(
    ("name", "setting", "model"),
    [
        ("openai/o4-mini", "high", "o4-mini-2025-04-16@high"),
        ("openai/o4-mini", "low", "o4-mini-2025-04-16"),
        ("openai/gpt-5", "high", "gpt-5-2025-08-07"),  # gpt-5@high is of the name without a date
        ("anthropic/claude-sonnet-4-20250514", "high", "claude-sonnet-4-20250514@thinking"),
        ("anthropic/claude-sonnet-4-20250514", "none", "claude-sonnet-4-20250514"),
        ("anthropic/claude-sonnet-4-20250514", "minimal", "claude-sonnet-4-20250514"),
        ("qwen3-8b", "thinking", "qwen3-8b@thinking"),
        ("qwen3-8b@thinking", None, "qwen3-8b@thinking"),
        ("xai/grok-4-fast", "nothink", "grok-4-fast@nothink"),
        ("gemini-2.5-pro", "high", "gemini-2.5-pro"),
    ],
)
def test_a_setting_chooses_the_model_of_that_setting_where_there_is_one(names, name, setting, model):
    assert names.find(name, setting).model == model


def test_two_dates_are_no_only_date():
    one = ModelNames(["gpt-9-2030-01-01"], {}, ["gpt-9-2030-01-01", "openai/gpt-9"])
    two = ModelNames(["gpt-9-2030-01-01"], {}, ["azure/gpt-9-2030-01-01", "gpt-9-20300202"])
    assert one.find("openai/gpt-9").model == "gpt-9-2030-01-01"
    assert two.find("openai/gpt-9") is None
    assert two.find("gpt-9-20300101").model == "gpt-9-2030-01-01"


def test_two_spellings_in_a_bundle_are_told_apart_by_the_name_alone():
    names = ModelNames(["a-1.5", "a-1-5"], {})
    assert names.find("a-1.5").model == "a-1.5"
    assert names.find("a_1_5") is None


def test_other_names_are_not_models_themselves():
    """A name of the table must not hide a model that is called so: the spelling comes first."""
    for name, targets in OTHER_NAMES.items():
        assert ModelNames([name, *targets], {}).find(name).model == name
        assert all(target.partition("@")[2] in ("", *SETTINGS) for target in targets)
