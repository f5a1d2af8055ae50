"""Pages in a browser that can reach nothing, and that writes down what goes wrong."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Visit:
    """A page that is open.

    :ivar page: Playwright's
    :ivar troubles: errors of the console and of scripts, and dialogs
    :ivar requests: addresses that it has asked for
    """

    page: Any
    troubles: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def style(self, selector: str, name: str) -> str:
        """A property of the first such element, as it is computed."""
        return self.page.locator(selector).first.evaluate(f"(e) => getComputedStyle(e).{name}")

    def column(self, index: int) -> list[str]:
        """The words in a column of the first table that can be sorted."""
        return self.page.locator("table.sortable").first.locator(f"tbody tr > :nth-child({index})").all_inner_texts()


@pytest.fixture(scope="session")
def chromium():
    """The browser; it has to be there."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "no Chromium: bash tests/web/start-chromium.sh"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Opens a file; at the end it must have asked for nothing else, and nothing must have gone wrong."""
    visits, contexts = [], []

    def open_page(path: Path, width: int = 1280, scheme: Any = "light", scripts: bool = True) -> Visit:
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme,
                                       java_script_enabled=scripts)
        contexts.append(context)
        page = context.new_page()
        one = Visit(page)
        visits.append(one)

        def watch(route: Any, request: Any) -> None:
            if request.url == path.as_uri() or request.url.startswith("data:"):
                route.continue_()
            else:
                one.requests.append(request.url)
                route.abort()

        context.route("**/*", watch)
        page.on("console", lambda said: one.troubles.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: one.troubles.append(str(error)))
        page.on("dialog", lambda dialog: (one.troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(path.as_uri())
        return one

    yield open_page
    for context in contexts:
        context.close()
    assert [(one.troubles, one.requests) for one in visits if one.troubles or one.requests] == []
