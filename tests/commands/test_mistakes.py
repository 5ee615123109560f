"""A mistake on the command line: one sentence, status 2, and nothing has been trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import LANGUAGES, MODEL, TRAINER, tiny

from router_lab.commands.main import main
from router_lab.runs.state import read_state

WITHOUT_DATA = (*MODEL, *TRAINER, "budget=tokens:1k")

WRONG = {
    # Routers
    "router=banana": "router=banana does not exist; the choices are base_layer, capacity,",
    "router=swich": "router=swich does not exist; did you mean switch? The choices",
    "ffn=hierarchical ffn.expert.router={name:swich}": "did you mean switch? `router-lab list",
    "router=switch router.facter=1": "no option facter; did you mean factor? Its options are",
    "router.k=9": "k=9 is not possible; it must be between 1 and the number of experts, 8",
    "router.k=0": "k=0 is not possible",
    "router.k=1": "k=1 is not possible; it must be at least 2 with a renormalised weight",
    "router.k=abc": "router.k=abc is not possible; it must be a whole number",
    "router.k=null": "router.k=null is not possible; it must be a whole number",
    "router.kk=3": "The router softmax_topk has no option kk; did you mean k? Its options are k,",
    "router=switch router.k=2": "The router switch has no option k; its options are ",
    "router=capacity router.factor=-1": "factor=-1.0 is not possible; it must be a number, above",
    "router.softmax=never": "it must be one of",
    # Feed-forward layers
    "ffn=nope": "ffn=nope does not exist; the choices are autonomy,",
    "ffn.foo=3": "The ffn moe has no option foo; its options are d_hidden, n_experts, expert,",
    "ffn.n_experts=0": "n_experts=0 is not possible; it must be at least 1",
    "ffn.n_shared=-1": "n_shared=-1 is not possible; it must be at least 0",
    "ffn.shared_combine=foo": "it must be one of add, average, gate",
    "ffn.special={foo:1}": "ffn.special has the unknown kind 'foo'; the kinds are zero, copy,",
    "ffn.special={zero:-1}": "ffn.special.zero=-1 is not possible; it must be 0 or more",
    "ffn.special={zero:a}": "ffn.special.zero=a is not possible; it must be 0 or more",
    "ffn.special=3": "ffn.special=3 is not possible; it must be a mapping like {name:",
    "ffn.special=[1]": "ffn.special=[1] is not possible",
    "ffn.expert={name:nope}": "There is no ffn named 'nope'; the choices are autonomy,",
    "~ffn.expert.name ++ffn.expert.bias=true": "The configuration of a ffn needs a name",
    "++ffn.expert.n_experts=4": "The ffn mlp has no option n_experts; its options are d_hidden,",
    "ffn=hierarchical ffn.expert.router={name:nope}": "There is no router named 'nope'",
    "ffn=mistral ffn.hidden_act=foo": "hidden_act=foo is unknown; it must be one of silu,",
    "ffn.d_hidden=0": "d_hidden=0 is not possible; it must be at least 1",
    "ffn.d_hidden=wide": "ffn.d_hidden=wide is not possible",
    "match=none": "ffn.d_hidden of moe is not set; give a width or a `match`",
    "match=params": "match=params is unknown; it must be one of active_params, flops,",
    "match=total_params ffn.n_experts=99": "No ffn.d_hidden gives ffn=moe the total_params of a",
    "++ffn.expert.d_hidden=8": "remove the width from ffn.expert",
    # Capacity and losses
    "capacity=postion": "capacity=postion does not exist; did you mean position?",
    "capacity.factor=2": "choose a limit first: capacity=position, probability or priority",
    "capacity=position capacity.factor=-1": "factor=-1.0 is not possible; it must be a number",
    "capacity=position capacity.order=foo": "it must be one of position, probability, priority",
    "loss=banana": "loss=banana does not exist; the choices are default,",
    "loss.load_balance.coef=1": "choose the loss first, loss=load_balance, or add it to the",
    "+loss.load_balance.coef=-1": "coef=-1.0 is not possible; it must be a number, 0 or more",
    "+loss.load_balance.scope=all": "it must be one of micro_batch, sequence, global",
    "+loss.foo.coef=1": "There is no loss named 'foo'; the choices are entropy,",
    "capacity=position capacity.k=-2": "k=-2.0 is not possible; it must be a number, above 0",
    "loss=load_balance loss.load_balance.tau=0": "tau=0.0 is not possible; it must be a number, ab",
    "loss=load_balance loss.load_balance.tua=1": "The loss load_balance has no option tua; did you",
    "loss=[load_balance,nope]": "loss=nope does not exist; did you mean none? The choices",
    "+loss.z=3": "loss.z=3 is not possible; give its options",
    "+loss.default.coef=3": "loss.default has no options",
    # The model
    "model=nope": "model=nope does not exist; the choices are base, micro, nano, small",
    "model.n_heads=3": "model.n_heads=3 does not divide model.d_model=32 into heads of even width",
    "model.n_heads=32": "into heads of even width",
    "model.n_heads=0": "model.n_heads=0 is not possible; it must be a whole number, 1 or more",
    "model.d_model=wide": "model.d_model=wide is not possible; it must be a whole number, 1",
    "model.d_model=32.0": "model.d_model=32.0 is not possible; it must be a whole number",
    "model.n_layers=-1": "model.n_layers=-1 is not possible",
    "model.d_ffn=0": "model.d_ffn=0 is not possible",
    "model.seq_len=0": "model.seq_len=0 is not possible",
    "model.dropout=1": "model.dropout=1.0 is not possible; it must be a number, 0 or more and",
    "model.checkpoint=maybe": "model.checkpoint=maybe is not possible; it must be true or false",
    "model.ffn_layers=9": "model.ffn_layers=9 is not possible; it must be all, a number n for",
    "model.ffn_layers=some": "model.ffn_layers=some is not possible",
    "model.ffn_layers=[0,2]": "or a list of layers from 0 to 1",
    "model.foo=1": "The model transformer has no option foo; its options are d_model, n_layers",
    "+model.foo=1": "The model transformer has no option foo; its options are d_model, n_layers",
    # Training
    "optim.lr=-1": "optim.lr=-1.0 is not possible; it must be a number, above 0",
    "optim.lr=fast": "optim.lr=fast is not possible",
    "optim.lr=nan": "optim.lr=nan is not possible",
    "optim.lr=inf": "optim.lr=inf is not possible",
    "optim.warmup=2": "optim.warmup=2.0 is not possible; it must be a number, 0 to 1",
    "optim.warmup=-0.1": "optim.warmup=-0.1 is not possible",
    "optim.weight_decay=-1": "optim.weight_decay=-1.0 is not possible; it must be a number, 0",
    "optim.betas=[0.9]": "optim.betas=[0.9] is not possible; it must be two numbers,",
    "optim.betas=[0.9,1]": "optim.betas=[0.9, 1] is not possible",
    "optim.clip=0": "optim.clip=0.0 is not possible; it must be a number, above 0, or null",
    "trainer.batch_size=0": "trainer.batch_size=0 is not possible; it must be a whole number, 1",
    "trainer.batch_size=2.5": "trainer.batch_size=2.5 is not possible",
    "trainer.batch_size=true": "trainer.batch_size=true is not possible",
    "trainer.accumulate=0": "trainer.accumulate=0 is not possible",
    "trainer.validations=0": "trainer.validations=0 is not possible",
    "trainer.threads=many": "trainer.threads=many is not possible",
    "trainer.workers=-1": "trainer.workers=-1 is not possible; it must be a whole number, 0",
    "trainer.precision=17": "trainer.precision=17 is not possible; it must be one of 32-true,",
    "trainer.accelerator=cpu trainer.precision=16-mixed": "trainer.precision=16-mixed needs a GPU",
    "trainer.accelerator=tpu": "trainer.accelerator=tpu is not possible; it must be one of auto,",
    "trainer.devices=0": "trainer.devices=0 is not possible; it must be auto or a whole",
    "trainer.devices=many": "trainer.devices=many is not possible",
    "budget=20M": "budget=20M is not possible; give tokens:20M, flops:1e15 or seconds:600",
    "budget=tokens:0": "budget=tokens:0 is not possible",
    "budget=seconds:-3": "budget=seconds:-3 is not possible",
    # Data
    "data=nope": "data=nope does not exist; the choices are bin,",
    "data=text": "data=text needs data.path: a file, a folder or a glob",
    "data=text data.path=/nope": "data.path is '/nope', which does not exist",
    "data=stdlib data.foo=x": "The data stdlib has no option foo; its options are none",
    # The run
    "seed=abc": "seed=abc",
    "seed=-1": "seed=-1 is not possible; it must be a whole number, 0 to 4294967295",
    "arm=a/b": "arm='a/b' can't name a folder",
    "foo=3": "There is no option foo; the choices are arm, budget,",
    "ffn=mlp router.k=3": "router.k=3 has no effect with ffn=mlp; leave it out",
    "plugins=[/nope.py]": "The plugin /nope.py does not exist; give the path of a Python file",
    "plugins=3": "does not exist; give the path of a Python file",
}  # fmt: skip


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The sentence that the command answers with."""
    with pytest.raises(SystemExit) as end:
        main(["train", *arguments])
    printed = capsys.readouterr()
    assert end.value.code == 2, printed.err
    lines = printed.err.strip().splitlines()
    (line,) = [line for line in lines if not line.endswith("(once; kept in the cache)")]
    assert line.startswith("router-lab: ")
    return line


@pytest.mark.parametrize("given", WRONG)
def test_a_sentence_before_anything_is_made(
    given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = () if "data=" in given else LANGUAGES
    sentence = refused(capsys, f"out={tmp_path}", *WITHOUT_DATA, *data, *given.split())
    assert WRONG[given] in sentence
    assert not list(tmp_path.rglob("status.json"))


def test_data_that_do_not_fit_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "short.txt"
    text.write_text("To be, or not to be. " * 20)
    sentence = refused(
        capsys,
        f"out={tmp_path}",
        *WITHOUT_DATA,
        "data=text",
        f"data.path={text}",
        "model.seq_len=1000",
    )
    assert "less than one window of 1001; give more text or a smaller model.seq_len" in sentence


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    sentence = refused(capsys, f"out={tmp_path / 'file' / 'runs'}", *WITHOUT_DATA)
    assert "can't be a folder for runs (Not a directory)" in sentence


def test_a_broken_plugin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("import not_installed_anywhere")
    sentence = refused(capsys, f"out={tmp_path}", *WITHOUT_DATA, f"plugins=[{plugin}]")
    assert "could not be imported (ModuleNotFoundError: No module named" in sentence


PLUGIN = """
from router_lab.registry import register
from router_lab.routing import Router, Routing

@register("odd")
class Odd({base}):
{body}
"""
INIT = "    def __init__(self, d_model: int, n_experts: int, k: int = 2):\n        {0}\n"
FORWARD = "    def forward(self, x_TD, context):\n        return {0}\n"
SUPER = "super().__init__(d_model, n_experts)"


@pytest.mark.usefixtures("registry_left_alone")
@pytest.mark.parametrize(
    ("base", "body", "sentence"),
    [
        ("Router", INIT.format(SUPER) + FORWARD.format("(x_TD, None)"), "forward returned tuple"),
        ("Router", INIT.format(SUPER), "The router odd can't be built (TypeError: Can't inst"),
        ("Router", INIT.format("self.w = x") + FORWARD.format("x_TD"), "can't be built (NameError"),
        ("object", INIT.format("pass"), "derives from none of"),
    ],
)
def test_a_plugin_that_is_no_router(
    base: str, body: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "odd.py"
    plugin.write_text(PLUGIN.format(base=base, body=body))
    given = (*LANGUAGES, f"plugins=[{plugin}]", "router=odd")
    assert sentence in refused(capsys, f"out={tmp_path}", *WITHOUT_DATA, *given)
    assert not list(tmp_path.rglob("status.json"))


def test_a_run_that_diverges_stops_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = tiny("budget=tokens:100k", "optim.lr=1e30", "optim.warmup=0")
    sentence = refused(capsys, f"out={tmp_path}", *options)
    assert (
        "The loss is not finite at step 3 (nan): training diverged; a smaller optim.lr" in sentence
    )
    (path,) = tmp_path.glob("*/*/status.json")
    status = read_state(path.parent)
    assert status.state == "failed"
    assert str(status.reason).startswith("The loss is not finite at step 3")
    assert not (path.parent / "checkpoints" / "last.ckpt").exists()


def test_flags_may_stand_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ("grid=first_look", "grid.only=[nope]")
    sentence = refused(capsys, f"out={tmp_path}", *WITHOUT_DATA, *grid, "-m")
    assert "there is no arm nope" in sentence
