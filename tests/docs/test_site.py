"""The documentation site: built strictly, and read without other hosts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        tags = re.findall(r"<(?:script|link|img|iframe)[^>]*>", page.read_text())
        assert not [tag for tag in tags if re.search(r'(?:src|href)="?(?:https?:)?//', tag)], page


def test_every_link_leads_to_a_file(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # served at any address, so its links are absolute
            continue
        for link in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text()):
            assert re.match(r"\w+:", link) or (page.parent / link).exists(), (page, link)


def test_documents_and_source_are_linked_as_in_the_repository(site: Path) -> None:
    design = (site / "design.html").read_text()
    assert 'href="router_lab/losses.py.html"' in design
    source = (site / "router_lab" / "losses.py.html").read_text()
    assert "BalanceLoss" in source and "Contributing" in source
    assert 'href="design.html"' in (site / "CONTRIBUTING.html").read_text()
