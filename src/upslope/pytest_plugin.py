"""A pytest fixture for contract tests of a user's code; nothing of the library is loaded before a test asks for it."""

from typing import Any

import pytest

import upslope


class Checks:
    """``upslope_check.estimator(mine)`` and so on: each passes, or raises ``upslope.testing.ContractError`` with the mistake."""

    def estimator(self, estimator: Any, **options: Any) -> Any:
        """:func:`upslope.testing.check_estimator`; returns its report where there is no mistake."""
        return upslope.testing.check_estimator(estimator, **options).raise_for_mistake()

    def surrogate(self, surrogate: Any, **options: Any) -> None:
        upslope.testing.check_surrogate(surrogate, **options)

    def policy(self, policy: Any, inputs: Any, **options: Any) -> None:
        upslope.testing.check_policy(policy, inputs, **options)

    def algorithm(self, algorithm: Any, **options: Any) -> None:
        upslope.testing.check_algorithm(algorithm, **options)


@pytest.fixture(scope="session")
def upslope_check() -> Checks:
    """Contract tests: upslope_check.estimator(mine), .surrogate(mine), .policy(mine, inputs), .algorithm(mine)."""
    return Checks()
