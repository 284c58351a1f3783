"""Why a row of a task is none of its examples, as an exception: whoever reads rows counts them all."""


class Unusable(Exception):
    """is_error: the row is not what the recipe says it is; else it is, but there is nothing to learn from."""

    def __init__(self, reason: str, told: str = "", *, is_error: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.told, self.is_error = reason, told, is_error
