"""Take the pictures of the page for docs/images: python tools/screenshots.py [FOLDER]. Needs Chromium."""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.support.browser import CHROMIUM, FLAGS
from tests.support.harness import ADMIN_KEY
from tests.support.showcase import showcase

SHOTS = {
    "page-light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 1000}},
    "page-dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 1000}},
    "page-phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}, "is_mobile": True},
}
WATCH_MS = 12_000
"""Of load, for the lines to have a shape."""


def main(folder: Path) -> None:
    """Run the fleet under load and take each picture."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as base, showcase(Path(base)) as show, show.load(6), sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for name, options in SHOTS.items():
            page = browser.new_context(**options).new_page()  # type: ignore[arg-type]
            page.goto(show.gateway.url)
            page.fill("#key", ADMIN_KEY)
            page.press("#key", "Enter")
            page.wait_for_selector("body.is-admin .node")
            page.fill("#play-text", "Why one process for each GPU?")
            page.press("#play-text", "Control+Enter")
            page.wait_for_timeout(WATCH_MS)
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=folder / f"{name}.png")
            page.screenshot(path=folder / f"{name}-whole.png", full_page=True)
            page.context.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/screenshots"))
