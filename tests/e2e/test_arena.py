"""`p2l arena` on providers that stream: its interface, and its page in headless Chromium."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest
import yaml
from helpers.answering import provider
from helpers.browser import CONTRAST, chromium, pages
from helpers.serving import in_thread, until
from typer.testing import CliRunner

from litellm_router.arena.app import MOST_BYTES, MOST_CHARACTERS, PAGE, create_app
from litellm_router.arena.board import board_of
from litellm_router.arena.state import Arena, Limits
from litellm_router.arena.votes import VotesFile
from litellm_router.ask.calls import of_config
from p2l_plugins.cli import app as p2l
from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.votes.design import PairDesign
from p2l_plugins.votes.read import read_votes

MODELS = ("sunny-large", "rainy-mini", "windy-pro")
PRICE = {"input_cost_per_token": 1e-5, "output_cost_per_token": 1e-5}


def says(model, messages):
    return f"The {len(messages)}. message was: **{messages[-1]['content']}**"


class Clock:
    """Seconds that a test moves."""

    now = 1000.0

    def __call__(self):
        return self.now


class Running:
    """An arena in a thread.

    Attributes:
        arena, server, votes, clock: its parts.
        url: of its page.
    """

    def __init__(self, folder, answer, models=MODELS, *, params=None, timeout=20.0, seed=0, **limits):
        self.votes, self.clock = folder / "votes.jsonl", Clock()
        self._stack = contextlib.ExitStack()
        self.server = self._stack.enter_context(provider(answer))
        self.config = configured(folder, self.server, models, **(params or {}))
        self._file = self._stack.enter_context(VotesFile(self.votes))
        names, calls = of_config(self.config, None, [], timeout)
        self.arena = Arena(tuple(names), calls, self._file, Limits(**limits), self.clock, seed)

    def serve(self, *, keys=(), per_minute=6000.0):
        app = create_app(self.arena, keys, ["127.0.0.1", "localhost"], per_minute)
        self.url = self._stack.enter_context(in_thread(app, wait_ready=False))
        return self

    def rows(self):
        return [json.loads(line) for line in self.votes.read_text().splitlines()]

    def ask(self, prompt, **more):
        """Status and events of a prompt."""
        answer = httpx.post(f"{self.url}/api/battle", json={"prompt": prompt, **more}, timeout=30)
        return answer, [json.loads(part[6:]) for part in answer.text.split("\n\n") if part.startswith("data: ")]

    def vote(self, battle, vote="A"):
        return httpx.post(f"{self.url}/api/vote", json={"battle": battle, "vote": vote}, timeout=30)

    def close(self):
        self._stack.close()


def configured(folder, server, models=MODELS, **params):
    params = {"api_base": server.url, "api_key": "k", **PRICE, **params}
    listed = [{"model_name": "all", "litellm_params": {"model": f"openai/{name}", **params}} for name in models]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"model_list": listed, "router_settings": {"num_retries": 0}}))
    return path


@pytest.fixture
def running(tmp_path):
    """Starts arenas."""
    with contextlib.ExitStack() as stack:

        def start(answer=says, models=MODELS, keys=(), per_minute=6000.0, **more):
            made = Running(tmp_path, answer, models, **more)
            stack.callback(made.close)
            return made.serve(keys=keys, per_minute=per_minute)

        yield start


def text(events, side):
    return "".join(event["text"] for event in events if event.get("side") == side and "text" in event)


def test_no_answer_names_a_model_before_the_vote(running):
    arena = running()
    answer, events = arena.ask("Say hello")
    assert answer.status_code == 200
    assert text(events, "A") == text(events, "B") == "The 1. message was: **Say hello**"
    assert events[-1] == {"ready": True, "turns_left": 2}
    told = (str(answer.headers) + answer.text).lower()
    for hint in (*MODELS, "openai", "litellm", "model", str(arena.server.server_port)):
        assert hint not in told.replace("x-content-type-options", ""), hint
    assert not arena.rows()
    voted = arena.vote(events[0]["battle"], "B").json()
    assert {voted["A"], voted["B"]} < set(MODELS)
    (row,) = arena.rows()
    assert row | {"timestamp": 0} == {
        "prompt": "Say hello",
        "model_a": voted["A"],
        "model_b": voted["B"],
        "winner": "model_b",
        "timestamp": 0,
    }
    assert stat.S_IMODE(arena.votes.stat().st_mode) == 0o600
    assert voted["board"]["votes"] == 1
    assert len({arena.ask("again")[1][0]["battle"] for _ in range(4)}) == 4


def test_a_comparison_has_one_vote(running):
    arena = running()
    battle = arena.ask("once")[1][0]["battle"]
    answers = [None] * 6

    def vote(i):
        answers[i] = arena.vote(battle, ("A", "B", "tie")[i % 3]).status_code

    threads = [threading.Thread(target=vote, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(answers) == [200, 404, 404, 404, 404, 404]
    assert len(arena.rows()) == 1
    assert arena.vote("made-up").status_code == 404
    assert arena.vote(battle, "C").status_code == 422


def test_there_is_no_vote_before_both_have_answered(running):
    slow = threading.Event()

    def waits(model, messages):
        if model != MODELS[0]:
            slow.wait(10)
        return says(model, messages)

    arena = running(waits, MODELS[:2])
    try:
        with httpx.stream("POST", f"{arena.url}/api/battle", json={"prompt": "hi"}, timeout=20) as answer:
            lines = answer.iter_lines()
            battle = json.loads(next(lines)[6:])["battle"]
            assert arena.vote(battle).status_code == 409
            assert "text" in next(line for line in lines if line)  # the first one's comes before the second is done
            slow.set()
            assert "ready" in list(filter(None, lines))[-1]
    finally:
        slow.set()
    assert arena.vote(battle).status_code == 200


def test_answers_come_piece_by_piece_at_the_ticks_of_one_clock(running):
    arena = running()
    arena.server.pause = 0.3  # the pieces are "The", " " and the rest
    events = arena.ask("hi")[1]
    for side in "AB":
        pieces = [event["text"] for event in events if event.get("side") == side and "text" in event]
        assert pieces[0] == "The"
        assert len(pieces) == 3


def test_who_leaves_ends_the_comparison(running):
    slow = threading.Event()
    arena = running(lambda *_: slow.wait(10) and "late")
    with httpx.stream("POST", f"{arena.url}/api/battle", json={"prompt": "hi"}, timeout=20) as answer:
        lines = answer.iter_lines()
        battle = json.loads(next(lines)[6:])["battle"]
        assert arena.vote(battle).status_code == 409
        lines.close()
    until(lambda: arena.vote(battle).status_code == 404, 10)
    slow.set()
    assert not arena.arena._design.pending.any()


def test_both_are_asked_on_and_the_vote_is_on_all_turns(running):
    arena = running()
    battle = arena.ask("first")[1][0]["battle"]
    events = arena.ask("second", battle=battle)[1]
    assert text(events, "A") == "The 3. message was: **second**"
    assert arena.ask("third", battle=battle)[1][-1] == {"ready": True, "turns_left": 0}
    answer, _ = arena.ask("fourth", battle=battle)
    assert answer.status_code == 409
    assert arena.vote(battle, "both bad").status_code == 200
    votes = read_votes(arena.votes)
    assert votes.prompts == [("first", "second", "third")]
    assert votes.outcome.tolist() == [3]


def test_a_model_that_fails_is_not_named_and_rests(running):
    arena = running(lambda model, messages: 500 if model == MODELS[1] else says(model, messages))
    failed = 0
    for _ in range(6):
        answer, events = arena.ask("hi")
        if "failed" in events[-1]:
            failed += 1
            assert not any(name in str(answer.headers) + answer.text for name in (*MODELS, "500", "Error", "error"))
            assert arena.vote(events[0]["battle"]).status_code == 404
    assert failed == 1
    arena.clock.now += 61
    assert any("failed" in arena.ask("hi")[1][-1] for _ in range(6))


def test_other_sites_are_refused(running):
    arena = running()
    for headers, status in (
        ({}, 200),
        ({"Origin": arena.url}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://[bad"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "[::1]evil.example"}, 421),
        ({"Host": "localhost#evil.example"}, 421),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 421),
    ):
        before = arena.server.calls()
        answer = httpx.post(f"{arena.url}/api/battle", json={"prompt": "hi"}, headers=headers, timeout=20)
        assert answer.status_code == status, headers
        assert arena.server.calls() - before == (2 if status == 200 else 0)
        assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
        assert "unsafe" not in answer.headers["Content-Security-Policy"]


def test_too_much_is_refused(running):
    arena = running(per_minute=2.0, max_tokens=4)
    secret = "a-secret-word"
    for body, status in (
        ({"prompt": secret * MOST_CHARACTERS}, 413),
        ({"prompt": "é" * (MOST_CHARACTERS + 1)}, 422),
        ({"prompt": " \n"}, 422),
        ({"prompt": 1}, 422),
        ({"prompt": secret, secret: 1}, 422),
        ({"prompt": secret, "battle": "x" * 65}, 422),
        ({"prompt": secret, "battle": "unknown"}, 404),
    ):
        answer = httpx.post(f"{arena.url}/api/battle", json=body, timeout=20)
        assert answer.status_code == status, body.keys()
        assert secret not in answer.text
    kind = {"content-type": "application/json"}
    assert httpx.post(f"{arena.url}/api/vote", content=b"{" * MOST_BYTES, headers=kind).status_code == 422
    assert httpx.post(f"{arena.url}/api/vote", content=b"{}").status_code == 415
    assert arena.server.calls() == 0
    made_up = [{"api-key": str(i)} for i in range(3)]  # makes nobody another one
    statuses = [
        httpx.post(f"{arena.url}/api/battle", json={"prompt": "x y " * 40}, headers=headers, timeout=20)
        for headers in made_up
    ]
    assert [answer.status_code for answer in statuses] == [200, 429, 429]
    assert int(statuses[1].headers["Retry-After"]) > 10


def test_an_answer_has_an_end(running):
    arena = running(lambda *_: "word " * 5000, max_tokens=10)
    events = arena.ask("hi")[1]
    assert len(text(events, "A")) == 80
    assert events[-1]["ready"]


def test_open_comparisons_are_few_and_end(running):
    arena = running(open=3, open_each=2, open_s=100)
    first, second, third = [arena.ask("hi")[1][0]["battle"] for _ in range(3)]
    assert [arena.vote(battle).status_code for battle in (first, second)] == [404, 200]
    arena.clock.now += 101
    assert arena.vote(third).status_code == 404
    assert not arena.arena._design.pending.any()
    arena.arena.limits = Limits(open=1)
    assert arena.ask("one")[0].status_code == 200
    assert arena.ask("two")[0].status_code == 503
    arena.clock.now += 1801
    assert arena.ask("three")[0].status_code == 200


def test_the_budget_ends_it_and_votes_still_count(running):
    arena = running(lambda *_: "word " * 100, budget=0.0045, max_tokens=100)
    events = [arena.ask("hi")[1] for _ in range(2)]
    assert arena.arena.spent == pytest.approx(0.004, rel=0.05)
    _, over = arena.ask("hi")
    assert over[-1] == {"failed": "the arena's budget is spent", "final": True}
    assert arena.server.calls() == 4
    assert arena.vote(events[0][0]["battle"]).status_code == 200
    arena.arena.spent = 0.005
    assert arena.ask("hi")[0].status_code == 503


def test_it_needs_a_key_where_there_is_one(running):
    arena = running(keys=["right"])
    assert arena.ask("hi")[0].status_code == 401
    assert httpx.get(f"{arena.url}/api/board").status_code == 401
    assert httpx.get(arena.url).status_code == 200
    answer = httpx.post(f"{arena.url}/api/battle", json={"prompt": "hi"}, headers={"api-key": "right"}, timeout=20)
    assert answer.status_code == 200


def test_hostile_text_is_one_row_of_text(running):
    arena = running()
    for prompt, status in (
        ('"},{"winner":"model_a"}\n{"a":1}\u2028', 200),
        ("\ud83d\ude00 \x00", 200),
        ("</script><script>alert(1)</script>", 200),
        ("half a \ud83d pair", 422),
    ):
        body = json.dumps({"prompt": prompt})
        answer = httpx.post(f"{arena.url}/api/battle", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == status, answer.text
        if status == 200:
            assert arena.vote(json.loads(answer.text.split("\n\n")[0][6:])["battle"]).status_code == 200
    assert len(read_votes(arena.votes)) == len(arena.votes.read_bytes().split(b"\n")) - 1 == 3


def test_a_vote_that_can_not_be_stored_can_be_given_again(running):
    arena = running()
    assert arena.vote(arena.ask("one")[1][0]["battle"]).status_code == 200
    battle = arena.ask("two")[1][0]["battle"]
    before = arena.votes.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))
    try:
        assert arena.vote(battle).status_code == 503
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert arena.votes.read_bytes() == before
    assert arena.vote(battle).status_code == 200
    assert len(arena.rows()) == 2


def test_the_votes_of_the_file_count_and_a_torn_line_does_not(tmp_path):
    path = tmp_path / "votes.jsonl"
    row = {"prompt": "hi", "model_a": MODELS[0], "model_b": MODELS[1], "winner": "model_a"}
    other = row | {"model_b": "gone"}
    path.write_text(json.dumps(row) + "\n" + json.dumps(other) + "\n" + json.dumps(row)[:30])
    with VotesFile(path) as file:
        arena = Arena(MODELS, None, file, Limits())
        assert arena.votes == 1
        assert "torn" in file.notes[0]
        assert "chmod 600" in file.notes[1]
        board = arena.board()["leaderboard"]
        assert [one["model"] for one in board] == [MODELS[0], MODELS[2], MODELS[1]]
        assert [one["votes"] for one in board] == [1, 0, 1]
        file.append(row)
        with pytest.raises(DataError, match="another arena writes this file"):
            VotesFile(path)
    assert len(read_votes(path)) == 3
    path.write_text('{"prompt": "hi", "x": 0.5, "y": 0.7}')
    with pytest.raises(DataError, match="is a score matrix"):
        VotesFile(path)


def test_the_board_is_the_fit_of_the_votes_with_honest_intervals():
    rng = np.random.default_rng(3)
    true = np.array([1.0, 0.3, 0.0, -0.4, -0.9])
    names = tuple("abcde")
    held, width = [], []
    for _ in range(40):
        design = PairDesign(5)
        for _ in range(100):
            a, b = design.next_pair(rng)
            design.add(a, b, int(rng.random() > 1 / (1 + np.exp(true[b] - true[a]))))
        board = board_of(names, design.wins, 100, design.prior)
        rows = {row["model"]: row for row in board["leaderboard"]}
        assert [rows[name]["coef"] for name in names] == pytest.approx(design.coefs.tolist(), abs=1e-4)
        held += [
            rows[n]["coef_low"] <= x <= rows[n]["coef_high"] for n, x in zip(names, true - true.mean(), strict=True)
        ]
        width.append(rows["a"]["win_rate_high"] - rows["a"]["win_rate_low"])
    assert 0.91 < np.mean(held) < 0.99
    few = board_of(names, np.eye(5)[::-1] * 1.0, 2, 0.5)["leaderboard"]
    assert few[0]["win_rate_high"] - few[0]["win_rate_low"] > 2 * np.mean(width)
    assert "coef_low" not in board_of(names, np.zeros((5, 5)), 0, 0.5)["leaderboard"][0]


# ---- the command


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (["--votes", "votes.parquet"], ConfigError, "only a .jsonl file can take"),
        (["--votes", "no/such/votes.jsonl"], ConfigError, "there is no folder"),
        (["--votes", "v.jsonl", "--host", "192.0.2.1"], ConfigError, "set a key with --api-key-env"),
        (["--votes", "v.jsonl", "--host", "::", "--api-key-env", "ARENA_KEY"], ConfigError, "--name HOST"),
        (["--votes", "v.jsonl", "--group", "none"], DataError, "no group 'none'"),
        (["--votes", "v.jsonl", "--budget", "1"], ConfigError, "--budget needs the price of unheard-of"),
    ],
)
def test_what_can_not_be_is_said(tmp_path, monkeypatch, options, error, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARENA_KEY", "k")
    listed = [{"model_name": "all", "litellm_params": {"model": f"openai/{name}"}} for name in ("unheard-of", "b-1")]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model_list": listed}))
    result = CliRunner().invoke(p2l, ["arena", "config.yaml", *options])
    assert isinstance(result.exception, error), result.output
    assert says in str(result.exception)


def test_the_command_says_what_it_does_and_ends(tmp_path):
    with provider(says) as server:
        config, votes, log = configured(tmp_path, server), tmp_path / "votes.jsonl", tmp_path / "log"
        command = [sys.executable, "-m", "p2l_plugins.cli", "arena", config, "--votes", votes, "--port", "0"]
        with log.open("wb") as said:
            process = subprocess.Popen([*map(str, command)], stdout=said, stderr=said)
        try:
            until(lambda: re.search(r"p2l arena: http", log.read_text()) or process.poll() is not None)
            url = re.search(r"p2l arena: (\S+),", log.read_text())[1]
            answer = httpx.post(f"{url}/api/battle", json={"prompt": "a private word"}, timeout=30)
            battle = json.loads(answer.text.split("\n\n")[0][6:])["battle"]
            assert httpx.post(f"{url}/api/vote", json={"battle": battle, "vote": "tie"}).status_code == 200
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
        text = log.read_text()
        assert process.returncode == 0
        assert "Traceback" not in text
        assert "private word" not in text
        assert f"prompts go to {MODELS[0]} at 127.0.0.1" in text
        assert "votes are appended to" in text
        assert len(read_votes(votes)) == 1


# ---- the page

HOSTILE = """<img src=x onerror="document.title='broken'"> <script>document.title='broken'</script>

[click](javascript:document.title='broken') [data](data:text/html,x) ![pixel](http://evil.example/p.png)
[good](https://example.org/a?b=c) <b>bold</b> **strong** `<i>code</i>` ***

| a | b |
|---|---|
| <svg onload=alert(1)> | 2 |

1. one
   - **inner**
2. two

```html
<script>document.title='broken'</script>
```
"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def open_page(browser):
    with pages(browser) as opened:
        yield opened


def ask(page, prompt="What is the answer?"):
    page.locator("#prompt").fill(prompt)
    page.get_by_role("button", name="Ask two models").click()
    page.get_by_role("status").get_by_text("Both answers are complete").wait_for()


def test_a_person_votes_by_click_and_sees_the_names(running, open_page):
    arena = running()
    page = open_page(arena.url)
    page.get_by_text("3 models · 0 votes").wait_for()
    assert page.get_by_text("your prompt and your vote are stored").is_visible()
    assert page.get_by_role("button", name="A is better").is_hidden()
    ask(page)
    assert page.locator("#chat-A .text strong").inner_text() == "What is the answer?"
    assert not any(name in page.locator("#battle").inner_text() for name in MODELS)
    page.get_by_label("Not sure yet?").fill("And then?")
    page.get_by_role("button", name="Ask on").click()
    page.get_by_text("The 3. message was").first.wait_for()
    page.get_by_role("status").get_by_text("Both answers are complete").wait_for()
    page.get_by_role("button", name="B is better").click()
    page.get_by_text("3 models · 1 vote").wait_for()
    (row,) = arena.rows()
    assert row["winner"] == "model_b"
    assert row["prompt"] == ["What is the answer?", "And then?"]
    assert page.locator("#name-A").inner_text() == row["model_a"]
    assert page.locator("#side-B.won #name-B").inner_text() == row["model_b"]
    assert page.locator("#board tbody tr").first.locator(".model").inner_text() == row["model_b"]
    assert page.get_by_role("button", name="A is better").is_disabled()


@pytest.mark.parametrize(("key", "winner"), [("2", "model_b"), ("T", "tie"), ("x", "tie (bothbad)")])
def test_the_keyboard_is_enough(running, open_page, key, winner):
    arena = running()
    page = open_page(arena.url)
    page.locator("#prompt").focus()
    page.keyboard.type("a b t x 1 2")
    page.keyboard.press("Control+Enter")
    page.get_by_role("status").get_by_text("Both answers are complete").wait_for()
    page.keyboard.press(key)
    page.get_by_text("3 models · 1 vote").wait_for()
    (row,) = arena.rows()
    assert (row["winner"], row["prompt"]) == (winner, "a b t x 1 2")
    page.keyboard.press("n")
    assert page.evaluate("[document.activeElement.id, document.activeElement.value]") == ["prompt", ""]


def test_hostile_markdown_does_nothing(running, open_page):
    arena = running(lambda *_: HOSTILE)
    page = open_page(arena.url)
    ask(page, "<img src=x onerror=\"document.title='broken'\">")
    side = page.locator("#chat-A")
    assert page.title() == "Arena"
    assert "<script>document.title='broken'</script>" in side.locator("pre code").inner_text()
    assert side.locator("img, script, svg, b, i, iframe").count() == 0
    assert side.locator("a").evaluate_all("links => links.map((a) => [a.href, a.rel])") == [
        ["https://example.org/a?b=c", "noopener noreferrer nofollow"]
    ]
    assert side.locator("ol > li").first.locator("ul strong").inner_text() == "inner"
    assert side.locator("td").first.inner_text() == "<svg onload=alert(1)>"
    assert "<img src=x" in side.locator(".said").inner_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a *b* _c_ snake_case_name 2 * 3 * 4", "<p>a <em>b</em> <em>c</em> snake_case_name 2 * 3 * 4</p>"),
        ("**bold *and* more** ~~x~~", "<p><strong>bold <em>and</em> more</strong> <del>x</del></p>"),
        ("``a`b`` `c", "<p><code>a`b</code> `c</p>"),
        ("# H\ntext\n\n> q\n---", "<h4>H</h4><p>text</p><blockquote><div>q</div></blockquote><hr>"),
        ("- a\n- b\n  more\n\n- c", "<ul><li>a</li><li>b\nmore</li><li>c</li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("```\n*x*", '<pre tabindex="0"><code>*x*</code></pre>'),
        ("\\*a\\* & <b>", "<p>*a* &amp; &lt;b&gt;</p>"),
        ("**", "<p>**</p>"),
        (
            "[a](b)[c](HTTPS://x.y)",
            '<p>a<a href="https://x.y/" target="_blank" rel="noopener noreferrer nofollow">c</a></p>',
        ),
    ],
)
def test_markdown(reading, text, expected):
    assert reading(text) == expected


@pytest.mark.parametrize(
    "unit",
    ["*a ", "`", "``a", "[", "[a](", "**a *b ", "> ", "- ", "  - a\n", "|a|b|\n|-|-|\n", "_a", "![", "~~a ", "\\"],
)
def test_long_hostile_markdown_is_read_in_time(reading, unit):
    started = time.monotonic()
    reading(unit * (16_000 // len(unit)))
    assert time.monotonic() - started < 1.5


@pytest.fixture(scope="module")
def reading(browser, tmp_path_factory):
    """Gives the HTML of a text in markdown."""
    arena = Running(tmp_path_factory.mktemp("reading"), says).serve()
    page = browser.new_page()
    page.goto(arena.url)
    yield lambda text: page.evaluate(
        """async (text) => {
          const { markdown } = await import('/page/markdown.js');
          const box = document.createElement('div');
          box.append(...markdown(text));
          return box.innerHTML;
        }""",
        text,
    )
    page.close()
    arena.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")])
def test_it_fits_and_can_be_read(running, open_page, tmp_path, width, scheme):
    wide = (
        "\n\n```\n" + "x" * 400 + "\n```\n\n| " + " | ".join(["column"] * 20) + " |\n" + "|-" * 20 + "|\n\n" + "y" * 300
    )
    arena = running(lambda *_: HOSTILE + wide, models=(*MODELS, "a-model-with-a-very-long-name-2026-11-25-preview"))
    page = open_page(arena.url, width=width, height=780, scheme=scheme)
    ask(page, "z" * 300)
    page.wait_for_function("!document.querySelector('.waiting')")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(CONTRAST) == []
    page.keyboard.press("3")
    page.get_by_text("4 models · 1 vote").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.wait_for_timeout(400)  # of the bars' transition
    assert page.evaluate(CONTRAST) == []
    if folder := os.environ.get("P2L_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/arena-{width}-{scheme}.png", full_page=True)


def test_a_pair_that_fails_is_replaced_by_another(running, open_page):
    arena = running(lambda model, messages: 500 if model == MODELS[1] else says(model, messages))
    page = open_page(arena.url)
    for _ in range(2):
        ask(page)
        page.keyboard.press("a")
        page.locator("#again").click()
    assert {row["model_a"] for row in arena.rows()} | {row["model_b"] for row in arena.rows()} == {*MODELS} - {
        MODELS[1]
    }


def test_the_page_asks_for_a_key(running, open_page):
    arena = running(keys=["right"])
    page = open_page(arena.url)
    page.get_by_label("This arena needs a key").fill("wrong")
    page.get_by_role("button", name="Use key").click()
    page.get_by_role("status").get_by_text("This key does not open the arena.").wait_for()
    page.get_by_label("This arena needs a key").fill("right")
    page.get_by_role("button", name="Use key").click()
    page.get_by_text("3 models · 0 votes").wait_for()
    ask(page)
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_the_page_is_small_and_loads_nothing_from_elsewhere():
    assert sum(path.stat().st_size for path in PAGE.iterdir()) < 50_000
    for path in PAGE.iterdir():
        content = path.read_text()
        assert "innerHTML" not in content
        assert "eval(" not in content
        assert "://" not in content.replace("http://www.w3.org/", "")
