"""Options of a publisher's config: what each means here, and a clear line where it means nothing. ``where``: whose."""

from collections.abc import Mapping
from typing import Any

from seqformer.errors import InputError


def choose(config: Mapping[str, Any], key: str, default: Any, known: Mapping[Any, Any], where: str) -> Any:
    """What an option of the publisher means here. Raises InputError on a value without a meaning."""
    value = config.get(key, default)
    if isinstance(value, dict | list) or value not in known:
        expected = ", ".join(map(repr, known))
        raise InputError(f"{where}: {key} is {value!r}, which is not supported; it may be {expected}")
    return known[value]


def require(config: Mapping[str, Any], key: str, where: str) -> Any:
    """An option that has no default. Raises InputError when it is missing."""
    if key not in config:
        raise InputError(f"{where} has no {key}; it has {', '.join(sorted(map(str, config))) or 'nothing'}")
    return config[key]
