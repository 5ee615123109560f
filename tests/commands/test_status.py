"""`router-lab status` on grids in every state."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from fake_runs import ARMS, FakeArm, result_of, write_grid, write_run, write_status

from router_lab.commands.status import lines, run_states, status, summary
from router_lab.errors import UserError

SOON = "2999-01-01T00:00:00+00:00"


def grid(root: Path) -> Path:
    write_grid(root, {"mlp": ARMS["mlp"], "even": FakeArm(2.1, unevenness=0.0)}, seeds=[0, 1])
    going: dict[str, Any] = {"updated": SOON, "bits_per_byte": 2.5, "max_vio": 0.7}
    write_status(root, "a", 0, "running", step=40, seconds_left=90.0, **going)
    write_status(root, "a", 1, "running", step=20, steps=None, seconds_left=200.0, **going)
    write_status(root, "b", 0, "failed", reason="ValueError: boom", step=7)
    write_status(root, "b", 1, "interrupted", reason="SIGINT", step=9)
    write_status(root, "b", 2, "running", host=socket.gethostname())
    return root


def test_the_summary_counts_states_and_says_how_long(tmp_path: Path) -> None:
    assert summary(run_states(grid(tmp_path))) == (
        "9 runs: 2 running, 1 failed, 1 lost, 1 interrupted, 4 finished; "
        "about 3 min 20 s left for those running now"
    )


def test_a_line_a_run_and_an_arm_of_finished_ones(tmp_path: Path) -> None:
    found = lines(run_states(grid(tmp_path)))
    assert found[0] == (
        "a",
        "0",
        "running",
        "40 of 200",
        "2.500 bits/byte",
        "0.70",
        "1 min 30 s left",
    )
    assert found[1][3] == "20"  # of unknown many: the budget is in seconds
    assert found[2][:4] == ("b", "0", "failed", "7 of 200") and found[2].note == "ValueError: boom"
    assert found[3][2] == "lost" and found[3].note == "its process died without reporting"
    assert found[4][2] == "interrupted" and found[4].note == "SIGINT"
    finished = {line[0]: line for line in found[5:]}
    assert finished["mlp"][1] == "0, 1" and finished["mlp"][5] == ""
    assert finished["even"][5] == "0.00"
    assert len(found) == 7


def test_configurations_of_one_name_are_never_averaged(tmp_path: Path) -> None:
    for tokens, bits in ((100_000, 3.0), (60_000, 4.0)):
        for seed in range(2):
            result = result_of("lbl", FakeArm(bits), seed, tokens=tokens, luck=0, noise=0)
            write_run(tmp_path, result)
    found = lines(run_states(tmp_path))
    assert sorted((line.seeds, line.quality) for line in found) == [
        ("0, 1", "3.000 bits/byte"),
        ("0, 1", "4.000 bits/byte"),
    ]
    assert all(line.arm.startswith("lbl (") for line in found)


def test_it_prints_and_refuses_what_holds_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status(grid(tmp_path / "runs"))
    printed = capsys.readouterr().out
    assert "ValueError: boom" in printed and "3 min 20 s" in printed
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty contains no run"):
        status(tmp_path / "empty")
    with pytest.raises(UserError, match="is not a folder"):
        status(tmp_path / "nowhere")
