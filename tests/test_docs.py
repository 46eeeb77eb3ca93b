"""The documentation: it builds without a warning, holds every public name and command, and says what the docstrings say."""

import html
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import zlib
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType

import pytest

import upslope
from upslope.cli.flags import field_docs
from upslope.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGES = ["upslope", *(found.name for found in pkgutil.iter_modules(upslope.__path__, "upslope.") if found.ispkg)]


@pytest.fixture(scope="module")
def site():
    """The folder of the pages. After ``make docs`` little is left to do."""
    words = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "docs", "docs/_build"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return ROOT / "docs" / "_build"


@pytest.fixture(scope="module")
def inventory(site):
    """Documented name → page and anchor, as other projects find them."""
    data = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = [line.split(" ", 4) for line in zlib.decompress(data).decode().splitlines()]
    return {name: place.replace("$", name) for name, kind, _, place, _ in lines if kind.startswith("py:")}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_documented(package, inventory):
    module = importlib.import_module(package)
    missing = [name for name in getattr(module, "__all__", ()) if not is_documented(package, name, getattr(module, name), inventory)]
    assert missing == []


def is_documented(package, name, found, inventory):
    """As the package exports it, or where it is made."""
    if isinstance(found, ModuleType):
        return found.__name__ in inventory
    made = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    below = any(known.startswith(f"{package}.") and known.endswith(f".{name}") for known in inventory)
    return name == "__version__" or made in inventory or below


def test_strings_under_fields_are_shown_as_they_are(site, inventory):
    """A colon in one once made a type of what stands before it."""
    seen = 0
    for name, place in inventory.items():
        package, _, attribute = name.rpartition(".")
        owner = resolved(package)
        if not (inspect.isclass(owner) and is_dataclass(owner)) or attribute not in field_docs(owner):
            continue
        page, anchor = place.split("#")
        entry = (site / page).read_text().split(f'id="{anchor}"', 1)[1].split("</dt>", 1)[1].split("<dd>", 1)[1].split("</dd>", 1)[0]
        shown = " ".join(html.unescape(re.sub("<[^>]*>", "", entry)).split())
        assert plain(shown) == plain(field_docs(owner)[attribute]), name
        seen += 1
    assert seen > 100


def resolved(name):
    """The object with this dotted name, or None."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except (ImportError, ValueError):
        return None


def plain(text):
    """Without markup and quotation marks."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text)
    return re.sub("[`*'\"“”‘’…]|\\.\\.\\.|-", "", text).replace("–", "").replace("—", "")


def test_every_command_has_its_page(site):
    for name in COMMANDS:
        assert f"usage: upslope {name}" in html.unescape((site / "commands" / f"{name}.html").read_text())


def test_no_link_is_left_to_a_file_that_is_no_page(site):
    for page in site.rglob("*.html"):
        for link in re.findall(r'href="([^"#?]+)', page.read_text()):
            if not re.match("[a-z]+:", link):
                assert (page.parent / html.unescape(link)).exists(), (page.name, link)
