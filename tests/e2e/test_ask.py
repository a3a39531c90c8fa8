"""`p2l votes ask` as a process of its own, on a provider over HTTP that counts its calls."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time

import pytest
import yaml
from helpers.answering import provider, tokens_of
from helpers.forking import Forked, command
from typer.testing import CliRunner

from p2l_plugins.cli import app
from p2l_plugins.errors import ConfigError, P2LError
from p2l_plugins.votes.read import read_votes

MODELS = ("adder", "poet", "clerk")
PRICE = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
SHOWN = re.compile(r"\[\w+ ([\w ]+)\]\n(.*?)\n\[\w+ end\]", re.DOTALL)


def answers(model, messages):
    """Each model is right on its own topic; the judge knows who is, and likes nothing else."""
    text = messages[-1]["content"]
    if model.startswith("judge"):
        shown = dict(SHOWN.findall(text))
        if "answer" in shown:
            return "It is as it is.\nGrade: 9" if "right" in shown["answer"] else "Grade: 2"
        good = ["right" in shown["answer A"], "right" in shown["answer B"]]
        return "Verdict: " + ("both bad" if not any(good) else "tie" if all(good) else "A" if good[0] else "B")
    number = int(text.split()[-1])
    return f"right {number}" if MODELS[number % 3] == model else f"wrong, says {model} at length"


@pytest.fixture
def work(tmp_path):
    """Gives a folder with a configuration of a provider's models, and prompts."""

    def make(server, prompts=12, models=MODELS, **params):
        deployments = [
            {
                "model_name": "auto" if name in models else "judges",
                "litellm_params": {"model": f"openai/{name}", "api_base": server.url, "api_key": "os.environ/STUB_KEY"}
                | {"max_retries": 0}
                | PRICE
                | params,
            }
            for name in (*models, "judge", "judge-b")
        ]
        config = {"model_list": deployments, "router_settings": {"num_retries": 0, "disable_cooldowns": True}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        rows = [
            {"prompt": f"question {i}", "category": MODELS[i % 3], "language": "en", "reference": f"right {i}"}
            for i in range(prompts)
        ]
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    os.environ["STUB_KEY"] = "sk-stub"
    yield make
    del os.environ["STUB_KEY"]


class Said:
    """What a command in this process printed."""

    def __init__(self, *words, status=0):
        result = CliRunner().invoke(app, [*map(str, words)])
        self.stdout, self.stderr, error = result.stdout, result.stderr, result.exception
        code = result.exit_code
        if isinstance(error, P2LError):  # which `main` prints
            self.stderr += str(error)
            code = 2 if isinstance(error, ConfigError) else 1
        assert code == status, (error, self.stderr)


def ask(folder, *options, output="votes.jsonl", status=0, group=("--group", "auto")):
    files = (folder / "config.yaml", folder / "prompts.jsonl", "-o", folder / output)
    return Said("votes", "ask", *files, *group, *options, status=status)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_judged_pairs_become_votes_and_a_second_run_makes_no_call(work):
    with provider(answers) as server:
        folder = work(server)
        first = ask(folder, "--judge", "judge", "--yes", "--json")
        report = json.loads(first.stdout)
        rows = rows_of(folder / "votes.jsonl")
        assert len(rows) == report["votes"] == 12 * 3
        assert server.calls() == report["calls"] == 12 * 3 + 12 * 6
        assert set(server.asked.values()) == {1}
        assert server.keys == {"Bearer sk-stub"}
        assert server.most <= 8
        for row in rows:
            right = row["category"]
            won = {"model_a": row["model_a"], "model_b": row["model_b"]}.get(row["winner"])
            assert (won == right) if right in (row["model_a"], row["model_b"]) else row["winner"] == "tie (bothbad)"
            assert row["language"] == "en"
        assert len(read_votes(folder / "votes.jsonl")) == 36
        judge = report["judges"]["judge"]
        assert (judge["order_agreement"], judge["position_bias"]) == (1.0, 0.5)
        asked = [(model, json.loads(text)) for model, text in server.asked]
        cost = sum(1e-6 * tokens_of(chat) + 2e-6 * len(answers(model, chat).split()) for model, chat in asked)
        assert report["cost_usd"] == pytest.approx(cost)
        says = first.stderr
        assert "prompts go to poet at 127.0.0.1" in says
        assert "judge judge at 127.0.0.1" in says
        assert "question" not in says + first.stdout
        journal = (folder / "votes.jsonl.journal.jsonl").read_text()
        assert "question" not in journal
        assert "right" not in journal
        assert "at length" not in journal

        (folder / "votes.jsonl").unlink()
        again = json.loads(ask(folder, "--judge", "judge", "--json").stdout)  # nothing to pay for: no question
        assert server.calls() == 12 * 9
        assert (again["calls_of_this_run"], again["votes"]) == (0, 36)
        assert rows_of(folder / "votes.jsonl") == rows


def started(folder, *options):
    words = ("votes", "ask", folder / "config.yaml", folder / "prompts.jsonl", "-o", folder / "votes.jsonl")
    options = ("--group", "auto", "--judge", "judge", "--yes", *options)
    with (folder / "says.txt").open("wb") as says:
        return Forked(command, [*words, *options], says)


def wait_for_calls(server, process, count):
    end = time.monotonic() + 60
    while server.calls() < count and process.poll() is None:
        assert time.monotonic() < end, "no calls came"
        time.sleep(0.002)


def test_a_kill_at_any_moment_and_a_resume_pay_for_nothing_twice(work):
    random.seed(5)
    with provider(answers) as server:
        server.seconds = 0.01
        folder = work(server, prompts=40)
        in_flight = 0
        for _ in range(4):
            process = started(folder, "--concurrency", "4")
            wait_for_calls(server, process, server.calls() + random.randint(1, 40))
            in_flight += 4  # asked and not answered, or answered and not read
            process.kill()
            assert process.wait(20) == -signal.SIGKILL
        with (folder / "votes.jsonl.journal.jsonl").open("ab") as stream:
            stream.write(b'{"key": "0a')  # a torn line, as a power cut leaves it
        report = json.loads(ask(folder, "--judge", "judge", "--yes", "--json").stdout)
        assert sum(n - 1 for n in server.asked.values()) <= in_flight
        assert len(server.asked) == 40 * 9
        assert report["votes"] == 40 * 3
        assert 0 < report["calls_of_this_run"] < 40 * 9 - 4


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_waits_for_what_is_in_flight_and_the_next_run_pays_for_nothing_twice(work, sent, status):
    with provider(answers) as server:
        server.seconds = 0.1
        folder = work(server, prompts=30)
        process = started(folder)
        wait_for_calls(server, process, 20)
        process.send_signal(sent)
        process.wait(30)
        says = (folder / "says.txt").read_text()
        assert process.returncode == status, says
        assert "the same command goes on" in says
        assert "Traceback" not in says
        assert "at length" in (folder / "votes.jsonl.journal.jsonl").read_text()  # what is not judged yet
        server.seconds = 0.0
        ask(folder, "--judge", "judge", "--yes")
        assert set(server.asked.values()) == {1}
        assert server.calls() == 30 * 9


def test_limits_hold_over_all_runs_and_a_higher_one_goes_on(work):
    with provider(answers) as server:
        folder = work(server)
        report = json.loads(ask(folder, "--judge", "judge", "--yes", "--json", "--max-calls", "40").stdout)
        assert server.calls() == 36  # four prompts of nine calls
        assert (report["ended_by"], report["votes"]) == ("limit", 12)
        ask(folder, "--judge", "judge", "--yes", "--max-calls", "50")
        assert server.calls() == 45
        options = ("--judge", "judge", "--yes", "--json", "--max-tokens", "20", "--budget")
        other = json.loads(ask(folder, *options, "0.015", output="two.jsonl").stdout)
        assert 0.008 < other["cost_usd"] <= 0.015
        assert other["ended_by"] == "limit"


def test_no_terminal_and_no_yes_makes_no_call(work):
    with provider(answers) as server:
        folder = work(server)
        result = ask(folder, "--judge", "judge", status=2)
        assert "--yes" in result.stderr
        assert "up to 108 calls for 12 prompts" in result.stderr
        assert server.calls() == 0


def test_a_judge_that_always_says_a_gives_ties_and_the_report_says_why(work):
    def biased(model, messages):
        return "Verdict: A" if model == "judge" else answers(model, messages)

    with provider(biased) as server:
        report = json.loads(ask(work(server, prompts=6), "--judge", "judge", "--yes", "--json").stdout)
        assert report["outcomes"] == {"model_a": 0, "model_b": 0, "tie": 18, "tie (bothbad)": 0}
        assert report["judges"]["judge"]["position_bias"] == 1.0
        assert report["judges"]["judge"]["order_agreement"] == 0.0


def test_a_panel_of_judges_one_of_which_is_a_candidate_and_people(work):
    def partial(model, messages):
        text = messages[-1]["content"]
        if model == "poet" and "answer A]" in text:  # a judge that likes its own
            return "Verdict: A" if "says poet" in dict(SHOWN.findall(text))["answer A"] else "Verdict: B"
        return answers(model, messages)

    with provider(partial) as server:
        folder = work(server, prompts=6)
        human = [
            {"prompt": f"question {i}", "model_a": "adder", "model_b": "poet", "winner": "model_a"} for i in range(6)
        ]
        (folder / "human.jsonl").write_text("".join(json.dumps(row) + "\n" for row in human))
        options = ("--judges", "judge,judge-b,poet", "--human", folder / "human.jsonl", "--yes", "--json")
        report = json.loads(ask(folder, *options).stdout)
        own = report["judges"]["poet"]["self_preference"]
        assert own["own_wins"] > own["own_wins_by_others"]
        assert report["judges"]["judge"]["self_preference"] is None
        assert report["human"]["votes"] == 6
        assert 0 < report["human"]["agreement"] < 1
        assert server.calls() == 6 * (3 + 18)


@pytest.mark.parametrize("check", ["exact", "regex", "json-schema", "own"])
def test_checks_give_a_score_matrix_without_a_judge(work, check):
    with provider(answers) as server:
        folder = work(server, prompts=6)
        (folder / "own.py").write_text("def check(answer, reference, row):\n    return answer == row['reference']\n")
        if check == "json-schema":
            pytest.importorskip("jsonschema")
            server.answer = lambda model, messages: '{"a": 1}' if model == "adder" else "[1"
            rows = rows_of(folder / "prompts.jsonl")
            rows = [row | {"reference": {"type": "object", "required": ["a"]}} for row in rows]
            (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        name = folder / "own.py" if check == "own" else check
        report = json.loads(ask(folder, "--check", name, "--yes", "--json", output="matrix.jsonl").stdout)
        assert server.calls() == 18
        assert report["scores"] == 18
        for row in rows_of(folder / "matrix.jsonl"):
            right = "adder" if check == "json-schema" else row["category"]
            assert {name: row[name] for name in MODELS} == {name: float(name == right) for name in MODELS}
        assert "right" not in (folder / "matrix.jsonl.journal.jsonl").read_text()


def test_grades_give_a_score_matrix(work):
    with provider(answers) as server:
        folder = work(server, prompts=6)
        report = json.loads(ask(folder, "--judge", "judges", "--grade", "--yes", "--json").stdout)
        assert server.calls() == 36
        rows = rows_of(folder / "votes.jsonl")
        assert all(row[row["category"]] == 0.9 and sorted(row[m] for m in MODELS) == [0.2, 0.2, 0.9] for row in rows)
        assert report["mean_scores"]["poet"] == pytest.approx((2 * 0.9 + 4 * 0.2) / 6)


def test_a_model_that_fails_loses_nothing_and_is_given_up(work):
    def broken(model, messages):
        return 503 if model == "poet" else answers(model, messages)

    with provider(broken) as server:
        report = json.loads(ask(work(server, prompts=30), "--judge", "judge", "--yes", "--json").stdout)
        votes = read_votes(work(server) / "votes.jsonl")
        assert votes.models == ("adder", "clerk")
        assert report["models"]["poet"]["failures"]
        assert server.statuses["poet", 503] < 30
        assert report["votes"] == 30


def test_a_judge_that_fails_ends_the_run_and_the_answers_are_kept_for_the_next(work):
    with provider(answers) as server:
        folder = work(server)
        server.answer = lambda model, messages: 401 if model == "judge" else answers(model, messages)
        result = ask(folder, "--judge", "judge", "--yes", status=1)
        assert "judge (AuthenticationError 401)" in result.stderr
        asked = server.calls()
        server.answer = answers
        ask(folder, "--judge", "judge", "--yes")
        assert set(server.asked.values()) == {1}
        assert server.calls() == 12 * 9 > asked > 0


def test_a_judge_that_talks_nonsense_ends_the_run_before_it_is_paid_for_all(work):
    def nonsense(model, messages):
        return "as I said, 🙂 it depends" if model.startswith("judge") else answers(model, messages)

    with provider(nonsense) as server:
        done = ask(work(server, prompts=24), "--judge", "judge", "--yes", "--concurrency", "2", status=1)
        assert "none of the first 20 replies of the judge judge can be read" in done.stderr
        assert server.calls("judge") <= 20 + 2 * 6


def test_a_report_of_odd_names_is_a_table_and_nothing_decisive_says_nothing_of_length(work):
    with provider(lambda model, messages: "Verdict: A" if model == "judge" else "same") as server:
        folder = work(server, prompts=2)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["model_list"][0]["model_info"] = {"p2l_model": "名前 x|y"}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        done = ask(folder, "--judge", "judge", "--yes")
        assert "| 名前 x\\|y | 2 |" in done.stdout
        assert "no vote is decisive" in done.stdout


def test_answers_are_kept_where_that_is_asked_for(work):
    with provider(answers) as server:
        folder = work(server, prompts=4)
        ask(folder, "--judge", "judge", "--yes", "--keep-answers")
        kept = rows_of(folder / "votes.jsonl.answers.jsonl")
        assert len(kept) == 12
        assert all(row["answer"] == answers(row["model"], [{"content": row["prompt"]}]) for row in kept)
        assert (folder / "votes.jsonl.answers.jsonl").stat().st_mode & 0o77 == 0
        ask(folder, "--judge", "judge-b", "--yes")  # another judge of the same answers
        assert server.calls("adder") == 4
        assert server.calls("judge-b") == 24
        ask(folder, "--judge", "judges", "--yes")
        assert "--ask-again" in ask(folder, "--judge", "judges", "--yes").stdout
        assert server.calls("adder") == 4


def test_a_model_more_keeps_the_votes_that_there_are(work):
    with provider(answers) as server:
        folder = work(server, prompts=20, models=MODELS[:2])
        ask(folder, "--judge", "judge", "--yes", "--keep-answers")
        before = rows_of(folder / "votes.jsonl")
        work(server, prompts=20)
        report = json.loads(ask(folder, "-k", "2", "--judge", "judge", "--yes", "--json", "--keep-answers").stdout)
        after = rows_of(folder / "votes.jsonl")
        assert all(row in after for row in before)
        assert len(after) == report["votes"] == len(before) + report["models"]["clerk"]["answers"]
        assert report["models"]["clerk"]["answers"] > 10  # the new one is the one that least is known of
        assert set(server.asked.values()) == {1}


def test_a_gateway_is_asked_for_its_models(work):
    with provider(answers, [*MODELS, "judge"]) as server:
        folder = work(server, prompts=4)
        base = ("votes", "ask", folder / "prompts.jsonl", "--endpoint", server.url.removesuffix("/v1"), "--yes")
        Said(*base, "--key-env", "STUB_KEY", "--judge", "judge", "-o", folder / "votes.jsonl")
        assert server.keys == {"Bearer sk-stub"}
        assert server.calls() == 4 * 9
        assert set(read_votes(folder / "votes.jsonl").models) == set(MODELS)
        assert "NO_SUCH" in Said(*base, "--key-env", "NO_SUCH", "--judge", "j", "-o", "v.jsonl", status=2).stderr


def test_prompts_come_from_logs_and_a_sample_is_drawn(work):
    with provider(answers) as server:
        folder = work(server)
        log = [
            {"messages": [{"role": "user", "content": f"question {i % 30}"}], "call_type": "acompletion"}
            for i in range(60)
        ]
        log += [
            {"messages": "a text to embed", "call_type": "aembedding"},
            {"messages": [], "call_type": "acompletion"},
        ]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
        options = ("--from-logs", "--sample", "10", "--judge", "judge", "-k", "2", "--yes")
        result = ask(folder, *options)
        assert re.search(r"not-a-chat\s+-1", result.stderr)
        assert len(rows_of(folder / "votes.jsonl")) == 10
        assert server.calls() == 40
        ask(folder, *options)
        assert server.calls() == 40


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "--judge MODEL"),
        (("--judge", "judge", "--check", "exact"), "--check takes the place of a judge"),
        (("--judge", "no-such-judge"), "'no-such-judge' is neither"),
        (("--check", "wrong"), "valid: exact, regex, json-schema"),
        (("--judge", "judge", "--rubric", "/nowhere"), "there is no such file"),
        (("--check", "exact", "--reference", "answer"), "column 'answer' is missing"),
        (("--judge", "judge", "--models", "a"), "--endpoint"),
    ],
)
def test_wrong_use_is_a_sentence(work, options, says):
    with provider(answers) as server:
        folder = work(server, prompts=2)
        result = Said(
            *("votes", "ask", folder / "config.yaml", folder / "prompts.jsonl", "-o", folder / "v.jsonl", *options),
            status=2 if "column" not in says and "file" not in says else 1,
        )
        assert says in result.stderr
        assert server.calls() == 0


def test_a_budget_needs_prices(work):
    with provider(answers) as server:
        folder = work(server, input_cost_per_token=None)
        assert "--budget needs the price of adder" in ask(folder, "--judge", "judge", "--budget", "1", status=2).stderr
