"""Made-up files with LEAP's names and columns: ``python -m competitions.leap.generate OUT``.

Columns of air that drift slowly from row to row, as the real ones do in time. Temperature and winds are drawn to those
of the neighbouring levels, humidity to a share of what warm air holds, the sun heats what is moist: so that a model
learns something within a minute. Units and magnitudes are about those of the real files.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import seqformer
from competitions.leap.columns import FLUXES, INPUTS, LEVELS, PROFILES, SCALARS, TARGETS, TENDENCIES, levels_of

FIRST_SCORED = 12  # above it humidity and winds do not change, and their tendencies do not count
WINDOW = np.array([0.25, -0.5, 0.25])  # a level between its neighbours


def states(rows: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Profiles (rows, 60) and scalars (rows,)."""
    height = np.linspace(1, 0, LEVELS)

    def smooth() -> np.ndarray:
        waves = np.stack([np.cos(np.pi * number * height) for number in range(8)])
        drift = 0.9 * np.cumsum(0.3 * rng.standard_normal((rows, 8)), axis=0) / np.sqrt(1 + np.arange(rows))[:, None]
        return (drift + rng.standard_normal((rows, 8))) @ waves / np.sqrt(8) + 0.3 * rng.standard_normal((rows, LEVELS))

    found = {"state_t": 290 - 75 * height + 6 * smooth(), "state_q0001": 0.015 * np.exp(-6 * height + 0.4 * smooth())}
    found |= {name: 1e-5 * np.exp(-4 * height) * np.exp(0.5 * smooth()) for name in ("state_q0002", "state_q0003")}
    found |= {name: 12 * smooth() for name in ("state_u", "state_v")}
    found |= {name: 1e-6 * (1 + 0.1 * smooth()) for name in PROFILES[6:]}
    found |= {name: rng.uniform(0, 1, rows) for name in SCALARS}
    found["state_ps"] = 1e5 + 800 * rng.standard_normal(rows)
    found["pbuf_COSZRS"] = rng.uniform(-0.5, 1, rows).clip(0)
    found["pbuf_SOLIN"] = 1360 * found["pbuf_COSZRS"]
    return found


def tendencies(state: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What happens to the columns of air: profiles (rows, 60) and fluxes (rows,)."""

    def mixing(name: str) -> np.ndarray:
        padded = np.pad(state[name], ((0, 0), (1, 1)), mode="edge")
        return sum(weight * padded[:, shift : shift + LEVELS] for shift, weight in enumerate(WINDOW))

    sun, moist = state["pbuf_COSZRS"][:, None], state["state_q0001"]
    found = {"ptend_t": 1e-5 * mixing("state_t") + 2e-3 * sun * moist}
    full = 0.015 * np.exp((state["state_t"] - 290) / 13)
    found["ptend_q0001"] = 1e-5 * (full - moist).clip(-0.005, 0.005)
    found |= {f"ptend_{name}": -state[f"state_{name}"] / 1200 for name in ("q0002", "q0003")}
    found |= {f"ptend_{name}": 1e-5 * mixing(f"state_{name}") for name in ("u", "v")}
    for name in TENDENCIES[1:]:
        found[name][:, :FIRST_SCORED] = 0
    wet = moist.mean(axis=1)
    share = {name: np.float64(1 + number) / len(FLUXES) for number, name in enumerate(FLUXES)}
    found |= {name: share[name] * state["pbuf_SOLIN"] * (1 - 40 * wet) for name in FLUXES}
    found["cam_out_FLWDS"] = 5e-8 * 290 * state["state_t"][:, -1] ** 2 * (1 + 20 * wet)
    found |= {f"cam_out_{name}": 1e-5 * wet * state["cam_in_OCNFRAC"] for name in ("PRECC", "PRECSC")}
    return {name: value * (1 + 0.05 * rng.standard_normal(value.shape)) for name, value in found.items()}


def table_of(names: list[str], columns: dict[str, np.ndarray], wanted: tuple[str, ...]):
    """Ids and columns, those of profiles a column a level, as the files have them."""
    import polars

    found = {"sample_id": names}
    for name, value in columns.items():
        found |= {name: value} if value.ndim == 1 else dict(zip(levels_of((name,)), value.T, strict=True))
    return polars.DataFrame(found).select("sample_id", *wanted)


def generate(out: Path, rows: int = 600, seed: int = 0) -> None:
    """Write ``train.csv``, ``test.csv`` (a third as many) and ``sample_submission.csv``, whose values are weights."""
    import polars

    rng = np.random.default_rng(seed)
    with seqformer.replace_folder(out) as folder:
        for split, count in (("train", rows), ("test", rows // 3)):
            names, state = [f"{split}_{number}" for number in range(count)], states(count, rng)
            wanted = INPUTS if split == "test" else (*INPUTS, *TARGETS)
            columns = state if split == "test" else state | tendencies(state, rng)
            table_of(names, columns, wanted).write_csv(folder / f"{split}.csv")
        unscored = set(levels_of(TENDENCIES[1:])) - {
            f"{name}_{level}" for name in TENDENCIES for level in range(FIRST_SCORED, LEVELS)
        }
        weights = {name: [0.0 if name in unscored else 1.0] * len(names) for name in TARGETS}
        polars.DataFrame({"sample_id": names} | weights).write_csv(folder / "sample_submission.csv")


def main(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    rows: Annotated[int, typer.Option(help="Columns of air to train on.")] = 600,
    seed: int = 0,
) -> None:
    """Make up the files of the LEAP competition."""
    generate(out, rows, seed)


if __name__ == "__main__":
    seqformer.run_command(main)
