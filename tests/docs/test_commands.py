"""What the documents say: each command is understood, each path exists, each count is right."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from router_lab.commands.main import main, parser
from router_lab.registry import load_plugin
from router_lab.routing import ROUTERS
from router_lab.testing import check_router

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("experiments/*/README.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXTRAS = {
    "submitit": "hydra_plugins.hydra_submitit_launcher",
    "optuna": "hydra_plugins.hydra_optuna_sweeper",
}


def fenced(document: Path) -> list[tuple[str, str]]:
    """Language and text of each code block."""
    return FENCE.findall(document.read_text())


def commands(document: Path) -> list[str]:
    """The lines of its code blocks, and its inline code, that call router-lab."""
    text = document.read_text()
    lines = [line for _, block in fenced(document) for line in block.splitlines()]
    lines += re.findall(r"`(router-lab [^`]+)`", FENCE.sub("", text).replace("\n", " "))
    return [line for line in lines if re.match(r"router-lab [a-z]", line)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_is_understood(
    document: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    registry_left_alone: None,
) -> None:
    """Hydra composes those that train; argparse takes the others."""
    monkeypatch.chdir(tmp_path)
    for kind, text in fenced(document):
        if kind == "python" and (name := re.search(r'@register\("(\w+)"\)', text)):
            Path(f"{name[1]}.py").write_text(text)
            load_plugin(f"{name[1]}.py")
    Path("mine.py").touch()  # stands for any plugin
    write_grids(document)
    for command in commands(document):
        unquoted = re.sub(r"'[^']*'", "", command.partition("  #")[0])
        assert not set("[]()") & set(unquoted), f"zsh would expand {command}"
        assert not re.search(r"=\S*[*?]", unquoted), f"zsh would look for files in {command}"
        words = shlex.split(command, comments=True)[1:]
        if re.search(r"\b[A-Z]{3,}\b|…|/NAME", command):  # a form, such as `explain NAME`
            continue
        if len(words) == 1 and words[0] not in ("train", "plan"):  # named in passing
            assert words[0] in parser().format_help()
        elif words[0] not in ("train", "plan"):
            assert vars(parser().parse_args(words))["call"]
        elif all(find_spec(module) for extra, module in EXTRAS.items() if extra in command):
            single = [re.sub(r"^([\w.]+=[^,\[\]]+),.*", r"\1", w) for w in words[1:] if w != "-m"]
            shown = [] if {"--help", "--cfg"} & set(single) else ["--cfg", "job"]
            main(["train", *single, *shown])
            assert "model" in capsys.readouterr().out


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_exists(document: Path) -> None:
    text = FENCE.sub("", document.read_text())
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    for link in links:
        assert link.startswith("http") or (document.parent / link).exists(), link
    folders = "router_lab|conf|docs|experiments|tests|hydra_plugins"
    for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", text):
        assert "NAME" in path or (ROOT / path).exists(), path


def write_grids(document: Path) -> dict[str, str]:
    """Writes the grid files that the document shows; their text by name."""
    blocks = [text for kind, text in fenced(document) if re.search("^grid:", text, re.MULTILINE)]
    grids = {re.findall(r"^  name: (\w+)", text, re.MULTILINE)[0]: text for text in blocks}
    for name, text in grids.items():
        Path(f"{name}.yaml").write_text(text)
    return grids


def test_the_grids_of_the_guide_have_the_arms_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arms = {}
    for name in write_grids(ROOT / "docs" / "running-experiments.md"):
        main(["plan", f"grid={name}.yaml", "--no-time"])
        arms[name] = re.findall(r"^([\w,]+) {2,}.*\d new", capsys.readouterr().out, re.MULTILINE)
    assert arms == {
        "my_grid": ["mlp", "switch", "switch_tight"],
        "my_product": [
            "softmax_topk,few", "softmax_topk,many", "loss_free,few", "loss_free,many",
        ],
    }  # fmt: skip


def test_the_router_of_the_readme_keeps_the_contract(
    tmp_path: Path, registry_left_alone: None
) -> None:
    [text] = [text for kind, text in fenced(ROOT / "README.md") if kind == "python"]
    (tmp_path / "my_router.py").write_text(text)
    load_plugin(tmp_path / "my_router.py")
    check_router(ROUTERS.get("my_router"))


def test_the_documents_count_the_routers() -> None:
    counts = [
        int(count)
        for document in DOCUMENTS
        for count in re.findall(r"(\d+) (?:routers|of them, from `)", document.read_text())
    ]
    assert counts and set(counts) == {len(ROUTERS.names())}


def test_the_design_has_the_order_of_imports() -> None:
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    text = (ROOT / "docs" / "design.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    names = [{re.sub(r"/|\.py", "", name) for name in re.findall(r"`(.*?)`", row)} for row in rows]
    ordered = [set(layer.split(" | ")) for layer in layers["contracts"][0]["layers"]]
    assert names == ordered
