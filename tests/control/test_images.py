"""What an observation is taken for: images, grids of codes, numbers; as the encoder, the networks, the plan and a saved policy say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.control.worlds import Masked
from upslope import PPO, Ascent, control, train
from upslope.control.images import Image, is_grid, is_image
from upslope.control.networks import read_image
from upslope.control.policy import policy_from_description
from upslope.control.probes import Probe
from upslope.control.spaces import Encoder
from upslope.errors import UsageError
from upslope.run.control_report import observing

ACTIONS = spaces.Discrete(2)


def box(low: float, high: float, *shape: int, dtype: Any = np.float32) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


def bytes_of(*shape: int, high: int = 255) -> spaces.Box:
    return box(0, high, *shape, dtype=np.uint8)


IMAGES = {
    "Atari, frames first": (bytes_of(4, 84, 84), (4, 84, 84)),
    "Atari, frames last": (bytes_of(84, 84, 4), (4, 84, 84)),
    "gray": (bytes_of(84, 84), (1, 84, 84)),
    "stacked colors": (bytes_of(4, 84, 84, 3), (12, 84, 84)),
    "small": (bytes_of(16, 16, 3), (3, 16, 16)),
    "a large grid of codes": (bytes_of(25, 25, 3, high=10), (3, 25, 25)),
    "a large grid of int64": (box(0, 9, 20, 20, dtype=np.int64), (1, 20, 20)),
    "planes of a board, too many to spell out": (bytes_of(8, 8, 119), (119, 8, 8)),
    "planes first": (bytes_of(119, 8, 8), (119, 8, 8)),
    "not square": (bytes_of(60, 80, 3), (3, 60, 80)),
    "not square, channels first": (bytes_of(3, 60, 80), (3, 60, 80)),
    "floats": (box(0, 1, 40, 40, 3), (3, 40, 40)),
    "float64": (box(0, 1, 3, 40, 40, dtype=np.float64), (3, 40, 40)),
    "floats to 255": (box(0, 255, 40, 40, 3), (3, 40, 40)),
    "unbounded floats": (box(-np.inf, np.inf, 64, 64, 3), (3, 64, 64)),
    "gray floats": (box(0, 1, 40, 40), (1, 40, 40)),
}
GRIDS = {
    "MiniGrid": (bytes_of(7, 7, 3), 147 * 18),
    "declared codes": (bytes_of(7, 7, 3, high=10), 147 * 11),
    "int32": (box(0, 4, 5, 5, dtype=np.int32), 25 * 5),
    "many codes": (box(0, 999, 5, 5, dtype=np.int64), 25 * 18),
    "from 1": (box(1, 3, 2, 2, dtype=np.int64), 4 * 3),
}
NUMBERS = {
    "vector": (box(-1, 1, 3), 3),
    "an emulator's memory": (bytes_of(128), 128),
    "a few codes": (box(0, 10, 5, dtype=np.int32), 5),
    "bits": (bytes_of(5, 5, high=1), 25),
    "matrix": (box(-1, 1, 3, 4), 12),
    "a window of prices": (box(-np.inf, np.inf, 30, 20), 600),
    "integers without bounds": (box(-(2**60), 2**60, 20, 20, dtype=np.int64), 400),
    "a small grid of floats": (box(0, 1, 8, 8, 3), 192),
    "five axes": (bytes_of(2, 2, 20, 20, 3), 4800),
    "no channel axis": (box(-1, 1, 30, 16, 20), 9600),
}


@pytest.mark.parametrize("space, shape", IMAGES.values(), ids=IMAGES)
def test_images(space: spaces.Box, shape: tuple[int, ...]) -> None:
    assert is_image(space) and Encoder(space).images["image"].shape == shape
    assert not is_image(space, "no") and not Encoder(space, "no").images
    policy = control.policy_for((space, ACTIONS), hidden_sizes=(4,))
    assert isinstance(policy, control.CNNPolicy)
    policy.act(space.sample())


@pytest.mark.parametrize("space, size", [*GRIDS.values(), *NUMBERS.values()], ids=[*GRIDS, *NUMBERS])
def test_grids_and_numbers(space: spaces.Box, size: int) -> None:
    encoder = Encoder(space)
    assert not encoder.images and encoder.size == size
    assert is_grid(space) == any(space is grid for grid, _ in GRIDS.values())
    assert is_image(space, "yes") == (2 <= len(space.shape) <= 4)
    assert encoder(space.sample()[None])["observation"].shape == (1, size)


def test_codes_are_told_apart_and_stay_intensities() -> None:
    grid = np.zeros((1, 2, 2), np.uint8)
    grid[0] = [[0, 3], [15, 255]]
    vector = Encoder(bytes_of(2, 2))(grid)["observation"].reshape(4, 18)
    one = np.sqrt(17).astype(np.float32)
    expected = np.zeros((4, 18), np.float32)
    expected[[0, 1, 2, 3], [0, 3, 15, 16]] = one  # 16: all above 15
    expected[:, 17] = grid.reshape(-1) / np.float32(255)
    np.testing.assert_allclose(vector, expected, rtol=1e-6)
    np.testing.assert_allclose(np.square(vector[:, :17]).mean(1), 1, rtol=1e-6)
    declared = Encoder(box(1, 3, 2, 2, dtype=np.int64))(np.array([[[1, 2], [3, 3]]]))["observation"].reshape(4, 3)
    np.testing.assert_allclose(declared, np.eye(3)[[0, 1, 2, 2]] * np.sqrt(3), rtol=1e-6)


READ = [bytes_of(7, 5, 3), bytes_of(7, 5, 3, high=10), box(2, 6, 7, 5, 3, dtype=np.int32), bytes_of(7, 5, 3, high=1)]


@pytest.mark.parametrize("space", READ)
def test_convolutions_read_what_flattening_reads(space: spaces.Box) -> None:
    batch = np.stack([space.sample() for _ in range(4)])
    image = Encoder(space, "yes")
    encoded = torch.from_numpy(image(batch)["image"])
    assert encoded.dtype == torch.uint8
    found = image.images["image"].reading
    assert found is not None
    planes = read_image(encoded, found).reshape(4, 3, -1, 7, 5) if found.ones == 0 else None
    if planes is None:
        parts = read_image(encoded, found)
        share, codes = (parts[:, :3], parts[:, 3:]) if found.share else (None, parts)
        planes = codes.reshape(4, 3, found.ones, 7, 5)
        planes = planes if share is None else torch.cat([planes, share.unsqueeze(2)], 2)
    flat = Encoder(space)(batch)["observation"].reshape(4, 7, 5, 3, -1)
    np.testing.assert_allclose(planes.permute(0, 3, 4, 1, 2).numpy(), flat, rtol=1e-6)


def test_large_bytes_are_intensities_only() -> None:
    found = Image.of(bytes_of(84, 84, 3)).reading
    assert found is not None and (found.ones, found.share) == (0, True)
    np.testing.assert_allclose(read_image(torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8), found), [[[[0, 0.2, 1]]]], rtol=1e-6)


@pytest.mark.parametrize("low, high, scaled", [(0, 1, 0.5), (-1, 1, 0.5), (0, 255, 0.5 / 255), (-2, 2, 0.625), (-np.inf, np.inf, 0.5)])
def test_floats_are_scaled_where_their_bounds_are_wide(low: float, high: float, scaled: float) -> None:
    encoded = Encoder(box(low, high, 40, 40, 3))(np.full((1, 40, 40, 3), 0.5, np.float32))["image"]
    assert encoded.dtype == np.float32 and encoded.shape == (1, 3, 40, 40)
    np.testing.assert_allclose(encoded, scaled, rtol=1e-6)


@pytest.mark.parametrize("space", [box(1, 3, 2, 2, dtype=np.int64), bytes_of(20, 20, high=9)])
def test_what_a_space_does_not_hold_is_not_taken_for_another_code(space: spaces.Box) -> None:
    for wrong in {int(space.low.min()) - 1, int(space.high.max()) + 1} - {-1}:
        with pytest.raises(UsageError, match=rf"observation: found {wrong}, its space holds"):
            Encoder(space)(np.full((1, *space.shape), wrong, space.dtype))


def test_the_choice_is_checked() -> None:
    with pytest.raises(UsageError, match="unknown image 'yess': did you mean 'yes'"):
        control.MLPPolicy.for_envs((box(-1, 1, 3), ACTIONS), image="yess")
    with pytest.raises(UsageError, match=r"image: nothing in Box.* has 2 to 4 axes"):
        control.policy_for((box(-1, 1, 3), ACTIONS), image="yes")


def test_parts_of_a_dict_are_taken_each_for_itself() -> None:
    space = spaces.Dict(camera=box(0, 1, 40, 40, 3), grid=bytes_of(3, 3), x=box(-1, 1, 2), bits=bytes_of(4, high=1))
    encoder = Encoder(space)
    assert list(encoder.images) == ["image/camera"] and encoder.size == 9 * 18 + 2 + 4
    assert encoder.continuous.sum() == 2  # neither codes nor bits are normalized
    assert encoder.description() == (
        "bits 4 numbers; camera an image, 3 × 40 × 40 (channels, height, width), numbers as they are; "
        "grid a grid of 3 × 3 codes, below 16 distinguished, and divided by 255 (162 numbers); x 2 numbers"
    )
    assert Encoder(space.spaces["x"]).description() is None


@pytest.mark.parametrize("image", ["auto", "yes", "no"])
def test_a_saved_policy_takes_observations_as_it_did(image: Any) -> None:
    space = spaces.Dict(camera=bytes_of(20, 20, 3), grid=bytes_of(3, 3))
    policy = control.policy_for((space, ACTIONS), image=image, hidden_sizes=(4,), seed=3)
    again = policy_from_description(policy.describe())
    again.load_state_dict(policy.state_dict())
    assert again.encoder.names == policy.encoder.names
    batch = policy.inputs({key: np.stack([part.sample() for _ in range(8)]) for key, part in space.spaces.items()})
    torch.testing.assert_close(again.distribution(**batch).parameters, policy.distribution(**batch).parameters, rtol=0, atol=0)


def test_a_policy_saved_before_there_was_a_choice_is_what_it_was() -> None:
    sizes = [(bytes_of(20, 20, 3), (3, 20, 20)), (bytes_of(7, 7, 3), 147), (box(0, 1, 40, 40, 3), 4800), (bytes_of(20, 20, high=9), 400)]
    for space, size in sizes:
        kind = control.CNNPolicy if isinstance(size, tuple) else control.MLPPolicy
        description = kind.for_envs((space, ACTIONS), image="bytes").describe()
        del description["image"]
        policy = policy_from_description(description)
        assert type(policy) is kind and policy.input_size == size
    bright = policy_from_description(control.CNNPolicy.for_envs((bytes_of(20, 20, 3), ACTIONS), image="bytes").describe())
    assert bright.encoder.images["image"].reading is not None and bright.encoder.images["image"].reading.width == 1
    flat = Encoder(bytes_of(7, 7, 3), "bytes")(np.full((1, 7, 7, 3), 51, np.uint8))["observation"]
    np.testing.assert_allclose(flat, 0.2, rtol=1e-6)


def plan_of(space: spaces.Space[Any], observation: Any, **options: Any) -> list[str]:
    envs = SimpleNamespace(observation=observation, action_mask=None)
    return observing(envs, control.policy_for((space, ACTIONS), **options))


def test_the_plan_says_what_is_taken_for_what() -> None:
    (line,) = plan_of(box(0, 1, 40, 40, 3), np.zeros((1, 40, 40, 3), np.float32))
    assert line == (
        "observation: an image, 3 × 40 × 40 (channels, height, width), numbers as they are; --image yes or no takes it otherwise"
    )
    (line,) = plan_of(box(0, 1, 40, 40, 3), np.zeros((1, 40, 40, 3), np.float32), image="no")
    assert line == "observation: 4,800 numbers (40 × 40 × 3, flattened); --image auto or yes takes it otherwise"
    assert plan_of(box(-1, 1, 3), np.zeros((1, 3), np.float32)) == plan_of(bytes_of(128), np.zeros((1, 128), np.uint8)) == []


@pytest.mark.parametrize(
    "space", [space for space, _ in (*IMAGES.values(), *GRIDS.values(), *NUMBERS.values())], ids=[*IMAGES, *GRIDS, *NUMBERS]
)
@pytest.mark.parametrize("image", ["auto", "yes", "no"])
def test_there_is_a_plan_for_every_box(space: spaces.Box, image: str) -> None:
    if image != "yes" or 2 <= len(space.shape) <= 4:
        envs = SimpleNamespace(observation=space.sample()[None], action_mask=None)
        policy = SimpleNamespace(encoder=Encoder(space, image), options={"image": image}, observation_normalizer=None)
        assert all(isinstance(line, str) for line in observing(envs, policy))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64, np.float16, np.float64])
@pytest.mark.parametrize("shape", [(), (1,), (2,), (3, 3), (20, 20, 3)])
def test_there_is_a_plan_for_every_dtype(dtype: type, shape: tuple[int, ...]) -> None:
    plan_of(box(0, 100, *shape, dtype=dtype), np.full((1, *shape), 3, dtype), hidden_sizes=(4,))


def test_the_plan_says_that_bytes_are_hardly_any_intensities() -> None:
    codes = np.array([[0, 2, 1]], np.uint8)
    (line,) = plan_of(bytes_of(3), codes)
    assert line.startswith("the observation holds bytes up to 2, which are divided by 255") and line.endswith("--normalize-observation")
    assert plan_of(bytes_of(3), codes, normalize_observation=True) == plan_of(bytes_of(3), 100 * codes) == []


def test_the_plan_says_that_numbers_are_small() -> None:
    unbounded, small = box(-np.inf, np.inf, 2), np.array([[0.0, -1e-4]], np.float32)
    (line,) = plan_of(unbounded, small)
    assert line == "the observation holds numbers of at most 0.0001, and nothing scales them: --normalize-observation does"
    assert plan_of(unbounded, small, normalize_observation=True) == plan_of(box(-1, 1, 2), small) == plan_of(unbounded, 100 * small) == []


def test_the_plan_says_that_numbers_are_large() -> None:
    unbounded, large = box(-np.inf, np.inf, 2), np.array([[0.5, -12345]], np.float32)
    (line,) = plan_of(unbounded, large)
    assert line == "the observation holds numbers up to 12,345, and nothing scales them: --normalize-observation does"
    assert plan_of(unbounded, large, normalize_observation=True) == []
    (line,) = plan_of(box(0, 1000, 2), np.zeros((1, 2), np.float32))
    assert "up to 1,000" in line
    assert plan_of(unbounded, np.zeros((1, 2), np.float32)) == plan_of(box(-4.8, 3.4e38, 2), np.zeros((1, 2), np.float32)) == []


def test_the_plan_says_that_an_image_is_not_what_its_space_says() -> None:
    bright = np.full((1, 20, 20, 3), 200, np.float32)
    for high in (1, np.inf):
        _, line = plan_of(box(0, high, 20, 20, 3), bright)
        assert line.startswith("an image holds numbers up to 200 where its space promises at most 1 or nothing")
    assert len(plan_of(box(0, 255, 20, 20, 3), bright)) == 1


def test_the_plan_says_where_masks_come_from() -> None:
    for convention, source in (("info", 'info["action_mask"]'), ("method", "action_masks()")):
        with control.make(Masked, 2, env_kwargs={"convention": convention}) as envs:
            envs.reset()
            assert observing(envs, control.policy_for(envs)) == [f"only legal actions are taken, by the environment's {source}"]


class Codes(Probe):
    """The middle of a MiniGrid-like image says which action pays."""

    num_actions = 2

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = bytes_of(7, 7, 3)

    def seen(self) -> Any:
        image = np.full((7, 7, 3), [1, 0, 0], np.uint8)
        image[3, 3, 0] = self.code = 1 + int(self.np_random.integers(2))
        return image

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.seen(), {}

    def step(self, action: Any) -> Any:
        reward = float(action == self.code - 1)
        return self.seen(), reward, True, False, {}


def test_codes_in_a_byte_image_are_learned_from() -> None:
    envs = control.make(Codes, 8, seed=0)
    policy = control.MLPPolicy.for_envs(envs, hidden_sizes=(32,), seed=0)
    train(PPO(update=Ascent(num_epochs=4, num_minibatches=4)), policy, control.Steps(envs, 64), iterations=10, seed=0)
    assert control.evaluate(policy, Codes, episodes=40).return_mean == 1.0
