"""Gymnasium environments: make them, collect rollouts in them, evaluate policies on them."""

from upslope.control.collect import Episodes, Steps
from upslope.control.envs import Envs, Step
from upslope.control.evaluate import EvaluationResult, Evaluator, evaluate
from upslope.control.make import make

__all__ = ["Envs", "Episodes", "EvaluationResult", "Evaluator", "Step", "Steps", "evaluate", "make"]
