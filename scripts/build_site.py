"""The documentation as a static site: ``python scripts/build_site.py`` writes build/site/html; a warning is an error.

The pages of docs/ stay as they are. They are copied beside what is made here: the reference of the packages, the
gallery of the methods, and lists of the folders that the pages link to. Nothing in the site is loaded from elsewhere.
"""

import argparse
import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path

from gallery import write_gallery

from configs import UserError
from configs.cli import stop

ROOT = Path(__file__).parents[1]
PACKAGES = ("thaw", "samplers", "degradations", "models", "diffusion", "configs")
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


def lay_out(source: Path) -> None:
    """Everything that Sphinx reads, in a folder."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "docs", source / "docs", ignore=shutil.ignore_patterns("site"))
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        shutil.copy(ROOT / name, source)
    write_reference(source / "reference")
    write_gallery(source / "gallery")
    pages = [*source.glob("*.md"), *source.glob("docs/**/*.md"), *source.glob("docs/notebooks/*.py")]
    for page in pages:
        parts = FENCE.split(page.read_text())
        parts[::2] = [LINK.sub(partial(follow, page=page, source=source), part) for part in parts[::2]]
        page.write_text("".join(parts))
    readme = source / "README.md"
    readme.write_text(readme.read_text() + list_pages(source))


def follow(link: re.Match[str], page: Path, source: Path) -> str:
    """A link of a page: to the page if it is one, to the reference for modules and packages, else to a page that shows
    the file or lists the folder."""
    target = Path(os.path.normpath(page.parent / link[2]))
    inside = target.relative_to(source)
    if target.is_file() or not (ROOT / inside).exists():  # what does not exist, Sphinx complains about
        return link[0]
    target = source / "reference" / f"{'.'.join(inside.with_suffix('').parts)}.rst"
    if not target.is_file():
        target = source / "files" / f"{'-'.join(inside.parts).replace('.', '-')}.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text(list_folder(ROOT / inside) if (ROOT / inside).is_dir() else show_file(ROOT / inside))
    return f"{link[1]}{os.path.relpath(target, page.parent)}{link[3] or ''})"


def show_file(path: Path) -> str:
    """A page that shows a file of the repository."""
    language = {".py": "python", ".yaml": "yaml", ".md": "markdown"}.get(path.suffix, "text")
    return f"# {path.relative_to(ROOT)}\n\n~~~~{language}\n{path.read_text()}~~~~\n"


def list_folder(folder: Path) -> str:
    """A page that lists what is in a folder of the repository: pages, and how each file of text begins."""
    lines = [f"# {folder.relative_to(ROOT)}", ""]
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".yaml", ".py", ".sh"):
            first = next(iter(path.read_text().splitlines()), "").strip("#\"` ")
            lines.append(f"- `{path.relative_to(folder)}` `{first}`" if first else f"- `{path.relative_to(folder)}`")
        elif path.suffix == ".md":
            lines.append(f"- [{path.stem}](../{path.relative_to(ROOT)})")
    return "\n".join(lines) + "\n"


def write_reference(folder: Path) -> None:
    """A page for each module of the packages, from the docstrings; first what ``import thaw`` gives. Sphinx reads it
    after the gallery, by its name, so that sources lead back to here."""
    import thaw

    folder.mkdir(parents=True)
    modules = {name: find_modules(name) for name in PACKAGES}
    for names in modules.values():
        for name in names:
            below = [other for other in names if other.rpartition(".")[0] == name]
            inside = [f"* :doc:`{other}`" for other in below]
            # In the contents of the site are the packages alone, which keeps every page small.
            top = [] if name in PACKAGES else [":orphan:", ""]
            write_page(folder / f"{name}.rst", name, [f".. automodule:: {name}", "", *inside, ""], top)
    given = [name for name in thaw.__all__ if name in PACKAGES]
    lines = ["``import thaw`` gives these packages, and " + f":func:`thaw.load <{thaw.load.__module__}.load>`.", "",
             ".. toctree::", "   :maxdepth: 1", "", *(f"   {name}" for name in given), "",
             "Beside them:", "", ".. toctree::", "   :maxdepth: 1", "",
             *(f"   {name}" for name in PACKAGES if name not in given), ""]
    write_page(folder / "index.rst", "Reference", lines)


def find_modules(package: str) -> list[str]:
    """The modules of a package by their dotted names, those that are not private."""
    files = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    return sorted(name for name in names if not any(part.startswith("_") for part in name.split(".")))


def write_page(path: Path, title: str, lines: list[str], top: list[str] | None = None) -> None:
    """A page of reStructuredText.

    :param top: lines before the title
    """
    path.write_text("\n".join([*(top or []), title, "=" * len(title), "", *lines]))


def list_pages(source: Path) -> str:
    """The contents of the site for its front page, in no list of ours: what is there."""
    def tree(caption: str, entries: list[str]) -> str:
        return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```", ""])

    def names(pattern: str) -> list[str]:
        return sorted(str(path.relative_to(source).with_suffix("")) for path in source.glob(pattern))

    return tree("Pages", names("docs/*.md")) + tree("Notebooks", names("docs/notebooks/*.py")) + \
        tree("Methods", names("gallery/*.rst")) + tree("Results", names("docs/results/*.md")) + \
        tree("Reference", ["reference/index"]) + \
        tree("Project", [name for name in names("*.md") if name != "README"] + names("files/*.md"))


def build(out: Path) -> int:
    """Lay out the pages and let Sphinx make the site; gives its exit code."""
    from sphinx.cmd.build import build_main  # type: ignore[import-not-found] of the extra "docs"

    lay_out(out / "source")
    shutil.rmtree(out / "html", ignore_errors=True)  # of an earlier one, pages that are no longer there would stay
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return build_main(["-q", "-W", "--keep-going", "-c", str(ROOT / "docs/site"), "-D", "root_doc=README",
                       "-b", "html", "-d", str(out / "doctrees"), str(out / "source"), str(out / "html")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build/site", help="folder of the site")
    out = parser.parse_args().out.absolute()
    code = build(out)
    if code == 0:
        shutil.copy(out / "html/README.html", out / "html/index.html")
        print(f"written: {out / 'html/index.html'}")
    sys.exit(code)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        stop(str(error), 2)
