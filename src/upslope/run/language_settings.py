"""The settings of a run in the language world, apart from the algorithm's: one frozen dataclass for each owner.

The string under a field is its help on the command line.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from upslope.errors import require, require_counts
from upslope.run.control_settings import check_eval_every, check_seed
from upslope.temperature import check_temperature

MAX_TEXTS = 2**20
"""Upper bound of what is sampled, learned from or evaluated at once, which catches typing errors."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The model."""

    model: str = "tiny"
    """tiny (a small transformer made on the spot), the folder of a Transformers model, or of a run"""
    temperature: float = 1.0
    """of the distribution that is sampled and trained"""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """precision of the passes; auto: bfloat16 where this device has instructions for it, else float32. The weights are float32"""
    lora_rank: int | None = None
    """train low-rank adapters of this rank instead of the weights (none: the weights)"""

    def __post_init__(self) -> None:
        require(bool(self.model), "model: expected tiny or a folder, found ''")
        check_temperature(self.temperature)
        require_counts(self, "lora_rank")


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """What is learned."""

    task: str | None = None
    """addition, copy, sums, FILE.jsonl with prompt, answer and further columns, or reasoning-gym:NAME"""
    task_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    """options of the task, as a JSON object"""
    reward: tuple[str, ...] = ()
    """instead of the task's: module:function, a built-in such as contains:word, a reward model's run; NAME=0.5 weighs it"""
    reward_timeout: float | None = None
    """seconds that a reward may take for one completion; given, rewards run in a separate process, which is killed when its time
    is over (none: 10 s in a thread, which a call that never lets go of the interpreter outlives)"""

    long_prompts: Literal["error", "drop", "cut"] = "error"
    """what becomes of prompts that leave no room for a completion: error names the first one and ends, drop leaves them out, cut takes
    off their beginning"""

    def __post_init__(self) -> None:
        require(self.long_prompts in ("error", "drop", "cut"), f"long_prompts: expected error, drop or cut, found {self.long_prompts!r}")
        seconds = self.reward_timeout
        require(seconds is None or seconds > 0, f"reward_timeout: expected a number > 0 or none, found {seconds}")

    @property
    def reward_limits(self) -> dict[str, Any]:
        """How rewards are called, as options of :class:`~upslope.language.Rewards`."""
        return {} if self.reward_timeout is None else {"timeout": self.reward_timeout, "in_subprocess": True}


@dataclass(frozen=True, kw_only=True)
class CompletionsSettings:
    """Prompts and the completions sampled of each, per iteration."""

    num_prompts: int = 8
    """prompts per iteration"""
    group_size: int = 8
    """completions of each prompt"""
    max_tokens: int | None = None
    """the longest completion (none: what the task suggests)"""
    reference: str | None = None
    """folder of the reference of a KL term (none: the model as it is when training starts)"""
    overlong_buffer: int = 0
    """completions that come closer than this to max_tokens lose up to 1 (0: off)"""
    refill: int = 0
    """further rounds of prompts, at most, for groups whose completions all scored the same"""

    def __post_init__(self) -> None:
        require_counts(self, "num_prompts", "group_size", "max_tokens")
        require_counts(self, "overlong_buffer", least=0)
        require_counts(self, "refill", least=0, most=1000)
        product = f"{self.num_prompts} prompts × {self.group_size}"
        require(self.num_prompts * self.group_size <= MAX_TEXTS, f"num_prompts: {product} are more than {MAX_TEXTS:,} completions")


@dataclass(frozen=True, kw_only=True)
class RecordedSettings:
    """Recorded texts per iteration."""

    batch_size: int = 16
    """recorded examples or pairs per iteration"""
    pairs: Path | None = None
    """JSONL file of the data: prompt, chosen, rejected; for kto prompt, completion, label (none: made from the task's answers)"""
    reference: str | None = None
    """folder of the reference (none: the model as it is when training starts)"""

    def __post_init__(self) -> None:
        require_counts(self, "batch_size", most=MAX_TEXTS)


@dataclass(frozen=True, kw_only=True)
class LanguageRunSettings:
    """How long the run is, and what is watched on the way."""

    seed: int = 0
    """of everything random: initial weights, prompts, sampling, shuffling"""
    iterations: int = 100
    """iterations after which the run ends"""
    until_accuracy: float | None = None
    """stop once this share of held-out problems is answered right, greedily"""
    warm_start: float = 0.0
    """first imitate right answers until this share of training problems is answered right, greedily (0: no warm start)"""
    warm_start_rate: float = 6e-3
    """learning rate of the warm start"""
    warm_start_batch: int = 256
    """right answers per step of the warm start"""
    warm_start_iterations: int = 2000
    """steps after which the warm start ends in any case"""
    eval_every: int | None = None
    """iterations between greedy evaluations on held-out problems; the best policy is kept (none: 10, where the task can
    tell; 0: never, only at the end)"""
    eval_episodes: int = 256
    """held-out problems per evaluation"""
    device: str = "cpu"
    """where the model lives: cpu, cuda, cuda:1, mps"""
    fast: bool = True
    """use the compiled update and the attention that shares a prompt among its completions; they compute the same"""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        require_counts(self, "iterations", "warm_start_iterations", most=10**9)
        require_counts(self, "eval_episodes", "warm_start_batch", most=MAX_TEXTS)
        for name in ("warm_start", "until_accuracy"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"{name}: expected a share from 0 to 1, found {value}")
        require(self.warm_start_rate > 0, f"warm_start_rate: expected a number > 0, found {self.warm_start_rate}")
        check_eval_every(self.eval_every, self.until_accuracy is not None, "accuracy")
