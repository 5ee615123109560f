"""Many runs from Python: as pandas frames, and compared."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from router_lab.api.run import Run
from router_lab.check import choices_text
from router_lab.errors import UserError
from router_lab.report.collect import Collection, collect
from router_lab.report.comparison import Comparison, compare_arms
from router_lab.runs.text import count, listing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

NESTED = ("curve", "saturation", "overrides", "versions", "losses", "model", "optim")
"""Parts of result.json that are no column of a frame."""


def load(*folders: str | Path, versions: Literal["newest", "all"] = "newest") -> Runs:
    """All runs under some folders.

    Args:
        versions: `newest` leaves out the older versions of an arm; `all` keeps them.

    Raises UserError for a folder that does not exist.
    """
    return Runs(collect(folders, versions))


@dataclass(frozen=True, repr=False)
class Runs:
    """Runs as they were on disk when they were loaded; iterates over the finished ones.

    Attributes:
        collection: those that can be compared, and the others with the reason.
    """

    collection: Collection

    def __repr__(self) -> str:
        arms = count(len({run.arm for run in self.collection.runs}), "arm")
        finished = count(len(self), "finished run")
        folders = listing([str(folder) for folder in self.collection.dirs])
        others = len(self.collection.left_out)
        return f"Runs({finished} of {arms}, {others} left out; {folders})"

    def __len__(self) -> int:
        return len(self.collection.runs)

    def __iter__(self) -> Iterator[Run]:
        return (Run(run.path) for run in self.collection.runs)

    @property
    def frame(self) -> DataFrame:
        """A row per run, those left out too.

        The columns are arm, seed, state, reason (why it is left out) and path, then the values of
        result.json under their dotted paths (docs/result.md) without `quality.` and
        `routing.mean.`, but not what is by layer or by validation.
        """
        import pandas

        finished: list[dict[str, object]] = [
            {"state": "finished", "reason": "", "path": str(run.path), **run.result}
            for run in self.collection.runs
        ]
        left_out: list[dict[str, object]] = [
            {"state": run.state, "reason": run.reason, "path": str(run.path)}
            | {"arm": run.arm, "seed": run.seed}
            for run in self.collection.left_out
        ]
        rows = [{k: v for k, v in row.items() if k not in NESTED} for row in finished + left_out]
        frame = pandas.json_normalize(rows)
        first = [name for name in ("arm", "seed", "state", "reason", "path") if name in frame]
        others = [name for name in frame if name not in first and ".layers." not in name]
        frame = frame[first + others]
        frame.columns = [
            name.removeprefix("quality.").removeprefix("routing.mean.") for name in frame
        ]
        return frame

    @property
    def curves(self) -> DataFrame:
        """A row per finished run and validation: arm, seed, path, and the keys of its point."""
        import pandas

        return pandas.DataFrame(
            {"arm": run.arm, "seed": run.seed, "path": str(run.path), **point}
            for run in self.collection.runs
            for point in run.result.get("curve") or ()
        )

    def compare(
        self,
        baseline: str | None = None,
        by: str = "tokens",
        columns: Sequence[str] = (),
        metrics: Sequence[str] = (),
        margin: str = "0.01",
    ) -> Compared:
        """The comparison that `router-lab compare` prints.

        Args:
            baseline: the arm that others are compared with; None: the dense arm, or the first.
            by: what the arms spend: tokens, flops or seconds.
            columns: more numbers for the tables, as `--columns`.
            metrics: numbers that are tested as quality is, as `--metric`.
            margin: within which two arms are equivalent, as `--margin`.

        Raises UserError if no run has finished, or for an unknown name or margin.
        """
        return Compared(compare_arms(self.collection, baseline, by, columns, metrics, margin))

    def run(self, arm: str, seed: int | None = None) -> Run:
        """The newest finished run of an arm with this seed; None: its lowest seed.

        Raises UserError if there is none.
        """
        runs = [run for run in self.collection.runs if run.arm == arm]
        if not runs:
            arms = sorted({run.arm for run in self.collection.runs})
            raise UserError(f"There is no finished run of {arm}; {choices_text(arm, arms)}.")
        of_seed = [run for run in runs if seed in (None, run.seed)]
        if not of_seed:
            seeds = ", ".join(sorted({str(run.seed) for run in runs}))
            raise UserError(f"{arm} has no finished run of seed {seed}; its seeds are {seeds}.")
        return Run(min(of_seed, key=lambda run: (run.seed, -run.done)).path)


@dataclass(frozen=True, repr=False)
class Compared:
    """A comparison of arms, as a frame, in a sentence and in figures.

    Attributes:
        comparison: all of it; `comparison.rows` are the arms, best first.
    """

    comparison: Comparison

    def __repr__(self) -> str:
        return f"Compared({listing([row.name for row in self.comparison.rows], 6)})"

    @property
    def verdict(self) -> str:
        """Which arm is best, and whether that is significant, in a sentence."""
        from router_lab.report.verdict import verdict

        return verdict(self.comparison).answer

    @property
    def frame(self) -> DataFrame:
        """A row per arm with every number of table.csv: means over seeds, intervals, tests."""
        import pandas

        from router_lab.report.rows import arm_rows, csv_text

        return pandas.read_csv(io.StringIO(csv_text(arm_rows(self.comparison))))

    def quality_imbalance(self) -> list[Axes]:
        """Bits per byte against MaxVio, on matplotlib axes; none without routed arms."""
        return self._axes("quality_imbalance")

    def curves(self) -> list[Axes]:
        """Learning curves, and their differences from the baseline; none without curves."""
        return self._axes("curves")

    def balance(self) -> list[Axes]:
        """MaxVio over the course of training; none without routed arms."""
        return self._axes("balance")

    def _axes(self, name: str) -> list[Axes]:
        import matplotlib

        from router_lab.report import figures

        with matplotlib.rc_context(figures.LOOK):
            figure = getattr(figures, name)(self.comparison)
        return [] if figure is None else list(figure.axes)
