"""Imports torchmetrics without transformers, which it loads for BERTScore and CLIP if installed.

That takes a second. Lightning imports torchmetrics too, so this comes before it.
"""

from lightning_utilities.core.imports import RequirementCache

_plain = RequirementCache.__bool__


def _but_transformers(requirement: RequirementCache) -> bool:
    return "transformers" not in str(requirement.requirement) and _plain(requirement)


RequirementCache.__bool__ = _but_transformers  # type: ignore[assignment, method-assign]
try:
    import torchmetrics  # noqa: F401
finally:
    RequirementCache.__bool__ = _plain  # type: ignore[method-assign]
