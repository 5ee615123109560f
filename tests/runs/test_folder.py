"""A run's folder: what names it, who holds it, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from router_lab.errors import UserError
from router_lab.runs.fingerprint import fingerprint
from router_lab.runs.folder import prepare_run, run_dir
from router_lab.runs.state import read_state
from router_lab.runs.status import Busy, is_locked, lock, write_json, write_status
from router_lab.runs.stop import Interrupted


def config(out: Path | str = "runs", **changes: Any) -> DictConfig:
    cfg = OmegaConf.create(
        {
            "arm": None, "seed": 0, "out": str(out), "retry": False, "plugins": [],
            "grid": {"name": "single", "seeds": [0]},
            "ffn": {"name": "moe", "router": "${router}"}, "router": {"name": "switch", "k": 1},
            "data": {"name": "text", "path": None},
            "trainer": {"threads": 1, "workers": 0, "log_every": 10, "batch_size": 8},
        }
    )  # fmt: skip
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    return cfg


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 3}, {"out": "elsewhere"}, {"arm": "other"}, {"retry": True},
        {"grid__name": "g"}, {"grid__seeds": [1, 2]},
        {"trainer__threads": 4}, {"trainer__workers": 2}, {"trainer__log_every": 1},
    ],
)  # fmt: skip
def test_what_does_not_decide_the_result_does_not_count(change: dict[str, Any]) -> None:
    assert fingerprint(config(**change)) == fingerprint(config())


@pytest.mark.parametrize(
    "change", [{"router__k": 2}, {"trainer__batch_size": 4}, {"ffn__name": "mlp"}]
)
def test_what_decides_the_result_counts(change: dict[str, Any]) -> None:
    assert fingerprint(config(**change)) != fingerprint(config())


@pytest.mark.parametrize(
    "without_effect",
    [{"router__name": "hash"}, {"capacity": {"factor": 1.0}}, {"loss": {"z": {"coef": 0.1}}}],
)
def test_a_node_that_a_dense_ffn_does_not_take_up_does_not_count(
    without_effect: dict[str, Any],
) -> None:
    dense: dict[str, Any] = {"ffn": {"name": "mlp", "router": None}}
    assert run_dir(config(**dense, **without_effect)) == run_dir(config(**dense))
    routed: dict[str, Any] = {
        "ffn": {"name": "moe", "router": "${router}", "capacity": "${oc.select:capacity}"}
    }
    assert fingerprint(config(**routed, **without_effect)) != fingerprint(config(**routed))


def test_a_whole_number_is_the_same_in_both_types() -> None:
    one, other = config(data__skew=1, router__k=2), config(data__skew=1.0, router__k=2)
    assert fingerprint(one) == fingerprint(other) != fingerprint(config(data__skew=1.5))
    flagged = config(data__skew=True)
    assert fingerprint(flagged) != fingerprint(config(data__skew=1))


def test_order_of_keys_and_hydras_own_node_do_not_count() -> None:
    turned = OmegaConf.create(dict(reversed(list(config().items()))) | {"hydra": {"job": 1}})
    assert fingerprint(turned) == fingerprint(config())


def test_a_plugin_counts_by_its_content_not_its_path(tmp_path: Path) -> None:
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text("k = 1")
    two.write_text("k = 1")
    first = fingerprint(config(plugins=[str(one)]))
    assert first == fingerprint(config(plugins=[str(two)]))
    assert first != fingerprint(config())
    one.write_text("k = 2")
    assert first != fingerprint(config(plugins=[str(one)]))
    with pytest.raises(UserError, match=r"no_such\.py can't be read"):
        fingerprint(config(plugins=["no_such.py"]))


BOOMY = """
from router_lab.registry import register

@register("boomy")
class Boomy:
    k = 1
"""


def test_a_plugin_counts_for_the_arms_that_use_it_and_by_its_meaning(tmp_path: Path) -> None:
    path = tmp_path / "boomy.py"
    path.write_text(BOOMY)

    def digits(router: str) -> str:
        return fingerprint(config(plugins=[str(path)], router__name=router))

    mine, builtin = digits("boomy"), digits("switch")
    assert builtin == fingerprint(config())  # the plugin is loaded, not used
    path.write_text("# A comment.\n" + BOOMY.replace("    k = 1", "\n    k   =   1  # one\n"))
    assert (digits("boomy"), digits("switch")) == (mine, builtin)
    path.write_text(BOOMY.replace("k = 1", "k = 2"))
    assert digits("boomy") != mine
    assert digits("switch") == builtin


def test_files_of_data_count(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    whole = fingerprint(config(data__path=str(tmp_path)))
    glob = fingerprint(config(data__path=f"{tmp_path}/*.txt"))
    from router_lab.runs.fingerprint import _stamps

    _stamps.cache_clear()
    (tmp_path / "a.txt").write_text("four")
    assert whole != fingerprint(config(data__path=str(tmp_path)))
    assert glob != fingerprint(config(data__path=f"{tmp_path}/*.txt"))


def test_runs_that_lie_beside_the_data_do_not_count(tmp_path: Path) -> None:
    """Else a run that has begun would be another run: `data.path=.` with out=runs."""
    from router_lab.runs.fingerprint import _stamps

    (tmp_path / "a.txt").write_text("one")
    described = config(out=tmp_path / "runs", data__path=str(tmp_path))
    before = fingerprint(described)
    _stamps.cache_clear()
    (tmp_path / "runs" / "single").mkdir(parents=True)
    (tmp_path / "runs" / "single" / "status.json").write_text("{}")
    assert fingerprint(described) == before


def test_name_of_the_folder() -> None:
    run = run_dir(config(seed=7, grid__name="first"))
    assert run.folder == Path("runs") / "first" / f"switch-s7-{run.fingerprint[:8]}"
    assert len(run.fingerprint) == 16
    assert run_dir(config(ffn__name="mlp")).arm == "mlp"
    assert run_dir(config(arm="mine,k=2")).arm == "mine,k=2"


@pytest.mark.parametrize("bad", [{"arm": "a/b"}, {"arm": ""}, {"arm": "-x"}, {"seed": "one"}])
def test_names_that_can_not_be(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        run_dir(config(**bad))


def finish(folder: Path) -> None:
    write_json(folder / "result.json", {"quality": {"bits_per_byte": 1.5}})


def test_a_run_is_finished_with_its_result(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    with prepare_run(cfg) as run:
        assert not run.finished
        assert read_state(run.folder).state == "running"
        run.status(step=3)
        finish(run.folder)
    read = read_state(run.folder)
    assert (read.state, read.status["step"], read.status["reason"]) == ("finished", 3, None)
    assert OmegaConf.load(run.folder / "config.yaml").ffn.router.name == "switch"  # resolved
    before = (run.folder / "status.json").read_bytes()
    with prepare_run(cfg) as again:
        assert again.finished
        assert again.quality == 1.5
    assert (run.folder / "status.json").read_bytes() == before


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("not a number\nat step 3"), "ValueError: not a number"),
        (UserError("k must be at most 8."), "k must be at most 8."),
        (SystemExit(3), "it called exit(3)"),
        (None, "it ended without a result"),
    ],
)
def test_a_failure_says_why(tmp_path: Path, error: BaseException | None, reason: str) -> None:
    try:
        with prepare_run(config(tmp_path)):
            if error:
                raise error
    except BaseException as raised:
        assert raised is error
    read = read_state(run_dir(config(tmp_path)).folder)
    assert (read.state, read.reason) == ("failed", reason)


def test_a_stopped_run_leaves_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end, prepare_run(config(tmp_path)) as run:
        (run.folder / "checkpoints").mkdir()
        (run.folder / "checkpoints" / "last.ckpt").touch()
        run.stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        assert run.stop.signal == "SIGTERM"
        run.stop.check()
    assert end.value.code == 130
    read = read_state(run.folder)
    assert (read.state, read.reason) == ("interrupted", "SIGTERM")
    with prepare_run(config(tmp_path)) as again:
        assert again.checkpoint == run.folder / "checkpoints" / "last.ckpt"
        finish(again.folder)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(SystemExit), prepare_run(config(tmp_path)) as run:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        run.stop.check()


def test_a_preempted_job_is_requeued_after_its_checkpoint(tmp_path: Path) -> None:
    seen: list[str] = []

    def requeue(*_: object) -> None:
        seen.append(read_state(run.folder).status["state"])
        raise SystemExit(144)

    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(SystemExit) as end, prepare_run(config(tmp_path)) as run:
            os.kill(os.getpid(), signal.SIGTERM)  # a cluster sends it beside its own signal
            os.kill(os.getpid(), signal.SIGUSR2)
            assert not seen
            run.stop.check()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert (end.value.code, seen) == (144, ["interrupted"])


def test_a_run_is_trained_once_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    holder = subprocess.Popen(
        [
            sys.executable, "-c",
            "import sys; from pathlib import Path; from router_lab.runs.status import lock\n"
            "with lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()",
            str(folder),
        ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        write_status(folder, state="running")
        assert is_locked(folder)
        assert read_state(folder).state == "running"
        with pytest.raises(Busy, match=rf"pid {holder.pid} "), lock(folder):
            pass
    finally:
        holder.kill()
        holder.wait()
    assert not is_locked(folder)
    assert read_state(folder).state == "lost"  # it had no chance to say so
    with lock(folder):
        pass


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    writer = (
        "import sys; from pathlib import Path; from router_lab.runs.status import write_json\n"
        "while True: write_json(Path(sys.argv[1]), {'text': 'x' * 100_000})"
    )
    process = subprocess.Popen([sys.executable, "-c", writer, str(path)])
    try:
        while not path.exists():
            time.sleep(0.01)
        for _ in range(200):
            assert len(json.loads(path.read_text())["text"]) == 100_000
    finally:
        process.kill()
        process.wait()
