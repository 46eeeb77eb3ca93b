"""Networks: from encoded observations to a head's parameters and a value.

Everything here draws its initial weights from an explicit generator: the same seed gives the same network, and
PyTorch's global random state is neither read nor moved.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from upslope.control.images import NATURE_SIDE, Image, Reading
from upslope.errors import UsageError, unknown
from upslope.typed import fork_rng

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"elu": nn.ELU, "gelu": nn.GELU, "leaky_relu": nn.LeakyReLU, "relu": nn.ReLU}
ACTIVATIONS.update(sigmoid=nn.Sigmoid, silu=nn.SiLU, tanh=nn.Tanh)


def check_sizes(hidden_sizes: Iterable[Any] | int) -> tuple[int, ...]:
    sizes = tuple(hidden_sizes) if isinstance(hidden_sizes, Iterable) else (hidden_sizes,)
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
        raise UsageError(f"hidden_sizes: expected positive integers, found {list(sizes)}")
    return sizes


def linear(inputs: int, outputs: int, gain: float, generator: torch.Generator) -> nn.Linear:
    return orthogonal(partial(nn.Linear, inputs, outputs), gain, generator)


def orthogonal(make: Callable[[], Layer], gain: float, generator: torch.Generator) -> Layer:
    # not nn.utils.skip_init: it spares these few draws and imports PyTorch's decompositions, 0.3 s
    with fork_rng([]):
        layer = make()
    nn.init.orthogonal_(layer.weight, gain, generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def mlp(
    inputs: int, hidden_sizes: Sequence[int], outputs: int, activation: str, output_gain: float, generator: torch.Generator
) -> nn.Sequential:
    """``Linear, activation, …, Linear``: hidden layers with gain √2, the output layer with ``output_gain``."""
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    layers: list[nn.Module] = []
    for size in hidden_sizes:
        layers += [linear(inputs, size, math.sqrt(2), generator), ACTIVATIONS[activation]()]
        inputs = size
    return nn.Sequential(*layers, linear(inputs, outputs, output_gain, generator))


class MLP(nn.Module):
    """Two separate multilayer perceptrons on ``observation [*, d]``: the actor, and the critic unless it has no outputs."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        critic_outputs: int = 1,
        *,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "tanh",
        critic_gain: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.actor = mlp(inputs, hidden_sizes, outputs, activation, 0.01, generator)
        self.critic = mlp(inputs, hidden_sizes, critic_outputs, activation, critic_gain, generator) if critic_outputs else None

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.actor(observation), None if self.critic is None else self.critic(observation).squeeze(-1)


def image_trunk(shape: tuple[int, int, int], generator: torch.Generator) -> nn.Sequential:
    """Convolutions for an image (channels, height, width), ending flat: the Nature network, or a smaller one below 36 pixels.

    Source: Mnih et al. 2015, Methods: 32 8×8 stride 4, 64 4×4 stride 2, 64 3×3 stride 1.
    """
    channels, height, width = shape
    nature, small = [(32, 8, 4, 0), (64, 4, 2, 0), (64, 3, 1, 0)], [(32, 3, 2, 1), (64, 3, 2, 1), (64, 3, 1, 1)]
    plan = nature if min(height, width) >= NATURE_SIDE else small
    layers: list[nn.Module] = []
    for outputs, size, stride, padding in plan:
        make = partial(nn.Conv2d, channels, outputs, size, stride=stride, padding=padding)
        layers += [orthogonal(make, math.sqrt(2), generator), nn.ReLU()]
        channels = outputs
    return nn.Sequential(*layers, nn.Flatten())


def trunk_size(shape: tuple[int, int, int], trunk: nn.Sequential) -> int:
    """Length of what :func:`image_trunk` gives, without running it."""
    _, height, width = shape
    channels = 0
    for layer in trunk:
        if isinstance(layer, nn.Conv2d):
            kernel, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
            height, width = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
            channels = layer.out_channels
    return channels * height * width


def read_image(image: Tensor, reading: Reading | None) -> Tensor:
    """An encoded image ``[N, C, H, W]`` as the numbers that a convolution takes, ``[N, C · width, H, W]``."""
    if reading is None:
        return image
    parts = [image.float() / (reading.span - 1)] if reading.share else []
    if reading.ones:
        index = image.clamp(max=reading.ones - 1).unsqueeze(2)
        codes = torch.arange(reading.ones, dtype=image.dtype, device=image.device).reshape(-1, 1, 1)
        parts.append((index == codes).flatten(1, 2) * reading.one)
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


class CNN(nn.Module):
    """One trunk for actor and critic: each image through convolutions, joined with the vector part, a ReLU layer or more, two heads.

    Takes images ``[*, C, H, W]`` as :mod:`upslope.control.images` encodes them, float32 or uint8 (read here: divided by the largest
    number, and one-hot where codes are distinguished), and, where ``vector_size`` is not 0, ``observation [*, d]``.
    """

    def __init__(
        self,
        images: Mapping[str, Image],
        vector_size: int,
        outputs: int,
        *,
        hidden_sizes: Sequence[int] = (512,),
        critic: bool = True,
        critic_gain: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.names = tuple(images)
        self.vector_size = vector_size
        self.readings = [image.reading for image in images.values()]
        shapes = [(c * (1 if read is None else read.width), h, w) for ((c, h, w), read, *_) in images.values()]
        trunks = [image_trunk(shape, generator) for shape in shapes]
        self.trunks = nn.ModuleList(trunks)
        size = vector_size + sum(trunk_size(shape, trunk) for shape, trunk in zip(shapes, trunks, strict=True))
        layers: list[nn.Module] = []
        for hidden in hidden_sizes:
            layers += [linear(size, hidden, math.sqrt(2), generator), nn.ReLU()]
            size = hidden
        self.joined = nn.Sequential(*layers)
        self.actor = linear(size, outputs, 0.01, generator)
        self.critic = linear(size, 1, critic_gain, generator) if critic else None

    def features(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        named = {self.names[0]: inputs} if isinstance(inputs, Tensor) else inputs
        parts = [named["observation"]] if self.vector_size else []
        for name, reading, trunk in zip(self.names, self.readings, self.trunks, strict=True):
            image = named[name]
            parts.append(trunk(read_image(image.reshape(-1, *image.shape[-3:]), reading)).reshape(*image.shape[:-3], -1))
        return self.joined(torch.cat(parts, -1) if len(parts) > 1 else parts[0])

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        features = self.features(inputs)
        return self.actor(features), None if self.critic is None else self.critic(features).squeeze(-1)
