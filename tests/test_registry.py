"""What others wrote joins: from an installed package, from a loose file, or not at all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import tiny

from router_lab import registry
from router_lab.commands.main import main
from router_lab.commands.new import TEMPLATE
from router_lab.commands.presets import presets
from router_lab.errors import UserError
from router_lab.registry import Registry, load_plugin, register, registries
from router_lab.routing import ROUTERS
from router_lab.testing import CHECKS

pytestmark = pytest.mark.usefixtures("registry_left_alone")

TINY = tiny("budget=tokens:2k")


def router_file(name: str, cls: str) -> str:
    return TEMPLATE.format(name=name, cls=cls, file=f"{name}.py")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder elsewhere with two packages that pip installed: a working one and a broken one."""
    root = tmp_path_factory.mktemp("elsewhere")
    for package, module, entries in (
        ("kind_routers", router_file("kind", "Kind"), 'kind = "kind_routers"'),
        ("rude_routers", "import nowhere_to_be_found", 'rude = "rude_routers"\nlate = "gone:Late"'),
    ):
        source = root / "source" / package
        (source / package).mkdir(parents=True)
        (source / package / "__init__.py").write_text(module)
        (source / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
            f'[project]\nname = "{package}"\nversion = "1.0"\n'
            f'[project.entry-points."router_lab.routers"]\n{entries}\n'
        )
    packages = [str(path) for path in (root / "source").iterdir()]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "install", *quiet, "--target", str(root / "site")]
    subprocess.run([*command, *packages], check=True)
    return root / "site"


def test_an_installed_package_joins_and_a_broken_one_is_named(site: Path, tmp_path: Path) -> None:
    """Listed, trained and checked in one process, as each start costs seconds."""
    code = f"""
import sys, pytest
from router_lab.commands.main import main
main(["list"])
main(["train", "router=kind", "router.k=3", "out=runs", *{TINY!r}])
sys.exit(pytest.main(["--router", "kind", "-p", "no:cacheprovider", "-q"]))
"""
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    out = result.stdout
    assert result.returncode == 0, out + result.stderr
    assert any(line.split()[:1] == ["kind"] and "kind_routers" in line for line in out.splitlines())
    assert "rude could not be imported: ModuleNotFoundError: No module named 'nowhere_to" in out
    assert "late could not be imported: ModuleNotFoundError: No module named 'gone'" in out
    (path,) = tmp_path.glob("runs/single/kind-*/result.json")
    assert json.loads(path.read_text())["router"] == "kind"
    (passed, skipped) = re.findall(r"(\d+) passed, (\d+) skipped", out)[0]
    assert int(passed) + int(skipped) == len(CHECKS)


def test_a_loose_file_joins_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "loose_one.py").write_text(router_file("loose_one", "LooseOne"))
    plugin = f"plugins=[{tmp_path}/loose_one.py]"
    main(["train", plugin, "router=loose_one", "router.temperature=2", f"out={tmp_path}", *TINY])
    (path,) = tmp_path.glob("single/loose_one-*/result.json")
    assert json.loads(path.read_text())["routing"]["mean"]["k_used"] == 2.0


def test_a_wrong_option_of_a_loose_router_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loose_two.py").write_text(router_file("loose_two", "LooseTwo"))
    common = ["train", f"plugins=[{tmp_path}/loose_two.py]", "router=loose_two", f"out={tmp_path}"]
    for wrong in ("router.temprature=2", "router.temperature=warm", "router.k=9"):
        with pytest.raises(SystemExit) as stop:
            main([*common, wrong, *TINY])
        assert stop.value.code == 2
        assert wrong.split(".")[1].split("=")[0] in capsys.readouterr().err
    assert not list(tmp_path.glob("single/*/result.json"))


BROKEN = {
    "syntax": ("def (", "SyntaxError"),
    "import": ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
    "exit": ("raise SystemExit('bye')", "bye"),
    "clash": (router_file("switch", "Switch"), "The router name 'switch'"),
    "error": ("1 / 0", "division by zero"),
}


@pytest.mark.parametrize(("text", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_loose_file_is_named_and_the_others_stay(
    text: str,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    broken, good = tmp_path / "broken.py", tmp_path / "loose_three.py"
    broken.write_text(text)
    good.write_text(router_file("loose_three", "LooseThree"))
    main(["list", "routers", "--plugin", str(broken), "--plugin", str(good)])
    out = capsys.readouterr().out
    assert f"Plugin {broken} could not be imported" in out and words in out
    assert "loose_three" in out and "softmax_topk" in out
    with pytest.raises(SystemExit) as stop:  # asked for by name in a training, it is a mistake
        main(["train", f"plugins=[{broken}]", "router=switch", f"out={tmp_path}", *TINY])
    assert stop.value.code == 2
    assert str(broken) in capsys.readouterr().err
    with pytest.raises(UserError, match="could not be imported"):
        load_plugin(broken)  # again: nothing half-loaded is left behind


def test_a_file_is_loaded_once_and_changes_are_another_file(tmp_path: Path) -> None:
    path = tmp_path / "loose_four.py"
    path.write_text(router_file("loose_four", "LooseFour"))
    cls = load_plugin(path).LooseFour
    assert load_plugin(path).LooseFour is cls is ROUTERS.get("loose_four")
    other = tmp_path / "elsewhere" / "loose_four.py"
    other.parent.mkdir()
    other.write_text(path.read_text())
    with pytest.raises(UserError, match=r"The router name 'loose_four' of .*elsewhere.* is taken"):
        load_plugin(other)


def test_what_derives_from_no_base_class_is_refused() -> None:
    with pytest.raises(UserError, match=r"'odd' can't be registered: .* none of BalanceLoss, Cap"):
        register("odd")(dict)
    with pytest.raises(UserError, match="The router 'odd' must be a class derived from router_lab"):
        ROUTERS.add("odd", dict)  # type: ignore[arg-type]
    assert "odd" not in ROUTERS.names()


def test_the_configuration_holds_presets_alone() -> None:
    """Defaults stand in the constructors: a file sets an option only to something else."""
    for kind, registered in registries().items():
        for preset in presets(kind):
            assert preset.name not in registered.names(), f"{preset.path} hides a registered class"
            if not preset.of:
                assert preset.name in ("none", "default"), f"{preset.path} is built on nothing"
                continue
            defaults = {one.name: one.default for one in registered.options(preset.of)}
            assert preset.values.keys() <= defaults.keys()
            for option, value in preset.values.items():
                assert value != defaults[option], f"{preset.path} repeats the default {option}"


def test_an_entry_point_may_be_a_class_that_did_not_register(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "plain_routers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: plain_routers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[router_lab.things]\nplain = plain_routers:Plain\n")
    (tmp_path / "plain_routers.py").write_text("class Plain(dict): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "REGISTRIES", {})
    things: Registry[dict[str, int]] = Registry("thing", dict, "router_lab.launch", "things")
    assert things.names() == ["plain"]
    assert things.get("plain").__name__ == "Plain"
