"""Leaderboards as tables, pages and pictures."""

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from p2l_plugins.errors import ConfigError
from p2l_plugins.leaderboards.categories import CategoryMeans
from p2l_plugins.leaderboards.leaderboard import aggregate
from p2l_plugins.leaderboards.pair_means import BLOCKS
from p2l_plugins.support import Support

NASTY = ("<script>alert(1)</script>", "a|b", 'q"x', "$x_1$")


def board(family="grk", n=40):
    rng = np.random.default_rng(0)
    raw_eta = rng.normal(size=n)
    return aggregate(NASTY, family, rng.normal(size=(n, 4)), raw_eta, frozenset({"a|b"}), blocks=BLOCKS)


@pytest.fixture(scope="module")
def categories():
    rng = np.random.default_rng(0)
    means = CategoryMeans(NASTY, "grk", frozenset({"a|b"}))
    coefs = rng.normal([0, 0, -2, 2], size=(120, 4))
    coefs[::2, 0] += 2
    means.add(coefs, rng.normal(size=120), ["<b>one", "two|three"] * 60)
    return means.boards(parents={"both & all": ["<b>one", "two|three"]})


class _Page(HTMLParser):
    """Checks that tags are closed in order, and keeps text and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.tags, self.attributes = [], "", [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "line", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in ("line", "circle") or self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_boards_mark_little_known_models_and_usable_takes_their_errors_into_account():
    known = {'q"x': Support(9, 1, 1, 9.0, 0.7), "$x_1$": Support(900, 2, 5, 880.4, 0.05)}
    plain, marked = board(), replace(board(), support=known)
    rows = {row["model"]: row for row in marked.rows()}
    before = {row["model"]: row for row in plain.rows()}
    assert (rows['q"x']["little_known"], rows["$x_1$"]["little_known"]) == (True, False)
    assert (rows["$x_1$"]["support"], rows["$x_1$"]["level_stderr"]) == (880.4, 0.05)
    assert "support" not in rows["a|b"]
    assert rows["a|b"]["usable"] == before["a|b"]["usable"]
    # the mean of σ over a normal distribution, by quadrature
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    one = rows['q"x']
    mean = (weights / (1 + np.exp(-(one["coef"] + 0.7 * nodes)))).sum() / weights.sum()
    assert one["usable"] == pytest.approx(mean, abs=2e-3)
    for text in (marked.to_markdown(), _Page(marked.to_html()).text):
        assert text.count('q"x ‡') == 1
        assert "known by" in text
        assert "fewer than 60 effective votes" in text
        assert "$x_1$ ‡" not in text
    for text in (plain.to_markdown(), plain.to_html()):
        assert "‡" not in text
        assert "known by" not in text


def check_page(html):
    """One file: nothing fetched, no scripts, all text escaped, both colour schemes."""
    page = _Page(html)
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name in ("src", "href") or name.startswith("on")]
    assert "url(" not in html
    assert "@import" not in html
    assert "prefers-color-scheme: dark" in html
    assert "default-src 'none'" in html
    return page


def test_a_leaderboard_s_page(categories):
    page = check_page(board().to_html("A & B"))
    assert "A & B" in page.text
    assert NASTY[0] in page.text
    assert page.tags.count("svg") == 4
    assert page.tags.count("tr") == 5
    assert "1 more models" in _Page(board().to_html(top=3)).text


@pytest.mark.parametrize(("models", "folded"), [(60, 0), (344, 319)])
def test_a_board_of_very_many_models_is_short_at_first(models, folded):
    rng = np.random.default_rng(0)
    names = tuple(f"model-{i}" for i in range(models))
    html = aggregate(names, "grk", rng.normal(size=(3, models)), np.zeros(3), blocks=BLOCKS).to_html()
    page = check_page(html)
    assert page.tags.count("svg") == models
    assert html.count("<details>") == bool(folded)
    assert html.partition("<details>")[2].count("<svg") == folded
    assert ("Show all 344 models" in page.text) == bool(folded)


def test_the_page_by_category(categories):
    page = check_page(categories.to_html())
    assert page.tags.count("table") == 5  # heat map, overall, two categories, their union
    assert "<b>one" in page.text
    assert any(name == "style" and value.startswith("background:rgba") for name, value in page.attributes)
    assert any(name == "class" and value == "holds" for name, value in page.attributes)


def test_tables_keep_their_columns(categories):
    for text in (board().to_markdown(), categories.to_markdown()):
        for table in re.findall(r"(?:^\|.*\n?)+", text, flags=re.M):
            counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}
            assert len(counts) == 1
    text = categories.to_markdown()
    assert "## two\\|three (60)" in text
    assert "## both & all (120): &lt;b>one; two\\|three" in text
    assert re.search(r"\+\d+\.\d\d \*", text)


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_figures_are_the_same_each_time(categories, tmp_path, ending):
    for draw in (board().plot, categories.plot):
        draw(tmp_path / f"a{ending}")
        draw(tmp_path / f"b{ending}")
        first = (tmp_path / f"a{ending}").read_bytes()
        assert first == (tmp_path / f"b{ending}").read_bytes()
        assert first.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[ending])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a{ending}", f"b{ending}"]


def test_figures_that_can_t_be_drawn_are_refused(categories, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"x\.gif: the ending '\.gif' is not one of \.png, \.svg, \.pdf"):
        board().plot(tmp_path / "x.gif")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"p2l-plugins\[analysis\]"):
        categories.plot(tmp_path / "x.png")
