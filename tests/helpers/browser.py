"""Headless Chromium for tests of pages, as a person uses them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

#: The contrast of every visible text with what is behind it, as WCAG 2 defines it; those below AA come back.
CONTRAST = """() => {
  const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const numbers = (css) => css.match(/[\\d.]+/g).map(Number);
  const opaque = (css) => css.startsWith('rgb') && (numbers(css)[3] ?? 1) > 0.99;
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const box = element.getBoundingClientRect();
    if (!walker.currentNode.data.trim() || box.width < 2 || !element.checkVisibility()) continue;
    if (['TITLE', 'SCRIPT', 'OPTION'].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const front = element instanceof SVGElement ? style.fill : style.color;
    let behind = element;
    while (behind && !opaque(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
    const back = behind ? getComputedStyle(behind).backgroundColor : 'rgb(255, 255, 255)';
    const [a, b] = [luminance(numbers(front)), luminance(numbers(back))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push(`${ratio.toFixed(2)} ${walker.currentNode.data.trim().slice(0, 30)}`);
  }
  return low;
}"""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A running browser; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="tests of pages need playwright")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = os.environ.get("P2L_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("there is no Chromium here (install the package chromium, or name it in P2L_CHROMIUM)")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@contextlib.contextmanager
def pages(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages; fails at the end where one logged an error, or asked another host for anything."""
    contexts, trouble = [], []

    def opened(url: str, width: int = 1280, height: int = 900, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on(
            "console", lambda m: trouble.append(m.text) if m.type == "error" and "status of 4" not in m.text else None
        )
        page.on("response", lambda r: trouble.append(r.url) if r.status >= 400 and "/page/" in r.url else None)
        page.on("request", lambda request: None if request.url.startswith(url) else trouble.append(request.url))
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not trouble
