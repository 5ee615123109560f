"""Which runs a grid has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from hydra_plugins.router_lab_pool.sweeper import GridSweeper
from router_lab.commands.train import for_the_arms
from router_lab.errors import UserError
from router_lab.launch.compose import Composer
from router_lab.launch.plan import (
    Arm,
    arms_of,
    cross,
    label,
    named,
    refuse_no_effect,
    refuse_same,
    searched,
)

CONF = Path(__file__).parents[1] / "standin" / "conf"
SHIPPED = Path(__file__).parents[2] / "conf"


def test_a_union_of_arms_and_a_product() -> None:
    grid = yaml.safe_load("""
        common: [model=micro]
        arms:
          mlp: [ffn=mlp]
          plain:
        product:
          - [router=switch, router=gshard]
          - {tight: [capacity.factor=1.0, router.k=1], loose: []}
    """)
    assert arms_of(grid) == [
        Arm("mlp", ("model=micro", "ffn=mlp")),
        Arm("plain", ("model=micro",)),
        Arm("switch,tight", ("model=micro", "router=switch", "capacity.factor=1.0", "router.k=1")),
        Arm("switch,loose", ("model=micro", "router=switch")),
        Arm("gshard,tight", ("model=micro", "router=gshard", "capacity.factor=1.0", "router.k=1")),
        Arm("gshard,loose", ("model=micro", "router=gshard")),
    ]
    assert [arm.name for arm in arms_of(grid | {"only": ["mlp", "gshard,tight"]})] == [
        "mlp",
        "gshard,tight",
    ]
    with pytest.raises(
        UserError, match=r"no arm nlp; did you mean mlp\? The arms are mlp, plain, switch,tight"
    ):
        arms_of(grid | {"only": ["nlp"]})


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ({"seed": [0, 1]}, "grid has no key seed; did you mean seeds?"),
        ({"seeds": 3}, "grid.seeds=3 must be a list of whole numbers, such as [0, 1]."),
        ({"seeds": ["a"]}, "grid.seeds=[a] must be a list of whole numbers"),
        ({"arms": ["router=switch"]}, "grid.arms must be a mapping of names to overrides"),
        ({"arms": {"a": {"router": "switch"}}}, "grid.arms.a must be a list of overrides"),
        ({"arms": {"a": "router=switch"}}, "grid.arms.a must be a list of overrides"),
        ({"arms": {"a": ["switch"]}}, "grid.arms.a: switch is not an override"),
        ({"arms": {"a": [{"router": "switch"}]}}, "{router: switch} is not an override"),
        ({"product": ["ffn.n_experts=4,8"]}, "ffn.n_experts=4,8 is not an axis"),
        ({"product": "router=a"}, "grid.product must be a list of axes"),
        ({"common": ["hydra.launcher.workers=1"]}, "hydra.launcher.workers=1 has no effect there"),
        ({"common": ["hydra/launcher=basic"]}, "give it on the command line, or under hydra:"),
        ({"arms": {"a": ["seed=3"]}}, "seed=3 has no effect there; use grid.seeds."),
        ({"arms": {"a": ["+arm=b"]}}, "an arm is named by its key"),
        ({"arms": {"left": []}, "only": "lef"}, "no arm lef; did you mean left?"),
    ],
)
def test_a_grid_is_checked_whole(grid: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        arms_of(grid)
    assert sentence in str(caught.value)


def test_one_arm_may_be_chosen_without_a_list() -> None:
    grid = {"arms": {"a": [], "b": ["router=b"]}, "only": "b"}
    assert arms_of(grid) == [Arm("b", ("router=b",))]


def configured(**arms: tuple[str, str]) -> dict[tuple[str, ...], Any]:
    """Configurations of one seed: FFN and router by arm."""
    return {
        (f"ffn={ffn}", f"router={router}", f"arm={arm}"): OmegaConf.create(
            {
                "arm": arm, "seed": 0, "out": "runs", "router": {"name": router},
                "ffn": {"name": ffn, **({"router": "${router}"} if ffn == "moe" else {})},
            }
        )
        for arm, (ffn, router) in arms.items()
    }  # fmt: skip


def test_an_override_must_act_in_one_of_the_runs_that_have_it() -> None:
    refuse_no_effect(configured(a=("mlp", "switch"), b=("moe", "switch")))
    with pytest.raises(UserError, match="router=gshard has no effect with ffn=mlp; leave it out"):
        refuse_no_effect(configured(a=("mlp", "gshard"), b=("moe", "switch")))
    refuse_no_effect(configured(a=("mlp", "none")))


def test_two_arms_of_a_grid_that_are_the_same_are_refused() -> None:
    refuse_same(configured(a=("moe", "gshard"), b=("moe", "switch")))
    with pytest.raises(UserError, match="the arms a and b are the same"):
        refuse_same(configured(a=("mlp", "gshard"), b=("mlp", "switch")))


def test_no_arms_is_one_unnamed_arm() -> None:
    assert arms_of({}) == [Arm(None, ())]
    assert arms_of({"common": ["a=1"], "arms": {}}) == [Arm(None, ("a=1",))]


def test_two_arms_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="two arms are called switch"):
        arms_of({"arms": {"switch": []}, "product": [["router=switch", "router=gshard"]]})


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("router=switch", "switch"),
        ("router.k=2", "k=2"),
        ("+router.k=2", "k=2"),
        ("budget=tokens:20M", "tokens_20M"),
        ("pause=0.5", "pause=0.5"),
        ("optim.lr=0.0031622776601683794", "lr=0.003162"),
        ("optim.betas=[0.9,0.95]", "betas=_0.9_0.95_"),
    ],
)
def test_labels(override: str, name: str) -> None:
    assert label(override) == name


def test_the_trials_of_a_search_differ_by_what_it_adds() -> None:
    given = ["router=switch", "out=x"]
    assert searched(["router=switch", "out=x", "seed=1", "router.k=3"], given) == ["router.k=3"]
    assert searched(["router=switch", "router.k=3", "arm=three"], given) == []
    assert [named("a,k=1"), named("a-b_c")] == ["arm='a,k=1'", "arm=a-b_c"]


def test_the_command_line_beats_the_grid_and_seeds_go_across() -> None:
    arms = [Arm("a", ("model=micro", "router.k=1")), Arm("b", ("model=micro",))]
    runs = cross(arms, [["model=nano"], ["optim.lr=1", "optim.lr=2"]], ["0", "1"])
    assert len(runs) == len(set(runs)) == 8
    assert runs[0] == ("model=nano", "router.k=1", "optim.lr=1", "arm='a,lr=1'", "seed=0")
    assert runs[3] == ("model=nano", "optim.lr=2", "arm='b,lr=2'", "seed=0")
    assert runs[4][-1] == "seed=1"  # all arms with the first seed come first


@pytest.fixture
def hydra() -> Any:
    version.setbase("1.3")
    path = create_config_search_path(str(CONF))
    path.prepend("test", f"file://{SHIPPED}", SearchPathQuery(provider="schema"))
    yield Hydra.create_main_hydra2("test", path)
    GlobalHydra.instance().clear()


def expanded(hydra: Hydra, *arguments: str) -> list[tuple[str, ...]]:
    sweeper = GridSweeper()
    sweeper.config = hydra.config_loader.load_configuration(
        "config", list(arguments), RunMode.MULTIRUN
    )
    sweeper.hydra_context = type("Context", (), {"config_loader": hydra.config_loader})  # type: ignore
    return sweeper.expand(list(arguments))


def test_a_grid_by_name(hydra: Hydra) -> None:
    runs = expanded(hydra, "grid=twelve", "grid.seeds=[5,6,7]", "grid.only=[one,two]", "steps=9")
    assert runs[:2] == [
        ("steps=9", "router=a", "grid.name=twelve", "arm=one", "seed=5"),
        ("steps=9", "router=b", "grid.name=twelve", "arm=two", "seed=5"),
    ]
    assert len(runs) == 6
    assert len(expanded(hydra, "grid=twelve")) == 12
    assert {run[-1] for run in expanded(hydra, "grid=twelve", "seed=4")} == {"seed=4"}


def test_a_grid_by_hand(hydra: Hydra) -> None:
    runs = expanded(hydra, "router=a,b", "router.k=1,2", "seed=0,1", "pause=0")
    assert len(runs) == 8
    assert runs[1] == (
        "grid.name=single", "router=a", "router.k=2", "pause=0", "arm='a,k=2'", "seed=0",
    )  # fmt: skip
    assert expanded(hydra, "seed=range(3)", "grid.name=mine")[2] == ("grid.name=mine", "seed=2")


def test_two_ways_of_composing_agree(hydra: Hydra) -> None:
    """Setting values on a copy gives what Hydra composes from the files."""
    loader = hydra.config_loader
    master = loader.load_configuration("config", ["out=x"], RunMode.MULTIRUN)
    composer = Composer(loader, master)
    for overrides in (
        ["router=b", "router.k=3", "seed=4"],
        ["router.k=3", "router=b", "out='a,b'", "arm='k=3'"],  # a value before its group
        ["router=b", "+extra=[1,2]", "~fault_at", "grid.seeds=[3]", "steps=1e3"],
        ["trainer={threads:2}", "trainer.workers=1", "router.k=null", "plugins=[a.py]"],
    ):
        ours, theirs = composer.compose(overrides), loader.load_sweep_config(master, overrides)
        del theirs.hydra.job.override_dirname, ours.hydra.job.override_dirname
        assert OmegaConf.to_container(ours) == OmegaConf.to_container(theirs)


@pytest.mark.parametrize("wrong", ["router=c", "no.such=1", "router.no_such=1"])
def test_a_wrong_override_is_refused_in_hydras_words(hydra: Hydra, wrong: str) -> None:
    loader = hydra.config_loader
    master = loader.load_configuration("config", [], RunMode.MULTIRUN)
    with pytest.raises(Exception) as theirs:
        loader.load_sweep_config(master, [wrong])
    with pytest.raises(theirs.type) as ours:
        Composer(loader, master).compose([wrong])
    assert str(ours.value) == str(theirs.value)


def test_several_values_without_a_sweep_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from router_lab.commands.main import main

    with pytest.raises(SystemExit) as stop:
        main(["train", "seed=0,1"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "seed=0,1 has several values; add -m to train a run for each of them." in said


def test_options_beside_a_grid_are_left_to_its_arms() -> None:
    given = ["grid=g", "router.w_load=0.5", "ffn.special={zero: 1}", "seed=3", "router.k=1,2"]
    assert for_the_arms(given) == [
        "grid=g",
        "router.w_load=choice(0.5)",
        "ffn.special=choice({zero: 1})",
        "seed=3",
        "router.k=1,2",
    ]
    assert for_the_arms(given[1:]) == given[1:]
