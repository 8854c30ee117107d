"""Names for everything a config may choose: the registered function's signature is the schema of its keywords.

A config holds names and plain values only; a name that nothing registered is an error, so no config can run code.
"""

import difflib
import fnmatch
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

from seqformer.errors import InputError, nearest

_REGISTERED: dict[str, dict[str, Callable]] = {}


def register(kind: str, name: str | None = None) -> Callable[[Callable], Callable]:
    """Decorator: make a function or class available to configs as ``kind`` / ``name`` (its own name by default).

    Raises ValueError when the name is taken by another object: two meanings of one name are never right.
    """

    def decorate(target: Callable) -> Callable:
        table, key = _REGISTERED.setdefault(kind, {}), name or target.__name__
        known = table.get(key)
        if known is not None and (known.__module__, known.__qualname__) != (target.__module__, target.__qualname__):
            raise ValueError(f"{kind} {key!r} is already registered by {known.__module__}.{known.__qualname__}")
        table[key] = target
        return target

    return decorate


def names(kind: str, pattern: str = "*") -> list[str]:
    """Registered names of a kind that match an fnmatch pattern, sorted."""
    return sorted(fnmatch.filter(_REGISTERED.get(kind, {}), pattern))


def lookup(kind: str, name: str) -> Callable:
    """The object registered under a name. Raises InputError with the nearest known name."""
    table = _REGISTERED.get(kind, {})
    if name not in table:
        raise InputError(f"unknown {kind} {name!r}; {nearest(name, table)}")
    return table[name]


def create(kind: str, name: str, /, **arguments: Any) -> Any:
    """Call the registered function with keywords that were checked against its signature first.

    Raises InputError as ``check`` does, and when one is missing or their values do not go together.
    """
    check(kind, name, arguments)
    try:
        return lookup(kind, name)(**arguments)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{kind} {name!r}: {' '.join(str(error).split())}") from error


def named(kind: str, part: dict[str, Any]) -> dict[str, Any]:
    """A part with its name: a backbone that gives ``pretrained`` instead is the one of that checkpoint.

    Raises InputError when there is neither.
    """
    if isinstance(part.get("name"), str):
        return part
    if kind == "backbone" and "pretrained" in part and "name" not in part:
        return {"name": "pretrained"} | part
    raise InputError(f"{kind}: found {part!r}; expected a name, and keywords of what it names")


def check(kind: str, name: str, arguments: dict[str, Any], where: str = "", given: tuple[str, ...] = ()) -> None:
    """Check keywords against the signature of a registered function, ``given`` being those the library passes itself.

    Raises InputError naming the keyword, the value found and the nearest known keyword or the type expected.
    """
    target, place = lookup(kind, name), where or f"{kind} {name!r}"
    hints = parameter_types(target)
    known = set(hints) - set(given)
    for key, value in arguments.items():
        if key not in known:
            raise InputError(f"{place}: {name} has no argument {key!r}; {nearest(key, known)}")
        check_type(value, hints[key], f"{place}.{key}")


def parameter_types(target: Callable) -> dict[str, Any]:
    """Parameter name -> annotation; a ``**keywords`` parameter is resolved through the target's ``preset_of``.

    A preset such as ``squeezeformer_s(**changes)`` thereby takes every argument of the class it builds.
    """
    found = {}
    for parameter in inspect.signature(target).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= parameter_types(target.preset_of)
        else:
            # A quoted annotation names a type only its own module knows: the library passes such arguments itself.
            unknown = parameter.annotation is parameter.empty or isinstance(parameter.annotation, str)
            found[parameter.name] = Any if unknown else parameter.annotation
    return found


def check_type(value: Any, annotation: Any, where: str) -> Any:
    """Return ``value`` as the annotation wants it (ints become floats, lists tuples) or raise InputError."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _check_union(value, inner, where)
    if origin is typing.Literal:
        if value in inner:
            return value
        raise InputError(
            f"{where}: found {value!r}; expected one of {', '.join(map(repr, inner))}{_hint(value, inner)}"
        )
    if origin in (list, tuple) and isinstance(value, list | tuple):
        if origin is tuple and inner and inner[-1] is not Ellipsis:
            if len(value) != len(inner):
                raise InputError(f"{where}: found {value!r}; expected {len(inner)} values")
            return tuple(check_type(v, a, f"{where}[{i}]") for i, (v, a) in enumerate(zip(value, inner, strict=True)))
        kind = inner[0] if inner else Any
        return origin(check_type(item, kind, f"{where}[{i}]") for i, item in enumerate(value))
    if (origin or annotation) is dict and isinstance(value, dict):
        return {key: check_type(item, inner[1] if inner else Any, f"{where}.{key}") for key, item in value.items()}
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = origin or annotation
    if isinstance(plain, type) and isinstance(value, plain) and not (isinstance(value, bool) and plain is not bool):
        return value
    raise InputError(f"{where}: found {value!r} ({type(value).__name__}); expected {_name(annotation)}")


def _check_union(value: Any, choices: tuple, where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    failure = None
    # The exact type first: an int given to ``float | int`` stays an int.
    for choice in sorted(choices, key=lambda choice: type(value) is not choice):
        if choice is type(None):
            continue
        try:
            return check_type(value, choice, where)
        except InputError as error:
            failure = failure or error
    if len([choice for choice in choices if choice is not type(None)]) == 1:
        raise failure
    raise InputError(f"{where}: found {value!r}; expected {' or '.join(_name(choice) for choice in choices)}")


def _hint(value: Any, known: tuple) -> str:
    match = difflib.get_close_matches(str(value), [str(item) for item in known], n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def _name(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
