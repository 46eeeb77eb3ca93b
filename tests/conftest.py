"""One thread, so that tests neither fight over cores nor depend on their number, or TEST_THREADS; hypothesis without deadlines."""

import os

import torch
from hypothesis import settings

torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))
settings.register_profile("upslope", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("upslope")
