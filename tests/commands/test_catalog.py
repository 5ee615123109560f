"""`router-lab list`, `router-lab explain` and `router-lab new`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from router_lab.check import shown
from router_lab.commands import catalog
from router_lab.commands.catalog import explain, list_kinds
from router_lab.commands.docstrings import meanings, split_docstring
from router_lab.commands.main import main
from router_lab.commands.new import new_router
from router_lab.commands.presets import presets
from router_lab.errors import UserError
from router_lab.metrics import METRICS
from router_lab.model.ffn import FFNS
from router_lab.registry import KINDS, load_plugin, registries
from router_lab.routing import ROUTERS
from router_lab.testing import check_router

pytestmark = pytest.mark.usefixtures("registry_left_alone")


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


ALL = [(kind, name) for kind, registry in registries().items() for name in registry.names()]
PRESETS = [(kind, preset.name) for kind in registries() for preset in presets(kind)]


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines printed, without padding."""
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_the_list_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    list_kinds()
    rows = {line.split()[0]: line for line in printed(capsys) if line}
    fixed = ("model", "trainer")
    assert {name for kind, name in ALL + PRESETS if kind not in fixed} <= set(rows)
    assert "softmax=before, norm_topk_prob=true, bias=false" in rows["softmax_topk"]
    assert "arXiv:2401.04088" in rows["softmax_topk"]
    assert " never " in rows["softmax_topk"] and " in training " in rows["sinkhorn"]
    assert " always " in rows["vmoe"]  # because of its limit on the load
    assert "scope=sequence" in rows["load_balance_sequence"]


def test_each_kind_has_a_list_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    named = {registry.plural: registry for registry in registries().values()}
    assert set(KINDS) == set(named) - {"models", "trainers"}
    for plural in KINDS:
        main(["list", plural])
        words = {line.split()[0] for line in printed(capsys) if line}
        assert set(named[plural].names()) <= words
        assert not any(other in words for other in {"switch", "mlp"} - set(named[plural].names()))


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_one_is_explained(kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["explain", name])
    out = capsys.readouterr().out
    registry = registries()[kind]
    cls = registry.get(name)
    assert split_docstring(cls)[0].splitlines()[0][:60] in out
    about = meanings(cls)
    for option in registry.options(name):
        assert option.name in about, f"{name} does not say what its option {option.name} is"
        assert f" {option.name} " in out
    assert f"router-lab train {kind}={name}" in out
    if kind == "router":
        assert cls.paper, f"{name} does not say where it comes from"
        assert cls.reference, f"{name} does not say what it is checked against"
        assert cls.reference in out


@pytest.mark.parametrize(("kind", "name"), PRESETS)
def test_every_preset_is_explained(
    kind: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["explain", name])
    (preset,) = [one for one in presets(kind) if one.name == name]
    assert preset.about, f"{preset.path} does not say what it is for"
    lines = printed(capsys)
    assert preset.about in lines
    for option, value in preset.values.items():
        assert any(line.startswith(f"{option} ") and f" {shown(value)} " in line for line in lines)


def test_a_part_of_the_configuration_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for name, row in {
        "model": "n_heads int, 1 or more 4 attention heads",
        "adamw": "lr float, above 0 0.003 peak learning rate.",
        "trainer": "devices auto, int, 1 or more 1 devices of a run",
    }.items():
        main(["explain", name])
        assert any(line.startswith(row) for line in printed(capsys))


def test_an_explanation_in_full(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = {"router": "switch", "against": "a loop", "kind": "own loop", "tolerance": 1e-6}
    check |= {"error": 0.0, "test": "t"}
    record = tmp_path / "references.json"
    record.write_text(json.dumps([check, {**check, "router": "hash", "against": "another"}]))
    monkeypatch.setattr(catalog, "REFERENCES", record)
    explain("switch")
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("switch: Switch in ") for line in lines)
    assert any(line.startswith("factor float, above 0 1.25 ") for line in lines)
    assert any(line.startswith("order position, probability, priority position ") for line in lines)
    assert (
        "looks ahead always, in evaluation too: the room under its capacity limit grows with the "
        "tokens, later ones included, which a model that writes text does not have"
    ) in lines
    assert "experts per token exactly 1" in lines
    loss = "load_balance (coef=0.01, reduce=sum, scope=micro_batch, reference=paper, tau=1.0)"
    assert f"loss=default {loss}" in lines
    assert "train router-lab train router=switch" in lines
    assert "a loop own loop 1e-06 0.0e+00" in lines
    assert not any("another" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("noisy_topk", "importance (coef=0.1, reduce=sum, of=router); load (coef=0.1, "),
        ("relu", "l1 (coef=9.9"),
        ("mixture_of_depths", "depth_predictor (coef=0.01, reduce=sum, of=router)"),
        ("hash", "no loss"),
    ],
)
def test_the_losses_that_act_by_default(
    name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    explain(name)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith(f"loss=default {text}") for line in lines)


def test_the_table_in_the_docs_is_the_record() -> None:
    remedy = "run `make references`"
    checked = {check["router"] for check in catalog.references()}
    assert set(ROUTERS.names()) <= checked, remedy
    assert checked <= set(ROUTERS.names()) | set(FFNS.names()), remedy
    docs = Path(__file__).parents[2] / "docs"
    page = load_plugin(docs / "make_routers.py").page()
    assert (docs / "routers.md").read_text() == page, remedy


def test_every_published_router_has_an_independent_reference() -> None:
    """Our own loop alone leaves a misreading of the paper unseen."""
    records = catalog.references()
    assert {check["kind"] for check in records} == {"independent", "own loop"}
    independent = {check["router"] for check in records if check["kind"] == "independent"}
    assert {check["router"] for check in records} - independent == {"random_fixed", "round_robin"}


def test_a_docstring_is_taken_apart() -> None:
    class Documented:
        """What it does,
        in two lines.

            y = x
              + 1

        Args:
            k: how many,
                at most.
            bias: whether; it may say a: b.

        Afterwards.
        """

    story, about = split_docstring(Documented)
    assert story == "What it does, in two lines.\n\n    y = x\n      + 1\n\nAfterwards."
    assert about == {"k": "how many, at most.", "bias": "whether; it may say a: b."}


def test_an_unknown_name_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, right in {
        "swich": "did you mean switch?",
        "xyzzy": "the choices are adamw, ",
    }.items():
        with pytest.raises(SystemExit) as stop:
            main(["explain", wrong])
        assert stop.value.code == 2
        assert f"Nothing is named {wrong!r}; {right}" in capsys.readouterr().err


def test_a_loss_says_which_routers_have_it_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    explain("load_balance")
    (users,) = [line for line in printed(capsys) if line.startswith("loss=default of ")]
    names = users.removeprefix("loss=default of ").split(", ")
    assert {"switch", "softmax_topk"} <= set(names) and not {"hash", "loss_free"} & set(names)


@pytest.mark.parametrize("command", ["list", "explain switch"])
def test_listing_stays_light(command: str) -> None:
    heavy = "lightning matplotlib pandas scipy transformers tensorboard hydra torchmetrics"
    code = (
        f"import sys; from router_lab.commands.main import main; main({command.split()!r});"
        f"sys.exit(' '.join(m for m in '{heavy}'.split() if m in sys.modules) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, f"imported: {result.stderr}"


def test_a_new_router_keeps_the_contract_and_says_where_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["new", "my_own_router", "--dir", str(tmp_path)])
    path = tmp_path / "my_own_router.py"
    assert len(path.read_text().splitlines()) < 40
    out = capsys.readouterr().out
    for line in (
        f"pytest --router {path}:MyOwnRouter",
        f"router-lab train plugins=[{path}] router=my_own_router",
    ):
        assert line in out and line in path.read_text()
    load_plugin(path)
    check_router(ROUTERS.get("my_own_router"))
    check_router(ROUTERS.get("my_own_router"), k=1, temperature=0.5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("My-Router", "use lower case like my_router"),
        ("class", "use lower case like my_router"),
        ("switch", "There is a router named switch"),
        ("taken", "taken.py exists"),
    ],
)
def test_a_name_that_will_not_do(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "taken.py").write_text("")
    with pytest.raises(UserError, match=words):
        new_router(name, tmp_path)
    with pytest.raises(UserError, match="does not exist; make it first"):
        new_router("fine", tmp_path / "nowhere")


def test_a_kind_is_answered_with_its_list(capsys: pytest.CaptureFixture[str]) -> None:
    main(["explain", "loss"])
    assert "load_balance" in {line.split()[0] for line in printed(capsys) if line}


def test_metrics_are_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list", "metrics"])
    assert METRICS.keys() <= {line.split()[0] for line in printed(capsys) if line}
    main(["explain", "max_vio"])
    out = " ".join(capsys.readouterr().out.split())
    main(["explain", "metric.importance"])  # a loss has the name too
    assert "importance: a metric of routing records" in capsys.readouterr().out
    assert "arXiv:2408.15664" in out and "load_E assignments carried out by each expert" in out
