"""`p2l check` on configurations, right and wrong, and `p2l replay` on logs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.http_scorer import http_scorer
from typer.testing import CliRunner

from litellm_router.replay import parse_rule, read_records, replayed
from p2l_plugins.cli import app
from p2l_plugins.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tiny_bundle, tmp_path):
    def write(models=("alpha", "beta"), params=None, callbacks=("litellm_router.p2l_router",), **settings):
        prices = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
        content = {
            "model_list": [
                {
                    "model_name": "auto",
                    "litellm_params": {"model": f"openai/{name}"} | (prices if params is None else params),
                    "model_info": {"p2l_model": name},
                }
                for name in models
            ],
            "litellm_settings": {
                "callbacks": list(callbacks),
                "p2l_settings": settings if "endpoint" in settings else {"bundle": str(tiny_bundle)} | settings,
            },
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


#: Votes from live traffic, with the group itself as its judge.
COLLECT = {"share": 0.1, "judge": "auto", "budget_per_day": 1.0, "store": "votes.jsonl", "store_prompts": True}


def checked(path):
    result = CliRunner().invoke(app, ["check", str(path), "--json"])
    return result.exit_code, json.loads(result.stdout)


def test_a_right_configuration_lists_the_candidates(config):
    code, report = checked(config(rule="cap", budget=0.01))
    assert (code, report["problems"]) == (0, [])
    assert [(row["model"], row["input_price"]) for row in report["candidates"]] == [("alpha", 1.0), ("beta", 1.0)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"callbacks": ()}, ["litellm_settings.callbacks", "litellm_router.p2l_router"]),
        ({"models": ("alpha", "delta", "beta")}, ["'openai/delta'", "'auto'", "'delta'", "valid: alpha, beta, gamma"]),
        ({"models": ("alpha", "a")}, ["'auto'", "one model"]),
        ({"models": ()}, ["model_list", "no deployment", "valid: alpha"]),
        ({"params": {"input_cost_per_token": -1}}, ["input_cost_per_token = -1", "at least 0"]),
        ({"params": {}, "rule": "cap", "budget": 1.0}, ["no known price", "input_cost_per_token"]),
        ({"params": {}, "max_cost": 1.0}, ["no known price", "p2l_settings.max_cost"]),
        ({"groups": {"atuo": {"mode": "shadow"}}}, ["p2l_settings.groups.atuo", "valid: auto"]),
        ({"opponents": {"delta": 1.0}}, ["p2l_settings.opponents", "'delta'", "valid: alpha"]),
        ({"groups": {"auto": {"opponents": {"delta": 1.0}}}}, ["p2l_settings.groups.auto.opponents", "'delta'"]),
        ({"output_tokens": {"delta": 3}}, ["p2l_settings.output_tokens.delta", "valid: alpha"]),
        ({"rule": "cap"}, ["'cap'", "budget"]),
        ({"bundle": "/nowhere"}, ["p2l_settings.bundle", "/nowhere"]),
        ({"collect": COLLECT | {"judge": "jugde"}}, ["collect.judge = 'jugde'", "valid: auto"]),
        ({"collect": COLLECT | {"groups": ["atuo"]}}, ["collect.groups: 'atuo'", "valid: auto"]),
        ({"collect": COLLECT, "params": {}}, ["collect.judge", "no known price"]),
        ({"collect": COLLECT | {"store_prompts": False}}, ["p2l_settings.collect", "store_prompts: true"]),
    ],
)
def test_a_wrong_one_is_a_sentence_and_status_1(config, options, says):
    code, report = checked(config(**options))
    assert code == 1
    assert any(all(part in sentence for part in says) for sentence in report["problems"]), report["problems"]


def test_an_endpoint_is_asked_for_its_models(config, tiny):
    with http_scorer(tiny) as scorer:
        path = config(models=("alpha", "delta", "beta"), endpoint=scorer.url)
        code, report = checked(path)
        assert (code, len(report["problems"])) == (1, 1)
        assert "valid: alpha, beta, gamma" in report["problems"][0]
    code, report = checked(path)
    assert code == 1
    assert f"p2l_settings.endpoint = '{scorer.url}'" in report["problems"][0]
    assert "ConnectError" in report["problems"][0]


def test_usable_needs_a_grounded_bundle(config, bt_bundle):
    code, report = checked(config(bundle=str(bt_bundle), objective="usable"))
    assert code == 1
    assert "family grk" in report["problems"][0]


def test_the_example_of_the_docs_is_right():
    code, report = checked(ROOT / "examples" / "proxy.yaml")
    assert (code, report["problems"]) == (0, [])


def test_a_missing_file_is_one_line():
    run = subprocess.run(
        [sys.executable, "-m", "p2l_plugins.cli", "check", "nowhere.yaml"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1


RECORDS = [
    {"model": "b", "values": {"a": 0.2, "b": 0.6}, "costs": {"a": 1.0, "b": 5.0}},
    {"model": "b", "values": {"a": 0.4, "b": 0.5}, "costs": {"a": 1.0, "b": 5.0}},
    {"model": "a", "values": {"a": 0.7, "b": 0.1}, "costs": {"a": 1.0, "b": None}},
]


def write_log(path, wrap):
    lines = [json.dumps(wrap(record)) for record in RECORDS]
    path.write_text("\n".join([*lines, json.dumps({"metadata": {"spend_logs_metadata": {"p2l": {"error": "busy"}}}})]))
    return path


@pytest.mark.parametrize(
    "wrap",
    [
        lambda r: r,
        lambda r: {"metadata": {"spend_logs_metadata": {"p2l": r}}},
        lambda r: {"metadata": json.dumps({"spend_logs_metadata": {"p2l": r}})},
        lambda r: {"standard_logging_object": {"metadata": {"spend_logs_metadata": {"p2l": r}}}},
    ],
)
def test_records_are_found_wherever_litellm_logs_them(tmp_path, wrap):
    assert read_records(write_log(tmp_path / "log.jsonl", wrap)) == RECORDS


def test_rules_are_replayed_beside_single_models():
    report = replayed(RECORDS, [parse_rule(text) for text in ("best", "cap:2", "lp:3")])
    rows = {row["rule"]: row for row in report["rules"]}
    assert rows["as logged"]["mean_value"] == rows["best"]["mean_value"] == pytest.approx((0.6 + 0.5 + 0.7) / 3)
    assert rows["best"]["cost"] == pytest.approx(11.0)
    assert rows["cap 2"]["share"] == {"a": 1.0}
    assert rows["lp 3"]["mean_cost"] == pytest.approx((3 + 3 + 1) / 3)
    assert rows["always a (best single)"]["mean_value"] == pytest.approx((0.2 + 0.4 + 0.7) / 3)
    assert rows["always a (cheapest)"]["cost"] == pytest.approx(3.0)


def test_a_request_without_the_single_model_takes_its_best_candidate():
    records = [*RECORDS, {"values": {"c": 0.3, "d": 0.2}, "costs": {"c": 2.0, "d": 1.0}}]
    report = replayed(records, [parse_rule("paced:2")])
    assert report["requests"] == 4
    assert "as logged" not in [row["rule"] for row in report["rules"]]


def test_the_command_prints_a_table(tmp_path):
    log = write_log(tmp_path / "log.jsonl", lambda r: r)
    result = CliRunner().invoke(app, ["replay", str(log)])
    assert result.exit_code == 0, result.output
    assert "| best | 11 |" in result.stdout
    assert "paced" in result.stdout
    assert "3 requests, 2 models" in result.stdout


def test_bad_logs_and_rules_are_a_sentence(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="no line holds a decision"):
        read_records(empty)
    empty.write_text("{\n")
    with pytest.raises(DataError, match="line 1 is not valid JSON"):
        read_records(empty)
    for text in ("cheap", "cap", "cap:x", "lp:-1"):
        with pytest.raises(ConfigError, match="valid: best, cap:USD"):
            parse_rule(text)


def test_replay_counts_answers_and_not_decisions_or_attempts(tmp_path):
    values, costs = {"a": 0.9, "b": 0.5}, {"a": 2.0, "b": 1.0}
    failed = {"deployment": "1", "model": "a", "error": 500}
    decided = {"values": values, "costs": costs, "model": "a"}
    rows = [
        {"status": "failure", "p2l": decided | {"attempts": [failed]}},
        {"status": "success", "p2l": decided | {"attempts": [failed, {"model": "b"}], "answered": "b", "cost": 0.25}},
        {"p2l": decided | {"attempts": [failed]}},  # a line that does not say what became of it
        {"status": "success", "p2l": decided | {"attempts": [{"model": "a"}], "answered": "a", "cost": 0.5}},
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = replayed(read_records(path), [parse_rule("best")])
    assert (result["requests"], result["paid"]) == (2, 0.75)
    assert result["rules"][0]["rule"] == "as logged"
    assert result["rules"][0]["share"] == {"a": 0.5, "b": 0.5}
    assert result["rules"][0]["cost"] == 3.0
