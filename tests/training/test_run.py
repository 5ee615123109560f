"""What a run prints as it starts and ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny

from router_lab.commands.main import main
from router_lab.experiment import load_run

TINY = ["model=nano", "model.d_model=32", "model.d_ffn=64", "model.seq_len=16"]
TINY += ["trainer.validations=1", "trainer.val_windows=4", "trainer.accelerator=cpu"]


def test_bits_per_token_and_a_budget_that_is_rounded_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROUTER_LAB_CACHE", str(tmp_path / "cache"))
    for name in ("train", "val"):
        (np.arange(500) % 300).astype("<u2").tofile(tmp_path / f"{name}.bin")
    command = ["train", *TINY, "data=bin", f"data.path={tmp_path}", f"out={tmp_path / 'runs'}"]
    main([*command, "budget=tokens:10"])
    printed = capfd.readouterr().out
    assert "budget=tokens:10 is rounded up to whole steps: 128 tokens are trained" in printed
    assert "bits per token after" in printed and "bits/token" in printed
    assert "bits per byte" not in printed and "bits/byte" not in printed
    (path,) = tmp_path.glob("runs/*/*/result.json")
    assert json.loads(path.read_text())["data"]["unit"] == "token"
    main([*command, "budget=tokens:10"])
    assert "bits per token in" in capfd.readouterr().out
    main([*command, "budget=tokens:256"])
    assert "rounded up" not in capfd.readouterr().out


def test_what_a_dense_ffn_does_not_use_is_refused_and_what_a_router_uses_makes_a_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *tiny("budget=tokens:200"), f"out={tmp_path}"]
    main([*command, "ffn=mlp"])
    capfd.readouterr()
    for override in ("router=switch", "capacity=position", "loss=z"):
        with pytest.raises(SystemExit):
            main([*command, "ffn=mlp", override])
        assert f"{override} has no effect with ffn=mlp" in capfd.readouterr().err
    main([*command, "router=switch"])
    main([*command, "router=switch", "capacity=position"])
    main([*command, "router=switch", "loss=z"])
    assert "Already finished" not in capfd.readouterr().out
    assert len(list(tmp_path.glob("*/*/result.json"))) == 4


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_zaya_trains_and_is_saved_in_float32(precision: str, tmp_path: Path) -> None:
    options = tiny("budget=tokens:200", "router=zaya", f"trainer.precision={precision}")
    main(["train", *options, f"out={tmp_path}"])
    (path,) = tmp_path.glob("*/*/final.ckpt")
    weights = torch.load(path)
    kept = {name: value.dtype for name, value in weights.items() if ".router." in name}
    assert {kept[name] for name in kept if "steps" not in name} == {torch.float32}
    assert weights["embedding.weight"].dtype != torch.float32
    (router, *_) = load_run(path.parent).model.routers().values()
    assert float(router.bias_E.abs().max()) > 0
