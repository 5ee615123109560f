"""A class's docstring, taken apart: the description and the meaning of each option."""

from __future__ import annotations

import inspect
import re
import sys

HEADING = re.compile(r"^(?:Args|Attributes):\n", re.MULTILINE)


def split_docstring(cls: type) -> tuple[str, dict[str, str]]:
    """A class's docstring without its Args or Attributes, and the meanings that these give."""
    story, *rest = HEADING.split(inspect.cleandoc(cls.__doc__ or ""), maxsplit=1)
    listed = rest[0] if rest else ""
    block = re.match(r"(?:[ \t]+.*\n?|\n(?=[ \t]))*", listed)
    after = listed[block.end() :] if block else listed
    about = {
        entry[1]: " ".join(entry[2].split())
        for entry in re.finditer(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", listed, re.MULTILINE)
    }
    return flowing_paragraphs(story + "\n\n" + after), about


def meanings(cls: type) -> dict[str, str]:
    """The meaning of each option, as given by the class or by its bases."""
    about: dict[str, str] = {}
    for base in cls.__mro__:
        about = split_docstring(base)[1] | about
    return about


def summary(cls: type) -> str:
    """The first line of the class's docstring, or of its file's if the file has no other class."""
    module = sys.modules[cls.__module__]
    classes = [one for one in vars(module).values() if isinstance(one, type)]
    alone = sum(one.__module__ == module.__name__ for one in classes) == 1
    doc = (module.__doc__ if alone else None) or cls.__doc__ or ""
    return doc.strip().split("\n")[0]


def flowing_paragraphs(text: str) -> str:
    """A docstring whose paragraphs of prose are one line each, for the terminal to wrap."""
    paragraphs = [part.strip("\n") for part in re.split(r"\n\s*\n", text)]
    return "\n\n".join(
        part if re.search(r"^ ", part, re.MULTILINE) else part.replace("\n", " ")
        for part in paragraphs
        if part.strip()
    )
