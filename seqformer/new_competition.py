"""A folder and a config to start a competition from, which run on made-up data at once."""

import re
from pathlib import Path
from string import Template

from seqformer.errors import InputError

TEMPLATE = Path(__file__).with_name("template")


def new_competition(name: str, root: Path) -> list[Path]:
    """Write ``competitions/<name>/`` and ``configs/<name>.yaml`` under ``root``; returns the files, in reading order.

    Raises InputError, with nothing written, on a name that Python cannot import, or when one of the files is there.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(f"{name!r} cannot name a competition: small letters, digits and _, a letter first")
    folder = Path("competitions") / name
    places = {part: folder / part for part in ("README.md", "prepare.py", "plugin.py")}
    places["config.yaml"] = Path("configs") / f"{name}.yaml"
    taken = [str(place) for place in places.values() if (root / place).exists()]
    if taken:
        raise InputError(f"{taken[0]} is there already; choose another name")
    for part, place in places.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        text = Template((TEMPLATE / f"{part}.txt").read_text()).substitute(name=name)
        (root / place).write_text(text)
    return list(places.values())
