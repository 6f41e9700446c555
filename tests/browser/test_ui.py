"""The web UI as a person meets it: upload, ask, watch the stream, open a source, delete, be refused.

The screenshots in shots/ are looked at before a release.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from finetune.run import base_of
from llama.checkpoint import open_checkpoint

from ..app.fakes import random_lora
from .conftest import Server

pytestmark = pytest.mark.browser

SHEARING = """\
The herd is sheared in the last week of June. One llama takes 40 minutes. The shearer is called Marta Quill.

After shearing each animal is checked for <b>cuts</b> and wears a blanket. ![x](http://example.invalid/x.png)
"""
SHOTS = Path(__file__).resolve().parents[2] / "shots"


@pytest.fixture
def page(server: Server, browser: Browser) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 860}, locale="en-GB")
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.elsewhere = []
    here = server.url.removeprefix("http://")
    page.on(
        "request", lambda r: None if here in r.url or r.url[:5] in ("data:", "blob:") else page.elsewhere.append(r.url)
    )
    yield page
    context.close()


def shot(page: Any, name: str) -> None:
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


def to_ask(page: Any) -> None:
    """Goes to the page for questions and waits until it is there.

    A widget changed before that sends the page that was left (Streamlit 1.67), and takes the way back to it.
    """
    page.get_by_role("link", name="Ask").click()
    page.get_by_test_id("stChatInput").wait_for()


def ask(page: Any, question: str) -> None:
    box = page.get_by_test_id("stChatInput").locator("textarea")
    box.fill(question)
    box.press("Enter")


def test_upload_ask_open_delete_refused(server: Server, page: Any) -> None:
    # A knowledge base of its own, so that the file is the only one in it.
    page.goto(f"{server.url}/documents")
    page.get_by_text("New knowledge base").click()
    page.get_by_label("Name").fill("羊驼 farm")
    page.get_by_role("button", name="Create").click()
    page.get_by_text("No documents yet.").wait_for()
    page.get_by_text("inbox/羊驼 farm").wait_for()

    page.locator("input[type=file]").set_input_files(
        {"name": "shearing.md", "mimeType": "text/markdown", "buffer": SHEARING.encode()}
    )
    row = page.get_by_test_id("stMarkdown").filter(has_text="shearing.md")
    row.get_by_text("indexed").wait_for()
    assert (server.home / "inbox" / "羊驼 farm" / "shearing.md").read_text() == SHEARING
    shot(page, "documents-light")

    to_ask(page)
    page.get_by_text("(1), with the passage").wait_for()
    ask(page, "What is the shearer called?")
    source = page.get_by_text("1 · shearing.md").first
    source.wait_for(timeout=120_000)
    source.click()
    mark = page.locator(".passage mark").first
    mark.wait_for()
    assert mark.inner_text() in SHEARING
    assert "Marta Quill" in mark.inner_text()
    page.wait_for_timeout(500)  # the source unfolds
    shot(page, "answer-light")

    # What stands in the document is shown as it stands: no HTML of it becomes HTML, no image of it is fetched.
    passage = page.locator(".passage").first
    assert passage.locator("b, img").count() == 0

    page.get_by_role("link", name="Documents").click()
    page.get_by_role("button", name="delete").first.click()
    page.get_by_role("button", name="Delete it").click()
    page.get_by_text("No documents yet.").wait_for()
    assert not (server.home / "inbox" / "羊驼 farm" / "shearing.md").exists()

    to_ask(page)
    page.get_by_text("There is nothing in").or_(page.get_by_text("shearer")).first.wait_for()
    ask(page, "What is the shearer called now?")
    page.get_by_text("holds no documents yet, so there is nothing to answer from").wait_for()
    shot(page, "refused-light")
    assert page.elsewhere == [], "nothing may be fetched from elsewhere"


def test_a_file_dropped_into_the_inbox_is_indexed(server: Server, page: Any) -> None:
    """Nobody presses anything: the watched folder is enough, and the open page shows it."""
    page.goto(f"{server.url}/documents")
    page.get_by_text("Inbox folder").wait_for()
    (server.home / "inbox" / "dropped.txt").write_text("Salt blocks are changed on Mondays by Piet.\n")
    page.get_by_test_id("stMarkdown").filter(has_text="dropped.txt").get_by_text("indexed").wait_for()
    (server.home / "inbox" / "broken.pdf").write_bytes(b"%PDF-1.4 rubbish")
    page.get_by_test_id("stMarkdown").filter(has_text="broken.pdf").get_by_text("failed").wait_for()
    shot(page, "documents-failed-light")


def test_who_answers_is_chosen_in_the_sidebar(server: Server, page: Any, gguf_path: Path) -> None:
    base = base_of(open_checkpoint(gguf_path), None)
    random_lora(gguf_path, server.home / "adapters" / "rambling", base)
    page.goto(f"{server.url}/documents")
    page.get_by_text("Inbox folder").wait_for()
    (server.home / "inbox" / "licks.txt").write_text("Mineral licks are renewed on Fridays by Odile.\n")
    page.get_by_test_id("stMarkdown").filter(has_text="licks.txt").get_by_text("indexed").wait_for()
    try:
        to_ask(page)
        page.get_by_role("combobox", name="Adapter").click()
        page.get_by_role("option", name="rambling").click()
        ask(page, "Who renews the mineral licks on Fridays?")
        page.get_by_text("Answered with the adapter rambling").wait_for(timeout=120_000)
        page.get_by_role("combobox", name="Adapter").click()
        page.get_by_role("option", name="None (the bare model)").click()
        ask(page, "By whom are mineral licks renewed?")
        page.get_by_text(re.compile("s: search .* tokens")).nth(1).wait_for(timeout=120_000)
        assert page.get_by_text("Answered with the adapter").count() == 1
    finally:
        shutil.rmtree(server.home / "adapters")


def test_a_running_answer_can_be_stopped(server: Server, page: Any) -> None:
    deeds = ("drank water", "ate hay", "met a dog", "lost a bell", "saw a fox", "carried wood", "crossed the ice")
    days = [f"On day {n} of the walk the llama Kusi {deeds[n % 7]} at mile {n * 7 % 30}." for n in range(1, 31)]
    (server.home / "inbox" / "story.txt").write_text(" ".join(days))
    page.goto(f"{server.url}/documents")
    page.get_by_test_id("stMarkdown").filter(has_text="story.txt").get_by_text("indexed").wait_for()
    to_ask(page)
    ask(page, "Write down every day of the walk: On day 1 of the walk the llama Kusi")
    # It streams: the answer grows behind a cursor before it is whole. (A short one may be whole before it is drawn.)
    page.get_by_text("▌").first.wait_for()
    shot(page, "streaming-light")
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for(timeout=20_000)
    assert page.get_by_role("button", name="Stop").count() == 0
    # The model is free again: the next question is answered.
    ask(page, "At which mile was the llama Kusi on day 3 of the walk?")
    page.get_by_text("tokens").first.wait_for(timeout=120_000)


def test_chinese_dark_and_narrow(server: Server, browser: Browser) -> None:
    """A Chinese browser gets Chinese words; the page fits a phone, in the dark."""
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, locale="zh-CN", color_scheme="dark", has_touch=True
    )
    page = context.new_page()
    page.goto(server.url)
    page.get_by_text("您想了解什么？").wait_for(timeout=60_000)
    background = page.evaluate("getComputedStyle(document.querySelector('.stApp')).backgroundColor")
    assert max(int(value) for value in re.findall(r"\d+", background)[:3]) < 80, background
    shot(page, "home-zh-dark-phone")
    page.goto(f"{server.url}/documents")
    page.get_by_text("收件箱文件夹").wait_for(timeout=60_000)
    shot(page, "documents-zh-dark-phone")
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390, f"the page is {wide} pixels wide"
    context.close()
