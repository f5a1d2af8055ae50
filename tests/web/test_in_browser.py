"""Reports in a browser: ``make test-web``."""

import pytest
from helpers import ROOT
from measured import HOSTILE, QUOTES, draw_pixels, make_gallery, save_evaluation, save_run

from diffusion.reports.evaluation import save_report
from diffusion.reports.gallery import Grid, Group
from diffusion.reports.runs import save_overview
from diffusion.reports.sheets import make_sheet

pytestmark = pytest.mark.web

AXE = ROOT / "build" / "web" / "axe.min.js"
WIDTHS = (390, 1280)
PAGES = ("report", "further", "overview", "hostile", "hostile overview")
NUMBERS = {"fd/classifier@10": 3.0, "recall/classifier": 0.5, "agreement": 0.25}


@pytest.fixture(scope="session")
def paths(tmp_path_factory):
    """Pages of each kind, by name."""
    root = tmp_path_factory.mktemp("web")
    for i, nfe in enumerate((5, 50, 20)):
        run = save_run(root / "runs" / f"run-{i}")
        numbers = {name: (value + i % 2, value + i % 2 - 0.1, value + i % 2 + 0.1) for name, value in NUMBERS.items()}
        gallery = make_gallery()
        gallery.sheets["samples-2"] = make_sheet(draw_pixels(6), 3)
        gallery.pages.append(Grid("Images 0 to 5 of 6", "", "samples-2", [Group("", list(range(6)))]))
        folder = save_evaluation(run, "e", numbers, gallery, nfe, composed={
            "sampler": {"_target_": "samplers.ddim.DDIM", "num_steps": nfe}})
        save_report(folder)
    long = "x" * 300
    bad = save_run(root / "bad" / HOSTILE.replace("/", "-"))
    hostile = save_evaluation(bad, QUOTES.replace("/", "-"), {HOSTILE: (1, 0, 2), QUOTES: (1, 0, 2), long: (1, 0, 2)},
                              make_gallery(QUOTES + long), 5, QUOTES, sampler=HOSTILE, images={"what": long})
    return {"report": folder / "report.html", "further": folder / "report-2.html",
            "overview": save_overview([root / "runs"], root / "all.html"), "hostile": save_report(hostile),
            "hostile overview": save_overview([bad], root / "bad.html")}


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_and_shuts_nobody_out(visit, paths, name, width, scheme):
    page = visit(paths[name], width, scheme).page
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for details in page.locator("details").all():
        details.evaluate("(e) => e.open = true")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "opened"
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run()")
    assert [(one["id"], one["impact"], one["nodes"][0]["html"][:200]) for one in found["violations"]] == []


def test_words_beside_pictures_are_not_broken_where_there_is_little_room(visit, paths):
    heads = visit(paths["report"], 150).page.locator(".rows tbody th").all()
    assert heads
    for head in heads:
        lines = head.evaluate("(e) => { const r = document.createRange(); r.selectNodeContents(e);"
                              " return new Set([...r.getClientRects()].map((b) => b.top)).size; }")
        assert lines <= len(head.inner_text().split())


@pytest.mark.parametrize("name", PAGES)
def test_without_scripts_all_but_the_sliders_is_there(visit, paths, name):
    page = visit(paths[name], scripts=False).page
    assert page.locator("h1").is_visible()
    for moving in page.locator(".live").all():
        assert not moving.is_visible()
    for still in page.locator(".still").all():
        assert still.is_visible()
    assert page.locator("table, .tile").first.is_visible()


def test_a_film_is_moved_by_the_keys(visit, paths):
    one = visit(paths["report"])
    slider = one.page.locator(".film input[type=range]")
    output, tile = one.page.locator(".film output"), ".film .live .tile"
    assert output.inner_text() == "t = 0.00"
    places, pictures = [one.style(tile, "backgroundPositionY")], [one.page.locator(".film .live").screenshot()]
    slider.focus()
    for words in ("t = 0.50", "t = 1.00"):
        one.page.keyboard.press("ArrowLeft")
        assert output.inner_text() == words == slider.get_attribute("aria-valuetext")
        places.append(one.style(tile, "backgroundPositionY"))
        pictures.append(one.page.locator(".film .live .tiles").first.screenshot())
    assert len({*places}) == 3
    assert pictures[1] != pictures[2]


def test_one_picture_is_wiped_over_another(visit, paths):
    one = visit(paths["report"])
    top, slider = ".wipe .tile + .tile", one.page.locator("figure.rows input[type=range]")
    clip = one.style(top, "clipPath")
    picture = one.page.locator(".wipe").first.screenshot()
    slider.focus()
    one.page.keyboard.press("End")
    assert one.style(top, "clipPath") != clip
    assert one.page.locator(".wipe").first.screenshot() != picture
    before = one.style(top, "backgroundPositionY")
    one.page.locator("figure.rows select").first.select_option("1")
    assert one.style(top, "backgroundPositionY") != before


def test_a_table_is_sorted_by_mouse_and_keys(visit, paths):
    one = visit(paths["overview"])
    assert one.column(2) == ["5", "50", "20"]
    button = one.page.locator("table.sortable thead button", has_text="num_steps")
    head = one.page.locator("table.sortable thead th", has_text="num_steps")
    button.click()
    assert (one.column(2), head.get_attribute("aria-sort")) == (["5", "20", "50"], "ascending")
    one.page.keyboard.press("Enter")
    assert (one.column(2), head.get_attribute("aria-sort")) == (["50", "20", "5"], "descending")
    one.page.locator("table.sortable thead button", has_text="run").click()
    assert one.column(2) == ["5", "50", "20"]
    assert head.get_attribute("aria-sort") is None


def test_a_point_leads_to_its_pictures(visit, paths):
    one = visit(paths["overview"])
    one.page.locator("svg a").first.focus()
    one.page.keyboard.press("Enter")
    assert one.page.locator(":target .tile").first.is_visible()


def test_on_paper_the_film_stands_still(visit, paths):
    one = visit(paths["report"])
    one.page.emulate_media(media="print")
    assert one.page.locator(".film .still").is_visible()
    assert not one.page.locator(".film .live").is_visible()
