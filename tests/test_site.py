"""The site that ``make docs`` has built: whole, and nothing in it is loaded from elsewhere. Sphinx itself fails on a
warning, such as a link between pages that leads nowhere."""

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from helpers import ROOT

from configs import registry

pytestmark = pytest.mark.site

SITE = ROOT / "build/site/html"
LOADED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src", "video": "src",
          "audio": "src", "object": "data", "embed": "src"}
GROUPS = ("guidance", "sampler", "degradation", "edit", "method")


class Page(HTMLParser):
    """What a page loads, where it leads, and the places in it that can be led to."""

    def __init__(self, text: str):
        super().__init__()
        self.loads, self.links, self.places = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.places |= {given[name] for name in ("id", "name") if given.get(name)}
        if given.get(LOADED.get(tag, "")):
            self.loads.append(given[LOADED[tag]])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])


@cache
def read(path: Path) -> Page:
    return Page(path.read_text())


def pages() -> list[Path]:
    found = sorted(SITE.rglob("*.html"))
    assert len(found) > 100, "make docs builds it"
    return found


def test_every_method_is_in_the_gallery():
    for group in GROUPS:
        text = re.sub("<[^>]*>", "", (SITE / f"gallery/{group}.html").read_text())
        names = [f"{group}={name}" for name in registry.available(group)]
        assert not [name for name in names if name not in text]
    for group in ("degradation", "sampler"):
        assert (SITE / f"gallery/{group}.html").read_text().count("<img") >= 8


def test_every_public_module_is_in_the_reference():
    for package in ("samplers", "degradations", "models", "diffusion"):
        names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / package).rglob("*.py")
                 if not path.name.startswith("_")}
        assert not [name for name in names if not (SITE / f"reference/{name}.html").is_file()]


def test_notebooks_show_what_came_out():
    for path in (ROOT / "docs/notebooks").glob("*.py"):
        assert "cell_output" in (SITE / f"docs/notebooks/{path.stem}.html").read_text()
        assert "<img" in (SITE / f"docs/notebooks/{path.stem}.html").read_text()


def test_nothing_is_loaded_from_elsewhere():
    outside = {address for path in pages() for address in read(path).loads
               if urlsplit(address).netloc or urlsplit(address).scheme not in ("", "data")}
    assert not outside
    for path in SITE.rglob("*.css"):
        assert not re.search(r"(url\(|@import\s*)[\"']?(https?:)?//", path.read_text()), path


def test_every_link_inside_leads_somewhere():
    broken = []
    for path in pages():
        for link in (*read(path).links, *read(path).loads):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            there = target.is_file() and (not parts.fragment or target.suffix != ".html"
                                          or unquote(parts.fragment) in read(target).places)
            if not there:
                broken.append((str(path.relative_to(SITE)), link))
    assert not broken, broken[:20]
