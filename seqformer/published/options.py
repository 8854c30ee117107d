"""Options of a publisher's config: what each means here, and a clear line where it means nothing."""

from collections.abc import Mapping
from typing import Any

from seqformer.errors import InputError


def choose(config: Mapping[str, Any], key: str, default: Any, known: Mapping[Any, Any], source: str) -> Any:
    """What an option of the publisher means here. Raises InputError on a value without a meaning."""
    value = config.get(key, default)
    if value not in known:
        raise InputError(
            f"{source} config: {key} is {value!r}, which is not supported; it may be "
            f"{', '.join(repr(choice) for choice in known)}"
        )
    return known[value]


def require(config: Mapping[str, Any], key: str, source: str) -> Any:
    if key not in config:
        raise InputError(f"{source} config has no {key}; it has {', '.join(sorted(map(str, config))) or 'nothing'}")
    return config[key]
