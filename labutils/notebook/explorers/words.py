"""The words an explorer has for its settings and their values, and the code that it shows for them."""

from collections.abc import Mapping

WORDS = {None: "none", True: "yes", False: "no"}


def ordered(values: list) -> bool:
    """Whether values have an order, as numbers and lists of numbers do."""
    return all(isinstance(value, int | float | list) and not isinstance(value, bool) for value in values)


def describe(choice: Mapping[str, object]) -> str:
    """A choice's label in the figure, such as "depth 5, normalization none"."""
    return ", ".join(f"{name.replace('_', ' ')} {in_words(value)}" for name, value in choice.items())


def in_words(value: object) -> str:
    """A setting's value as a label shows it."""
    if isinstance(value, list):
        return "-".join(map(str, value))
    return WORDS[value] if value is None or isinstance(value, bool) else str(value).replace("_", " ")


def in_code(settings: Mapping[str, object]) -> str:
    """Settings as a call's arguments, such as "depth=5, normalization=None"."""
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())
