"""Presets: a named size of a backbone that takes every argument of the class as a change to its defaults."""

from collections.abc import Callable

from seqformer.registry import register


def preset(built: type) -> Callable[[Callable], Callable]:
    """Register a function ``name(**changes)`` as a backbone whose schema is the signature of the class it builds."""

    def decorate(function: Callable) -> Callable:
        function.preset_of = built
        return register("backbone")(function)

    return decorate


def family(built: type) -> Callable[[Callable], Callable]:
    """A preset without a size, which leaves dim, depth and heads to be given."""

    def decorate(function: Callable) -> Callable:
        function.is_family = True
        return preset(built)(function)

    return decorate
