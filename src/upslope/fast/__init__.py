"""Fast twins of readable code, chosen by what the objects are: see :mod:`upslope.fast.twins`.

Every fast path equals its readable twin in a test, and ``train(…, fast=False)`` turns all of them off.
"""
