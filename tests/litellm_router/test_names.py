"""`p2l check` names the groups that a callback of a real LiteLLM router sees: aliases, teams' models, wildcards."""

import json

import litellm
import pytest
import yaml
from litellm.integrations.custom_logger import CustomLogger
from typer.testing import CliRunner

from litellm_router.check import Routed, problems, routed_groups
from litellm_router.live import checked_address
from litellm_router.names import SEES_WILDCARDS, Names, targets_of
from litellm_router.settings import P2LSettings
from litellm_router.startup import aliases_of, deployments_of
from p2l_plugins.cli import app
from p2l_plugins.errors import ConfigError


def member(name, model, p2l_model=None, price=True, **info):
    prices = {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6} if price else {}
    return {
        "model_name": name,
        "litellm_params": {"model": f"openai/{model}", "api_key": "k", "mock_response": "hi"} | prices,
        "model_info": ({"p2l_model": p2l_model} if p2l_model else {}) | info,
    }


def of_team(name, model, p2l_model, team, public):
    return member(name, model, p2l_model, team_id=team, team_public_model_name=public)


MODELS = [
    member("auto", "a1", "alpha"),
    member("auto", "a2", "beta"),
    of_team("model_name_T1_1", "t1", "alpha", "T1", "chat"),
    of_team("model_name_T1_2", "t2", "beta", "T1", "chat"),
    of_team("model_name_T2_1", "t3", "gamma", "T2", "chat"),
    member("own", "o1", "alpha", team_id="T1"),
    member("own", "o2", "beta"),
    member("fast/*", "*", "alpha"),
    member("fast/*", "w2", "beta"),
    member("fast/new-*", "n1", "alpha"),
    member("fast/new-*", "n2", "gamma"),
    of_team("model_name_T1_3", "*", "alpha", "T1", "slow/*"),
    of_team("model_name_T1_4", "s2", "beta", "T1", "slow/*"),
    member("over", "v1", "alpha"),
    member("over", "v2", "beta"),
    member("plain", "p1"),
]
ALIASES = {
    "smart": "auto",
    "unlisted": {"model": "auto", "hidden": True},
    "twice": "smart",
    "over": "auto",
    "talk": "chat",
}
ALIASES |= {"quick": "fast/one", "lost": "nowhere"}


@pytest.fixture
def seen(monkeypatch):
    """What callbacks of a real router are given: a coroutine of the name and the team of a request."""
    calls = []

    class Watching(CustomLogger):
        async def async_filter_deployments(self, model, healthy_deployments, *_, **__):
            calls.append((model, sorted(one["model_name"] for one in healthy_deployments)))
            return healthy_deployments

    monkeypatch.setattr(litellm, "callbacks", [Watching()])
    router = litellm.Router(model_list=MODELS, model_group_alias=ALIASES, num_retries=0)

    async def ask(name, team=None):
        calls.clear()
        metadata = {"user_api_key_team_id": team} if team else {}
        try:
            await router.acompletion(model=name, messages=[{"role": "user", "content": "hi"}], metadata=metadata)
        except litellm.BadRequestError:
            return None
        return calls[0]

    return ask


@pytest.mark.parametrize("name", ["auto", "smart", "unlisted", "over", "talk", "chat", "own", "fast/one"])
@pytest.mark.parametrize("team", [None, "T1", "T2", "T3"])
async def test_the_deployments_of_a_name_are_those_that_the_router_gives(seen, name, team):
    names = Names(MODELS, ALIASES)
    reached = names.reached(name)
    group = next((one for one in reached if one.team == team), None) or next(
        (one for one in reached if one.team is None), None
    )
    given = await seen(name, team)
    if group is None:
        assert given is None
    else:
        assert given[1] == sorted(one["model_name"] for one in group.deployments)


async def test_an_alias_is_followed_once(seen):
    assert await seen("twice") is None
    assert Names(MODELS, ALIASES).reached("twice") == []


@pytest.mark.parametrize(
    ("asked", "team"),
    [
        ("auto", None),
        ("smart", None),
        ("over", None),
        ("talk", "T1"),
        ("chat", "T2"),
        ("own", None),
        ("fast/one", None),
        ("fast/new-1", None),
        ("quick", None),
        ("slow/one", "T1"),
    ],
)
async def test_a_key_of_the_settings_is_right_where_it_is_what_a_callback_sees(seen, asked, team):
    names = Names(MODELS, ALIASES)
    name, _ = await seen(asked, team)
    assert names.wrong_key(name) is None
    assert (names.wrong_key(asked) is None) == (name == asked)


@pytest.mark.parametrize(
    ("key", "sees_wildcards", "says"),
    [
        ("smart", True, "is an alias, and P2L sees the group that it leads to; name 'auto' instead"),
        ("over", True, "is an alias, and P2L sees the group that it leads to; name 'auto' instead"),
        ("model_name_T1_1", True, "is the name that LiteLLM gives a team's deployment; name 'chat' instead"),
        ("fast/*", True, None),
        ("fast/one", False, None),
        ("fast/*", False, "is a wildcard, and P2L sees the name that a request asks for; name the models"),
        ("fast/one", True, "fits a wildcard, and P2L sees that instead; name 'fast/*'"),
        ("fast/new-1", True, "fits a wildcard, and P2L sees that instead; name 'fast/new-*'"),
        ("slow/*", True, "is a wildcard, and P2L sees the name that a request asks for; name the models"),
        ("slow/one", True, None),
        ("atuo", True, "is not a model group; valid: auto, chat, fast/*, fast/new-*, over, own, plain"),
    ],
)
def test_keys_of_both_kinds_of_litellm(key, sees_wildcards, says):
    found = Names(MODELS, ALIASES, sees_wildcards).wrong_key(key)
    assert found == says if says is None else found.startswith(says)


def test_teams_aliases_and_wildcards_are_no_problems(tiny):
    groups = {"chat": {"mode": "shadow"}, "own": {"rule": "best"}, "fast/*" if SEES_WILDCARDS else "fast/x": {}}
    settings = P2LSettings(groups=groups)
    models = [one for one in MODELS if "T2" not in one["model_name"]]
    assert problems(settings, models, tiny, ALIASES) == []
    says = problems(P2LSettings(), MODELS, tiny, ALIASES)
    assert len(says) == 1
    assert "group 'chat' of team 'T2' has one model of the bundle" in says[0]


def test_the_price_of_a_wildcard_is_known_at_the_request_where_litellm_names_the_model(tiny):
    models = [member("fast/*", "*", name, price=False) for name in ("alpha", "beta")]
    says = problems(P2LSettings(rule="cap", budget=1), models, tiny)
    assert bool(says) == SEES_WILDCARDS


def test_which_groups_are_routed_and_why(tiny):
    settings = P2LSettings(groups={"over": {"mode": "off"}, "own": {"mode": "shadow"}, "fast/new-*": {"mode": "off"}})
    two = "2 models of the bundle: alpha, beta"
    shadow = "mode is 'shadow': decisions are recorded, and LiteLLM's own strategy decides"
    assert routed_groups(settings, MODELS, tiny, ALIASES) == [
        Routed("auto", None, True, two),
        Routed("chat", "T1", True, two),
        Routed("chat", "T2", False, "one model of the bundle: gamma"),
        Routed("own", "T1", False, shadow),
        Routed("own", None, False, "one model of the bundle: beta"),
        Routed("fast/*", None, True, two),
        Routed("fast/new-*", None, False, "p2l_settings.groups.fast/new-*.mode is 'off'"),
        Routed("slow/*", "T1", True, two),
        Routed("over", None, False, "an alias of this name leads to 'auto'"),
        Routed("plain", None, False, "no deployment names a model of the bundle"),
        Routed("smart", None, True, f"an alias of 'auto': {two}"),
        Routed("unlisted", None, True, f"an alias of 'auto': {two}"),
        Routed("over", None, True, f"an alias of 'auto': {two}"),
        Routed("talk", "T1", True, f"an alias of 'chat': {two}"),
        Routed("talk", "T2", False, "an alias of 'chat': one model of the bundle: gamma"),
        Routed("quick", None, True, f"an alias of 'fast/one': {two}"),
    ]


def test_a_router_lists_deployments_once_more_under_aliases_and_they_count_once(tiny):
    router = litellm.Router(model_list=MODELS, model_group_alias=ALIASES)
    listed, aliases = deployments_of(router), aliases_of(router)
    assert len(listed) > len(MODELS)
    assert targets_of(aliases) == targets_of(ALIASES)
    of_router, of_config = (Names(one, ALIASES).groups for one in (listed, MODELS))
    assert {(one.name, one.team, len(one.deployments)) for one in of_router} == {
        (one.name, one.team, len(one.deployments)) for one in of_config
    }
    says = problems(P2LSettings(), listed, tiny, aliases)
    assert len(says) == 1


def write(path, bundle, **settings):
    path.write_text(
        yaml.safe_dump(
            {
                "model_list": MODELS,
                "router_settings": {"model_group_alias": ALIASES},
                "litellm_settings": {
                    "callbacks": ["litellm_router.p2l_router"],
                    "p2l_settings": {"bundle": str(bundle)} | settings,
                },
            }
        )
    )
    return str(path)


def test_the_command_says_which_groups_are_routed(tiny_bundle, tmp_path):
    path = write(tmp_path / "config.yaml", tiny_bundle)
    report = json.loads(CliRunner().invoke(app, ["check", path, "--json"]).stdout)
    assert {"name": "chat", "team": "T1", "routed": True, "reason": "2 models of the bundle: alpha, beta"} in report[
        "groups"
    ]
    text = CliRunner().invoke(app, ["check", path]).stdout
    assert "| chat of team T2 | no | one model of the bundle: gamma |" in text
    assert "| smart | yes | an alias of 'auto': 2 models of the bundle: alpha, beta |" in text


@pytest.mark.parametrize("sign", "/#?")
def test_a_malformed_address_is_a_problem_by_its_key(tiny_bundle, tmp_path, sign, monkeypatch):
    url = f"redis://me:hidden{sign}ЖЩЮ@127.0.0.1:6379/0"
    monkeypatch.setenv("REDIS_OF_P2L", url)
    for given in (url, "os.environ/REDIS_OF_P2L"):
        path = write(tmp_path / "config.yaml", tiny_bundle, cache={"url": given})
        result = CliRunner().invoke(app, ["check", path])
        assert result.exit_code == 1
        assert "p2l_settings.cache.url is malformed" in result.output
        assert "/ as %2F, ? as %3F, # as %23" in result.output
        assert "hidden" not in result.output
        assert "ЖЩЮ" not in result.output
    monkeypatch.delenv("REDIS_OF_P2L")
    assert "url is malformed" not in CliRunner().invoke(app, ["check", path]).output


def test_the_addresses_of_litellm_are_checked_too(tiny_bundle, tmp_path):
    path = tmp_path / "config.yaml"
    write(path, tiny_bundle)
    content = yaml.safe_load(path.read_text())
    content["router_settings"]["redis_url"] = "redis://me:hidden/word@h"
    path.write_text(yaml.safe_dump(content))
    output = CliRunner().invoke(app, ["check", str(path)]).output
    assert "router_settings.redis_url is malformed" in output
    assert "hidden" not in output


def test_an_endpoint_with_a_password_is_not_repeated(tmp_path):
    path = tmp_path / "config.yaml"
    write(path, "starter")
    content = yaml.safe_load(path.read_text())
    content["litellm_settings"]["p2l_settings"] = {"endpoint": "http://me:1/hidden@127.0.0.1:9"}
    path.write_text(yaml.safe_dump(content))
    output = CliRunner().invoke(app, ["check", str(path)]).output
    assert "p2l_settings.endpoint is not valid" in output
    assert "hidden" not in output


@pytest.mark.parametrize(
    "url",
    ["http://me:hidden@h", "http://me:hidden/x@h", "http://me:1/hidden@h", "hidden", "ftp://h", "http://h?hidden"],
)
def test_a_wrong_live_address_is_not_repeated(url):
    with pytest.raises(ConfigError, match="--live must be http://HOST:PORT") as caught:
        checked_address(url)
    assert "hidden" not in str(caught.value)
    result = CliRunner().invoke(app, ["check", "--live", url])
    assert "hidden" not in f"{result.output} {result.exception!r}"
