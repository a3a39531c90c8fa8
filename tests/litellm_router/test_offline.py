"""`p2l route` decides as the router does: same prompt, prices, rule and budget."""

import json

import pytest
from typer.testing import CliRunner

from litellm_router import P2LRouter, P2LSettings
from p2l_plugins.cli import app

#: USD per million tokens of prompt and answer.
PRICES = {"alpha": (9.0, 30.0), "beta": (3.0, 8.0), "gamma": (0.5, 1.0)}
PROMPTS = ("math", "code " * 50, "a chat über Größe, naïve 数学", "math and code, then chat")


@pytest.fixture
def costs(tmp_path):
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({name: {"input_price": i, "output_price": o} for name, (i, o) in PRICES.items()}))
    return path


@pytest.fixture
def group(deployment):
    return [
        deployment(name, name, input_cost_per_token=i / 1e6, output_cost_per_token=o / 1e6)
        for name, (i, o) in PRICES.items()
    ]


@pytest.mark.parametrize("rule", [{}, {"rule": "cap"}, {"rule": "lp"}, {"rule": "paced"}], ids=str)
@pytest.mark.parametrize("objective", ["win_rate", "usable"])
async def test_the_same_decision_offline(tiny_bundle, tiny, costs, group, rule, objective):
    if rule:
        rule = rule | {"budget": 0.005}
    for prompt in PROMPTS:
        router = P2LRouter(P2LSettings(timeout_ms=5000, objective=objective, unknown_limit=1, **rule), lambda _: tiny)
        for again in range(2):  # the second request of `paced` has another multiplier
            request = {"litellm_call_id": f"{prompt} {again}"}
            await router.async_filter_deployments("auto", group, [{"role": "user", "content": prompt}], request)
            record = request["metadata"]["spend_logs_metadata"]["p2l"]
            options = [str(tiny_bundle), prompt, "--costs", str(costs), "--objective", objective, "--json"]
            options += [f"--{key}={value}" for key, value in rule.items()]
            if again and "multiplier" in record:
                options.append(f"--multiplier={record['multiplier']!r}")
            result = CliRunner().invoke(app, ["route", *options])
            assert result.exit_code == 0, result.output
            offline = json.loads(result.stdout)
            assert {row["model"]: row["value"] for row in offline["models"]} == pytest.approx(record["values"])
            assert {row["model"]: row["cost"] for row in offline["models"]} == pytest.approx(record["costs"])
            expected = record.get("mixture") or {record["model"]: 1.0}
            assert offline["choice"] == pytest.approx(expected, abs=1e-6)
            assert offline["multiplier"] == (pytest.approx(record["multiplier"]) if "multiplier" in record else None)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rule", "paced"], "'paced' needs a budget, or a multiplier"),
        (["--multiplier", "3"], "a multiplier belongs to the rule 'paced', not to 'best'"),
    ],
)
def test_a_multiplier_goes_with_paced(tiny_bundle, costs, options, says):
    result = CliRunner().invoke(app, ["route", str(tiny_bundle), "math", "--costs", str(costs), *options])
    assert result.exit_code == 1
    assert says in str(result.exception)
