"""Gymnasium environments and policies for them: make, collect, evaluate."""

from upslope.control.collect import Episodes, GroupedEpisodes, Steps, Stream
from upslope.control.dataset import Dataset
from upslope.control.envs import Envs, Step
from upslope.control.evaluate import EvaluationResult, Evaluator, evaluate
from upslope.control.heads import Distribution, Head, head_for
from upslope.control.make import make
from upslope.control.normalize import ObservationNormalizer, RewardNormalizer, RunningMoments
from upslope.control.policy import ActorCritic, CNNPolicy, LinearPolicy, MLPPolicy, QCriticPolicy, policy_for, policy_from_description
from upslope.control.recorded import RandomPolicy, Recorded, record

__all__ = [
    "ActorCritic", "CNNPolicy", "Dataset", "Distribution", "Envs", "Episodes", "EvaluationResult", "Evaluator", "GroupedEpisodes", "Head",
    "LinearPolicy", "MLPPolicy", "ObservationNormalizer", "QCriticPolicy", "RandomPolicy", "Recorded", "RewardNormalizer", "RunningMoments",
    "Step", "Steps", "Stream", "evaluate", "head_for", "make", "policy_for", "policy_from_description", "record",
]  # fmt: skip
