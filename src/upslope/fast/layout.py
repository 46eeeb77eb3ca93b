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
NUM_SUMS: Final = 17
NUM_VALUES: Final = 18
KL_AT: Final = 19
"""Which of the values is the approximate KL that ``target_kl`` bounds; -1 without one."""
LAYERS_AT: Final = 20

LAYER: Final = 6
"""Inputs, outputs, where the weights and the bias start among the parameters, where input and output stand in the scratch."""
BLOCK: Final = 64
"""Rows of a batch that are worked on at once; their activations fit the first two levels of cache."""
WIDTH: Final = 16
"""Numbers in one register of :mod:`upslope.fast.registers`."""

CATEGORICAL: Final = 0
GAUSSIAN: Final = 1
IDENTITY: Final = 0
TANH: Final = 1
RELU: Final = 2

# ---- a batch: addresses of its columns; those of the objective come behind these
OBSERVATION: Final = 0
ACTION: Final = 1
CONTINUOUS: Final = 2
LEGAL: Final = 3
MASK: Final = 4
OWN_COLUMNS: Final = ("observation", "action", "continuous", "legal", "mask")
OBJECTIVE_COLUMNS: Final = 5

# ---- an objective: addresses of its functions, and of what they read and write
BEFORE: Final = 0
BLOCK_OF_ROWS: Final = 1
AFTER: Final = 2
NUMBERS: Final = 3
"""Rows of the minibatch, by how many times it is smaller than the batch, settings, sums over the batch alone."""
EACH: Final = 4
"""For each row of a block, ``BLOCK`` numbers of every kind that follows."""
SUMS: Final = 5
"""The largest |log ratio|, then the objective's own."""
VALUES: Final = 6
"""The objective of a minibatch, then what it reports."""

LOG_PROB: Final = 0
ENTROPY: Final = 1
VALUE: Final = 2
SLOPES: Final = 3
"""The derivatives of the objective by the three, in their order."""
NORMALIZER: Final = 6
"""What the logits are normalized by."""
NUM_EACH: Final = 7

# ---- options of an update (float64); a bound that is not wanted is infinite
MAX_GRAD_NORM: Final = 0
TARGET_KL: Final = 1
LEARNING_RATE: Final = 2
BETA1: Final = 3
BETA2: Final = 4
EPS: Final = 5
STEP: Final = 6
RATIO_TOLERANCE: Final = 7
MASKED: Final = 8
"""Whether there is an action mask."""
NUM_OPTIONS: Final = 9

# ---- results of an update (float64), and behind them the sums over minibatches of the objective's values
STATUS: Final = 0
SCORED: Final = 1
"""Minibatches that were scored."""
STEPPED: Final = 2
"""Minibatches whose step was taken."""
GRADIENT_NORM: Final = 3
MAX_LOG_RATIO: Final = 4
NUM_RESULTS: Final = 5

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
