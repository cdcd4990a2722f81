"""The pages in a headless browser, on a desk and on a phone: nothing is broken, sticks out or is asked of other machines."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
DOCS = Path(__file__).resolve().parents[1] / "docs"
PHONE, DESK = 390, 1600

# What is wider than the window and lies in nothing that can be scrolled; formulas are repeated, hidden, for those who cannot see.
STICKS_OUT = """() => [...document.querySelectorAll('article *')].filter(node => {
    if (node.closest('mjx-assistive-mml') || node.getBoundingClientRect().right <= window.innerWidth + 1) return false;
    for (let around = node; around.tagName !== 'ARTICLE'; around = around.parentElement)
        if (['auto', 'scroll'].includes(getComputedStyle(around).overflowX)) return false;
    return true;
}).map(node => node.outerHTML.slice(0, 80))"""
BROKEN = "() => [...document.images].filter(image => image.naturalWidth === 0).map(image => image.src)"
LINKS = "() => [...document.querySelectorAll('a[href]')].map(link => link.href)"
NAMES = "() => [...document.querySelectorAll('[id]')].map(node => node.id)"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages without what their notebooks give."""
    out = tmp_path_factory.mktemp("site")
    built = [sys.executable, "-m", "sphinx", "-W", "-q", "-D", "nb_execution_mode=off", "-b", "html", str(DOCS), str(out)]
    subprocess.run(built, check=True, env={**os.environ, "PYTHONPATH": str(DOCS.parent)})
    return out


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as browsers:
        running = browsers.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


def visited(browser, site, width):
    """Each page, loaded, with what went wrong on the way."""
    context = browser.new_context(viewport={"width": width, "height": 900})
    for path in sorted(site.rglob("*.html")):
        page = context.new_page()
        wrong = []
        page.on("request", lambda request, wrong=wrong: None if request.url.startswith(("file:", "data:")) else wrong.append(request.url))
        page.on("requestfailed", lambda request, wrong=wrong: wrong.append(request.url))
        page.on("pageerror", lambda error, wrong=wrong: wrong.append(str(error)))
        page.goto(path.as_uri())
        page.evaluate("for (const image of document.images) image.loading = 'eager'")
        page.wait_for_function("[...document.images].every(image => image.complete)", timeout=60_000)
        yield path, page, wrong
        page.close()


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_pages_fit_and_lack_nothing(browser, site, width):
    found = {}
    for path, page, wrong in visited(browser, site, width):
        wrong += page.evaluate(BROKEN)
        if path.name not in ("genindex.html", "search.html"):  # Sphinx's own
            wrong += page.evaluate(STICKS_OUT)
        if wrong:
            found[path.name] = wrong[:5]
    assert not found


def test_links_lead_somewhere(browser, site):
    links, names = {}, {}
    for path, page, _ in visited(browser, site, DESK):
        links[path] = page.evaluate(LINKS)
        names[path] = {*page.evaluate(NAMES), ""}
    dead = set()
    for path, found in links.items():
        for link in found:
            target, name = urldefrag(link)
            file = Path(unquote(urlparse(target).path))
            if link.startswith("file:") and not (file.is_file() and unquote(name) in names.get(file, {unquote(name)})):
                dead.add(f"{path.name}: {link}")
    assert not dead
