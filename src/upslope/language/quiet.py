"""Transformers, without its remarks."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS")
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    theirs.set_verbosity(logging.CRITICAL)
    hub.setLevel(logging.CRITICAL)
    theirs.disable_progress_bar()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        theirs.set_verbosity(level)
        hub.setLevel(hub_level)
        theirs.enable_progress_bar()
        if bars is None:
            del os.environ["HF_HUB_DISABLE_PROGRESS_BARS"]
