"""The format of prepared data; apart from what reads it, as a plan only lists and loads no more."""

FORMAT = 2  # raise it whenever the same recipe and inputs would give other tokens
