"""A policy for environments from any network: network, head, encoder of observations and normalizers in one module."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from upslope.control.action_masks import ActionMasks
from upslope.control.guard import masked_by_observation
from upslope.control.heads import Beta, BoxDistribution, Distribution, EpsilonGreedy, Gaussian, Head, head_for
from upslope.control.images import ImageChoice
from upslope.control.kinds import AnyTuple, Array
from upslope.control.normalize import ObservationNormalizer, RewardNormalizer, ValueScale
from upslope.control.spaces import Encoder, short, space_to_json, spaces_of
from upslope.errors import RunFault, UsageError, is_kind, require
from upslope.records import Evaluation, Sample
from upslope.typed import fork_rng, from_numpy

Inputs = Mapping[str, Tensor]
NetworkPair = tuple[Tensor, Tensor | None]


class ActorCritic(nn.Module):
    """A policy from any network that gives a head's parameters and, if it has a critic, a value.

    ``network`` is an ``nn.Module``, or what makes one when called with ``(input_size, num_parameters)``: the class itself.
    Its ``forward`` takes ``observation [N, d]`` (float32: the vector part of the observation, flattened), or the image
    ``[N, C, H, W]`` where the observation is one, or a dict of these where it has several parts; ``image`` decides what is one, and
    whether it is uint8 or float32 (:mod:`upslope.control.images`: ``"auto"``, ``"yes"``, ``"no"``). It returns
    ``(parameters [N, P], value [N])``, or the parameters alone. ``input_size`` is d, (C, H, W), or a dict of these. P is
    ``num_parameters``: the number of logits, or the action's dimension for a Gaussian (the policy adds ``log_std``, one
    number per dimension, unless ``state_dependent_std``), or twice that for a Beta.

    A Gaussian acts in [−1, 1], scaled to the finite bounds of the action space (:class:`~upslope.control.heads.Gaussian`);
    with ``scale_actions=False`` in the environment's units. The value is in normalized units inside the network and in the
    rewards' outside (:class:`~upslope.control.normalize.ValueScale`), unless ``normalize_value=False``.

    Dropout and batch statistics are always off, so that actions are drawn and scored with one distribution.
    ``seed`` fixes the initial weights of a network that is made here; the global random state is left alone.
    """

    takes_any_axes: ClassVar[bool] = False
    """whether the network takes inputs with any number of leading axes"""
    head: Head
    observation_normalizer: ObservationNormalizer | None
    reward_normalizer: RewardNormalizer | None
    value_scale: ValueScale | None

    def __init__(
        self,
        network: nn.Module | Callable[[Any, int], nn.Module],
        envs: Any,
        *,
        distribution: BoxDistribution = "gaussian",
        state_dependent_std: bool = False,
        log_std: float = -1.0,
        scale_actions: bool = True,
        epsilon: float | None = None,
        image: ImageChoice = "auto",
        normalize_observation: bool = False,
        normalize_reward: bool = False,
        normalize_value: bool = True,
        reward_gamma: float = 0.99,
        seed: int = 0,
    ) -> None:
        made_with = {name: value for name, value in locals().items() if name not in ("self", "network", "envs", "__class__")}
        super().__init__()
        self.options: dict[str, Any] = made_with
        self.observation_space, self.action_space = spaces_of(envs)
        self.encoder = Encoder(self.observation_space, image)
        self.head = head_for(self.action_space, distribution, epsilon, scaled=scale_actions)
        self._masked_by_observation = masked_by_observation(self.observation_space, self.action_space)
        with_log_std = isinstance(self.head, Gaussian) and not isinstance(self.head, Beta) and not state_dependent_std
        num_parameters = self.head.num_parameters // (2 if with_log_std else 1)
        if not isinstance(network, nn.Module):
            with fork_rng([]):
                torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which moves the GPUs' states too
                network = network(self.input_size, num_parameters)
        self.network = network
        # in a separate module, after the network, so that parameters() lists it last
        self.spread: Any = nn.ParameterDict({"log_std": torch.full((num_parameters,), float(log_std))}) if with_log_std else None
        if normalize_observation and not self.encoder.continuous.any():
            found = short(self.observation_space)
            raise UsageError(f"normalize_observation: nothing in {found} is a vector of real numbers; leave it off")
        self.observation_normalizer = ObservationNormalizer(self.encoder.continuous) if normalize_observation else None
        self.reward_normalizer = RewardNormalizer(reward_gamma) if normalize_reward else None
        self.value_scale = ValueScale() if normalize_value else None
        self._input = self.encoder.names[0] if len(self.encoder.names) == 1 else None
        self._axes = {name: 1 if name == "observation" else 3 for name in self.encoder.names}
        self._device = torch.device("cpu")
        self._find_device()
        super().train(False)
        self._check_network(num_parameters)

    @classmethod
    def for_envs(cls, envs: Any, **options: Any) -> Self:
        """The policy for these environments (or ``(observation_space, action_space)``)."""
        return cls(envs=envs, **options)

    # ------------------------------------------------------------------------------------------------------ construction

    @property
    def input_size(self) -> Any:
        """What the network takes: d for a vector, (C, H, W) for an image, a dict by input name where there are several."""
        images = self.encoder.images
        sizes = {name: images[name].shape if name in images else self.encoder.size for name in self.encoder.names}
        return sizes if len(sizes) > 1 else next(iter(sizes.values()))

    def _check_network(self, num_parameters: int) -> None:
        """Run the network once, so that a wrong shape is refused before the first step and not by a broadcast."""
        with torch.no_grad():
            parameters, value = self._network_on_zeros()
        name = f"network {type(self.network).__name__}"
        if not isinstance(parameters, Tensor) or tuple(parameters.shape) != (3, num_parameters):
            found = tuple(parameters.shape) if isinstance(parameters, Tensor) else type(parameters).__name__
            wanted = f"expected parameters of shape (N, {num_parameters}) for {short(self.action_space)}"
            raise UsageError(f"{name}: {wanted}, found {found} at N = 3")
        if value is not None and tuple(value.shape) != (3,):
            raise UsageError(f"{name}: expected a value of shape (N,), found {tuple(value.shape)} at N = 3: squeeze its last axis")

    def _network_on_zeros(self) -> tuple[Any, Any]:
        images = self.encoder.images
        zeros: dict[str, Tensor] = {}
        for name in self.encoder.names:
            image = images.get(name)
            shape, dtype = ((self.encoder.size,), np.float32) if image is None else (image.shape, image.dtype)
            zeros[name] = from_numpy(np.zeros((3, *shape), dtype)).to(self._device)
        output: Any = self.network(zeros if self._input is None else zeros[self._input])
        return output if isinstance(output, AnyTuple) else (output, None)

    @property
    def log_std(self) -> nn.Parameter | None:
        """The state-independent log standard deviation ``[A]``, where there is one."""
        return None if self.spread is None else self.spread.log_std

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: see the class."""
        return super().train(False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        module: Any = super()
        module._apply(fn, recurse)
        self._find_device()
        return self

    def _find_device(self) -> None:
        first = next(self.parameters(), None)
        self._device = torch.device("cpu") if first is None else first.device

    # ----------------------------------------------------------------------------------------------------- distributions

    def _run(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        """The head's parameters ``[*, P]`` and the value ``[*]``, in the units of the rewards."""
        given = inputs if self._input is None else inputs[self._input]
        parameters, value = self.network(given) if self.takes_any_axes else self._outputs(inputs)
        value = value if value is None or self.value_scale is None else self.value_scale(value)
        return parameters if self.spread is None else self._with_log_std(parameters), value

    def _outputs(self, inputs: Inputs) -> NetworkPair:
        """What the network says, which itself sees one leading axis."""
        lead: tuple[int, ...] = ()
        flat: dict[str, Tensor] = {}
        for name, axes in self._axes.items():
            tensor = inputs[name]
            split = tensor.dim() - axes
            lead = tuple(tensor.shape[:split])
            flat[name] = tensor if split == 1 else tensor.reshape(-1, *tensor.shape[split:])
        output: Tensor | NetworkPair = self.network(flat if self._input is None else flat[self._input])
        parameters, value = output if isinstance(output, tuple) else (output, None)
        if len(lead) != 1:
            parameters = parameters.reshape(*lead, parameters.shape[-1])
            value = None if value is None else value.reshape(lead)
        return parameters, value

    def _with_log_std(self, parameters: Tensor) -> Tensor:
        """A Gaussian's means with the log standard deviations beside them; the parameters of other heads as they are."""
        return parameters if self.spread is None else torch.cat([parameters, self.spread.log_std.expand_as(parameters)], -1)

    def _actor(self, inputs: Inputs) -> Tensor:
        return self._run(inputs)[0]

    @torch.no_grad()
    def value(self, inputs: Inputs) -> Tensor | None:
        """The critic's value of each state ``[*]``, without a gradient and without a draw; None without a critic."""
        return self._run(inputs)[1]

    @torch.no_grad()
    def sample(self, inputs: Inputs, *, generator: torch.Generator | None = None) -> Sample:
        """Draw an action for each row, with its log-probability and the state's value; no gradient."""
        (parameters, value), mask = self._run(inputs), inputs.get("action_mask")
        there = parameters.device if generator is None else generator.device  # so that policies on every device draw the same actions
        action = self.head.sample(parameters.to(there), generator, None if mask is None else mask.to(there)).to(parameters.device)
        return Sample(action=action, log_prob=self.head.log_prob(parameters, action, mask), value=value)

    def evaluate(self, **inputs: Tensor) -> Evaluation:
        """Score recorded actions: inputs as :meth:`inputs` made them, plus ``action``; each with the same leading axes."""
        (parameters, value), mask = self._run(inputs), inputs.get("action_mask")
        log_prob = self.head.log_prob(parameters, inputs["action"], mask)
        return Evaluation(log_prob=log_prob, entropy=self.head.entropy(parameters, mask), value=value)

    def forward(self, **inputs: Tensor) -> Evaluation:
        """Same as :meth:`evaluate`, by way of the module's hooks."""
        return self.evaluate(**inputs)

    def distribution(self, **inputs: Tensor) -> Distribution:
        return Distribution(self.head, self._actor(inputs), inputs.get("action_mask"))

    def action_values(self, **inputs: Tensor) -> Tensor:
        """q̂ of every action in each state ``[*, n]``; :class:`UsageError` for a policy that has preferences instead."""
        hint = "take a QCriticPolicy, or one with epsilon=0.1, which is ε-greedy in them"
        require(isinstance(self.head, EpsilonGreedy), f"policy: it has preferences and no action values; {hint}")
        return self._actor(inputs)

    # -------------------------------------------------------------------------------------------------------- the critic

    def follow_returns(self, returns: Tensor) -> None:
        """The critic's units follow the returns ``[N]`` that it is about to learn; every update calls this first."""
        if self.value_scale is not None:
            self.value_scale.follow(returns)

    def critic_parameters(self) -> tuple[nn.Parameter, ...]:
        """The parameters that only the critic has, which an update clips by themselves; none where it shares some with the actor.

        None either with ``normalize_value=False``: beside rewards of any size the critic then decides how far the actor goes.
        """
        if self.value_scale is None:
            return ()
        with torch.enable_grad():
            parameters, value = self._network_on_zeros()
            trainable = [p for p in self.network.parameters() if p.requires_grad]
            if value is None or not value.requires_grad or not parameters.requires_grad or not trainable:
                return ()
            by_actor: list[Tensor | None] = [*torch.autograd.grad(parameters.sum(), trainable, allow_unused=True, retain_graph=True)]
            by_critic: list[Tensor | None] = [*torch.autograd.grad(value.sum(), trainable, allow_unused=True)]
        reached = [(p, a is not None, c is not None) for p, a, c in zip(trainable, by_actor, by_critic, strict=True)]
        return () if any(a and c for _, a, c in reached) else tuple(p for p, _, c in reached if c)

    # -------------------------------------------------------------------------------------------------- raw observations

    def inputs(self, observation: Any, *, action_mask: Any = None, update: bool | Array = False) -> dict[str, Tensor]:
        """A batch of raw observations as the network's inputs; ``update`` first folds it (or those rows) into the running moments.

        ``action_mask``, unless given the observation's, ``[N, n]`` or ``[N, Σ nvec]``: UsageError for others, RunFault if nothing is legal.
        """
        encoded = self.encoder(observation) if self.observation_normalizer is None else self._normalized(observation, update)
        if action_mask is not None or self._masked_by_observation:
            given = self._observed_mask(observation) if action_mask is None else action_mask
            encoded["action_mask"] = self._legal(given, len(next(iter(encoded.values()))))
        tensors = {name: from_numpy(array) for name, array in encoded.items()}
        return tensors if self._device.type == "cpu" else {name: tensor.to(self._device) for name, tensor in tensors.items()}

    def _normalized(self, observation: Any, update: bool | Array) -> dict[str, Array]:
        encoded, normalizer = self.encoder(observation, np.float64), self.observation_normalizer
        if normalizer is not None:
            if update is not False:
                normalizer.update(encoded["observation"] if update is True else encoded["observation"][update])
            encoded["observation"] = normalizer(encoded["observation"])
        return encoded

    def _observed_mask(self, observation: Any) -> Array:
        mask = np.asarray(observation["action_mask"]) != 0
        mask[~ActionMasks(self.action_space, 1).has_legal(mask)] = True  # behind an end, where nothing is asked
        return mask

    def _legal(self, action_mask: Any, num_rows: int) -> Array:
        found, shape = short(self.action_space), (num_rows, self.head.num_parameters)
        require(self.head.masked, f"action_mask: needs a Discrete or MultiDiscrete action space, found {found}")
        if is_kind(action_mask, np.ndarray) and action_mask.dtype == object:  # one tuple of masks per environment
            action_mask = np.stack([np.concatenate([np.asarray(part) for part in row]) for row in action_mask])
        elif isinstance(action_mask, AnyTuple):
            action_mask = np.concatenate([np.asarray(part) for part in action_mask], axis=-1)
        mask = np.array(action_mask) != 0
        require(mask.shape == shape, f"action_mask: expected shape {shape}, found {mask.shape}")
        legal = ActionMasks(self.action_space, num_rows).has_legal(mask)
        if not legal.all():
            raise RunFault(f"action_mask: no action is legal in environment {int(legal.argmin())}: each state needs at least one")
        return mask

    @torch.no_grad()
    def act(
        self, observation: Any, *, greedy: bool = True, state: Any = None, action_mask: Any = None, generator: torch.Generator | None = None
    ) -> tuple[Any, Any]:
        """The environment's action for one observation or for a batch (its shape says which), and the state to pass back.

        ``greedy`` takes the mode; otherwise the action is drawn, from ``generator`` if given.
        """
        single = self.encoder.is_single(observation)
        if single:
            observation = self.encoder.batch(observation)
            if action_mask is not None:
                by_factor = isinstance(action_mask, AnyTuple)
                action_mask = tuple(np.asarray(m)[None] for m in action_mask) if by_factor else np.asarray(action_mask)[None]
        inputs = self.inputs(observation, action_mask=action_mask)
        vector = inputs.get("observation")
        require(vector is None or bool(vector.isfinite().all()), "observation: it holds a number that is not finite")
        mask = inputs.get("action_mask")
        if greedy:
            outputs = self._actor(inputs)
            action, hopeless = self.head.mode(outputs, mask), outputs.isneginf().all(-1) | outputs.isnan().any(-1)
        else:
            sample = self.sample(inputs, generator=generator)
            action, hopeless = sample.action, sample.log_prob.isnan()
        if bool(hopeless.any()):
            what = "its network gives no action a probability (every output is −∞, or one is NaN)"
            raise RunFault(f"policy: {what}; leave one possible in every state")
        array = self.head.to_env(action)
        if not single:
            return array, state
        return (np.asarray(array[0]) if isinstance(self.head, Gaussian) else array[0]), state

    def frozen(self) -> Self:
        """A copy that does not learn: no gradients, normalizers that take in nothing."""
        other = copy.deepcopy(self).requires_grad_(False)
        for normalizer in (other.observation_normalizer, other.reward_normalizer):
            if normalizer is not None:
                normalizer.moments.frozen = True
        return other

    # ------------------------------------------------------------------------------------------------------- description

    def describe(self) -> dict[str, Any]:
        """What :func:`policy_from_description` needs to build this policy again, weights apart: plain JSON values."""
        maker = type(self.network)
        network = {"network": f"{maker.__module__}:{maker.__qualname__}"} if type(self) is ActorCritic else {}
        spaces = {"observation_space": space_to_json(self.observation_space), "action_space": space_to_json(self.action_space)}
        return {"class": type(self).__name__, **spaces, **network, **self.options}
