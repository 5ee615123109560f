"""The command `router-lab`. Each subcommand is imported when it is asked for."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from router_lab import __version__
from router_lab.commands.bench import TITLES
from router_lab.commands.mistakes import mistake
from router_lab.registry import KINDS

HYDRA = {"train": "train:train_command", "plan": "plan:plan_command"}
"""Commands whose arguments are Hydra's, and the functions that take them."""

TRAIN = "train a run or a grid (a Hydra app: router-lab train --help)"
PLAN = "what `train` with the same arguments would do: arms, widths, cost, time, what is left"


def parser() -> argparse.ArgumentParser:
    """Each command stores in `call` the function that runs it; its options are that one's."""
    top = argparse.ArgumentParser(
        prog="router-lab",
        description="Which Mixture-of-Experts router should I use, and how do I know?",
    )
    top.add_argument("--version", action="version", version=f"router-lab {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, call: str, about: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about)
        command.set_defaults(call=call)
        return command

    commands.add_parser("train", add_help=False, help=TRAIN)
    commands.add_parser("plan", add_help=False, help=PLAN)

    listing = add("list", "catalog:list_kinds", "list the routers, FFNs, losses, … to choose from")
    kinds = (*KINDS, "metrics")
    listing.add_argument("kind", nargs="?", choices=kinds, help="one kind; default: all")
    about = "explain one of them, or model, optim, trainer: what its options mean"
    explain = add("explain", "catalog:explain", about)
    explain.add_argument("name")
    for one in (listing, explain):
        one.add_argument(
            "--plugin", action="append", default=[], metavar="FILE", dest="plugins",
            help="a loose file that registers something",
        )  # fmt: skip

    compare = add("compare", "compare:compare", "compare the arms of finished runs")
    compare.add_argument(
        "dirs", nargs="+", metavar="DIR", help="folders of runs, of one grid or several"
    )
    compare.add_argument("--baseline", metavar="ARM", help="the arm that others are compared with")
    compare.add_argument(
        "--by", default="tokens", choices=("tokens", "flops", "seconds"),
        help="what the curves run over, and what is equal in `At equal …` (default: tokens)",
    )  # fmt: skip
    for option, about in {
        "metric": "more numbers of result.json, each with interval, tests and a table of its own: "
        "max_vio,domain_nmi,tokens_per_second",
        "columns": "more numbers of result.json as columns: cv_load,cv_importance",
        "only": "the columns to show, in this order: bits_per_byte,difference,max_vio",
        "drop": "columns to leave out: dead_experts,dropped",
    }.items():
        dest = "metrics" if option == "metric" else option
        compare.add_argument(
            f"--{option}", dest=dest, help=about, default=(), metavar="NAMES",
            type=lambda names: tuple(names.split(",")),
        )  # fmt: skip
    compare.add_argument(
        "--margin", default="0.01", metavar="M",
        help="two arms are equivalent if their difference is within ±M: bits per byte, and others "
        "by name: 0.005,max_vio=0.05 (default: 0.01)",
    )  # fmt: skip
    compare.add_argument(
        "--order", default="quality", choices=("quality", "grid", "name"),
        help="of the arms in the tables (default: quality)",
    )  # fmt: skip
    compare.add_argument("--title", default="", help="of page, figures and LaTeX tables")
    compare.add_argument("--size", metavar="WxH", help="of the figures, in inches: 6x4")
    compare.add_argument("--out", metavar="DIR", help="where to write; default: DIR/report")

    status = add("status", "status:status", "what is done, running, failed and why")
    status.add_argument("folder", metavar="DIR")

    probe = add("probe", "probe:probe", "routing regret and knock-out of finished runs")
    probe.add_argument("runs", nargs="+", metavar="DIR", help="folders of runs, or of grids")
    probe.add_argument("--tokens", type=int, default=64, help="tokens to probe (default: 64)")

    board = add("board", "board:serve", "TensorBoard on a folder of runs")
    board.add_argument("folder", metavar="DIR", nargs="?", default="runs")
    board.add_argument("--port", type=int, default=6006)

    for one in (compare, status, board):
        one.add_argument(
            "--versions", choices=("newest", "all"), default="newest",
            help="of an arm that was run again after a change (default: newest)",
        )  # fmt: skip

    bench = add("bench", "bench:bench", "time layers, steps, routers, the harness and a grid")
    bench.add_argument("what", choices=(*TITLES, "all"))
    bench.add_argument("--sizes", metavar="NAMES", help="mini,demo; default: all")
    bench.add_argument("--experts", metavar="NUMBERS", default="8,32,128", help="of growth")
    bench.add_argument("--rounds", type=int, help="turns of each contestant (default: 15)")
    bench.add_argument("--quick", action="store_true", help="a fast look: 3 rounds, short runs")
    bench.add_argument("--out", metavar="DIR", help="write the figures to DIR/NAME.json")
    bench.add_argument("--against", metavar="DIR", help="list what is over 5%% slower than in DIR")

    dev = add("dev", "dev:dev", "watch a router's file: contract and a short run at each save")
    dev.add_argument("path", metavar="FILE")
    dev.add_argument("overrides", nargs="*", help="of the short run: router.k=4 budget=tokens:500k")
    dev.add_argument("--router", metavar="NAME", help="where the file registers several")

    new = add("new", "new:new_router", "write the starting file of a router of your own")
    new.add_argument("name")
    new.add_argument("--dir", dest="folder", default=".")
    return top


def run(call: str, *arguments: Any, **options: Any) -> None:
    """Imports and calls `module:function` of this package."""
    module, _, function = call.partition(":")
    getattr(import_module(f"router_lab.commands.{module}"), function)(*arguments, **options)


def main(argv: Sequence[str] | None = None) -> None:
    """Exits with 2 and a sentence for a user's mistake, with a traceback for one of ours."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] and arguments[0] in HYDRA:
            run(HYDRA[arguments[0]], arguments[1:])
        else:
            options = vars(parser().parse_args(arguments))
            del options["command"]
            run(**options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # router-lab train --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        sentence = mistake(error)
        if sentence is None:
            raise
        print(f"router-lab: {sentence}", file=sys.stderr)
        sys.exit(2)
