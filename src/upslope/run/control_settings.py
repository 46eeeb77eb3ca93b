"""The settings of a run in the control world, apart from the algorithm's: one frozen dataclass for each owner.

The string under a field is its help on the command line.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from upslope.errors import require, require_counts

MAX_ENVS, MAX_ROWS, MAX_UNITS, MAX_STEPS, MAX_EPISODES = 2**16, 10**8, 2**16, 10**12, 10**6
"""Upper bounds that catch typing errors."""
STEP_TIMEOUT = 120.0  # seconds that a step may take in a separate process unless given


def check_num_envs(count: int) -> None:
    require(1 <= count <= MAX_ENVS, f"num_envs: expected an integer from 1 to {MAX_ENVS}, found {count}")


def check_seed(seed: int) -> None:
    require(0 <= seed < 2**32, f"seed: expected an integer from 0 to {2**32 - 1}, found {seed}")


def check_eval_every(every: int | None, until: bool, goal: str) -> None:
    """Raise :class:`UsageError` for a pace that cannot be, or for never where ``until`` a goal is reached is asked for."""
    require(every is None or every >= 0, f"eval_every: expected an integer ≥ 0, found {every}")
    require(every != 0 or not until, f"eval_every: found 0, which is never; whether the {goal} is reached is then unknown")


@dataclass(frozen=True, kw_only=True)
class EnvSettings:
    """What the environment is made with."""

    env_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    """keyword arguments for the environment's constructor, as a JSON object"""
    vectorization: Literal["auto", "sync", "async", "envpool"] = "auto"
    """how the environments run side by side: auto takes the task's vectorized version where it has one"""
    reward_scale: float = 1.0
    """the learner sees rewards times this; reported returns are unscaled"""
    max_episode_steps: int | None = None
    """episodes are truncated after so many steps, in training and evaluation (none: the environment's time limit)"""
    step_timeout: float | None = STEP_TIMEOUT
    """seconds that a step or a reset may take in a separate process (--vectorization async); none: any time"""
    max_restarts: int = 3
    """times in a row that an environment in a separate process is started anew after it hung or died in a step, which cuts its episode
    off, or in a reset, before the run fails"""

    def __post_init__(self) -> None:
        require_counts(self, "max_episode_steps")
        require_counts(self, "max_restarts", least=0)
        timeout = self.step_timeout
        require(timeout is None or timeout > 0, f"step_timeout: expected a number > 0 or none, found {timeout}")
        what = f"an environment in this process cannot be interrupted (--vectorization {self.vectorization})"
        works = timeout in (None, STEP_TIMEOUT) or self.vectorization == "async"
        require(works, f"step_timeout: {what}; add --vectorization async, or leave --step-timeout out")
        scale = self.reward_scale
        require(scale > 0, f"reward_scale: expected a number > 0, found {scale}")
        require(1e-15 <= scale <= 1e15, f"reward_scale: expected a number from 1e-15 to 1e+15, found {scale}")


@dataclass(frozen=True, kw_only=True)
class StepsSettings:
    """A fixed number of steps of each environment per iteration; episodes go on in the next one."""

    num_envs: int = 8
    """environments played side by side"""
    num_steps: int = 128
    """steps of each environment per iteration"""

    def __post_init__(self) -> None:
        check_num_envs(self.num_envs)
        require_counts(self, "num_steps")
        product = f"{self.num_envs} environments × {self.num_steps} steps"
        require(self.num_envs * self.num_steps <= MAX_ROWS, f"num_steps: {product} are more than {MAX_ROWS:,} transitions")


@dataclass(frozen=True, kw_only=True)
class DataSettings(StepsSettings):
    """Steps that were recorded in a file, or as many of each environment per iteration as the others take."""

    data: Path | None = None
    """learn from the steps in this file of `upslope record`; the environment is played for evaluation only"""
    num_rows: int | None = None
    """rows of the data per iteration, shuffled anew in each pass (none: all of them)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_rows is None or self.data is not None, "num_rows: it counts rows of a file; say which with --data FILE")
        require_counts(self, "num_rows")


@dataclass(frozen=True, kw_only=True)
class EpisodesSettings:
    """Whole episodes per iteration."""

    num_envs: int = 8
    """environments played side by side"""
    num_episodes: int | None = None
    """whole episodes per iteration (none: one for each environment)"""

    def __post_init__(self) -> None:
        check_num_envs(self.num_envs)
        count, least = self.num_episodes, self.num_envs
        require(count is None or count >= least, f"num_episodes: expected none or at least num_envs ({least}), found {count}")
        require_counts(self, "num_episodes", most=MAX_EPISODES)


@dataclass(frozen=True, kw_only=True)
class GroupedEpisodesSettings:
    """Groups of whole episodes per iteration; the episodes of a group start alike."""

    group_size: int = 8
    """whole episodes from the same start, which are compared with one another"""
    num_groups: int = 8
    """groups per iteration, all played side by side"""
    max_steps: int | None = None
    """the longest that an episode may be (none: the environment's time limit); --average-over constant divides by it"""

    def __post_init__(self) -> None:
        size, groups = self.group_size, self.num_groups
        require(size >= 2, f"group_size: expected an integer ≥ 2, found {size}; there is nothing to compare an episode with")
        require_counts(self, "num_groups", "max_steps")
        require(size * groups <= MAX_ENVS, f"num_groups: {groups} groups of {size} are more than {MAX_ENVS:,} environments")

    @property
    def num_envs(self) -> int:
        """Environments played side by side: one for each episode."""
        return self.group_size * self.num_groups


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """The policy's network and distribution."""

    hidden_sizes: tuple[int, ...] | None = None
    """units of each hidden layer (none: 64 64 for vectors, 512 behind the convolutions for images)"""
    image: Literal["auto", "yes", "no", "bytes"] = "auto"
    """what is taken for an image and goes through convolutions: auto decides by size, dtype and bounds, yes takes every array of 2 to
    4 axes, no flattens them; bytes is the rule of runs from before there was a choice"""
    activation: Literal["elu", "gelu", "leaky_relu", "relu", "sigmoid", "silu", "tanh"] = "tanh"
    """the hidden layers' nonlinearity (convolutional policies always use relu)"""
    features: Literal["network", "linear", "tiles", "fourier"] = "network"
    """what policy and critic are functions of: a network's, or linear in the observation itself (a table if it is discrete), in
    tile coding, in a Fourier basis"""
    num_tilings: int = 8
    """tilings, each displaced by other fractions of a tile (--features tiles)"""
    num_tiles: int = 8
    """tiles of a tiling along each dimension (--features tiles)"""
    fourier_order: int = 3
    """highest frequency along each dimension (--features fourier)"""
    feature_low: tuple[float, ...] | None = None
    """lowest observation that tiles and the Fourier basis tell apart, one number per dimension (none: the space's)"""
    feature_high: tuple[float, ...] | None = None
    """the highest (none: the space's)"""
    epsilon: float | None = None
    """probability of a random action, for methods that learn action values (none: 0.1 there)"""
    distribution: Literal["gaussian", "squashed", "beta"] = "gaussian"
    """the distribution of continuous actions"""
    log_std: float = -1.0
    """initial log standard deviation of continuous actions, in [-1, 1] where the environment bounds them (0: a third begins outside)"""
    scale_actions: bool = True
    """scale them to the environment's bounds; without it the policy acts in the environment's units"""
    normalize_observation: bool = False
    """observations with mean 0 and standard deviation 1, from running moments saved with the policy"""
    normalize_reward: bool = False
    """rewards divided by the running standard deviation of the discounted return"""
    normalize_value: bool = True
    """a network's critic learns in standard deviations of the returns, whatever the size and the offset of rewards"""

    def __post_init__(self) -> None:
        for name in ("feature_low", "feature_high"):
            what = f"--features {self.features} knows no limits; leave it out, or say --features tiles or fourier"
            require(getattr(self, name) is None or self.features in ("tiles", "fourier"), f"{name}: {what}")
        sizes = self.hidden_sizes or ()
        found = " ".join(map(str, sizes))
        require(all(1 <= size <= MAX_UNITS for size in sizes), f"hidden_sizes: expected integers from 1 to {MAX_UNITS}, found {found}")
        for name in ("num_tilings", "num_tiles", "fourier_order"):
            count = getattr(self, name)
            require(1 <= count <= MAX_UNITS, f"{name}: expected an integer from 1 to {MAX_UNITS}, found {count}")
        hint = "linear policies have no hidden layers; leave it out, or take --features network"
        require(self.features == "network" or not sizes, f"hidden_sizes: {hint}")
        require(-20 <= self.log_std <= 20, f"log_std: expected a number from -20 to 20, found {self.log_std}")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How long the run is, and what is watched on the way."""

    seed: int = 0
    """of everything random: environments, initial weights, actions, shuffling"""
    total_steps: int = 1_000_000
    """environment steps after which the run ends, rounded up to whole iterations"""
    until_return: float | None = None
    """stop once the evaluated (greedy) policy's mean return over fresh episodes is at least this, twice in a row"""
    until_solved: bool = False
    """the same with the return at which the task counts as solved, where that is known"""
    eval_every: int | None = None
    """steps between evaluations; the best policy is kept (none: 2048 with --until-return or --until-solved, else about 20
    evaluations, which take a fifth of the steps at most; 0: never, only at the end)"""
    eval_episodes: int = 20
    """fresh episodes per evaluation, and for the final result"""
    eval_sample: bool = False
    """evaluations draw actions instead of taking the most likely one: for tasks whose best policy is random"""
    device: str = "cpu"
    """where the policy lives: cpu, cuda, cuda:1, mps"""
    init: Path | None = None
    """start from the policy of this run folder instead of fresh weights"""
    fast: bool = True
    """use the compiled twins where the objects allow it; they compute the same"""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        steps = self.total_steps
        require(1 <= steps <= MAX_STEPS, f"total_steps: expected an integer ≥ 1 and at most {MAX_STEPS:.0e}, found {steps}")
        until = self.until_return is not None
        check_eval_every(self.eval_every, until or self.until_solved, "goal")
        require(not (until and self.until_solved), "until_solved: leave it out, until_return says at what return to stop")
        require_counts(self, "eval_episodes", most=MAX_EPISODES)
