"""`router-lab train --help`. Hydra's own takes a second: it copies its store for each group."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf, open_dict

from router_lab.launch.compose import compose_config
from router_lab.paths import conf_dir
from router_lab.registry import registries

EXAMPLES = """\
router-lab train: train a small transformer whose FFN slot is configurable.

Examples
  router-lab train                                  one run, Mixtral's router
  router-lab train router=noisy_topk seed=3         another router
  router-lab train ffn=mlp budget=tokens:1M         a dense FFN, shorter
  router-lab train -m router=switch,gshard seed=0,1 a grid by hand
  router-lab train grid=first_look                  a grid kept in conf/grid
"""
CLOSING = """\
`router-lab list` says what each choice is, `router-lab explain NAME` what its options mean. Flags:
-m (comma lists make a grid), --cfg job (show the configuration), --config-dir DIR (more choices for
the groups), --hydra-help."""


def print_help(overrides: list[str]) -> None:
    """Prints examples, the choices of each group, and all options as the overrides compose them."""
    config = compose_config(overrides)
    with open_dict(config):
        config.pop("hydra", None)
    print(EXAMPLES)
    print("Choices of each group (group=choice)\n")
    for group, choices in groups().items():
        print(f"  {group}: {', '.join(choices)}")
    print("\nAll options, as composed (any.option=value)\n")
    for line in OmegaConf.to_yaml(config).splitlines():
        print(f"  {line}")
    print(f"\n{CLOSING}")


def groups() -> dict[str, list[str]]:
    """The choices of every group: registered names and the files of conf/."""
    choices = {kind: set(registry.names()) for kind, registry in registries().items()}
    for path in conf_dir().rglob("*.yaml"):
        folder = path.parent.relative_to(conf_dir()).as_posix()
        if folder != Path().as_posix():
            choices.setdefault(folder, set()).add(path.stem)
    return {group: sorted(names) for group, names in sorted(choices.items())}
