"""The checks as data, and `check_router`, which runs them all."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from router_lab.errors import UserError
from router_lab.routing import Router
from router_lab.testing import behaviour, causality, in_model, record, terms
from router_lab.testing.subject import ContractError, NotApplicable, Subject


@dataclass(frozen=True)
class Check:
    """One clause of the contract.

    Attributes:
        run: raises ContractError where the promise is broken, NotApplicable where the router makes
            none. The first line of its docstring is the promise.
    """

    run: Callable[[Subject], None]

    @property
    def name(self) -> str:
        """In messages and test ids."""
        return self.run.__name__.removeprefix("check_")

    @property
    def promise(self) -> str:
        """What a router that passes it guarantees, in a sentence."""
        return (inspect.getdoc(self.run) or "").partition("\n")[0]

    def __call__(self, subject: Subject) -> None:
        """Runs it; whatever goes wrong is a ContractError that names router and check."""
        try:
            self.run(subject)
        except (NotApplicable, UserError):
            raise
        except ContractError as error:
            raise ContractError(f"{subject.name} fails {self.name}: {error}") from error.__cause__
        except Exception as error:
            raise ContractError(
                f"{subject.name} fails {self.name}: it raised {type(error).__name__}: {error} "
                f"(the promise: {self.promise})"
            ) from error


CHECKS = tuple(
    Check(run)
    for run in (
        record.check_record,
        record.check_finite,
        record.check_fixed_k,
        record.check_small_batches,
        behaviour.check_gradient,
        terms.check_weights,
        terms.check_losses,
        terms.check_sums,
        behaviour.check_deterministic,
        behaviour.check_pure_forward,
        behaviour.check_noise,
        behaviour.check_compile,
        behaviour.check_state,
        behaviour.check_permutation,
        causality.check_causality,
        causality.check_prefix,
        causality.check_batch_mates,
        in_model.check_padding,
        behaviour.check_autocast,
        in_model.check_load_once,
    )
)


def check_router(cls: type[Router], **options: Any) -> None:
    """Runs every check on a router with the given options.

    Args:
        options: the router's own, and `d_model` and `n_experts` where 16 and 8 do not suit it.

    Raises:
        ContractError: all the promises that it breaks, a paragraph each.
        UserError: the options are refused.
    """
    sizes = {key: options.pop(key) for key in ("d_model", "n_experts") if key in options}
    subject = Subject(cls, options, **sizes)
    subject.build()  # a refusal of the options comes before everything else
    problems = []
    for check in CHECKS:
        try:
            check(subject)
        except NotApplicable:
            continue
        except ContractError as error:
            problems.append(str(error))
    if problems:
        raise ContractError("\n\n".join(problems))
