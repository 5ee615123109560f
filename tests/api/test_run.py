"""One run from Python: built, trained, loaded back, its routing of a text."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MODEL, TRAINER, tiny

import router_lab as rl
from router_lab.errors import UserError
from router_lab.experiment import load_run
from router_lab.training import run as training_run

TEXT = "The experts of a token are chosen by its router. " * 200
TRAINED = ("budget=tokens:2k", "router=loss_free", "seed=3")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture(scope="module")
def run(home: Path) -> rl.Run:
    data = ("data=text", f"data.path={home / 'text.txt'}")
    return rl.train(*MODEL, *TRAINER, *data, *TRAINED, f"out={home / 'runs'}")


def test_the_run_is_that_of_the_command(run: rl.Run, home: Path) -> None:
    assert run.result["train"]["tokens"] == 2048 and run.result["seed"] == 3
    words = shlex.split(run.result["command"])
    assert words[:2] == ["router-lab", "train"] and {*MODEL, *TRAINER, *TRAINED} <= set(words)
    (loaded,) = rl.load(home / "runs")
    assert loaded.folder == run.folder.resolve()
    assert repr(run).startswith("Run(loss_free, seed 3: ") and len(repr(run)) < 250


def test_a_finished_run_is_kept_and_torch_has_its_threads(
    run: rl.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run.folder / "result.json").stat().st_mtime_ns
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = rl.train(*shlex.split(run.result["command"])[2:])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert again == run and "Already finished" in capsys.readouterr().out
    assert (run.folder / "result.json").stat().st_mtime_ns == before


def test_an_interrupt_is_one_and_the_next_call_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from router_lab.training import fit

    plain = fit.fit

    def interrupted(experiment: Any, run: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        plain(experiment, run, **options)

    options = tiny("budget=tokens:2k", f"out={tmp_path}")
    monkeypatch.setattr(fit, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rl.train(*options)
    monkeypatch.undo()
    assert rl.train(*options).result["train"]["steps"] == 16


def test_the_model_and_the_data_come_with_it(run: rl.Run) -> None:
    assert run.corpus.name == "text" and not run.model.training
    loaded = load_run(run.folder).model.state_dict()
    for name, value in run.model.state_dict().items():
        assert value.equal(loaded[name])


@pytest.mark.parametrize("n", [1, 20, 32, 75])
def test_the_routing_of_a_text_is_that_of_its_windows(run: rl.Run, n: int) -> None:
    text, S = TEXT[7 : 7 + n], run.model.seq_len
    ids = list(text.encode())
    routings = run.routings(text)
    for name, routing in run.routings(ids).items():
        assert routing.probs_TE.equal(routings[name].probs_TE)
    for name, routing in routings.items():
        assert routing.context.token_id_T.tolist() == ids
        for start in range(0, n, S):
            window = torch.tensor([ids[start : start + S]])
            with torch.no_grad():
                alone = run.model(window, step=run.experiment.trained).routings[name]
            torch.testing.assert_close(
                routing.probs_TE[start : start + S], alone.probs_TE, rtol=1e-4, atol=1e-5
            )


def test_a_text_needs_a_tokenizer_and_tokens_a_vocabulary(run: rl.Run, tmp_path: Path) -> None:
    other = rl.train(*tiny("budget=tokens:1k", f"out={tmp_path}"))
    with pytest.raises(UserError, match="data=languages has no tokenizer; give token ids"):
        other.routings("text")
    assert other.routings([1, 2, 3])["layer0"].n_tokens == 3
    with pytest.raises(UserError, match="A token id is from 0 to 255"):
        run.routings([256])
    with pytest.raises(UserError, match="The text is empty"):
        run.routings("")


def test_overrides_and_mappings_describe_the_same() -> None:
    options = {"seed": 3, "router": {"name": "switch", "factor": 2.0}, "optim": {"clip": None}}
    texts = ("seed=3", "router=switch", "router.factor=2.0", "optim.clip=null")
    one, two = rl.build(*tiny(), *texts), rl.build(*tiny(), options)
    assert one.config == two.config and one.config["ffn"]["router"]["factor"] == 2.0
    first, second = one.model.state_dict(), two.model.state_dict()
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_values_of_a_mapping_need_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "my text, version=2.txt"
    path.write_text(TEXT)
    data = {"name": "text", "path": str(path), "tokenizer": "bytes"}
    options = {"data": data, "model": {"ffn_layers": [1], "n_layers": 2}, "plugins": []}
    experiment = rl.build(*MODEL, *TRAINER, options)
    assert experiment.config["data"]["path"] == str(path)
    assert experiment.config["model"]["ffn_layers"] == [1]


def test_reprs_fit_on_a_line() -> None:
    experiment = rl.build(*tiny("router=switch", "budget=tokens:2k"))
    assert repr(experiment) == (
        "Experiment(moe with switch on languages, seed 0: 0.10M parameters, tokens:2000)"
    )
    assert repr(experiment.corpus).startswith("Corpus(languages: ") and len(repr(experiment)) < 100


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("router=swich", "router=swich does not exist; did you mean switch?"),
        ("router.kk=3", "The router softmax_topk has no option kk; did you mean k?"),
        ("router.k=99", "k=99 is not possible; it must be between 1 and the number of experts"),
        ("seed=0,1", "seed=0,1 has several values"),
        ("grid=first_look", "A grid has several runs; train it by `router-lab train grid=…`"),
        ("plugins=[nowhere.py]", "nowhere.py does not exist"),
    ],
)
def test_mistakes_are_sentences(
    override: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "train", None)  # nothing may get as far as training
    for function in (rl.build, rl.train):
        if function is rl.train and override == "router.k=99":
            continue
        with pytest.raises(UserError) as error:
            function(*tiny(override))
        assert sentence in str(error.value)
