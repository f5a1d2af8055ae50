"""Reports: what is in them, that nothing else gets in, and that what they say of numbers is right."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import torch
from helpers import call, done
from measured import HOSTILE, QUOTES, draw_pixels, make_gallery, save_evaluation, save_run
from PIL import Image

from configs import UserError, compose
from diffusion import commands
from diffusion.evaluation import illustrate
from diffusion.metrics.base import Features, MetricInput
from diffusion.metrics.intervals import share
from diffusion.reports.evaluation import Evaluation, save_report
from diffusion.reports.gallery import FOLDER, Gallery
from diffusion.reports.numbers import Number, exceeds, find_direction, subtract
from diffusion.reports.pages import Cell, Table, render
from diffusion.reports.plots import Axis, Plot, Point
from diffusion.reports.protocols import Measured, find_best, find_differences, group_alike, name_columns
from diffusion.reports.runs import save_overview
from diffusion.reports.sheets import make_sheet
from diffusion.runs.defaults import add_run_defaults

pytestmark = pytest.mark.commands

NUMBERS = {"fd/classifier@10": (1.0, 0.9, 1.1), "agreement": (0.9, 0.8, 0.95)}
ADDRESSES = {"src", "href", "action", "data", "srcset", "poster", "formaction"}


class Page(HTMLParser):
    """What is in a page: its tags with their attributes, the words, and the content of scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.words, self.scripts, self._raw = [], "", [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._raw = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self._raw = ""

    def handle_data(self, data):
        if self._raw == "script":
            self.scripts.append(data)
        elif not self._raw:
            self.words += data

    def require_alone(self):
        """Nothing is loaded from elsewhere, one script runs, and that is the one of the policy."""
        for tag, attributes in self.tags:
            assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
            assert tag not in ("iframe", "object", "embed", "base", "form"), tag
            for name in ADDRESSES & {*attributes}:
                assert re.match(r"data:|#|[\w./%-]+\.html$", attributes[name] or ""), attributes
        policy = next(a["content"] for tag, a in self.tags if a.get("http-equiv") == "Content-Security-Policy")
        digest = base64.b64encode(hashlib.sha256("".join(self.scripts).encode()).digest()).decode()
        assert [tag for tag, _ in self.tags].count("script") == 1
        assert f"script-src 'sha256-{digest}'" in policy
        assert "default-src 'none'" in policy


class TestPages:
    @pytest.mark.parametrize("text", [HOSTILE, QUOTES, "{{ 7 * 7 }}", "a\x1b[2J", "a‮b", "\udcff", "-->", "]]>"])
    def test_text_from_outside_stays_text(self, text):
        table = Table([text, text], [[text, Cell(text, note=text, link="x")]], text, sortable=True)
        page = Page(render("evaluation.html", title=text, numbers=table, skipped=[(text, text)], cost=None,
                           facts=[(text, text)], environment=[], comparison=[], sheets=[], figures=[], all=[],
                           pages=[], pictures=[], curves=[]))
        page.require_alone()
        shown = text.replace("\x1b", "\\x1b").replace("‮", "\\u202e").replace("\udcff", "\\udcff")
        assert page.words.count(shown) >= 7
        assert not [tag for tag, a in page.tags if tag == "img"]

    def test_a_value_that_is_missing_is_an_error(self):
        with pytest.raises(Exception, match="title"):
            render("base.html")


class TestNumbers:
    def test_the_difference_of_two_shares_as_published(self):
        # Newcombe 1998, Stat. Med. 17, 873, table II, column (a): 56/70 - 48/80, method 10
        a, b = (share(torch.arange(n) < k) for k, n in ((56, 70), (48, 80)))
        found = subtract(*(Number(x.value, x.low, x.high) for x in (a, b)))
        assert found == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)

    def test_of_normal_errors_the_variances_add(self):
        a, b = Number(3, 3 - 1.96 * 0.3, 3 + 1.96 * 0.3), Number(1, 1 - 1.96 * 0.4, 1 + 1.96 * 0.4)
        assert subtract(a, b) == pytest.approx((2, 2 - 1.96 * 0.5, 2 + 1.96 * 0.5))
        assert subtract(a, b).value == -subtract(b, a).value

    def test_without_an_end_nothing_exceeds(self):
        assert not exceeds(subtract(Number(5, -math.inf, math.inf), Number(1, 1, 1)))

    @pytest.mark.parametrize(("name", "sign"), [
        ("fd/classifier@200", -1), ("FID@10k", -1), ("kid/random", -1), ("precision/classifier", 1), ("psnr", 1),
        ("lpips", -1), ("lpips diversity", 1), ("rmse/image", -1), ("agreement: digit", 1), ("accuracy colour", 1),
        ("agreement, shuffled", 0), ("train distance/classifier", 0), ("isolation", 0), ("residual / noise", -1)])
    def test_which_way_is_better(self, name, sign):
        assert find_direction(name) == sign


class TestPlots:
    def test_an_axis_leads_from_one_end_to_the_other(self):
        for log in (False, True):
            axis = Axis.around([1.0, 100.0], log, 10, 110)
            assert axis.place(axis.low) == pytest.approx(10)
            assert axis.place(axis.high) == pytest.approx(110)
            assert axis.place(10) == pytest.approx(60) if log else axis.place(50.5) == pytest.approx(60)

    @pytest.mark.parametrize("values", [[1.0], [0.0], [], [-5.0, 5.0], [1e-9, 2e-9], [3.0, 3.1], [1e3, 1e9]])
    @pytest.mark.parametrize("log", [False, True])
    def test_marks_are_on_the_axis(self, values, log):
        axis = Axis.around(values, log, 0, 100)
        ticks = axis.ticks()
        assert 1 <= len(ticks) <= 8
        assert all(-0.1 <= float(place) <= 100.1 for place, _ in ticks)
        assert all(axis.place(float(words)) == pytest.approx(float(place), abs=6) for place, words in ticks)

    def test_what_is_no_number_has_no_place(self):
        lines = {"a": [Point(1, 2), Point(2, math.nan), Point(3, math.inf), Point(4, 5, 4, 6)], "b": []}
        drawn = Plot("p", "x", "y", lines).draw()
        assert [(line["name"], len(line["points"])) for line in drawn["lines"]] == [("a", 2)]


class TestSheets:
    def test_pictures_are_where_they_are_said_to_be(self):
        pixels = draw_pixels(7, channels=1)
        sheet = make_sheet(pixels, 3)
        whole = np.array(Image.open(BytesIO(sheet.data)))
        assert whole.shape == (24, 24)
        for i in range(7):
            x, y = i % 3 * 8, i // 3 * 8
            assert (whole[y:y + 8, x:x + 8] == pixels[i, 0].numpy()).all()

    def test_too_large_a_sheet_loses_something(self):
        noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 64, 64), dtype=np.uint8))
        lossless, small, tiny = (make_sheet(noise, 3, most=most) for most in (10**6, 40_000, 900))
        assert (lossless.kind, small.kind) == ("png", "webp")
        assert len(small.data) <= 40_000
        assert len(tiny.data) <= 900
        assert Image.open(BytesIO(small.data)).size == (192, 128)
        assert Image.open(BytesIO(tiny.data)).width < 192
        assert tiny.fit(64) == small.fit(64) == (64, 64)

    def test_large_pictures_are_made_smaller(self):
        sheet = make_sheet(torch.zeros(2, 3, 600, 300, dtype=torch.uint8), 2)
        assert Image.open(BytesIO(sheet.data)).size == (256, 256)
        assert sheet.fit(48) == (48, 96)

    @pytest.mark.parametrize(("size", "shown"), [(1, 48), (16, 48), (28, 56), (32, 64), (64, 64), (256, 48)])
    def test_small_pictures_are_enlarged_by_a_whole_factor(self, size, shown):
        assert make_sheet(draw_pixels(1, size), 1).fit(48)[0] == shown


class TestGallery:
    def test_is_read_as_it_was_written(self, tmp_path):
        make_gallery().save(tmp_path)
        assert Gallery.load(tmp_path).figures == make_gallery().figures
        assert Gallery.load(tmp_path).pages == make_gallery().pages
        assert [*Gallery.load(tmp_path, lambda name: name == "preview-0").sheets] == ["preview-0"]
        assert Gallery.load(tmp_path / "none") == Gallery()

    def test_what_is_damaged_is_refused(self, tmp_path):
        make_gallery().save(tmp_path)
        index = tmp_path / FOLDER / "gallery.json"
        whole = json.loads(index.read_text())
        for changes in (("sheets", "samples", "file", "../../secret"), ("sheets", "samples", "columns", 0),
                        ("sheets", "samples", "kind", "svg+xml"), ("sheets", "samples", "captions", ["a"]),
                        ("sheets", "film", "file", "missing.png"), ("figures", 0, "groups", [{}]),
                        ("figures", 0, "sheet", "other"), ("figures", 1, "wipe", [0, 9]), ("figures", 1, "rows", "ab"),
                        ("figures", 2, "times", [1.0] * 9), ("figures", 2, "kinds", []), ("figures", 2, "kind", "x"),
                        ("figures", 2, "times", ["1"]), ("figures", 0, "title", 5)):
            broken = json.loads(json.dumps(whole))
            node = broken
            for key in changes[:-2]:
                node = node[key]
            node[changes[-2]] = changes[-1]
            index.write_text(json.dumps(broken))
            with pytest.raises(ValueError, match=r"gallery\.json"):
                Gallery.load(tmp_path)
        for text in ("[]", "{}", "{", "[" * 99999):
            index.write_text(text)
            with pytest.raises(ValueError, match=r"gallery\.json|Expecting"):
                Gallery.load(tmp_path)

    def test_thousands_are_on_pages_of_their_own(self, tmp_path):
        n = 1203
        images = Few(draw_pixels(n, 2, 1), torch.arange(n) % 3)
        features = Features(torch.zeros(n, 1))
        p = torch.linspace(0, 1, n)
        sets = MetricInput(images, features, features, torch.zeros(n, dtype=torch.int64), images.labels,
                           predictions=images.labels, likelihood=p)
        gallery = illustrate.picture_set(sets, [f"n{i}" for i in range(n)], None)
        run = save_run(tmp_path / "r")
        folder = save_evaluation(run, "e", NUMBERS, gallery)
        save_report(folder)
        assert sorted(path.name for path in folder.glob("*.html")) == [
            "report-2.html", "report-3.html", "report-4.html", "report.html"]
        last = Page((folder / "report-4.html").read_text())
        last.require_alone()
        assert [a["title"] for _, a in last.tags if a.get("role") == "img"] == [f"n{i}" for i in range(1000, n)]
        worst = next(figure for figure in gallery.figures if figure.title == "Worst by the judge")
        assert [gallery.sheets["samples"].captions[tile] for tile in worst.groups[0].tiles] == \
            [f"n{i}" for i in range(illustrate.BEST)]
        assert "report-2.html" in (folder / "report.html").read_text()


class Few:
    """A set of images in memory."""

    def __init__(self, pixels, labels):
        self.pixels, self.labels, self.conditions, self.shape = pixels, labels, labels, tuple(pixels.shape)

    def __len__(self):
        return len(self.pixels)

    def batch(self, indices):
        return self.pixels[indices], {"label": self.labels[indices]}


class TestReport:
    def test_a_stranger_s_run(self, tmp_path):
        run = save_run(tmp_path / HOSTILE.replace("/", "-"))
        (run / "metrics.csv").write_text(f"step,loss,loss{QUOTES}\n1,1,2\n2,3,{HOSTILE}\n")
        folder = save_evaluation(run, "e", {HOSTILE: (1, 0, 2), QUOTES: (1, 0, 2)}, make_gallery(QUOTES), 5, QUOTES,
                                 images={"what": HOSTILE}, sampler=QUOTES, **{HOSTILE: [QUOTES, {QUOTES: HOSTILE}]})
        (folder / "comparison.json").write_text(json.dumps({"against": HOSTILE, "rows": {QUOTES: {HOSTILE: {
            "a": 1, "b": 2, "difference": -1, "low": -2, "high": 1, "exceeds": False}}}}))
        for path in (save_report(folder), save_overview([run], tmp_path / "all.html")):
            page = Page(path.read_text())
            page.require_alone()
            assert "alert(1)" in page.words

    def test_the_same_files_give_the_same_bytes(self, tmp_path):
        run = save_run(tmp_path / "runs" / "a")
        folder = save_evaluation(run, "e", NUMBERS, make_gallery(), 5)
        pages = [[path.read_bytes() for path in (save_report(folder), save_overview([run], tmp_path / "x.html"))]
                 for _ in range(2)]
        assert pages[0] == pages[1]

    def test_shows_whatever_is_there(self, tmp_path):
        folder = save_evaluation(tmp_path / "a" / "b", "e", NUMBERS)
        Image.new("L", (4, 4)).save(folder / "pairs.png")
        words = Page(save_report(folder).read_text()).words
        assert "The first images below their originals" in words
        assert "Training" not in words
        assert "kid, for want of more images" in words

    @pytest.mark.parametrize("text", ["", "[]", '{"rows": []}', '{"rows": {"a": {"b": {"value": "x"}}}}', "[" * 99999,
                                      '{"rows": {"a": 3}}', '{"rows": {}, "protocol": "x"}',
                                      '{"rows": {}, "protocol": {"a": ' + "[" * 300 + "]" * 300 + "}}"])
    def test_numbers_that_are_damaged(self, tmp_path, text):
        save_run(tmp_path / "r")
        folder = save_evaluation(tmp_path / "r", "e", NUMBERS)
        (folder / "evaluation.json").write_text(text)
        with pytest.raises(UserError, match=r"evaluation\.json"):
            save_report(folder)
        assert "evaluation.json" in Page(save_overview([tmp_path], tmp_path / "all.html").read_text()).words


def read(folder, name="samples"):
    return Measured(Evaluation.read(folder), name, folder.parents[1].name)


class TestSeveral:
    @pytest.mark.parametrize(("changes", "alike"), [
        ({"sampler": "DDPM", "seed": 3, "checkpoint": "x"}, True), ({"count": 11}, False), ({"judge": None}, False),
        ({"reference": {"what": "train split of Digits", "count": 20, "shape": [1, 8, 8], "hash": "aa"}}, False),
        ({"reference": {"what": "test split of Digits", "count": 20, "shape": [1, 8, 8], "hash": "other"}}, False),
        ({"what": "restorations"}, False), ({"rounding": "none"}, False), ({"task": "other"}, False)])
    def test_only_what_was_measured_alike_is_in_one_table(self, tmp_path, changes, alike):
        a, b = (save_evaluation(tmp_path / name, "e", NUMBERS, **more) for name, more in (("a", {}), ("b", changes)))
        assert len(group_alike([read(a), read(b)])) == (1 if alike else 2)
        words = save_overview([tmp_path], tmp_path / "all.html").read_text()
        assert words.count('<table class="sortable">') == (1 if alike else 2)

    def test_settings_have_short_names(self, tmp_path):
        composed = [{"sampler": {"_target_": "samplers.ddim.DDIM", "num_steps": n, "eta": 0.0}} for n in (5, 9)]
        group = [read(save_evaluation(tmp_path / str(i), "e", NUMBERS, composed=one)) for i, one in enumerate(composed)]
        assert name_columns(group) == {"sampler.num_steps": "num_steps"}

    def test_differences_that_exceed_the_noise(self, tmp_path):
        values = {"a": (1.0, 0.9, 1.1), "b": (1.05, 0.95, 1.15), "c": (3.0, 2.9, 3.1)}
        group = [read(save_evaluation(tmp_path / name, "e", {"fd": number})) for name, number in values.items()]
        found, count = find_differences(group, "fd")
        assert count == 3
        assert [(one.a.run, one.b.run) for one in found] == [("a", "c"), ("b", "c")]
        assert [one.run for one in find_best(group, "fd")] == ["a", "b"]
        assert find_best(group[:2], "fd") == []
        words = Page(save_overview([tmp_path], tmp_path / "all.html").read_text()).words
        assert "fd: 2 of 3 pairs" in words

    def test_curves_over_the_steps(self, tmp_path):
        for nfe in (5, 20):
            save_evaluation(tmp_path / "a", str(nfe), NUMBERS, make_gallery(), nfe, composed={
                "sampler": {"_target_": "DDIM", "num_steps": nfe}})
        page = Page(save_overview([tmp_path], tmp_path / "all.html").read_text())
        links = [a["href"] for tag, a in page.tags if tag == "a" and "aria-label" in a]
        assert len(links) == 4  # two numbers at two places
        assert {link[1:] for link in links} <= {a.get("id") for _, a in page.tags}

    def test_what_has_no_numbers_gets_a_sentence(self, tmp_path):
        save_run(tmp_path / "trained")
        (tmp_path / "empty").mkdir()
        words = Page(save_overview([tmp_path / "trained", tmp_path / "empty"], tmp_path / "all.html").read_text()).words
        assert "not measured: python evaluate.py" in words
        assert "no run, and nothing that was measured" in words
        with pytest.raises(UserError, match="no runs in"):
            save_overview([tmp_path / "empty"], tmp_path / "all.html")
        with pytest.raises(UserError, match="is no folder"):
            save_overview([tmp_path / "nowhere"], tmp_path / "all.html")

    def test_the_command(self, tmp_path):
        folder = save_evaluation(save_run(tmp_path / "a"), "e", NUMBERS, make_gallery())
        done("scripts/report.py", str(tmp_path), "--out", str(tmp_path / "all.html"))
        done("scripts/report.py", str(folder))
        assert (tmp_path / "all.html").is_file()
        assert (folder / "report.html").is_file()
        assert call("scripts/report.py", str(tmp_path / "nowhere"))[0] == 2


def evaluate(*overrides):
    cfg = compose("evaluate", add_run_defaults([*overrides, "count=6", "device=cpu", "judge=none", "metrics=quick"]))
    return commands.evaluate(cfg)


def titles(run):
    page = (sorted(run.folder.glob("evaluations/*/report.html"), key=lambda path: path.stat().st_mtime)[-1]).read_text()
    Page(page).require_alone()
    return re.findall(r"<h2[^>]*>(.*?)</h2>", page), page


class TestEvaluate:
    def test_samples(self, hot):
        evaluate(f"run={hot.folder}", "sampler.num_steps=2", "seed=77")
        found, page = titles(hot)
        assert found[:3] == ["Numbers", "By class", "At random"]
        assert {"The way of the first samples", "Cost", "Protocol", "Training"} <= {*found}
        evaluate(f"run={hot.folder}", "sampler.num_steps=2", "seed=77")
        assert titles(hot)[1] == page, "measured before: the same page of the same files"

    def test_restorations(self, cold):
        evaluate(f"run={cold.folder}", "samplers=[cold2]", "sampler.num_steps=2")
        found, _ = titles(cold)
        assert found[:5] == ["Numbers", "First images", "Worst images", "Best images", "The way of cold2"]

    def test_a_folder_of_images(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for folder in ("mine", "others"):
            (tmp_path / folder).mkdir()
            for i, pixels in enumerate(draw_pixels(6, 16)):
                name = f"{i}<b>.png" if folder == "mine" else f"{i}.png"
                Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / folder / name)
        evaluate("images=mine", "reference=others")
        text = next(tmp_path.glob("runs/evaluations/*/report.html")).read_text()
        assert "0&lt;b&gt;.png" in text
        assert "<b>.png" not in text

    def test_none_if_it_is_not_wanted(self, hot):
        evaluate(f"run={hot.folder}", "sampler.num_steps=2", "seed=78", "report=false")
        newest = max(hot.folder.glob("evaluations/*"), key=lambda path: path.stat().st_mtime)
        assert not (newest / "report.html").exists()
        assert not (newest / FOLDER).exists()
        with pytest.raises(UserError, match="report=3"):
            evaluate(f"run={hot.folder}", "report=3")
