"""`router-lab probe` on a run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from router_lab.commands.main import main
from router_lab.commands.probe import probe
from router_lab.errors import UserError
from router_lab.experiment import build, load_run
from router_lab.paths import conf_dir
from router_lab.probe.run import Job
from router_lab.probe.trace import trace
from router_lab.registry import store_configs
from router_lab.routing import RouterContext, Routing


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_LAB_CACHE", str(tmp_path / "cache"))


def finished_run(folder: Path, *overrides: str, result: bool = True) -> Path:
    """The folder of a run that was never trained, as training would leave it."""
    store_configs()
    shape = ["model=nano", "data=languages", "data.n_tokens=50000"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", [*shape, *overrides])
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    torch.save(build(config).model.state_dict(), folder / "final.ckpt")
    if result:
        content = {"schema": 1, "arm": "mine", "seed": 3, "quality": {"loss": 1.0}}
        (folder / "result.json").write_text(json.dumps(content))
    return folder


def test_figures_are_added_to_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished_run(tmp_path / "run")
    probe([str(folder)], tokens=3)
    result = json.loads((folder / "result.json").read_text())
    assert result["quality"] == {"loss": 1.0}
    found = result["probe"]
    assert found["tokens"] == 3 and found["seconds"] > 0
    layers = found["layers"]
    assert list(layers) == ["layer0", "layer1"]
    for layer in layers.values():
        assert layer["alternatives"] == 27 and len(layer["knockout"]) == 8
        assert 0 <= layer["best_choice"] <= 1 and layer["regret_nats"] >= 0
        assert layer["knockout_nats"] == pytest.approx(sum(layer["knockout"]) / 8)
        assert -0.1 < layer["weight_similarity"] < 0.1  # fresh weights are alike by chance only
    for name in ("regret_nats", "best_choice", "knockout_nats", "output_similarity"):
        mean = (layers["layer0"][name] + layers["layer1"][name]) / 2
        assert found[name] == pytest.approx(mean), name
    out = capsys.readouterr().out
    assert "mine, seed 3: 3 tokens × 2 layers, 162 other choices; 32 knock-outs" in out
    assert "layer1" in out and "mean" in out


def test_the_same_tokens_each_time(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run")
    one, two = (Job(load_run(folder), 4) for _ in range(2))
    assert torch.equal(one.windows, two.windows) and one.positions == two.positions
    first, second = one.run(), two.run()
    assert first["layers"] == second["layers"]


def test_the_capacity_factor_is_that_of_evaluation(tmp_path: Path) -> None:
    options = ("router=switch", "router.factor=0.25", "router.eval_factor=8.0")
    job = Job(load_run(finished_run(tmp_path / "run", *options)), 2)
    for routing in trace(job.model, job.windows[:1, :-1]).routings.values():
        assert routing.load_E.equal(routing.demand_E)
    job.model.train()
    for routing in trace(job.model, job.windows[:1, :-1]).routings.values():
        assert routing.load_E.sum() < routing.demand_E.sum()


def test_the_model_is_probed_at_the_step_that_it_was_trained_to(tmp_path: Path) -> None:
    """With a router that turns its choice around after 100 steps, in evaluation too."""
    folder = finished_run(tmp_path / "run", "model.n_layers=1")
    result = json.loads((folder / "result.json").read_text()) | {"train": {"steps": 123}}
    (folder / "result.json").write_text(json.dumps(result))
    job = Job(load_run(folder), 2)
    (router,) = job.model.routers().values()
    plain, steps = router.forward, set()

    def anneal(x_TD: torch.Tensor, context: RouterContext) -> Routing:
        steps.add(context.step)
        return plain(x_TD if context.step < 100 else -x_TD, context)

    router.forward = anneal  # type: ignore[method-assign]
    found = job.run()["layers"]["layer0"]
    assert steps == {123}
    router.forward = lambda x_TD, context: plain(-x_TD, context)  # type: ignore[method-assign]
    assert found["regret_nats"] == job.run()["layers"]["layer0"]["regret_nats"]
    router.forward = plain  # type: ignore[method-assign]
    assert found["regret_nats"] != job.run()["layers"]["layer0"]["regret_nats"]


def test_progress_ends_where_the_announcement_said(tmp_path: Path) -> None:
    job = Job(load_run(finished_run(tmp_path / "run")), 4)
    done: list[Any] = []
    job.run(done.append)
    assert sum(done) == job.total == 4 * 2 * 27 + 2 * 8 * 2
    assert "one at a time" not in job.describe()


def test_sequences_that_compete_are_computed_one_at_a_time(tmp_path: Path) -> None:
    job = Job(load_run(finished_run(tmp_path / "run", "router=switch")), 4)
    done: list[Any] = []
    layers = job.run(done.append)["layers"]
    assert "one at a time" in job.describe()
    assert set(done) == {1}
    # A token whose one expert was full has no choice to judge.
    assert sum(done) - 2 * 8 * 2 == 7 * sum(layer.get("probed", 0) for layer in layers.values())


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "dense", "ffn=mlp")
    with pytest.raises(UserError, match="no routed layer"):
        probe([str(folder)])
    with pytest.raises(UserError, match="--tokens=0"):
        probe([str(folder)], tokens=0)
    unfinished = finished_run(tmp_path / "unfinished", result=False)
    with pytest.raises(UserError, match=r"no result\.json"):
        probe([str(unfinished)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not the folder of a finished run"):
        probe([str(tmp_path / "empty")])


def test_a_folder_of_runs_is_probed_without_what_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    routed = finished_run(tmp_path / "grid" / "routed")
    finished_run(tmp_path / "grid" / "dense", "ffn=mlp")
    (tmp_path / "grid" / "events").touch()
    (tmp_path / "grid" / "report").mkdir()
    for folders in ([tmp_path], sorted((tmp_path / "grid").iterdir())):
        probe([str(folder) for folder in folders], tokens=1)
        out = " ".join(capsys.readouterr().out.split())
        assert "mine, seed 3: 1 tokens × 2 layers" in out
        assert "dense is skipped: The model has no routed layer" in out
    assert "report is skipped: " in out
    assert json.loads((routed / "result.json").read_text())["probe"]["tokens"] == 1
    with pytest.raises(UserError, match="events is not a folder"):
        probe([str(tmp_path / "grid" / "events")])


def test_a_run_may_be_probed_as_soon_as_it_is_trained(tmp_path: Path) -> None:
    small = ["model=nano", "data=languages", "data.n_tokens=50000", "budget=tokens:3k"]
    small += ["trainer.validations=1", "trainer.val_windows=4", "trainer.probe_tokens=2"]
    main(["train", f"out={tmp_path}", *small])
    main(["train", f"out={tmp_path}", *small, "ffn=mlp"])
    (routed,), (dense,) = (list(tmp_path.glob(f"*/{arm}-*")) for arm in ("softmax_topk", "mlp"))
    found = json.loads((routed / "result.json").read_text())["probe"]
    assert "probe" not in json.loads((dense / "result.json").read_text())
    again = Job(load_run(routed), 2).run()
    assert found["tokens"] == 2 and found["layers"] == again["layers"]
    with pytest.raises(SystemExit):
        main(["train", f"out={tmp_path}", *small[:-1], "trainer.probe_tokens=-1"])
