"""A module that cannot be imported."""

raise RuntimeError("wrong\nweather")
