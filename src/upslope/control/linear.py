"""A policy and a critic that are linear in fixed features: tables, tile coding, a Fourier basis."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from upslope.control.actor_critic import ActorCritic, Inputs
from upslope.control.features import features_for
from upslope.control.heads import Categorical
from upslope.control.spaces import spaces_of
from upslope.errors import require


class LinearNetwork(nn.Module):
    """``(Θᵀx, wᵀx)`` with Θ ``[size, P]`` and w ``[size]``, zeros at first; x as numbers or as the indices of its ones."""

    def __init__(self, size: int, outputs: int, critic: bool) -> None:
        super().__init__()
        self.actor = nn.Parameter(torch.zeros(size, outputs))
        self.critic = nn.Parameter(torch.zeros(size)) if critic else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return product(x, self.actor), None if self.critic is None else product(x, self.critic)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """``xᵀ weight``: where x is given by the indices of its ones, the sum of those rows."""
    return x.to(weight.dtype) @ weight if x.is_floating_point() else weight[x].sum(1)


class LinearPolicy(ActorCritic):
    """``softmax(Θᵀx)`` for discrete actions, ``N(Θᵀx, σ²)`` for a Box, and a critic ``wᵀx``, on fixed features x.

    ``features``: ``"linear"`` (the observation itself: for a Discrete space a table), ``"tiles"``, ``"fourier"``; see
    :mod:`upslope.control.features`, and there for the errors. With ``epsilon`` the products are action values and the policy
    is ε-greedy in them. The recorded input ``observation`` holds the features, so each observation is encoded once.
    """

    def __init__(
        self,
        envs: Any,
        *,
        features: str = "tiles",
        num_tilings: int = 8,
        num_tiles: int = 8,
        fourier_order: int = 3,
        feature_low: Iterable[float] | None = None,
        feature_high: Iterable[float] | None = None,
        critic: bool = True,
        normalize_value: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> None:
        low, high = (None if limit is None else [float(x) for x in limit] for limit in (feature_low, feature_high))
        sizes = {"num_tilings": num_tilings, "num_tiles": num_tiles, "fourier_order": fourier_order}
        found = features_for(spaces_of(envs)[0], features, low=low, high=high, image=options.get("image", "auto"), **sizes)
        require(not normalize_value, "normalize_value: a linear critic is wᵀx in the rewards' units; leave it out, or scale the rewards")
        super().__init__(lambda _, outputs: LinearNetwork(found.size, outputs, critic), envs, seed=seed, normalize_value=False, **options)
        limits = {"feature_low": low, "feature_high": high}
        self.options = {"features": features, **sizes, **limits, "critic": critic, **self.options}
        self.features = found

    def _check_network(self, num_parameters: int) -> None:
        """Right by construction."""

    def inputs(self, observation: Any, **options: Any) -> dict[str, Tensor]:
        """A batch of raw observations as features; see :meth:`ActorCritic.inputs`."""
        tensors = super().inputs(observation, **options)
        vector = tensors["observation"]
        tensors["observation"] = torch.from_numpy(self.features(vector.cpu().numpy())).to(vector.device)
        return tensors

    @torch.no_grad()
    def value(self, inputs: Inputs) -> Tensor | None:
        if inputs["observation"].dim() > 2:
            return super().value(inputs)
        critic: Any = self.network.critic
        return None if critic is None else product(inputs["observation"], critic)

    @torch.no_grad()
    def gradients(self, inputs: Inputs, action: Tensor, parameters: Sequence[nn.Parameter]) -> Any:
        """``(v̂, ∇v̂, ∇log π)`` of one state by hand: ``∇w v̂ = x``, ``∇Θ log π_a = x (e_a − p)ᵀ`` (FORMULAS section 1).

        None where autograd has to say it: other heads than a plain softmax, action masks, frozen parameters.
        """
        actor, critic = self.network.actor, self.network.critic
        if type(self.head) is not Categorical or "action_mask" in inputs or len(parameters) != 2 or not isinstance(critic, nn.Parameter):
            return None
        x = inputs["observation"]
        logits = product(x, actor)[0]  # pyright: ignore[reportArgumentType]
        direction = -logits.softmax(-1)
        direction[action[0]] += 1.0
        if x.is_floating_point():
            x = x[0].to(critic.dtype)
            return float(x @ critic), (None, x), (torch.outer(x, direction), None)
        score, value_gradient = torch.zeros_like(actor), torch.zeros_like(critic)  # pyright: ignore[reportArgumentType, reportCallIssue]
        score[x[0]] = direction
        value_gradient[x[0]] = 1.0
        return float(critic[x[0]].sum()), (None, value_gradient), (score, None)
