"""The shipped policies, and how a saved one is built again.

:class:`MLPPolicy` for vectors, :class:`QCriticPolicy` for vectors with a value for every action, :class:`CNNPolicy` for images,
:class:`LinearPolicy` for fixed features of a vector.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from upslope.control.actor_critic import ActorCritic, Inputs
from upslope.control.heads import Categorical
from upslope.control.images import ImageChoice
from upslope.control.kinds import AnyDict
from upslope.control.linear import LinearPolicy
from upslope.control.networks import CNN, MLP, check_sizes
from upslope.control.spaces import Encoder, short, space_from_json, spaces_of
from upslope.errors import UsageError, require, unknown

__all__ = ["POLICIES", "ActorCritic", "CNNPolicy", "LinearPolicy", "MLPPolicy", "QCriticPolicy", "policy_for", "policy_from_description"]


class MLPPolicy(ActorCritic):
    """Separate multilayer perceptrons for actor and critic, on everything in the observation as one flat vector.

    Orthogonal initial weights (gain √2 in hidden layers, 0.01 for the actor's output), zero biases; a critic says 0 at first, unless
    ``normalize_value=False``: then its output has gain 1.
    ``parameters()`` lists the actor's weights and biases, the critic's, then ``log_std``.
    """

    takes_any_axes = True
    network: Any

    def __init__(
        self,
        envs: Any,
        *,
        hidden_sizes: Iterable[int] = (64, 64),
        activation: str = "tanh",
        critic: bool = True,
        normalize_value: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        sizes = check_sizes(hidden_sizes)
        gain = 0.0 if normalize_value else 1.0  # a critic that has no units yet says nothing

        def network(inputs: Any, outputs: int) -> nn.Module:
            if not isinstance(inputs, int):
                raise UsageError(f"observation space {short(spaces_of(envs)[0])}: has images; use CNNPolicy, or image='no'")
            values = self.critic_outputs(outputs) if critic else 0
            return MLP(inputs, outputs, values, hidden_sizes=sizes, activation=activation, critic_gain=gain, seed=seed)

        super().__init__(network, envs, seed=seed, normalize_value=normalize_value and critic, **options)
        self.options = {"hidden_sizes": list(sizes), "activation": activation, "critic": critic, **self.options}
        self.activation = activation

    def critic_outputs(self, num_parameters: int) -> int:
        """How many numbers the critic gives for a state."""
        return 1

    def _check_network(self, num_parameters: int) -> None:
        """Right by construction."""

    @property
    def actor(self) -> nn.Sequential:
        """``Linear, activation, …, Linear``: observation to the head's parameters (a Gaussian's mean)."""
        return self.network.actor

    @property
    def critic(self) -> nn.Sequential | None:
        """``Linear, activation, …, Linear(·, 1)``: observation to value; None for a policy without a critic."""
        return self.network.critic

    @property
    def as_made(self) -> bool:
        """Whether the network is two perceptrons and nothing else, as it was made; another one may have been put in its place."""
        return type(self.network) is MLP and "forward" not in vars(self.network)

    def follow_returns(self, returns: Tensor) -> None:
        if self.value_scale is not None:
            self.value_scale.follow(returns, self.network.critic[-1] if type(self.network) is MLP and self.network.critic else None)

    def critic_parameters(self) -> tuple[nn.Parameter, ...]:
        if not self.as_made:
            return super().critic_parameters()
        return () if self.critic is None or self.value_scale is None else tuple(self.critic.parameters())

    def _actor(self, inputs: Inputs) -> Tensor:
        return self._with_log_std(self.actor(inputs["observation"])) if self.as_made else super()._actor(inputs)


class QCriticPolicy(MLPPolicy):
    """An :class:`MLPPolicy` whose critic gives q̂(s, ·) ``[*, n]``; the value of a state is ``V = Σ_a π(a|s) q̂(s, a)``.

    V moves with q̂ alone: the probabilities in it are constants. Takes the options of :class:`MLPPolicy`; raises
    :class:`UsageError` where the actions are not Discrete.
    """

    def __init__(self, envs: Any, **options: Any) -> None:
        super().__init__(envs, **options)
        if type(self.head) is not Categorical or self.critic is None:
            raise UsageError(f"policy: a value for every action needs Discrete actions and a critic, found {short(self.action_space)}")

    def critic_outputs(self, num_parameters: int) -> int:
        return num_parameters

    def action_values(self, **inputs: Tensor) -> Tensor:
        if self.critic is None:
            raise UsageError("policy: it has no critic, which values the actions")
        values = self.critic(inputs["observation"])
        return values if self.value_scale is None else self.value_scale(values)

    def _run(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        preferences = self._actor(inputs)
        mask = inputs.get("action_mask")
        fixed = preferences.detach() if mask is None else preferences.detach().masked_fill(~mask, -torch.inf)
        return preferences, (fixed.softmax(-1) * self.action_values(**inputs)).sum(-1)


class CNNPolicy(ActorCritic):
    """A convolutional trunk shared by actor and critic, for observations with at least one image.

    Everything else in the observation joins the trunk's output as a vector, ahead of the ReLU layers of ``hidden_sizes``.
    """

    takes_any_axes = True
    network: Any

    def __init__(
        self,
        envs: Any,
        *,
        hidden_sizes: Iterable[int] = (512,),
        critic: bool = True,
        normalize_value: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        sizes = check_sizes(hidden_sizes)
        gain = 0.0 if normalize_value else 1.0  # a critic that has no units yet says nothing

        def network(inputs: Any, outputs: int) -> nn.Module:
            if isinstance(inputs, int):
                space = short(spaces_of(envs)[0])
                raise UsageError(f"observation space {space}: nothing in it is taken for an image; use MLPPolicy, or image='yes'")
            shapes = inputs if isinstance(inputs, AnyDict) else {self.encoder.names[0]: inputs}
            size: int = shapes.get("observation", 0)
            return CNN(self.encoder.images, size, outputs, hidden_sizes=sizes, critic=critic, critic_gain=gain, seed=seed)

        super().__init__(network, envs, seed=seed, normalize_value=normalize_value and critic, **options)
        self.options = {"hidden_sizes": list(sizes), "critic": critic, **self.options}

    def _check_network(self, num_parameters: int) -> None:
        """Right by construction."""

    def follow_returns(self, returns: Tensor) -> None:
        if self.value_scale is not None:
            self.value_scale.follow(returns, self.network.critic)

    def critic_parameters(self) -> tuple[nn.Parameter, ...]:
        return ()  # the trunk is the actor's as well


POLICIES: dict[str, type[ActorCritic]] = {kind.__name__: kind for kind in (ActorCritic, CNNPolicy, LinearPolicy, MLPPolicy, QCriticPolicy)}


def policy_for(envs: Any, *, image: ImageChoice = "auto", **options: Any) -> ActorCritic:
    """A :class:`CNNPolicy` where something in the observation is taken for an image, else an :class:`MLPPolicy`."""
    return (CNNPolicy if Encoder(spaces_of(envs)[0], image).images else MLPPolicy)(envs, image=image, **options)


def policy_from_description(description: Mapping[str, Any], *, network: Any = None) -> ActorCritic:
    """The policy that :meth:`ActorCritic.describe` described, with fresh weights; load its ``state_dict`` next.

    A user's network is never imported from a name in a file: pass it as ``network``, as to :class:`ActorCritic`.
    Raises :class:`UsageError` for a damaged description.
    """
    # what was saved before there was a choice acts as it did
    given: dict[str, Any] = {"scale_actions": False, "image": "bytes", "normalize_value": False, **description}
    options = dict(given)
    try:
        name = options.pop("class")
        spaces = space_from_json(options.pop("observation_space")), space_from_json(options.pop("action_space"))
    except KeyError as error:
        raise UsageError(f"policy description: {error} is missing") from error
    if name not in POLICIES:
        raise unknown("policy class", str(name), POLICIES)
    recorded = options.pop("network", None)
    if name == "ActorCritic":
        if network is None:
            raise UsageError(f"policy description: made with the network {recorded}: pass it as network=")
        options["network"] = network
    try:
        policy = POLICIES[name](envs=spaces, **options)
    except TypeError as error:
        raise UsageError(f"policy description: {error}") from error
    for setting in policy.describe():
        require(setting in given, f"policy description: {setting!r} is missing")
    return policy
