# ruff: noqa: E402
"""Language models as policies: any decoder-only Transformers model, trained by the same algorithms as everything else."""

from upslope.errors import require_packages

require_packages("language", "transformers", "tokenizers")  # before they are imported: one line that says what to install

from upslope.language.calls import TrainerState
from upslope.language.checks import builtin
from upslope.language.collect import Completions
from upslope.language.engine import EmbeddedEngine, Engine, Generated
from upslope.language.evaluate import LanguageResult, PairsResult, evaluate, evaluate_pairs
from upslope.language.jsonl import read_labeled, read_pairs
from upslope.language.policy import LanguagePolicy
from upslope.language.problems import Labeled, Pair, Problem, Task
from upslope.language.recorded import Recorded, demonstrations, labeled, preference_pairs
from upslope.language.rewards import Part, Rewards
from upslope.language.stepper import PPOStepper
from upslope.language.synthetic import pairs_from
from upslope.language.tasks import task
from upslope.language.tiny import tiny

__all__ = [
    "Completions", "EmbeddedEngine", "Engine", "Generated", "Labeled", "LanguagePolicy", "LanguageResult", "PPOStepper", "Pair",
    "PairsResult", "Part", "Problem", "Recorded", "Rewards", "Task", "TrainerState", "builtin", "demonstrations", "evaluate",
    "evaluate_pairs", "labeled", "pairs_from", "preference_pairs", "read_labeled", "read_pairs", "task", "tiny",
]  # fmt: skip
