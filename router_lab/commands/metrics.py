"""The metrics' part of `router-lab list` and `router-lab explain NAME`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from router_lab.commands.docstrings import flowing_paragraphs
from router_lab.metrics import METRICS, SUMS


def metric_rows() -> Iterable[tuple[Text, str, str]]:
    """Name, the sums that it is computed from, and the first line of its docstring."""
    for metric in METRICS.values():
        about = inspect.getdoc(metric.function) or ""
        yield Text(metric.name, "bold"), ", ".join(metric.sums), about.split("\n")[0]


def explain_metric(console: Console, name: str) -> None:
    """Prints the formula and source of a metric, and what its sums count."""
    metric = METRICS[name]
    path = inspect.getsourcefile(metric.function)
    console.print(Text(f"{name}: a metric of routing records, in {path}\n", "bold"))
    console.print(Text(flowing_paragraphs(inspect.getdoc(metric.function) or "") + "\n"))
    for sum_name in metric.sums:
        console.print(Text.assemble((f"  {sum_name}  ", "bold"), SUMS[sum_name].about))
    example = f"router-lab compare DIR --columns {name}"
    console.print(Text(f"\nMeasured at every validation; a column of the comparison: {example}"))
