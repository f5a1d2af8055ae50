"""Settings of Sphinx; scripts/build_site.py lays out what it reads."""

project = "Thaw"
author = "the Thaw authors"
copyright = author
html_title = "Thaw"
html_theme = "furo"
html_copy_source = False
html_show_sphinx = False
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".py": "myst-nb"}

# Headings are linked to as on a code host.
myst_heading_anchors = 4

nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_timeout = 3000
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True, "ignore-module-all": True}
autodoc_inherit_docstrings = False


def keep_as_written(app, what, name, obj, options, lines):
    """Tables and fences in docstrings are those of Markdown, which are legible as they stand."""
    made, fenced = [], False
    for line in lines:
        if line.startswith("```"):
            fenced = not fenced
            made += ["::", ""] if fenced else [""]
        elif fenced:
            made.append("   " + line)
        elif line.startswith("|"):
            made += [f"   {line}"] if made and made[-1].startswith("   |") else ["", "::", "", f"   {line}"]
        else:
            made += ["", line] if line and made and made[-1].startswith("   |") else [line]
    lines[:] = made


def forget_sourceless(app, env):
    """Modules without Python sources, which the list of the sources would name as well."""
    env._viewcode_modules = {name: entry for name, entry in env._viewcode_modules.items() if entry}


def setup(app):
    app.connect("autodoc-process-docstring", keep_as_written)
    app.connect("env-check-consistency", forget_sourceless)
