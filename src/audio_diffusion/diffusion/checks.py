"""Checks of arguments."""


def check_at_least_one(**values: int | None) -> None:
    """Checks that numbers are at least 1; None is left out.

    Raises:
        ValueError: naming the first argument that is smaller.
    """
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
