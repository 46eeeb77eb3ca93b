"""The ``upslope`` command: every flag is a field of a dataclass, every mistake one line."""
