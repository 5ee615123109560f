"""One self-contained report.html that works offline.

Text and tables are filled into `page/template.html`. The scripts beside it draw the figures in the
browser from the aggregated numbers of `page_data`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from router_lab.report.columns import columns
from router_lab.report.comparison import ORDERS, Comparison
from router_lab.report.metric import Metric
from router_lab.report.notes import notes
from router_lab.report.page_data import page_data
from router_lab.report.style import BASELINE, PALETTE, darker, in_focus, lighter, styles
from router_lab.report.verdict import verdict
from router_lab.runs.text import count

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("core.js", "curves.js", "scatter.js", "loads.js", "page.js")
ABSOLUTE = re.compile(r"""(?:(?<=[\s='"\[,(])|^)(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'",\])]+[/\\])*""")


def page(comparison: Comparison, command: str) -> str:
    """The page; `command`, which made it, is shown below every figure."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"darker": darker, "lighter": lighter, "shareable": shareable}
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    runs = [run for row in comparison.rows for run in row.arm.runs]
    versions = comparison.baseline.arm.first.get("versions") or {}
    return environment.get_template("template.html").render(
        comparison=comparison,
        command=command,
        verdict=verdict(comparison),
        notes=notes(comparison),
        columns=columns(comparison),
        styles=styles(comparison),
        focus=in_focus(comparison),
        data=page_data(comparison),
        places={path: _place(metric) for path, metric in comparison.metrics.items()},
        order=ORDERS[comparison.order],
        size=_size(comparison),
        finished=f"{datetime.fromtimestamp(max(run.done for run in runs)):%Y-%m-%d %H:%M}",
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        colours=(BASELINE, *PALETTE),
        css=(PAGE / "page.css").read_text(encoding="utf-8"),
        js="\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS),
    )


def shareable(text: object) -> str:
    """The text without this machine's folders.

    Paths below the working directory become relative; of other absolute paths the last part stays.
    """
    return ABSOLUTE.sub("", str(text).replace(f"{Path.cwd()}/", ""))


def _size(comparison: Comparison) -> str:
    counts = {row.quality.n for row in comparison.rows}
    least, most = min(counts), max(counts)
    seeds = count(most, "seed") if least == most else f"{least} to {most} seeds"
    return f"{count(len(comparison.rows), 'arm')}, {seeds}, {count(comparison.runs, 'run')}"


def _place(metric: Metric) -> Callable[[float], str]:
    """Where a difference lies in a drawing 80 pixels wide that holds 0 and every interval."""
    ends = [0.0]
    for name in metric.estimates:
        if (difference := metric.to_reference(name)) is not None:
            half = difference.half or 0.0
            ends += [difference.mean - half, difference.mean + half]
    low, width = min(ends), max(ends) - min(ends) or 1.0
    return lambda value: f"{4 + 72 * (value - low) / width:.1f}"
