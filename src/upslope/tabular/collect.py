"""Collectors: a policy acts in a finite problem, many rows at once, and the recording is a :class:`~upslope.records.Rollout`."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from upslope.errors import RunFault, UsageError
from upslope.records import Rollout, Sample, SamplingPolicy, State, missing_member, offers
from upslope.tabular.arguments import check_seed, check_whole
from upslope.tabular.chains import HasProbabilities, chain, endless_start, leading_to, policy_table
from upslope.tabular.mdp import MDP

INSTEAD = "give the mdp a time_limit, or collect with Steps"


class Column(NamedTuple):
    """One step of every row: what was seen, drawn and answered, and which rows were alive, ``[N]`` each."""

    seen: Tensor
    sample: Sample
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    mask: Tensor

    @property
    def ended(self) -> Tensor:
        return self.terminated | self.truncated


class Collector:
    """What both share: the problem, the rows' states, and a generator for everything random."""

    def __init__(self, mdp: MDP, num_rows: int, seed: int) -> None:
        check_seed(seed)
        self.mdp, self.num_rows = mdp, num_rows
        self.generator = torch.Generator().manual_seed(seed)
        self.state = torch.zeros(num_rows, dtype=torch.int64)
        self.time = torch.zeros(num_rows, dtype=torch.int64)

    def state_dict(self) -> State:
        """Where the rows are, and the generator."""
        return {"generator": self.generator.get_state(), "state": self.state, "time": self.time}

    def load_state_dict(self, state: State) -> None:
        self.generator.set_state(state["generator"])
        self.state, self.time = state["state"], state["time"]

    def begin(self, rows: Tensor) -> None:
        """New episodes in these rows (bool ``[N]``)."""
        self.state = torch.where(rows, self.draw(self.mdp.start.expand(self.num_rows, -1)), self.state)
        self.time = self.time.masked_fill(rows, 0)

    def check(self, policy: SamplingPolicy) -> None:
        """Refuse a policy for other observations or actions, or whose probabilities are none."""
        if offers(policy, HasProbabilities):
            policy_table(self.mdp, policy)

    def act(self, policy: SamplingPolicy) -> Sample:
        return policy.sample({"observation": self.mdp.observation[self.state]}, generator=self.generator)

    def step(self, policy: SamplingPolicy, alive: Tensor) -> Column:
        """One action in each row: the living rows move to their true successors, the others stay."""
        mdp, seen = self.mdp, self.mdp.observation[self.state]
        sample = self.act(policy)
        reward = mdp.reward[self.state, sample.action].where(alive, 0.0)
        self.state = torch.where(alive, self.draw(mdp.transition[self.state, sample.action]), self.state)
        self.time = self.time + alive
        terminated = alive & mdp.terminal[self.state]
        late = torch.zeros_like(alive) if mdp.time_limit is None else self.time >= mdp.time_limit
        return Column(seen, sample, reward, terminated, alive & late & ~terminated, alive)

    def draw(self, probability: Tensor) -> Tensor:
        """One index for each row of ``[N, K]``, by inverting the cumulative distribution; never one of probability 0."""
        cumulative = probability.cumsum(-1)
        uniform = torch.rand(len(probability), 1, generator=self.generator, dtype=probability.dtype) * cumulative[:, -1:]
        return (cumulative <= uniform).sum(-1).clamp(max=probability.shape[-1] - 1)


class Episodes(Collector):
    """``num_episodes`` whole episodes from fresh starts, one a row: an ``[N, T]`` rollout, masked behind each end.

    An episode that reaches the problem's ``time_limit`` is truncated there.

    Raises:
        UsageError: a problem without time limit whose ends cannot be reached; when called, a policy with which it may never end.
        RunFault: an episode is longer than ``max_steps``.
    """

    def __init__(self, mdp: MDP, num_episodes: int = 16, *, seed: int = 0, max_steps: int = 100_000) -> None:
        check_whole("num_episodes", num_episodes)
        check_whole("max_steps", max_steps)
        if mdp.time_limit is None:
            never = (mdp.start > 0) & ~leading_to(mdp.transition.sum(1), mdp.terminal)
            if bool(never.any()):
                s = int(never.nonzero()[0])
                raise UsageError(f"mdp: from state {s} no terminal state can be reached, so its episodes never end; {INSTEAD}")
        super().__init__(mdp, num_episodes, seed)
        self.max_steps = max_steps

    @torch.no_grad()
    def __call__(self, policy: SamplingPolicy) -> Rollout:
        self.check(policy)
        lasting = self.mdp.time_limit is None and missing_member(policy, HasProbabilities) is None
        if lasting and (s := endless_start(self.mdp, chain(self.mdp, cast(HasProbabilities, policy))[0])) is not None:
            raise UsageError(f"policy: from state {s} it may come to where an episode never ends; {INSTEAD}")
        everywhere = torch.ones(self.num_rows, dtype=torch.bool)
        self.begin(everywhere)
        alive, columns = everywhere, list[Column]()
        while bool(alive.any()):
            if len(columns) == self.max_steps:
                raise RunFault(f"mdp: an episode did not end within {self.max_steps} steps; {INSTEAD}")
            columns.append(self.step(policy, alive))
            alive = alive & ~columns[-1].ended
        # an ended row has stayed where it ended, so the column after any step shows that step's true successor
        after = [column.sample.value for column in columns[1:]] + [self.act(policy).value]
        return recorded(columns, after, self.mdp.time_limit)


class Steps(Collector):
    """``num_steps`` steps of ``num_rows`` rows, going on where the last recording stopped: ``[num_rows, num_steps]``.

    A row that ended begins anew in the next column; nothing is masked.
    """

    def __init__(self, mdp: MDP, num_rows: int = 8, num_steps: int = 32, *, seed: int = 0) -> None:
        check_whole("num_rows", num_rows)
        check_whole("num_steps", num_steps)
        super().__init__(mdp, num_rows, seed)
        self.num_steps = num_steps
        self.begin(torch.ones(num_rows, dtype=torch.bool))

    @torch.no_grad()
    def __call__(self, policy: SamplingPolicy) -> Rollout:
        self.check(policy)
        everywhere, first_step = torch.ones(self.num_rows, dtype=torch.bool), self.time
        columns, after = list[Column](), list[Tensor | None]()
        for _ in range(self.num_steps):
            columns.append(self.step(policy, everywhere))
            after.append(None if columns[-1].sample.value is None else self.act(policy).value)
            self.begin(columns[-1].ended)
        return recorded(columns, after, None, first_step)


def recorded(columns: list[Column], after: list[Tensor | None], max_steps: int | None, first_step: Tensor | None = None) -> Rollout:
    """Columns side by side; ``after`` holds the successors' values."""
    seen, samples, *flags = zip(*columns, strict=True)
    reward, terminated, truncated, mask = (torch.stack(column, -1) for column in flags)
    if first_step is None:  # every row is one whole episode
        means = {"episode_return": float(reward.sum(-1).mean()), "episode_length": float(mask.sum(-1).double().mean())}
    else:
        means = {"reward_mean": float(reward.mean())}
    values, successors = ([v for v in column if v is not None] for column in ([s.value for s in samples], after))
    inputs = {"observation": torch.stack(seen, -1), "action": torch.stack([s.action for s in samples], -1)}
    log_prob, num_ended = torch.stack([s.log_prob for s in samples], -1), float((terminated | truncated).sum())
    critic = {"value": torch.stack(values, -1) if values else None, "next_value": torch.stack(successors, -1) if successors else None}
    where: dict[str, Any] = {"mask": mask, "first_step": first_step, "max_steps": max_steps}
    metrics = {"num_episodes": num_ended, **means}
    given = {"inputs": inputs, "reward": reward, "terminated": terminated, "truncated": truncated, "behavior_log_prob": log_prob}
    return Rollout(metrics=metrics, **given, **critic, **where)
