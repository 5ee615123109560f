"""Where the shipped Hydra configuration lies."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """The folder of `config.yaml`: inside the package in a wheel, beside it in a checkout.

    Raises:
        FileNotFoundError: the installation has neither, so it is broken.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no conf/config.yaml in or beside {package}: install router-lab again")
