"""Sphinx settings: the pages are Markdown (MyST); those of the repository, the commands' and the examples' are made here."""

import contextlib
import io
import os
import posixpath
import re
from pathlib import Path

from sphinx.ext.napoleon import Config, GoogleDocstring

project = "upslope"
author = "the upslope developers"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False
maximum_signature_line_length = 120
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "alabaster"
smartquotes = False  # docstrings quote code
myst_heading_anchors = 3

DOCS = Path(__file__).parent
ROOT = DOCS.parent
SHOWN = {
    "index": "README.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "security": "SECURITY.md",
    "benchmarks": "benchmarks/README.md",
    "benchmark_log": "benchmarks/LOG.md",
}
"""Pages that begin with a file of the repository."""


def setup(app):
    """Called by Sphinx."""
    write_commands(DOCS / "commands")
    app.connect("source-read", complete)
    app.connect("autodoc-process-docstring", sections)


def sections(app, what, name, obj, options, lines):
    """Args and Raises as napoleon reads them; a string under a field is a sentence, in which a colon means nothing."""
    if what not in ("attribute", "data", "property"):
        lines[:] = GoogleDocstring(list(lines), Config(), app, what, name, obj, options).lines()


# ----------------------------------------------------------------------------------- what the repository says already


def complete(app, docname, source):
    """Put the repository's file before a page's text, and every example into theirs."""
    if docname in SHOWN:
        app.env.note_dependency(str(ROOT / SHOWN[docname]))
        source[0] = linked(ROOT / SHOWN[docname]) + "\n" + source[0]
    if docname == "examples":
        app.env.note_dependency(str(ROOT / "examples"))
        source[0] += "\n".join(map(example, sorted((ROOT / "examples").rglob("*.py"))))


def linked(file):
    """The text of a Markdown file, whose links to files of the repository become links to their pages."""
    here = file.parent.relative_to(ROOT).as_posix()
    text = file.read_text()
    return re.sub(r"\]\((?!https?:|#)([^)\s]+)\)", lambda link: f"]({page(posixpath.normpath(f'{here}/{link[1]}'))})", text)


def page(path):
    """Where a path of the repository is shown; a path without a page stays as it is, and Sphinx says that it is dead."""
    for docname, shown in SHOWN.items():
        if path in (shown, posixpath.dirname(shown) or shown):
            return f"{docname}.md"
    if path == "examples":
        return "examples.md"
    if path.startswith("examples/"):
        return f"#{label(path)}"
    return path.removeprefix("docs/")


def label(path):
    """The target of an example: ``example-plain-ppo``."""
    return "example-" + path.removeprefix("examples/").removesuffix(".py").replace("/", "-").replace("_", "-")


def example(file):
    """A section with an example."""
    path = file.relative_to(ROOT).as_posix()
    return f"\n({label(path)})=\n## {path.removeprefix('examples/')}\n\n```{{literalinclude}} ../{path}\n:language: python\n```\n"


# ------------------------------------------------------------------------------------------------------- the commands


def write_commands(folder):
    """A page for every command: what ``--help`` says; of ``train`` also with a method of each world."""
    os.environ["COLUMNS"] = "100"
    from upslope.cli.main import COMMANDS

    folder.mkdir(exist_ok=True)
    pages = {name: [[name]] for name in COMMANDS}
    pages["train"] += [["train", "ppo"], ["train", "grpo", "--model", "tiny"]]
    for name, calls in pages.items():
        parts = [f"# upslope {name}", *(f"## `upslope {' '.join(call)} --help`\n\n```text\n{said([*call, '--help'])}```" for call in calls)]
        write(folder / f"{name}.md", "\n\n".join(parts) + "\n")
    contents = "```{toctree}\n:maxdepth: 1\n\n" + "\n".join(pages) + "\n```\n"
    write(folder / "index.md", f"# Commands\n\n```text\n{said(['--help'])}```\n\n{contents}")


def said(words):
    """What the command line prints."""
    from upslope.cli.main import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main(words)
    return out.getvalue()


def write(file, text):
    """Only where it changed, so that Sphinx need not read it again."""
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
