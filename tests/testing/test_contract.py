"""Every registered router keeps the contract, and every check of the contract can fail."""

from __future__ import annotations

from typing import Any

import broken_causality  # noqa: F401  (adds to BROKEN)
import broken_state  # noqa: F401  (adds to BROKEN)
import pytest
from broken_routers import BROKEN, Good

from router_lab.errors import UserError
from router_lab.routing import ROUTERS, Router
from router_lab.testing import CHECKS, ContractError, NotApplicable, Subject, check_router

BY_NAME = {check.name: check for check in CHECKS}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
@pytest.mark.parametrize("router", ROUTERS.names())
def test_every_router_keeps(router: str, check: Any) -> None:
    try:
        check(Subject(ROUTERS.get(router)))
    except NotApplicable as reason:
        pytest.skip(str(reason))


def alternatives() -> list[tuple[str, str, Any]]:
    """Every value of every option that is a choice or a switch, where it is not the default."""
    return [
        (name, option.name, value)
        for name in ROUTERS.names()
        for option in ROUTERS.options(name)
        for value in (option.choices or ((True, False) if option.types == (bool,) else ()))
        if value != option.default
    ]


NEEDS_MORE_THAN_ONE = {("cosine", "norm_topk_prob"), ("hash", "learned_weight")}
"""Switches that renormalise the weights, which the default k of 1 does not go with."""


@pytest.mark.parametrize(("router", "option", "value"), alternatives())
def test_every_choice_of_an_option_keeps_the_contract(router: str, option: str, value: Any) -> None:
    if (router, option) in NEEDS_MORE_THAN_ONE:
        with pytest.raises(UserError, match="k=1 is not possible"):
            check_router(ROUTERS.get(router), **{option: value})
        check_router(ROUTERS.get(router), k=2, **{option: value})
    else:
        check_router(ROUTERS.get(router), **{option: value})


def test_the_good_router_passes_and_need_not_be_registered() -> None:
    before = ROUTERS.names()
    check_router(Good)
    check_router(Good, k=1, n_experts=4, d_model=8)
    assert ROUTERS.names() == before


@pytest.mark.parametrize(
    ("check", "router", "words"), BROKEN, ids=[f"{c}-{r.__name__}" for c, r, _ in BROKEN]
)
def test_a_broken_router_fails(check: str, router: type[Router], words: str) -> None:
    BY_NAME[check](Subject(Good))
    with pytest.raises(ContractError) as failure:
        BY_NAME[check](Subject(router))
    message = str(failure.value)
    assert message.startswith(f"{router.__name__} fails {check}: ")
    assert words in message


def test_every_check_has_a_router_that_fails_it() -> None:
    assert {check for check, _, _ in BROKEN} == set(BY_NAME)


def test_check_router_tells_every_broken_promise() -> None:
    by_class = {router.__name__: router for _, router, _ in BROKEN}
    with pytest.raises(ContractError) as failure:
        check_router(by_class["CountsInForward"])
    assert [line.split(":")[0] for line in str(failure.value).split("\n\n")] == [
        "CountsInForward fails sums",
        "CountsInForward fails pure_forward",
        "CountsInForward fails load_once",
    ]


def test_options_that_are_refused_are_no_broken_promise() -> None:
    with pytest.raises(UserError, match="k=9"):
        check_router(Good, k=9)
    with pytest.raises(UserError, match="no option temperature"):
        check_router(Good, temperature=2.0)
