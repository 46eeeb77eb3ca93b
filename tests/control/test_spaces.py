"""Spaces: as JSON and back, and observations as tensors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from upslope.control.images import image_shape
from upslope.control.spaces import Encoder, space_from_json, space_to_json, spaces_of
from upslope.errors import UsageError


def pixels(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


SPACES: dict[str, spaces.Space[Any]] = {
    "vector": spaces.Box(-1, 1, (4,)),
    "unbounded": spaces.Box(-np.inf, np.inf, (3,), np.float64),
    "uneven bounds": spaces.Box(np.float32([-np.inf, 0.1, -3e38]), np.float32([0.3, np.inf, 1 / 3])),
    "half bounded": spaces.Box(0, np.inf, (2,)),
    "scalar": spaces.Box(-1, 1, ()),
    "matrix": spaces.Box(-1, 1, (2, 3)),
    "integers": spaces.Box(-5, 9, (2,), np.int64),
    "bytes": pixels(8),
    "image": pixels(36, 40, 3),
    "channels first": pixels(4, 36, 40),
    "gray": pixels(20, 18),
    "frames": pixels(4, 18, 20, 3),
    "float image": spaces.Box(0, 1, (20, 18, 3)),
    "float image to 255": spaces.Box(0, 255, (3, 20, 18)),
    "codes": pixels(5, 5, 3),
    "declared codes": spaces.Box(0, 4, (4, 3), np.int32),
    "screen of codes": spaces.Box(1, 6, (20, 20), np.int64),
    "bits": spaces.Box(0, 1, (3, 3), np.int8),
    "discrete": spaces.Discrete(5),
    "discrete from -3": spaces.Discrete(5, start=-3),
    "discrete of int32": spaces.Discrete(4, dtype=np.int32),
    "multi-discrete": spaces.MultiDiscrete([3, 2, 4]),
    "multi-discrete with start": spaces.MultiDiscrete([3, 2], start=[-1, 10]),
    "multi-discrete matrix": spaces.MultiDiscrete(np.array([[3, 2], [2, 4]])),
    "multi-binary": spaces.MultiBinary(4),
    "multi-binary matrix": spaces.MultiBinary([2, 3]),
    "dict": spaces.Dict(b=spaces.Box(-1, 1, (2,)), a=spaces.Discrete(3)),
    "tuple": spaces.Tuple([spaces.MultiBinary(2), spaces.Box(-1, 1, (2,))]),
    "nested": spaces.Dict(
        camera=pixels(36, 36, 3),
        inner=spaces.Tuple([spaces.Discrete(3, start=1), spaces.Dict(x=spaces.Box(-1, 1, (2,)), gray=pixels(20, 20))]),
    ),
}


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> spaces.Space[Any]:
    return SPACES[request.param]


def batch_of(space: spaces.Space[Any], count: int, seed: int = 0) -> tuple[list[Any], Any]:
    """Single observations, and the batch that a vector environment would make of them."""
    space.seed(seed)
    singles = [space.sample() for _ in range(count)]

    def stack(part: spaces.Space[Any], items: list[Any]) -> Any:
        if isinstance(part, spaces.Dict):
            return {key: stack(sub, [item[key] for item in items]) for key, sub in part.spaces.items()}
        if isinstance(part, spaces.Tuple):
            return tuple(stack(sub, [item[i] for item in items]) for i, sub in enumerate(part.spaces))
        return np.stack(items)

    batch = stack(space, singles)
    assert batch_space(space, count).contains(batch)
    return singles, batch


# -------------------------------------------------------------------------------------------------------------------- JSON


def test_json_gives_an_equal_space(space: spaces.Space[Any]) -> None:
    text = json.dumps(space_to_json(space), allow_nan=False)
    again = space_from_json(json.loads(text))
    assert again == space
    assert again.dtype == space.dtype
    assert len(text) < 1000  # an image's bounds are two numbers, not ten thousand


def test_bounds_are_exact() -> None:
    space = spaces.Box(np.float32([0.1, -np.inf, -3e38]), np.float32([np.inf, 1 / 3, 1]))
    again = space_from_json(json.loads(json.dumps(space_to_json(space))))
    assert isinstance(again, spaces.Box)
    assert (again.low == space.low).all() and (again.high == space.high).all()
    assert (again.bounded_below == space.bounded_below).all() and (again.bounded_above == space.bounded_above).all()


DAMAGED = [
    {},
    {"type": "Boxx"},
    {"type": "Box", "low": 0, "high": 1, "shape": [2]},
    {"type": "Box", "low": [0, 0, 0], "high": 1, "shape": [2], "dtype": "float32"},
    {"type": "Box", "low": "zero", "high": 1, "shape": [2], "dtype": "float32"},
    {"type": "Box", "low": 0, "high": 1, "shape": [2], "dtype": "float33"},
    {"type": "Discrete", "n": -1, "start": 0, "dtype": "int64"},
    {"type": "Dict", "spaces": [["a", {"type": "Text"}]]},
    {"type": "Tuple", "spaces": 3},
    {"type": "MultiBinary", "n": None},
    [],
]


@pytest.mark.parametrize("data", DAMAGED, ids=str)
def test_a_damaged_description_is_one_line(data: Any) -> None:
    with pytest.raises(UsageError) as error:
        space_from_json(data)
    assert "space description" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "space",
    [spaces.Text(3), spaces.Sequence(spaces.Discrete(2)), spaces.Dict(a=spaces.Text(3)), spaces.OneOf([spaces.Discrete(2)])],
    ids=str,
)
def test_what_is_not_supported_is_said_in_one_line(space: spaces.Space[Any]) -> None:
    for use in (Encoder, space_to_json):
        with pytest.raises(UsageError, match="supported are Box, Discrete, MultiDiscrete, MultiBinary") as error:
            use(space)
        assert "\n" not in str(error.value)


def test_an_empty_observation_is_refused() -> None:
    for space in (spaces.Dict({}), spaces.Box(0, 1, (0,))):
        with pytest.raises(UsageError, match="holds no numbers"):
            Encoder(space)


# ---------------------------------------------------------------------------------------------------------------- encoding


def test_a_batch_is_its_rows(space: spaces.Space[Any]) -> None:
    encoder = Encoder(space)
    singles, batch = batch_of(space, 4)
    together = encoder(batch)
    assert tuple(together) == encoder.names
    for name, array in together.items():
        image = encoder.images.get(name)
        assert array.dtype == (np.float32 if image is None else image.dtype)
        assert array.shape == (4, *((encoder.size,) if image is None else image.shape))
        assert array.flags["C_CONTIGUOUS"]
        apart = np.concatenate([encoder(encoder.batch(single))[name] for single in singles])
        np.testing.assert_array_equal(array, apart)


OTHERWISE = ("bytes", "multi-binary matrix", "codes", "declared codes")


@pytest.mark.parametrize("name", [name for name, space in SPACES.items() if not Encoder(space).images and name not in OTHERWISE])
def test_the_vector_is_gymnasium_s_flattening(name: str) -> None:
    space = SPACES[name]
    if isinstance(space, spaces.Dict):
        space = spaces.Dict([(key, space[key]) for key in sorted(space)])
    singles, batch = batch_of(space, 5)
    wanted = np.stack([spaces.flatten(space, single) for single in singles])
    np.testing.assert_array_equal(Encoder(space)(batch)["observation"], wanted.astype(np.float32))


def test_the_order_of_a_dict_s_keys_does_not_matter() -> None:
    parts = SPACES["dict"].spaces  # pyright: ignore[reportAttributeAccessIssue]
    one, other = (Encoder(spaces.Dict([(key, parts[key]) for key in keys])) for keys in ("ab", "ba"))
    _, batch = batch_of(SPACES["dict"], 3)
    np.testing.assert_array_equal(one(batch)["observation"], other(batch)["observation"])


def test_encoded_arrays_share_nothing_with_the_environment(space: spaces.Space[Any]) -> None:
    """Environments may write the next observation into the same array."""
    encoder = Encoder(space)
    _, batch = batch_of(space, 3)
    leaves = [leaf.of(batch) for leaf in encoder.leaves]
    for array in encoder(batch).values():
        assert not any(np.shares_memory(array, leaf) for leaf in leaves)


def test_rows_are_contiguous_whatever_the_environment_s_order() -> None:
    """Gymnasium's vector CartPole gives a transposed array."""
    batch = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    encoded = Encoder(SPACES["vector"])(batch)["observation"]
    assert encoded.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(encoded, batch)


def test_single_and_batch_are_told_apart(space: spaces.Space[Any]) -> None:
    encoder = Encoder(space)
    singles, batch = batch_of(space, 3)
    assert encoder.is_single(singles[0]) is True
    assert encoder.is_single(batch) is False


def test_one_hots_count_from_start() -> None:
    vector = Encoder(spaces.Discrete(3, start=-1))(np.array([-1, 0, 1]))["observation"]
    np.testing.assert_array_equal(vector, np.eye(3))
    vector = Encoder(spaces.MultiDiscrete([2, 3], start=[5, 0]))(np.array([[6, 0], [5, 2]]))["observation"]
    np.testing.assert_array_equal(vector, [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]])


def test_bytes_are_scaled_to_one() -> None:
    vector = Encoder(pixels(3))(np.uint8([[0, 51, 255]]))["observation"]
    np.testing.assert_array_equal(vector, np.float32([[0, 0.2, 1]]))
    codes = Encoder(spaces.Box(0, 9, (3,), np.uint8))(np.uint8([[0, 5, 9]]))["observation"]  # codes, not intensities
    np.testing.assert_array_equal(codes, [[0, 5, 9]])


def test_only_real_numbers_count_as_continuous() -> None:
    encoder = Encoder(spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(-1, 1, (3,)), c=spaces.MultiBinary(1)))
    assert encoder.continuous.tolist() == [False, False, True, True, True, False]


def test_channels_come_first_and_frames_become_channels() -> None:
    assert image_shape((84, 90, 3)) == (3, 84, 90) and image_shape((4, 84, 90)) == (4, 84, 90)
    assert image_shape((84, 90)) == (1, 84, 90) and image_shape((4, 84, 90, 3)) == (12, 84, 90)
    image = np.random.default_rng(0).integers(0, 256, (2, 20, 18, 3), np.uint8)
    encoded = Encoder(pixels(20, 18, 3))(image)["image"]
    for channel in range(3):
        np.testing.assert_array_equal(encoded[:, channel], image[..., channel])
    stack = np.random.default_rng(0).integers(0, 256, (2, 4, 20, 18, 3), np.uint8)
    encoded = Encoder(pixels(4, 20, 18, 3))(stack)["image"]
    for frame in range(4):
        for channel in range(3):
            np.testing.assert_array_equal(encoded[:, 3 * frame + channel], stack[:, frame, ..., channel])


def test_nested_images_are_named_by_their_path() -> None:
    encoder = Encoder(SPACES["nested"])
    assert encoder.names == ("observation", "image/camera", "image/inner/1/gray")
    shapes = {name: image.shape for name, image in encoder.images.items()}
    assert shapes == {"image/camera": (3, 36, 36), "image/inner/1/gray": (1, 20, 20)}
    assert encoder.size == 5


@pytest.mark.parametrize("found", [np.zeros((3, 5)), np.zeros(5), np.zeros((2, 3, 4)), 1.0, np.zeros((4, 1)), None])
def test_wrong_shapes_are_refused(found: Any) -> None:
    encoder = Encoder(spaces.Box(-1, 1, (4,)))
    with pytest.raises(UsageError, match="observation"):
        encoder.is_single(found)
    if np.shape(found) != (4,):
        with pytest.raises((UsageError, TypeError)):
            encoder(found)


def test_a_wrong_part_is_named() -> None:
    encoder = Encoder(SPACES["nested"])
    _, batch = batch_of(SPACES["nested"], 3)
    batch["inner"][1]["x"] = np.zeros((3, 7))
    with pytest.raises(UsageError, match=r"observation\['inner'\]\[1\]\['x'\]"):
        encoder(batch)
    with pytest.raises(UsageError, match="observation: expected one of Dict"):
        encoder.is_single(np.zeros(3))


# ----------------------------------------------------------------------------------------------------------- where from


def test_spaces_come_from_environments_or_pairs() -> None:
    import gymnasium

    pair = (spaces.Box(-1, 1, (4,)), spaces.Discrete(2))
    assert spaces_of(pair) == pair
    single, vector = gymnasium.make("CartPole-v1"), gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    assert spaces_of(vector) == spaces_of(single) == (single.observation_space, single.action_space)
    for wrong in (3, (1, 2), None, "CartPole-v1"):
        with pytest.raises(UsageError, match="envs: expected environments or"):
            spaces_of(wrong)
    single.close()
    vector.close()
