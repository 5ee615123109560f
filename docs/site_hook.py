"""MkDocs hook: links between documents work on the site as they do in a checkout.

The site has the files of docs/ at its top, and every other file that a page links to at its path in
the repository: CONTRIBUTING.md and the experiments as pages, pictures as they are, source as a page
that shows it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")
PAGES = [
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted(ROOT.glob("experiments/*/README.md")),
]


def on_files(files: Files, config: Any) -> Files:
    """Adds the documents outside docs/, and what all documents link to."""
    for document in [*PAGES, *sorted(ROOT.glob("docs/*.md"))]:
        for link in LINK.findall(document.read_text(encoding="utf-8")):
            path = (document.parent / link).resolve()
            if path not in PAGES and path.parent != ROOT / "docs" and path.exists():
                add(files, path, config)
    for page in PAGES:
        add(files, page, config)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns the links of a document into links of the site."""
    uri = page.file.src_uri
    if uri.startswith("experiments/") or uri == "routers.md":  # room for wide tables
        page.meta["hide"] = ["toc"]
    folder = (ROOT if (ROOT / uri).exists() else ROOT / "docs").joinpath(uri).parent

    def moved(link: re.Match[str]) -> str:
        path = (folder / link[1]).resolve()
        return os.path.relpath(place(path), Path(uri).parent) if path.exists() else link[1]

    return LINK.sub(moved, markdown)


def place(path: Path) -> str:
    """Where the site has a file of the repository, as a path of a source of MkDocs."""
    if path == ROOT / "README.md":
        return "index.md"
    if path.is_dir():
        path /= "__init__.py"
    uri = path.relative_to(ROOT).as_posix().removeprefix("docs/")
    return f"{uri}.md" if path.suffix == ".py" else uri


def add(files: Files, path: Path, config: Any) -> None:
    """Puts a file into the site; source becomes a page that search leaves out."""
    uri = place(path)
    if files.get_file_from_path(uri):
        return
    if uri.endswith(".py.md"):
        name = uri.removesuffix(".md")
        source = (ROOT / name).read_text(encoding="utf-8")
        header = "---\nsearch: {exclude: true}\nhide: [toc]\n---\n"
        text = f"{header}# {name}\n\n````python\n{source}\n````\n"
        files.append(File.generated(config, uri, content=text))
    else:
        files.append(File.generated(config, uri, abs_src_path=str(path)))
