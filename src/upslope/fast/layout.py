"""Where things stand in the integers, options and results that go to the compiled kernels and come back: names for positions.

Everything here is read by plain Python and, as constants, by the kernels; this module imports nothing.
"""

from __future__ import annotations

from typing import Final

# ---- networks: fixed integers, then LAYER integers for every layer of the actor and of the critic
INPUTS: Final = 0
OUTPUTS: Final = 1
HEAD: Final = 2
ACTIVATION: Final = 3
ACTOR_LAYERS: Final = 4
CRITIC_LAYERS: Final = 5
LOG_STD: Final = 6
NUM_PARAMETERS: Final = 7
OBSERVATION_AT: Final = 8
ROWWISE_AT: Final = 9
PRODUCT_AT: Final = 10
DELTA_AT: Final = 11
OTHER_AT: Final = 12
VALUE_DELTA_AT: Final = 13
GRADIENT_AT: Final = 14
CRITIC_AT: Final = 15
"""Where the parameters begin that only the critic has."""
CRITIC_SIZE: Final = 16
"""And how many these are; 0 where the whole gradient is clipped by one norm."""
LAYERS_AT: Final = 17

LAYER: Final = 6
"""Inputs, outputs, where the weights and the bias start among the parameters, where input and output stand in the scratch."""
BLOCK: Final = 64
"""Rows of a batch that are worked on at once; their activations fit the first two levels of cache."""
WIDTH: Final = 16
"""Numbers in one register of :mod:`upslope.fast.lanes`."""

CATEGORICAL: Final = 0
GAUSSIAN: Final = 1
IDENTITY: Final = 0
TANH: Final = 1
RELU: Final = 2

# ---- surrogates
SCORE: Final = 0
IMPORTANCE: Final = 1
CLIPPED: Final = 2
TRUNCATED_SCORE: Final = 3

# ---- a batch: addresses of its columns
OBSERVATION: Final = 0
ACTION: Final = 1
CONTINUOUS: Final = 2
LEGAL: Final = 3
BEHAVIOR_LOG_PROB: Final = 4
ADVANTAGE: Final = 5
RETURNS: Final = 6
VALUE: Final = 7
WEIGHT: Final = 8
MASK: Final = 9
COLUMNS: Final = ("observation", "action", "continuous", "legal", "behavior_log_prob", "advantage", "returns", "value", "weight", "mask")

# ---- options of an update (float64); a bound that is not wanted is infinite
LOW: Final = 0
HIGH: Final = 1
DUAL_CLIP: Final = 2
VALUE_COEF: Final = 3
ENTROPY_COEF: Final = 4
VALUE_CLIP: Final = 5
MAX_GRAD_NORM: Final = 6
TARGET_KL: Final = 7
LEARNING_RATE: Final = 8
BETA1: Final = 9
BETA2: Final = 10
EPS: Final = 11
STEP: Final = 12
RATIO_TOLERANCE: Final = 13
SURROGATE: Final = 14
MASKED: Final = 15
"""Whether there is an action mask."""
NUM_OPTIONS: Final = 16

# ---- results of an update (float64): sums over minibatches, then how it ended
OBJECTIVE: Final = 0
APPROX_KL: Final = 1
CLIP_FRACTION: Final = 2
DEAD_FRACTION: Final = 3
ENTROPY: Final = 4
VALUE_ERROR: Final = 5
GRADIENT_NORM: Final = 6
MAX_LOG_RATIO: Final = 7
SCORED: Final = 8
"""Minibatches that were scored."""
STEPPED: Final = 9
"""Minibatches whose step was taken."""
STATUS: Final = 10
NUM_RESULTS: Final = 11

FINISHED: Final = 0
NOT_FINITE: Final = 1
RATIO_NOT_ONE: Final = 2
STOPPED: Final = 3
"""By ``target_kl``."""

# ---- what a policy step does
SAMPLE: Final = 0
SAMPLE_AND_EVALUATE: Final = 1
OUTPUT: Final = 2
EVALUATE: Final = 3
