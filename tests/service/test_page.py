"""The page in headless Chromium, as a person uses it: typing, sliding, dropping a file, with the keyboard alone."""

import itertools
import json

import httpx
import pytest
from helpers.browser import CONTRAST, chromium, pages
from helpers.serving import PRICES, in_thread

from p2l_plugins.service.app import PAGE, create_app
from p2l_plugins.service.settings import ServiceSettings

PROMPT = "Show that f(x) = f(x + 1/2) for some x, where f is continuous on [0, 1] and f(0) = f(1)."


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def open_page(browser, service):
    """Opens the page; fails at the end where it logged an error, or asked another host for anything."""
    with pages(browser) as opened:
        yield lambda url=service.url, **options: opened(url, **options)


@pytest.fixture(scope="module")
def parsing(browser, service):
    """A page of which only the functions are used."""
    page = browser.new_page()
    page.goto(service.url)
    yield page
    page.close()


def ask(page, prompt=PROMPT):
    page.locator("#prompt").fill(prompt)
    page.get_by_role("button", name="Show leaderboard").click()
    page.get_by_role("heading", name="Leaderboard of this prompt").wait_for()
    page.locator("#curve svg").wait_for()


def slide(page, position):
    page.locator("#budget").evaluate(
        "(slider, to) => { slider.value = to; slider.dispatchEvent(new Event('input', {bubbles: true})); }", position
    )


def test_type_slide_and_read_the_result(open_page, service, tmp_path):
    page = open_page()
    ask(page)
    board = httpx.post(f"{service.url}/v1/leaderboard", json={"prompts": [PROMPT]}).json()["leaderboard"]
    rows = page.locator("#board .row")
    shown = [name.removesuffix(" ‡") for name in rows.locator(".name").all_inner_texts()]  # of little-known models
    assert shown == [row["model"] for row in board[:25]]
    assert rows.first.locator(".value").inner_text().startswith(f"{board[0]['win_rate']:.1%}")
    page.get_by_role("button", name="Show all 344 models").click()
    assert rows.count() == 344
    for position, expected in ((0, "llama-3.1-8b-instruct"), (1000, None)):
        slide(page, position)
        costs = [row["cost"] for row in decide(service, PROMPT)["models"]]
        budget = min(costs) if position == 0 else max(costs)
        choice = decide(service, PROMPT, rule="cap", budget=budget)["choice"]
        page.locator(".pick").get_by_text(*choice, exact=True).wait_for()
        assert expected in (None, *choice)
    page.get_by_label("On average").check(force=True)
    for position in range(50, 1000, 50):  # between two corners of the curve two models share the requests
        slide(page, position)
        page.wait_for_timeout(50)
        if page.locator(".pick").count() == 2:
            break
    page.locator(".pick").nth(1).wait_for(timeout=2000)
    assert "% of requests" in page.locator("#decision").inner_text()
    page.get_by_label("Coefficient").check(force=True)
    assert page.locator("#board .row").first.locator(".value").inner_text()[0] in "+−"
    page.locator("#find").fill("gpt-4o-mini")
    assert "gpt-4o-mini-2024-07-18" in rows.first.inner_text()
    path = tmp_path / "page.png"
    page.screenshot(path=path, full_page=True)
    assert path.stat().st_size > 10_000


def test_a_budget_is_that_of_the_prompt_that_is_shown(open_page):
    page = open_page()
    ask(page, "hi")
    slide(page, 0)
    short = page.locator("#budget-text").inner_text()
    ask(page, "A much longer prompt. " * 400)
    page.locator("#budget-text").get_by_text(short, exact=True).wait_for(state="detached")
    assert page.locator("#status.bad").count() == 0
    assert page.locator(".pick").inner_text() == "llama-3.1-8b-instruct"


def decide(service, prompt, **more):
    return httpx.post(f"{service.url}/v1/route", json={"prompt": prompt, **more}).json()


def board_of(service, *prompts):
    return httpx.post(f"{service.url}/v1/leaderboard", json={"prompts": prompts}, timeout=60).json()["leaderboard"]


def test_arrows_compare_ranks_with_the_overall_board(open_page, service):
    page = open_page()
    ask(page)
    page.locator("#legend-overall").wait_for()
    before = {row["model"]: row["rank"] for row in httpx.get(f"{service.url}/v1/overall").json()["leaderboard"]}
    moved = [before[row["model"]] - row["rank"] for row in board_of(service, PROMPT)[:25]]
    assert any(m > 0 for m in moved)
    assert any(m < 0 for m in moved)
    shown = page.locator("#board .row .change").all_inner_texts()
    assert shown == ["=" if m == 0 else f"{'▲' if m > 0 else '▼'} {abs(m)}" for m in moved]


def test_who_is_better_here_than_their_peers(open_page, service):
    page = open_page()
    ask(page)
    page.locator("#legend-overall").wait_for()
    page.locator("#order").select_option("gain")
    now = [row for row in board_of(service, PROMPT) if row.get("grounded", True)]
    best = max(now, key=lambda row: row["interaction"])
    first = page.locator("#board .row").first
    assert first.locator(".name").inner_text().removesuffix(" ‡") == best["model"]
    assert first.locator(".change").inner_text() == f"+{best['interaction']:.2f}"
    assert "against models of its overall strength" in first.get_attribute("title")
    assert "Log-odds above" in page.locator("#board-note").inner_text()


def test_every_point_of_the_curve_has_a_name_on_hover_and_on_focus(open_page, service):
    page = open_page()
    ask(page)
    models = sorted(decide(service, PROMPT)["models"], key=lambda row: row["cost"])
    for dot in page.locator("#curve .dot").all():
        dot.scroll_into_view_if_needed()
        box = dot.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert page.locator(".point").inner_text() == dot.get_attribute("aria-label")
    page.mouse.move(0, 0)
    assert page.locator(".point").is_hidden()
    page.locator("#budget").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Home")
    for row in models:
        assert page.locator(".point").inner_text().startswith(f"{row['model']}: {100 * row['value']:.1f}%, $")
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    assert page.locator(".point").is_hidden()


STRUCK = """() => {
  const line = document.querySelector('#curve .limit').getBoundingClientRect();
  const struck = (box) => box.left < line.right && box.right > line.left;
  const names = [...document.querySelectorAll('#curve .name')];
  return names.filter((name) => struck(name.getBoundingClientRect())).map((name) => name.textContent);
}"""


@pytest.mark.parametrize("width", [360, 1280])
def test_the_budget_s_line_goes_through_no_name(open_page, width):
    page = open_page(width=width)
    ask(page)
    seen = 0
    for position in range(0, 1001, 20):
        slide(page, position)
        assert page.evaluate(STRUCK) == []
        seen += page.locator("#curve .name").count()
    assert seen > 51  # more than one name on average


def test_arrow_keys_move_the_budget_by_a_step_that_can_be_seen(open_page):
    page = open_page()
    ask(page)
    page.locator("#budget").focus()
    text = page.locator("#budget-text")
    for key, position in (("ArrowRight", 525), ("ArrowUp", 550), ("ArrowLeft", 525), ("PageDown", 425)):
        before = text.inner_text()
        page.keyboard.press(key)
        assert page.locator("#budget").input_value() == str(position)
        assert text.inner_text() != before


def test_on_a_narrow_screen_the_answer_comes_before_the_board_and_long_names_have_a_tooltip(open_page):
    page = open_page(width=360, height=780)
    ask(page)
    tops = [page.locator(part).bounding_box()["y"] for part in ("#drop", "#decision", "#curve", "#board-title")]
    assert tops == sorted(tops)
    page.get_by_role("button", name="Show all 344 models").click()
    cut = "(all) => all.filter((one) => one.scrollWidth > one.clientWidth).map((one) => [one.textContent, one.title])"
    names = page.locator("#board .name").evaluate_all(cut)
    assert names
    assert all(title.startswith(f"{name.removesuffix(' ‡')}: ") for name, title in names)


@pytest.mark.parametrize("objective", ["win_rate", "usable"])
@pytest.mark.parametrize("rule", ["cap", "lp"])
def test_the_page_decides_as_the_service_does(parsing, service, rule, objective):
    whole = decide(service, PROMPT, objective=objective)
    costs = sorted(row["cost"] for row in whole["models"])
    budgets = [*costs, *((a + b) / 2 for a, b in itertools.pairwise(costs))]
    script = """async ([whole, rule, budgets]) => {
      const { decide } = await import('/page/curve.js');
      return budgets.map((budget) => decide(whole, rule, budget));
    }"""
    for budget, ours in zip(budgets, parsing.evaluate(script, [whole, rule, budgets]), strict=True):
        theirs = decide(service, PROMPT, rule=rule, budget=budget, objective=objective)
        assert ours["choice"] == pytest.approx(theirs["choice"], abs=1e-6)
        assert ours["value"] == pytest.approx(theirs["value"], abs=1e-5)
        assert ours["expected_cost"] == pytest.approx(theirs["expected_cost"], rel=1e-9)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_and_can_be_read(open_page, width, scheme, tmp_path):
    page = open_page(width=width, height=780, scheme=scheme)
    ask(page)
    page.locator("#costs-details summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(CONTRAST) == []
    page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_the_keyboard_is_enough(open_page, service):
    page = open_page()
    page.locator("#board .row").first.wait_for()
    seen = []
    while not seen or seen[-1] != "prompt":
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        assert len(seen) < 5
    assert seen[0] == "skip"
    page.keyboard.type("What is 2 + 2?")
    page.keyboard.press("Control+Enter")
    page.locator("#curve svg").wait_for()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "budget":
            break
    assert page.evaluate("document.activeElement.matches(':focus-visible')")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Home")
    page.locator(".pick").get_by_text("llama-3.1-8b-instruct").wait_for()
    page.keyboard.press("End")
    page.locator(".pick").get_by_text("llama-3.1-8b-instruct").wait_for(state="detached")
    assert "$" in page.locator("#budget").get_attribute("aria-valuetext")


def test_a_file_of_prompts_gets_intervals_and_its_text_stays_text(open_page, service, tmp_path):
    nasty = "<img src=x onerror=document.title='broken'> & <b>bold</b>"
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": text}) for text in [nasty, ["hi", "and then?"], "Write a haiku"]))
    page = open_page()
    page.locator("#board .row").first.wait_for()
    page.locator("#file").set_input_files(path)
    page.get_by_role("heading", name="Leaderboard of 3 prompts").wait_for()
    assert page.locator("#board .range").count() > 10
    assert nasty in page.locator("#which option").nth(1).text_content()
    assert page.locator("#which option").count() == 4
    page.get_by_role("heading", name="Which model for these 3 prompts?").wait_for()
    prompts = [nasty, ["hi", "and then?"], "Write a haiku"]
    costs = [row["cost"] for row in decide(service, None, prompts=prompts)["models"]]
    slide(page, 1000)
    choice = decide(service, None, prompts=prompts, rule="cap", budget=max(costs))["choice"]
    page.locator(".pick").get_by_text(*choice, exact=True).wait_for()
    page.get_by_role("button", name="Show leaderboard").click()  # asks for the file's again
    page.get_by_text("3 prompts in").wait_for()
    page.locator("#which").select_option("2")
    page.get_by_role("heading", name="Who should answer?").wait_for()
    assert page.title() == "Prompt-to-Leaderboard"
    assert page.locator("main b").count() == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("User: hi\nthere\nAssistant: hello\nUser: and in French?", ["hi\nthere", "and in French?"]),
        ('[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x"}]', ["hi"]),
        ('{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}', ["a"]),
        ('["one", "two"]', ["one", "two"]),
        ("Write a dialogue.\nUser: hi", None),
        ("Fix this: [1, 2", None),
        ("User: only me", None),
    ],
)
def test_a_pasted_conversation_is_its_user_turns(parsing, text, expected):
    assert parsing.evaluate("async (text) => (await import('/page/prompts.js')).conversation(text)", text) == expected


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "one\n\n two \n", ["one", " two "]),
        ("a.csv", 'id,prompt\n1,"say ""hi"", now"\n2,"two\nlines"\n', ['say "hi", now', "two\nlines"]),
        ("a.jsonl", '"one"\n{"prompt": ["a", "b"]}\n', ["one", ["a", "b"]]),
        ("a.json", '["one", {"messages": [{"role": "user", "content": "x"}]}]', ["one", ["x"]]),
        ("a.json", '[{"role": "user", "content": "x"}]', [["x"]]),
        ("a.jsonl", '"one"\n{', "a.jsonl: line 2 is not valid JSON."),
        ("a.csv", "id,text\n1,x\n", 'a.csv: there is no column "prompt".'),
        ("a.pdf", "x", "a.pdf: the ending is not one of .txt, .json, .jsonl, .csv."),
        ("a.txt", "\n\n", "a.txt: no prompts were found."),
    ],
)
def test_files_are_read_as_the_command_reads_them(parsing, name, content, expected):
    read = """async ([name, text]) => {
      const { fromFile } = await import('/page/prompts.js');
      try { return fromFile(name, text); } catch (error) { return error.message; }
    }"""
    assert parsing.evaluate(read, [name, content]) == expected


def test_it_asks_for_a_key_where_the_service_has_one(open_page):
    settings = ServiceSettings(keys=("right",), costs=json.loads(PRICES.read_text()))
    with in_thread(create_app(settings)) as url:
        page = open_page(url)
        page.get_by_label("This service needs a key").fill("wrong")
        page.get_by_role("button", name="Use key").click()
        page.get_by_text("This key does not open the service.").wait_for()
        page.get_by_label("This service needs a key").fill("right")
        page.get_by_role("button", name="Use key").click()
        page.get_by_text("starter · 344 models").wait_for()
        assert page.locator("#key-form").is_hidden()
        ask(page)
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_without_costs_it_asks_for_them(open_page):
    with in_thread(create_app(ServiceSettings())) as url:
        page = open_page(url)
        page.locator("#prompt").fill("hi")
        page.get_by_role("button", name="Show leaderboard").click()
        page.get_by_text("Give the costs of some models").wait_for()
        page.locator("#costs").fill('{"gpt-9": 1}')
        page.get_by_role("button", name="Use these costs").click()
        page.get_by_text("Model 'gpt-9' is not in the bundle").wait_for()
        page.locator("#costs").fill('{"gpt-4o-2024-08-06": 0.01, "llama-3.1-8b-instruct": 0.001}')
        page.get_by_role("button", name="Use these costs").click()
        page.locator("#curve svg").wait_for()


def test_the_page_is_small_and_loads_nothing_from_elsewhere():
    assert sum(path.stat().st_size for path in PAGE.iterdir()) < 100_000
    for path in PAGE.iterdir():
        text = path.read_text()
        assert "innerHTML" not in text
        assert "eval(" not in text
        assert "http://" not in text.replace("http://www.w3.org/", "")
        assert "https://" not in text
