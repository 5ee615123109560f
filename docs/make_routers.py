"""Writes docs/routers.md from what the tests recorded: `make references`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from router_lab.commands.catalog import references, router_lookahead, typical
from router_lab.commands.docstrings import split_docstring
from router_lab.model.ffn import FFNS
from router_lab.routing import ROUTERS

PAGE = Path(__file__).with_name("routers.md")

INTRODUCTION = """\
# The routers

`make references` writes this page: it runs the tests and records what each router was compared
with, the tolerance of the test and the largest error. Comparisons that differ only in options or
sizes share a row, with the largest tolerance and error among them; `router-lab explain NAME` lists
each, with the equations and options. Errors are absolute differences in float32 unless the row says
otherwise.

*Reference* says how independent a comparison is. `independent`: code by others, or an example
worked out by hand. `own loop`: the same equations written a second time by us, which finds slips in
the code but no misreading of the paper. A row with a repository and a commit compares with golden
outputs, which that code computed once for fixed inputs (`tests/golden/README.md`).

*Looks ahead* says whether, with the defaults, a token's routing depends on later tokens or on other
sequences of the batch: never, only in training, or always. A router that always looks ahead uses
tokens that do not exist yet during generation, so its loss must not be compared with that of a
router that does not. A capacity limit looks ahead wherever an expert can overflow, since the
capacity grows with the number of tokens, later ones included.
"""

LAYERS = """\
## Feed-forward layers

The same for layers without a router, which are chosen with `ffn=`. `ffn=moe` is compared with
transformers' blocks in the row of `softmax_topk`.
"""

DIFFERENCES = """\
## Where we differ from the paper or its released code

From the docstrings.
"""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Wrote {PAGE}.")


def page() -> str:
    """The whole text, from the record that lies in the package."""
    found = references()
    layers = [name for name in FFNS.names() if any(r["router"] == name for r in found)]
    lookahead = {name: FFNS.get(name).lookahead for name in layers}
    for name in ROUTERS.names():
        router = typical(name)
        lookahead[name] = router_lookahead(router) if router else ROUTERS.get(name).lookahead
    papers = {name: ROUTERS.get(name).paper for name in ROUTERS.names()}
    papers.update({name: getattr(FFNS.get(name), "paper", "") for name in layers})
    lines = [INTRODUCTION, *table("router", ROUTERS.names(), papers, lookahead, found)]
    lines += ["", LAYERS, *table("ffn", layers, papers, lookahead, found)]
    named = [(name, ROUTERS.get(name)) for name in ROUTERS.names()]
    named += [(name, FFNS.get(name)) for name in FFNS.names()]
    lines += ["", DIFFERENCES, *(line for pair in named for line in differences(*pair))]
    return "\n".join(lines) + "\n"


def table(
    kind: str,
    names: Iterable[str],
    papers: dict[str, str],
    lookahead: Mapping[str, str],
    found: list[dict[str, Any]],
) -> list[str]:
    """Markdown rows: one for every kind of comparison of every router."""
    head = [f"`{kind}=`", "Paper", "Looks ahead", "Compared with", "Reference", "Tolerance"]
    rows = [f"| {' | '.join(head)} | Largest error |", "|---|---|---|---|---|---:|---:|"]
    for name in names:
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for check in found:
            if check["router"] == name:
                key = re.split(r", |: ", check["against"])[0] + unit(check["against"])
                groups.setdefault((check["kind"], key), []).append(check)
        first = [f"`{name}`", cell(papers[name]), shown(lookahead[name])]
        for (reference, _), checks in sorted(groups.items()) or [(("", ""), [])]:
            tolerance = max((check["tolerance"] for check in checks), default=None)
            error = max((check["error"] for check in checks), default=None)
            against = common([check["against"] for check in checks])
            row = [*first, cell(against), reference, number(tolerance), number(error)]
            rows.append(f"| {' | '.join(row)} |")
            first = ["", "", ""]
    return rows


def shown(lookahead: str) -> str:
    return f"**{lookahead}**" if lookahead == "always" else lookahead


def differences(name: str, cls: type) -> list[str]:
    """The paragraphs of the docstring that say so, as items of a list."""
    story, _ = split_docstring(cls)
    paragraphs = re.findall(r"^Differences from the (\w+): (.+)$", story, re.MULTILINE)
    return [f"- `{name}`, {whom}: {text}" for whom, text in paragraphs]


def common(against: list[str]) -> str:
    """What several comparisons have in common, up to a comma or colon, and their unit."""
    if len(against) < 2:
        return "".join(against) or "nothing yet"
    start = re.split(r"[,:] (?!.*[,:] )", os.path.commonprefix(against))[0]  # noqa: RUF071
    return start if start.endswith(unit(against[0])) else start + unit(against[0])


def unit(against: str) -> str:
    """What stands in brackets at the end, as in "… (relative)"."""
    found = re.search(r" \([^()]*\)$", against)
    return found[0] if found else ""


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def number(value: float | None) -> str:
    if value is None:
        return ""
    return "0" if value == 0 else f"{value:.0e}" if value < 0.01 else f"{value:.2g}"


if __name__ == "__main__":
    main()
