"""The page at / in a real Chromium, before a real fleet."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.fleet import Fleet

pytestmark = pytest.mark.ops

FLAGS = ("--engine", "sim", "--sim-step-ms", "20", "--workers", "2")


@contextmanager
def opened(browser: Any, fleet: Fleet) -> Iterator[Any]:
    """The page; whatever it asks for elsewhere, and whatever its console complains of, fails the test."""
    page = browser.new_page()
    foreign: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: foreign.append(request.url) if fleet.base_url not in request.url else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if "Security Policy" in message.text else None)
    page.goto(fleet.base_url + "/")
    yield page
    page.close()
    assert [url for url in foreign if not url.startswith("data:")] == [] and complaints == []


def ask(page: Any, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")


def test_a_chat_streams_and_shows_its_figures(browser: Any, tmp_path: Path) -> None:
    with Fleet(tmp_path / "log", *FLAGS) as fleet, opened(browser, fleet) as page:
        page.wait_for_selector("#model option", state="attached")
        page.fill("#max_tokens", "40")
        page.fill("#temperature", "0")

        ask(page, "hello")
        page.wait_for_selector(".assistant .content:not(:empty)")
        early = len(page.inner_text(".assistant .content"))
        page.wait_for_selector(".assistant .figures")

        assert early < len(page.inner_text(".assistant .content")), "it was shown before it was whole"
        figures = page.inner_text(".assistant .figures")
        assert re.search(
            r"\d+ tokens · first after .* ms · [\d.]+ tokens/s · queue .* · prefill .* · decode .* ms", figures
        )
        assert page.locator(".bar .decode").evaluate("node => node.clientWidth") > 0

        ask(page, "again")
        page.locator(".assistant .figures").nth(1).wait_for()
        assert page.locator(".user").all_inner_texts() == ["hello", "again"]
        page.click("#clear")
        assert page.locator(".turn").count() == 0


def test_stop_ends_an_answer_and_the_next_question_is_answered(browser: Any, tmp_path: Path) -> None:
    with Fleet(tmp_path / "log", *FLAGS) as fleet, opened(browser, fleet) as page:
        page.fill("#max_tokens", "4000")
        ask(page, "a long story")
        page.wait_for_selector(".assistant .content:not(:empty)")

        page.click("#stop")
        page.wait_for_selector(".assistant .error")

        assert page.inner_text(".assistant .error") == "stopped"
        page.fill("#max_tokens", "5")
        ask(page, "short now")
        page.locator(".assistant").nth(1).locator(".figures").wait_for()


def test_on_a_phone_the_settings_are_behind_a_button(browser: Any, tmp_path: Path) -> None:
    with Fleet(tmp_path / "log", *FLAGS) as fleet, opened(browser, fleet) as page:
        page.set_viewport_size({"width": 390, "height": 800})
        assert not page.is_visible("#max_tokens")

        page.click("#more")
        page.fill("#max_tokens", "3")
        page.click("#more")
        assert not page.is_visible("#max_tokens")
        ask(page, "hello")

        page.wait_for_selector(".assistant .figures")
        assert page.inner_text(".assistant .figures").startswith("3 tokens")


def test_with_a_key_nothing_works_until_it_is_entered(browser: Any, tmp_path: Path) -> None:
    with Fleet(tmp_path / "log", *FLAGS, "--api-key", "sk-right") as fleet, opened(browser, fleet) as page:
        page.wait_for_selector(".error")
        ask(page, "hello")
        page.wait_for_selector(".assistant .error")
        assert "401" in page.inner_text(".assistant .error")
        assert page.locator(".assistant .content").inner_text() == ""

        page.fill("#key", "sk-right")
        page.press("#key", "Tab")
        page.wait_for_selector("#model option", state="attached")
        page.fill("#max_tokens", "5")
        ask(page, "hello")

        page.wait_for_selector(".assistant .figures")


def test_markup_in_a_chat_is_text(browser: Any, tmp_path: Path) -> None:
    with Fleet(tmp_path / "log", *FLAGS) as fleet, opened(browser, fleet) as page:
        page.fill("#max_tokens", "5")
        ask(page, "<img src=x onerror=document.title='owned'><b>bold</b>")
        page.wait_for_selector(".assistant .figures")

        assert page.locator(".user b, .user img").count() == 0 and page.title() == "Chat"


def test_the_reference_lists_routes_and_schemas(browser: Any, tmp_path: Path) -> None:
    with Fleet(tmp_path / "log", *FLAGS) as fleet, opened(browser, fleet) as page:
        page.goto(fleet.base_url + "/docs")
        page.wait_for_selector("details#ChatRequest")
        text = page.inner_text("main")

        assert "/v1/chat/completions" in text and "Anthropic" in text
        page.click("details#ChatRequest > summary")
        assert page.locator("details#ChatRequest td >> text=temperature").count() == 1
