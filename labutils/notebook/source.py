"""Source code from the installed package, shown in a notebook."""

import inspect
from collections.abc import Callable

from IPython.display import Code


def show_source(thing: Callable | type) -> Code:
    """The source of a function or class as it is installed, highlighted."""
    return Code(inspect.getsource(thing), language="python")
