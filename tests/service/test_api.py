"""The interface against `P2L` and the command line, through HTTP."""

import json

import httpx
import numpy as np
import pytest
from helpers.serving import PRICES, as_family, in_thread, until
from typer.testing import CliRunner

from p2l_plugins.cli import app as cli
from p2l_plugins.files.prompts import read_prompts
from p2l_plugins.leaderboards.interaction import interaction
from p2l_plugins.outcomes import rk_eta, usable_probability, win_probability
from p2l_plugins.scoring.scorer import EVERYDAY
from p2l_plugins.service.app import create_app
from p2l_plugins.service.settings import ServiceSettings

PROMPTS = ["Prove that √2 is irrational", ["hi", "and in French?"], "Prove that √2 is irrational", "word " * 5_000]
SECRET = "xylophone-confidential"


def test_scores_are_those_of_the_bundle_in_the_order_of_the_prompts(client, p2l):
    answer = client.post("/v1/scores", json={"prompts": PROMPTS}).json()
    expected = p2l.score(PROMPTS)
    assert set(answer) == {
        *("bundle", "fingerprint", "family", "models", "coefs", "raw_eta", "truncated", "unknown", "cached")
    }
    assert (answer["bundle"], answer["fingerprint"], answer["family"]) == ("starter", p2l.fingerprint, "grk")
    assert tuple(answer["models"]) == p2l.models
    np.testing.assert_array_equal(np.float32(answer["coefs"]), expected.coefs)
    np.testing.assert_array_equal(np.float32(answer["raw_eta"]), expected.raw_eta)
    assert answer["truncated"] == expected.truncated.tolist() == [False, False, False, True]
    np.testing.assert_array_equal(np.float32(answer["unknown"]), expected.unknown)


def test_the_second_time_they_come_from_the_cache_and_are_the_same(client):
    prompts = ["asked twice", "asked twice too"]
    first, second = (client.post("/v1/scores", json={"prompts": prompts}).json() for _ in range(2))
    assert first.pop("cached") == [False, False]
    assert second.pop("cached") == [True, True]
    assert first == second


def test_the_bundle_says_what_a_client_needs(client, p2l):
    manifest = p2l.bundle.manifest
    assert client.get("/v1/bundle").json() == {
        "name": "starter",
        "fingerprint": p2l.fingerprint,
        "family": "grk",
        "models": list(p2l.models),
        "aliases": manifest.aliases,
        "ungrounded": list(manifest.ungrounded),
        "support": {name: one.record() for name, one in p2l.support.items()},
        "max_length": 512,
        "overall": {"coefs": p2l.overall.coefs.tolist(), "raw_eta": p2l.overall.raw_eta},
        "bounds": {"coefs": p2l.bounds.coefs, "raw_eta": p2l.bounds.raw_eta},
    }


@pytest.mark.parametrize("cached", [False, True])
def test_the_share_of_what_the_bundle_cannot_read_is_said(client, cached):
    prompts = ["𓀀𓁐𓃰 𓄿𓅓", "Why is the sky blue?", "hi 𓀀 in it"]
    answer = client.post("/v1/scores", json={"prompts": prompts}).json()
    assert answer["unknown"] == [1.0, 0.0, 0.25]
    assert answer["cached"] == [cached] * 3


def test_the_research_endpoints_form(client, p2l):
    answer = client.post("/predict", json={"prompt": ["hi!", "what's 1+1?"]}, headers={"api-key": "none needed"}).json()
    expected = p2l.score([["hi!", "what's 1+1?"]])
    assert set(answer) == {"coefs", "eta"}
    np.testing.assert_array_equal(np.float32(answer["coefs"]), expected.coefs[0])
    assert np.float32(answer["eta"]) == expected.raw_eta[0]
    assert client.get("/models").json() == {"models": list(p2l.models)}


def test_eta_of_rao_kupper_is_the_threshold_itself(tmp_path, p2l):
    with in_thread(create_app(ServiceSettings(bundle=str(as_family("rk", tmp_path))))) as url:
        answer = httpx.post(f"{url}/predict", json={"prompt": ["hi"]}).json()
        raw_eta = httpx.post(f"{url}/v1/scores", json={"prompts": ["hi"]}).json()["raw_eta"][0]
    assert answer["eta"] == pytest.approx(float(rk_eta(raw_eta)))
    assert answer["eta"] > 0 > raw_eta - 22.5


def test_a_family_without_eta_says_null(tmp_path):
    with in_thread(create_app(ServiceSettings(bundle=str(as_family("bt", tmp_path))))) as url:
        assert httpx.post(f"{url}/predict", json={"prompt": ["hi"]}).json()["eta"] is None
        assert httpx.post(f"{url}/v1/scores", json={"prompts": ["hi"]}).json()["raw_eta"] is None
        board = httpx.post(f"{url}/v1/leaderboard", json={"prompts": ["hi"]}).json()
        assert board["raw_eta"] is None
        assert sum(row["coef"] for row in board["leaderboard"]) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("rule", [{}, {"rule": "cap", "budget": 0.001}, {"rule": "lp", "budget": 0.002}])
def test_route_decides_as_the_command_does(client, rule):
    prompt = "Prove that √2 is irrational"
    answer = client.post("/v1/route", json={"prompt": prompt, **rule}).json()
    options = [x for key, value in rule.items() for x in (f"--{key}", str(value))]
    command = ["route", "starter", prompt, "--costs", str(PRICES), "--json", *options]
    expected = json.loads(CliRunner().invoke(cli, command).stdout)
    assert answer["choice"] == pytest.approx(expected["choice"])
    assert [row["model"] for row in answer["models"]] == [row["model"] for row in expected["models"]]
    assert {key: answer[key] for key in ("value", "win_rate", "expected_cost")} == pytest.approx(
        {key: expected[key] for key in ("value", "win_rate", "expected_cost")}, abs=1e-6
    )
    assert [corner["cost"] for corner in answer["curve"]] == sorted(corner["cost"] for corner in answer["curve"])


def test_route_takes_costs_and_opponents_of_the_request(client, p2l):
    asked = {
        "prompt": ["hi"],
        "costs": {"gpt-4o-2024-08-06": 0.01, "llama-3.1-8b-instruct": {"input_price": 1, "output_price": 2}},
        "opponents": {"o1-preview-2024-09-12": 1.0},
        "output_tokens": 100,
    }
    answer = client.post("/v1/route", json=asked).json()
    costs = {row["model"]: row["cost"] for row in answer["models"]}
    assert costs == pytest.approx({"gpt-4o-2024-08-06": 0.01, "llama-3.1-8b-instruct": 0.000201})
    scores = p2l.score([["hi"]])
    a, b = (scores.coefs[0, p2l.index(name)] for name in ("gpt-4o-2024-08-06", "o1-preview-2024-09-12"))
    assert answer["win_rate"] == pytest.approx(float(win_probability("grk", a, b, scores.raw_eta[0])), abs=1e-6)
    usable = client.post("/v1/route", json={"prompt": "hi", "objective": "usable"}).json()
    assert usable["objective"] == "usable"
    best = usable["models"][0]
    assert usable["value"] == pytest.approx(best["value"], abs=1e-6)
    expected = usable_probability(best["coef"], p2l.support[best["model"]].stderr)
    assert best["value"] == pytest.approx(float(expected), abs=1e-5)


def test_route_of_several_prompts_is_that_of_their_means(client):
    prompts = ["hi", "Prove that √2 is irrational. " * 20, ["Write a haiku", "and in French"]]
    each = [client.post("/v1/route", json={"prompt": prompt}).json()["models"] for prompt in prompts]
    answer = client.post("/v1/route", json={"prompts": prompts}).json()
    for row in answer["models"]:
        own = [next(other for other in models if other["model"] == row["model"]) for models in each]
        for key in ("value", "cost", "coef"):
            assert row[key] == pytest.approx(np.mean([other[key] for other in own]), rel=1e-4)
    best = answer["models"][0]
    assert answer["choice"] == {best["model"]: 1.0}
    assert answer["win_rate"] == pytest.approx(best["value"], abs=1e-6)
    for wrong in ({}, {"prompt": "hi", "prompts": ["hi"]}):
        refused = client.post("/v1/route", json=wrong)
        assert refused.status_code == 422
        assert refused.json()["detail"] == "give prompt, or prompts: one of the two"


def test_a_leaderboard_says_who_is_better_than_their_peers(client, p2l):
    prompts = ["Write a haiku", "Solve x² = 2", "Translate 'cat' into German"]
    until(lambda: client.get("/v1/overall").status_code == 200)
    overall = {row["model"]: row["coef"] for row in client.get("/v1/overall").json()["leaderboard"]}
    rows = client.post("/v1/leaderboard", json={"prompts": prompts}).json()["leaderboard"]
    apart = np.array([row.get("grounded") is False for row in rows])
    own, wide = np.array([row["coef"] for row in rows]), np.array([overall[row["model"]] for row in rows])
    expected = interaction(own, wide, apart)
    np.testing.assert_allclose([row["interaction"] for row in rows], expected, atol=1e-4)
    assert all(row["interaction_low"] < row["interaction"] < row["interaction_high"] for row in rows)
    alone = client.post("/v1/leaderboard", json={"prompts": ["hi"]}).json()["leaderboard"]
    assert {row["interaction_low"] for row in alone} == {None}  # a single prompt has no interval


def test_a_leaderboard_is_that_of_the_scores(client, p2l):
    prompts = ["Write a haiku", "Solve x² = 2", "Translate 'cat' into German"]
    answer = client.post("/v1/leaderboard", json={"prompts": prompts}).json()
    everyday = p2l.score(read_prompts(EVERYDAY)[0]).leaderboard()
    expected = p2l.score(prompts).leaderboard().among_peers(everyday, "overall board").to_dict()
    assert answer == {"bundle": "starter", "fingerprint": p2l.fingerprint, **json.loads(json.dumps(expected))}
    overall = client.get("/v1/overall").json()
    assert overall["n_prompts"] == 32
    assert client.get("/v1/costs").json() == {"costs": json.loads(PRICES.read_text())}


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/scores", {"prompts": [SECRET, 3]}, "prompts.1: a prompt is a string or a list of strings"),
        ("/v1/scores", {"prompts": [SECRET, " "]}, "prompt 2: the prompt is empty"),
        ("/v1/scores", {"prompts": [[SECRET, 3]]}, "prompts.0.1: input should be a valid string"),
        ("/v1/scores", {"prompts": []}, "prompts: list should have at least 1 item"),
        ("/v1/scores", {"prompts": SECRET}, "prompts: input should be a valid list"),
        ("/v1/scores", {"prompts": ["a"], SECRET: 1}, "a key is not known"),
        ("/v1/scores", {"prompts": [SECRET] * 257}, "prompts: 257 are more than 256"),
        ("/v1/scores", {"prompts": [[SECRET] * 1025]}, "at most 1024 items"),
        ("/v1/scores", [SECRET], "the body must be a JSON object"),
        ("/predict", {"prompts": [SECRET]}, "prompt: field required"),
        ("/v1/route", {"prompt": SECRET, "rule": "cap"}, "the rule 'cap' needs a budget"),
        ("/v1/route", {"prompt": SECRET, "rule": "cheap"}, "rule: input should be 'best', 'cap', 'lp' or 'paced'"),
        ("/v1/route", {"prompt": SECRET, "rule": "cap", "budget": 1e-9}, "the budget 1e-09 is below the cheapest"),
        ("/v1/route", {"prompt": SECRET, "costs": {"gpt-9": 1}}, "model 'gpt-9' is not in the bundle"),
        ("/v1/route", {"prompt": SECRET, "costs": {"gpt-9": -1}}, "costs: input should be greater than or equal to 0"),
        ("/v1/route", {"prompt": SECRET, "costs": {"gpt-4o-2024-08-06": 10**400}}, "costs: "),
        ("/v1/route", {"prompt": SECRET, "opponents": {"gpt-4o-2024-08-06": 0}}, "opponent weights must be"),
        ("/v1/leaderboard", {"prompts": [SECRET] * 4097}, "4097 are more than 4096"),
    ],
)
def test_a_wrong_request_gets_one_sentence_without_the_prompt(client, path, body, message):
    answer = client.post(path, json=body)
    assert answer.status_code == 422
    assert set(answer.json()) == {"detail"}
    assert message in answer.json()["detail"]
    assert SECRET not in answer.text


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"prompts": ["' + SECRET.encode(), 422),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"prompt": "a", "rule": "cap", "budget": NaN}', 422),
        (b"", 422),
    ],
)
def test_a_body_that_is_no_json_is_refused(client, content, status):
    for path in ("/v1/scores", "/v1/route"):
        answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code in (status, 422)
        assert SECRET not in answer.text


def test_half_a_surrogate_is_scored_as_a_replacement_character(client):
    content = b'{"prompts": ["\\ud800 caf\\u00e9", "\\ufffd caf\\u00e9"]}'
    answer = client.post("/v1/scores", content=content, headers={"Content-Type": "application/json"}).json()
    assert answer["coefs"][0] == answer["coefs"][1]


def test_too_large_a_body_is_refused_while_it_is_read(client):
    large = b'{"prompts": ["' + b"a" * (5 * 2**20) + b'"]}'
    declared = client.post("/v1/scores", content=large, headers={"Content-Type": "application/json"})
    assert declared.status_code == 413

    def pieces():
        for i in range(0, len(large), 65536):
            yield large[i : i + 65536]

    chunked = client.post("/v1/scores", content=pieces(), headers={"Content-Type": "application/json"})
    assert chunked.status_code == 413
    assert "larger than 4194304 bytes" in chunked.json()["detail"]


def test_metrics_count_what_happened_and_hold_no_text(client, service):
    client.post("/v1/scores", json={"prompts": [f"counted {SECRET}", f"counted {SECRET}", "other"]})
    client.get(f"/{SECRET}", params={"prompt": SECRET})
    text = client.get("/metrics").text
    assert 'p2l_service_requests_total{path="/v1/scores",status="200"}' in text
    assert 'p2l_service_requests_total{path="other",status="404"}' in text
    assert 'p2l_service_prompts_total{source="scored"}' in text
    assert "p2l_service_run_seconds_bucket" in text
    assert "p2l_service_ready_processes 1.0" in text
    assert "process_resident_memory_bytes" in text
    assert SECRET not in text
    log = service.text()
    assert "POST /v1/scores 200" in log
    assert "GET other 404" in log
    assert SECRET not in log
    assert "Traceback" not in log


def test_answers_forbid_whatever_the_page_does_not_need(client):
    for path in ("/", "/v1/bundle", "/page/page.js"):
        answer = client.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/page/../app.py").status_code == 404
    assert client.get("/docs").status_code == 200
    assert client.get("/healthz").json() == {"status": "ok"}
