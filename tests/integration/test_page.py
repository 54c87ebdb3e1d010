"""The page in a real browser, in front of a real gateway with three neurons."""

import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.support.browser import CHROMIUM, FLAGS
from tests.support.harness import ADMIN_KEY
from tests.support.showcase import Showcase, showcase

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.needs_chromium, pytest.mark.timeout(180)]
HOSTILE = "<img/src=x/onerror=document.title='hacked'>"
PATIENCE_MS = 20_000


@dataclass
class Seen:
    """A page, and what must stay empty while it is used."""

    page: "Page"
    show: Showcase
    errors: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    """Requests to anybody but the gateway."""

    def sign_in(self) -> None:
        """Give the admin key."""
        self.page.fill("#key", ADMIN_KEY)
        self.page.press("#key", "Enter")
        self.page.wait_for_selector("body.is-admin .node")

    def check(self) -> None:
        """Assert that nothing went wrong in silence."""
        assert self.errors == []
        assert self.strangers == []


@pytest.fixture(scope="module")
def show(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Showcase]:
    with showcase(tmp_path_factory.mktemp("page"), extra={"quadbrat": {HOSTILE: HOSTILE}}) as running:
        yield running


@pytest.fixture(scope="module")
def browser_page(show: Showcase) -> Iterator[Seen]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        seen = Seen(page, show)
        page.on("console", lambda m: seen.errors.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(show.gateway.url) else seen.strangers.append(r.url))
        yield seen
        browser.close()


@pytest.fixture
def seen(browser_page: Seen) -> Iterator[Seen]:
    browser_page.page.goto(browser_page.show.gateway.url)
    yield browser_page
    browser_page.check()


def test_without_a_key_the_models_and_the_playground_are_there_and_nothing_else(seen: Seen) -> None:
    page = seen.page
    page.evaluate("sessionStorage.clear()")
    page.reload()
    page.wait_for_selector("#models tr")
    assert page.is_visible("#playground")
    assert not page.is_visible("#fleet")
    assert not page.is_visible(".unload")
    assert page.text_content("#health") == "ok"


def test_the_fleet_is_shown_and_a_chat_streams_with_its_timings(seen: Seen) -> None:
    seen.sign_in()
    page = seen.page
    assert sorted(page.locator(".node h3").all_text_contents()) == ["beast", "benjy", "quadbrat"]
    assert page.locator(".device").count() == 5
    assert "qwen3-32b 19.0 GiB" in page.text_content(".node .legend")  # type: ignore[operator]
    page.select_option("#play-model", "llama-3.1-8b")
    page.fill("#play-text", "Why?")
    page.press("#play-text", "Control+Enter")
    page.wait_for_selector("#play-timings:has-text('53 tokens')")
    assert "starts one worker process" in page.text_content(".turn.assistant .text")  # type: ignore[operator]
    assert "tokens/s" in page.text_content("#play-timings")  # type: ignore[operator]
    page.wait_for_selector("#requests tr:has-text('llama-3.1-8b')")
    page.locator("#rate-peak", has_text=re.compile("most [1-9]")).wait_for()


def test_a_model_is_loaded_pinned_and_unloaded_with_the_buttons_by_keyboard(seen: Seen) -> None:
    seen.sign_in()
    page = seen.page
    row = page.locator("#models tr", has_text="embed-large")
    row.locator(".load").focus()
    page.keyboard.press("Enter")
    row.locator(".status:has-text('loaded')").and_(row.locator(".good")).wait_for()
    page.wait_for_selector("#notice:has-text('is loaded on')")
    row.locator(".pin").click()
    row.locator(".status:has-text('pinned')").wait_for()
    row.locator(".pin").click()
    row.locator(".unload").focus()
    page.keyboard.press("Enter")
    page.locator("#confirm button[value=yes]").click()
    row.locator(".status:text-is('unloaded')").wait_for()
    page.wait_for_selector("#events li:has-text('embed-large: model unloaded')")


def test_a_worker_is_seen_to_die_and_to_come_back(seen: Seen) -> None:
    seen.sign_in()
    page = seen.page
    pid = seen.show.neurons["benjy"].status()["state"]["devices"][0]["worker_pid"]
    os.kill(pid, signal.SIGKILL)
    page.wait_for_selector("#events li:has-text('worker ended'):has-text('SIGKILL')")
    device = page.locator(".node", has_text="benjy").locator(".device").first
    device.locator(".state:has-text('1 restarts'):has-text('ready')").wait_for()
    device.locator(".legend li:has-text('llama-3.1-8b')").wait_for()


def test_a_node_is_drained_and_taken_back(seen: Seen) -> None:
    seen.sign_in()
    card = seen.page.locator(".node", has_text="quadbrat")
    card.locator(".drain").click()
    seen.page.locator("#confirm button[value=yes]").click()
    card.locator(".state:text-is('draining')").first.wait_for()
    card.locator(".drain:text-is('Undrain')").click()
    card.locator(".row .state:text-is('up')").wait_for()


def test_a_device_is_paused_resumed_and_restarted(seen: Seen) -> None:
    seen.sign_in()
    device = seen.page.locator(".node", has_text="quadbrat").locator(".device")
    device.locator(".pause").click()
    seen.page.locator("#confirm button[value=yes]").click()
    device.locator(".reason:has-text('paused')").wait_for()
    device.locator(".state:has-text('stopped')").wait_for()
    device.locator(".pause:text-is('Resume')").click()
    device.locator(".state:has-text('ready')").wait_for()
    device.locator(".legend li:has-text('smollm2-135m')").wait_for()
    before = seen.show.neurons["quadbrat"].status()["state"]["devices"][0]["worker_pid"]
    device.locator(".restart").click()
    seen.page.locator("#confirm button[value=yes]").click()
    seen.page.wait_for_selector("#notice:has-text('has a new worker')")
    assert seen.show.neurons["quadbrat"].status()["state"]["devices"][0]["worker_pid"] not in (None, before)


def test_names_and_answers_are_text_whatever_they_contain(seen: Seen) -> None:
    seen.sign_in()
    page = seen.page
    assert page.locator("#models td.name", has_text=HOSTILE).count() == 1
    page.select_option("#play-model", HOSTILE)
    page.fill("#play-text", HOSTILE)
    page.click("#play-send")
    page.wait_for_selector("#requests tr:has-text('<img')")
    assert HOSTILE in page.text_content(".turn.assistant .text")  # type: ignore[operator]
    assert page.title() == "cortex"
    assert page.locator("main img").count() == 0


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_the_page_never_scrolls_sideways(seen: Seen, width: int) -> None:
    seen.sign_in()
    seen.page.set_viewport_size({"width": width, "height": 800})
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    body = {"model": "llama-3.1-8b", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 3}
    httpx.post(f"{seen.show.gateway.url}/v1/chat/completions", json=body, timeout=20).raise_for_status()
    seen.page.wait_for_selector("#requests tr")
    # A column that is as narrow as a letter makes its words as high as they are long; three lines are a long name.
    heights = seen.page.evaluate("[...document.querySelectorAll('th, #requests td')].map(e => e.offsetHeight)")
    assert max(heights) < 100


def test_every_control_has_a_name_and_can_be_reached_by_keyboard(seen: Seen) -> None:
    seen.sign_in()
    names = seen.page.evaluate(
        "[...document.querySelectorAll('button, input, select, textarea')].filter(e => e.offsetParent)"
        ".map(e => e.ariaLabel || e.textContent.trim() || (e.labels && e.labels[0] && e.labels[0].textContent.trim()))"
    )
    assert len(names) > 15
    assert all(names)
    assert seen.page.evaluate("[...document.querySelectorAll('[tabindex]')].every(e => e.tabIndex <= 0)")
    seen.page.keyboard.press("Tab")
    assert seen.page.evaluate("document.activeElement.matches(':focus-visible')")
