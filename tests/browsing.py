"""A person with a browser of their own at the page of `llava demo`; and what is missing where there is none."""

import importlib.util
import shutil
from pathlib import Path

import pytest


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if BROWSER else ["a Chromium"]
NEEDS_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"the page needs {', '.join(MISSING)}: see CONTRIBUTING.md"),
]


@pytest.fixture(scope="module")
def browser():
    with importlib.import_module("playwright.sync_api").sync_playwright() as playwright:
        # Chromium as root, which containers are, runs without a sandbox only.
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


class Person:
    """A browser of one's own at the page, and every address that it asked for."""

    def __init__(self, browser, url: str):
        self.context = browser.new_context(viewport={"width": 1280, "height": 900})
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.asked: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.open(url)

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.box.wait_for()

    @property
    def box(self):
        return self.page.locator("#question textarea")

    def show(self, *paths: Path) -> None:
        self.page.set_input_files("#question input[type=file]", list(paths))

    def thumbnails(self, number: int) -> None:
        self.page.wait_for_function(
            f"document.querySelectorAll('#question .thumbnail-item img').length === {number}", timeout=60_000
        )

    def length(self, tokens: int) -> None:
        if not self.page.locator("input[type=number]").nth(1).is_visible():
            self.page.locator("#settings button").first.click()
        self.page.locator("input[type=number]").nth(1).fill(str(tokens))
        self.page.locator("input[type=number]").nth(1).blur()

    def ask(self, text: str) -> None:
        self.box.fill(text)
        self.box.press("Enter")

    def answers(self, number: int = 0) -> list[str]:
        return self.page.locator(".chat").nth(number).locator("[data-testid=bot]").all_inner_texts()

    def wait_for(self, count: int, number: int = 0, words: str = "") -> None:
        """Until so many answers are there, the last of which begins with `words`."""
        self.page.wait_for_function(
            """([count, number, words]) => {
                const found = document.querySelectorAll('.chat')[number].querySelectorAll('[data-testid=bot]');
                const text = found.length ? found[found.length - 1].innerText.trim() : '';
                return found.length === count && text.length > 0 && text.startsWith(words);
            }""",
            arg=[count, number, words],
            timeout=60_000,
        )

    def wait_until_free(self) -> None:
        self.page.locator("#question .submit-button").wait_for()

    def told(self) -> str:
        toast = self.page.locator(".toast-body.error").last
        toast.wait_for()
        return " ".join(toast.inner_text().split())
