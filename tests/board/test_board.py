"""What TensorBoard finds in a grid's folder: tags, table, layouts, pictures, and its size."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2, metadata as layouts
from tensorboard.plugins.hparams import metadata as table

from router_lab.board.overview import LAYOUT, METRICS, hparams, write_overview
from router_lab.board.pictures import MISSING, Heatmap, draw
from router_lab.commands.board import serve
from router_lab.errors import UserError
from router_lab.training.callbacks.tensorboard import Board

TOKENS_PER_STEP = 1024


def fake_evaluation(n_layers: int, n_experts: int, n_points: int) -> Any:
    """An Evaluation after its last validation, as the Board reads it."""
    rng = np.random.default_rng(0)
    names = [f"layer{i}" for i in range(n_layers)]
    loads = [
        {n: rng.dirichlet(np.ones(n_experts)).tolist() for n in names} for _ in range(n_points)
    ]
    layers = {
        n: {"load": loads[-1][n], "max_vio": rng.random(), "dropped": 0.1, "k_used": 2.0}
        for n in names
    }
    pictures = {
        n: {
            "coactivation_EE": rng.random((n_experts, n_experts)),
            "share_DE": rng.random((4, n_experts)),
        }
        for n in names
    }
    return SimpleNamespace(
        quality={"loss": 1.0, "bits_per_byte": 1.4, "floor_bits": None, "excess_bits": None},
        mean={"max_vio": 0.5, "dropped": 0.1, "k_used": 2.0},
        layers=layers,
        figures=SimpleNamespace(layers=layers, loads=loads, pictures=pictures),
        curve=[{"tokens": (i + 1) * 10 * TOKENS_PER_STEP} for i in range(n_points)],
        clock=SimpleNamespace(seconds=10.0),
        flops_per_token=1e6,
        tokens=lambda trainer: trainer.global_step * TOKENS_PER_STEP,
    )


def write_run(folder: Path, n_layers: int, n_experts: int, steps: int = 20) -> EventAccumulator:
    """Drives the Board through a run and reads back what it wrote."""
    evaluation = fake_evaluation(n_layers, n_experts, 10)
    row = hparams("softmax_topk", 3, [], 1e6)
    board = Board(evaluation, 10, row, {"seed": 3}, ("router.k=2",), ["a", "b", "c", "d"])
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    optimizer = SimpleNamespace(param_groups=[{"lr": 1e-3}])
    trainer: Any = SimpleNamespace(
        global_step=0, logger=logger, optimizers=[optimizer], is_global_zero=True
    )
    record = SimpleNamespace(loss_nats=np.float64(1.0), terms={}, routings={})
    task: Any = None
    board.on_train_start(trainer, task)
    for step in range(10, steps + 1, 10):
        trainer.global_step = step
        board.on_train_batch_end(trainer, task, {"record": record})
        if step % (steps // 2) == 0:
            board.on_validation_end(trainer, task)
    board.on_train_end(trainer, task)
    logger.experiment.close()
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def test_tags_are_grouped_and_stand_over_tokens(tmp_path: Path) -> None:
    found = write_run(tmp_path, 3, 4)
    tags = found.Tags()["scalars"]
    assert {tag.split("/")[0] for tag in tags} == {"loss", "quality", "routing", "layers", "cost"}
    assert [event.step for event in found.Scalars("quality/bits_per_byte")] == [
        10 * TOKENS_PER_STEP,
        20 * TOKENS_PER_STEP,
    ]
    assert "hp_metric" not in tags
    assert set(found.Tags()["images"]) == {
        f"pictures/{name}"
        for name in ("1_load", "2_load_over_time", "3_domains", "4_chosen_together")
    }


def test_layer_tags_are_the_spread_over_layers(tmp_path: Path) -> None:
    found = write_run(tmp_path, 5, 4)
    values = [layer["max_vio"] for layer in fake_evaluation(5, 4, 10).layers.values()]
    for word, value in (("min", min(values)), ("median", np.median(values)), ("max", max(values))):
        assert found.Scalars(f"layers/max_vio/{word}")[-1].value == pytest.approx(value, rel=1e-6)


def test_a_long_run_of_a_large_model_stays_light(tmp_path: Path) -> None:
    small = write_run(tmp_path / "small", 2, 4)
    large = write_run(tmp_path / "large", 12, 64, steps=10_000)
    assert large.Tags()["scalars"] == small.Tags()["scalars"]
    written = sum(file.stat().st_size for file in (tmp_path / "large").rglob("events*"))
    # Two of the ten validations of a run were written; pictures are nearly all of the size.
    assert 5 * written < 20 * 2**20


def test_the_table_has_a_row_a_run_and_its_columns(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 2, 4)
    start = run.summary_metadata[table.SESSION_START_INFO_TAG]
    info = table.parse_session_start_info_plugin_data(start.plugin_data.content)
    assert info.hparams["arm"].string_value == "softmax_topk"
    assert info.hparams["seed"].number_value == 3
    write_overview(tmp_path, floor_known=False)
    root = EventAccumulator(str(tmp_path))
    root.Reload()
    experiment = table.parse_experiment_plugin_data(
        root.summary_metadata[table.EXPERIMENT_TAG].plugin_data.content
    )
    assert {column.name for column in experiment.hparam_infos} == set(info.hparams)
    tags = {column.name.tag for column in experiment.metric_infos}
    assert tags == set(METRICS)
    assert {"quality/bits_per_byte", "routing/max_vio"} <= tags & set(run.Tags()["scalars"])


@pytest.mark.parametrize("floor_known", [True, False])
def test_layouts_lay_arms_side_by_side(tmp_path: Path, floor_known: bool) -> None:
    write_overview(tmp_path, floor_known)
    write_overview(tmp_path, floor_known)  # the second run of a grid adds nothing
    assert len(list(tmp_path.glob("events*"))) == 1
    root = EventAccumulator(str(tmp_path))
    root.Reload()
    event = root.Tensors(layouts.CONFIG_SUMMARY_TAG)[0]
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == list(LAYOUT)
    tags = [tag for c in layout.category for chart in c.chart for tag in chart.multiline.tag]
    assert any(re.match(tag, "quality/bits_per_byte") for tag in tags)
    assert any("excess" in tag for tag in tags) == floor_known


def test_the_picture_shows_high_low_and_missing() -> None:
    values = np.array([[0.0, 1.0, 2.0, np.nan]])
    picture = draw([Heatmap(values, ["layer0"], list("0123"), "load")])
    assert picture.shape[1:] == (330, 3) and picture.dtype == np.uint8
    row = picture[26 + 10]  # below the title, in the middle of the one row
    colours = [tuple(row[x]) for x in np.linspace(80, 290, 4).astype(int)]
    blue, white, red, missing = colours
    assert blue[2] > blue[0] and red[0] > red[2] and min(white) > 240
    assert missing == MISSING


def test_a_folder_without_events_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        serve(str(tmp_path / "nowhere"), 6006)
    with pytest.raises(UserError, match="no event files"):
        serve(str(tmp_path), 6006)


def test_the_board_shows_the_newest_version_of_an_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "g"
    for name, digits, started in (("a-s0-11", "1111", 1), ("a-s0-22", "2222", 2), ("b-s0", "3", 1)):
        run = grid / name
        run.mkdir(parents=True)
        (run / "events.out.tfevents.1").write_text("")
        status = {"arm": name[0], "fingerprint": digits, "started": f"2026-11-24T10:0{started}"}
        (run / "status.json").write_text(json.dumps(status))
    (grid / "events.out.tfevents.0").write_text("")
    started_with: list[str] = []
    monkeypatch.setattr("os.execv", lambda _, arguments: started_with.extend(arguments))
    serve(str(tmp_path), 6006)
    shown = Path(started_with[started_with.index("--logdir") + 1])
    files = {path.relative_to(shown).as_posix() for path in shown.rglob("*")}
    assert files >= {"g/a-s0-22", "g/b-s0", "g/events.out.tfevents.0"} and "g/a-s0-11" not in files
    assert "Not shown: 1 run of older versions of a (--versions all" in capsys.readouterr().out
    started_with.clear()
    serve(str(tmp_path), 6006, "all")
    assert str(tmp_path) in started_with
