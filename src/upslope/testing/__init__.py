"""Contract tests for what users write themselves: surrogates, estimators, policies, algorithms."""

from upslope.testing.algorithm import check_algorithm
from upslope.testing.contract import ContractError
from upslope.testing.estimator import check_estimator
from upslope.testing.known_mistakes import MISTAKES
from upslope.testing.measure import Measured, measure_estimator
from upslope.testing.policy import check_policy
from upslope.testing.report import EstimatorReport, Finding
from upslope.testing.surrogate import check_surrogate

__all__ = ["MISTAKES", "ContractError", "EstimatorReport", "Finding", "Measured", "check_algorithm", "check_estimator", "check_policy"]
__all__ += ["check_surrogate", "measure_estimator"]
