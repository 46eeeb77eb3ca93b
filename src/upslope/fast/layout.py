"""Where things stand in the integers, options and results that go to the compiled kernels and come back: names for positions.

Everything here is read by plain Python and, as constants, by the kernels; this module imports nothing.
"""

BLOCK = 64
"""Rows of a batch that are worked on at once; their activations fit the first two levels of cache."""
WIDTH = 16
"""Numbers in one register of :mod:`upslope.fast.registers`."""

CATEGORICAL, GAUSSIAN = range(2)
IDENTITY, TANH, RELU = range(3)
SAMPLE, SAMPLE_AND_EVALUATE, OUTPUT, EVALUATE = range(4)
"""What a policy step does."""

# ---- networks: fixed integers, then LAYER integers for every layer of the actor and of the critic
INPUTS, OUTPUTS, HEAD, ACTIVATION, ACTOR_LAYERS, CRITIC_LAYERS, LOG_STD, NUM_PARAMETERS = range(8)
OBSERVATION_AT, OUT_AT, VALUE_OUT_AT, ROWWISE_AT, PRODUCT_AT, DELTA_AT, OTHER_AT, VALUE_DELTA_AT, GRADIENT_AT = range(8, 17)
"""Where these begin in the scratch memory."""
CRITIC_AT, CRITIC_SIZE = range(17, 19)
"""Where the parameters begin that only the critic has, and how many these are; 0 where the whole gradient is clipped by one norm."""
NUM_SUMS, NUM_VALUES, KL_AT, LAYERS_AT = range(19, 23)
"""How many the objective has; which of the values is the approximate KL that ``target_kl`` bounds (-1 without one); the first layer."""
LAYER = 6
"""Inputs, outputs, where the weights and the bias start among the parameters, where input and output stand in the scratch."""

# ---- a batch: addresses of its columns; those of the objective come behind these
BATCH_COLUMNS = ("observation", "action", "continuous", "legal", "mask")
OBSERVATION, ACTION, CONTINUOUS, LEGAL, MASK, OBJECTIVE_COLUMNS = range(6)

# ---- an objective: addresses of its functions, and of what they read and write
BEFORE, BLOCK_OF_ROWS, AFTER, NUMBERS, EACH, SUMS, VALUES = range(7)
"""NUMBERS: rows of the minibatch, by how many times it is smaller than the batch, settings, sums over the batch alone. EACH: for each row
of a block, ``BLOCK`` numbers of every kind that follows. SUMS: the largest |log ratio|, then the objective's. VALUES: the objective of
a minibatch, then what it reports."""
LOG_PROB, ENTROPY, VALUE, SLOPES = range(4)
"""What is known of a row, and the first of the objective's derivatives by the three, in their order."""
NORMALIZER, NUM_EACH = range(6, 8)
"""What the logits are normalized by."""

# ---- options of an update (float64); a bound that is not wanted is infinite
MAX_GRAD_NORM, TARGET_KL, LEARNING_RATE, BETA1, BETA2, EPS, STEP, RATIO_TOLERANCE, MASKED, NUM_OPTIONS = range(10)
"""MASKED: whether there is an action mask."""

# ---- results of an update (float64), and behind them the sums over minibatches of the objective's values
STATUS, SCORED, STEPPED, GRADIENT_NORM, MAX_LOG_RATIO, REACHED, NUM_RESULTS = range(7)
"""SCORED: minibatches that were scored; STEPPED: minibatches whose step was taken; REACHED: the last one of this call, from 0."""
FINISHED, NOT_FINITE, RATIO_NOT_ONE, STOPPED = range(4)
"""STOPPED: by ``target_kl``."""
