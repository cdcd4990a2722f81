"""The page in a headless browser: every tab is there, a sample is drawn, a stroke is painted, and nothing is asked of other machines."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
TABS = ["Sample", "Paint with words", "Inpaint", "Image to image", "Reword", "Attention"]


def drawn(page, n):
    """Wait until the visible gallery holds ``n`` pictures."""
    count = "[...document.querySelectorAll('button.thumbnail-item img, .grid-container img')].filter(e => e.offsetParent).length"
    page.wait_for_function(f"{count} >= {n}", timeout=120_000)


@pytest.fixture(scope="module")
def address():
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tests = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(tests.parent)}
    server = subprocess.Popen([sys.executable, str(tests / "studio_model.py"), str(port)], env=environment)
    url = f"http://127.0.0.1:{port}/"
    deadline = time.monotonic() + 280
    while True:
        try:
            urllib.request.urlopen(url, timeout=5)
            break
        except OSError:
            assert server.poll() is None, "the studio ended"
            assert time.monotonic() < deadline, "the studio does not answer"
            time.sleep(0.5)
    yield url
    server.terminate()
    server.wait(30)


@pytest.fixture
def page(address):
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 1400})
        page.outside = []
        local = ("data:", "blob:", "http://127.0.0.1")
        page.on("request", lambda request: None if request.url.startswith(local) else page.outside.append(request.url))
        page.goto(address)
        page.get_by_role("tab", name="Sample").wait_for(timeout=60_000)
        yield page
        assert page.outside == []
        browser.close()


def test_a_prompt_is_sampled(page):
    assert [tab.inner_text() for tab in page.get_by_role("tab").all()] == TABS
    page.get_by_label("Prompt").first.fill("a red circle")
    page.get_by_role("button", name="Sample").click()
    drawn(page, 4)


def test_a_mistake_is_a_message(page):
    page.get_by_label("Prompt").first.fill("a green circle")
    page.get_by_role("button", name="Sample").click()
    page.get_by_text("'green'").first.wait_for(timeout=60_000)


def test_a_phrase_is_painted_with_a_brush(page):
    page.get_by_role("tab", name="Paint with words").click()
    panel = page.get_by_role("tabpanel").filter(has=page.get_by_label("Phrase of the red brush"))
    panel.get_by_label("Prompt", exact=True).fill("a red circle")
    panel.get_by_label("Phrase of the red brush").fill("red circle")
    canvas = panel.locator("canvas").first
    canvas.wait_for(timeout=60_000)
    panel.get_by_role("button", name="Brush").click()
    page.wait_for_timeout(2000)
    box = canvas.bounding_box()
    for row in range(8):
        y = box["y"] + box["height"] * (0.3 + 0.05 * row)
        page.mouse.move(box["x"] + box["width"] * 0.3, y)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.7, y, steps=10)
        page.mouse.up()
    page.wait_for_timeout(1000)
    panel.get_by_role("button", name="Paint", exact=True).click()
    drawn(page, 8)
