"""Ribonanza -> manifest and stores: ``python -m competitions.ribonanza.prepare FOLDER OUT``.

FOLDER holds Kaggle's ``train_data.csv``, ``test_sequences.csv`` and, per sequence, the pairing probabilities
``Ribonanza_bpp_files/extra_data/a/b/c/<sequence_id>.txt`` (a, b, c its first letters; lines "i j p", from 1, one of
both triangles); where there is a ``test_data.csv`` of train_data's columns, it is the truth of the test rows. OUT gets
``manifest.parquet``, ``tokens/`` (T,), ``pairs/`` (n, 3): two bases and their probability, and ``values/`` (T, 3): sum,
largest and number of a base's probabilities.

| column | meaning |
|---|---|
| reactivity | (T, 2): DMS_MaP, 2A3_MaP; NaN where not measured |
| certainty | (T, 2): log1p(signal_to_noise), that being clipped to 0-10; the weight of each value in the loss |
| signal_to_noise, SN_filter | the mean, and the lower, of the two experiments |
| split, id_min, id_max, part | ``part`` counts the test rows in portions of 50,000, to be predicted one by one |

Files are read in batches; reactivities wait in a scratch file in OUT until both experiments of a sequence are there.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import polars
import typer

import seqformer

PROBES = ("DMS_MaP", "2A3_MaP")  # in the order of the submission's columns
BASES = "ACGU"
BATCH = 4_096  # rows of a csv read at a time, and sequences of the manifest made at a time
PART = 50_000
LARGEST_SNR = 10.0


@dataclass(frozen=True)
class Profiles:
    """What both experiments measured: {id: number}, values (N, T, 2) on disk, signal to noise and filter (N, 2)."""

    numbers: dict[str, int]
    values: np.ndarray
    signal_to_noise: np.ndarray
    passed: np.ndarray


def batches(path: Path, columns: list[str]) -> Iterator[tuple[int, polars.DataFrame]]:
    """First row, from 1, and text columns of so many rows of a csv. Raises InputError."""
    if not path.is_file():
        raise seqformer.InputError(f"no table at {path}")
    row = 1
    try:
        table = polars.scan_csv(path, infer_schema=False)
        for name in columns:
            if name not in table.collect_schema():
                raise seqformer.InputError(f"{path} has no column {name!r}")
        for batch in table.select(columns).collect_batches(chunk_size=BATCH, maintain_order=True):
            yield row, batch
            row += batch.height
    except polars.exceptions.PolarsError as error:
        raise seqformer.InputError(f"{path} cannot be read from row {row}: {' '.join(str(error).split())}") from error


def as_numbers(texts: polars.DataFrame, path: Path, first: int) -> np.ndarray:
    """Texts (n, T) as float32, empty ones NaN. Raises InputError naming file, column and row."""
    numbers = texts.cast(polars.Float32, strict=False)
    for name in texts.columns if texts.null_count().row(0) != numbers.null_count().row(0) else ():
        bad = (numbers[name].is_null() & texts[name].is_not_null()).arg_true()
        if len(bad):
            found = texts[name][int(bad[0])]
            raise seqformer.InputError(
                f"{path}: column {name!r} holds {found!r} in row {first + int(bad[0])}; expected a number"
            )
    return numbers.fill_null(float("nan")).to_numpy()


def read_profiles(path: Path, scratch) -> Profiles:
    """Two rows of each sequence -> one entry. ``scratch`` is an open file. Raises InputError."""
    kinds = {"sequence_id": str, "experiment_type": str, "signal_to_noise": float, "SN_filter": int}
    index = seqformer.read_table(path, kinds)
    unknown = index.filter(~polars.col("experiment_type").is_in(PROBES))
    if unknown.height:
        found = seqformer.first_few(unknown["experiment_type"].unique().to_list())
        raise seqformer.InputError(f"{path}: column 'experiment_type' holds {found}; expected {' or '.join(PROBES)}")
    twice = index.select("sequence_id", "experiment_type").is_duplicated()
    if twice.any():
        row = int(twice.arg_true()[-1])
        raise seqformer.InputError(f"{path}: {index['sequence_id'][row]} has that experiment twice, in row {row + 1}")
    numbers = {name: n for n, name in enumerate(index["sequence_id"].unique(maintain_order=True))}
    place = index["sequence_id"].replace_strict(numbers, return_dtype=polars.Int64).to_numpy()
    probe = (index["experiment_type"] == PROBES[1]).to_numpy().astype(int)
    facts = np.full((2, len(numbers), 2), np.nan)
    facts[:, place, probe] = index.select("signal_to_noise", "SN_filter").to_numpy().T
    header = polars.scan_csv(path, infer_schema=False).collect_schema().names()
    columns = [name for name in header if name.removeprefix("reactivity_").isdigit()]
    if not columns:
        raise seqformer.InputError(f"{path} has no column 'reactivity_0001'")
    values = np.memmap(scratch, np.float32, "w+", shape=(len(numbers), len(columns), 2))
    values[:] = np.nan
    for first, batch in batches(path, columns):
        rows = slice(first - 1, first - 1 + batch.height)
        values[place[rows], :, probe[rows]] = as_numbers(batch, path, first)
    return Profiles(numbers, values, facts[0], facts[1])


def read_pairs(folder: Path, name: str, length: int) -> np.ndarray:
    """(n, 3): two bases counted from 0, i < j, and their probability. Raises InputError."""
    path = folder / "Ribonanza_bpp_files" / "extra_data" / name[0] / name[1] / name[2] / f"{name}.txt"
    try:
        triples = np.array(path.read_text().split(), np.float32).reshape(-1, 3)
    except (OSError, ValueError) as error:
        raise seqformer.InputError(f"{path} is not readable as lines 'i j p': {error}") from error
    wrong = (triples[:, :2] < 1) | (triples[:, :2] > length)
    if wrong.any():
        row = int(np.flatnonzero(wrong.any(axis=1))[0])
        raise seqformer.InputError(
            f"{path}: line {row + 1} pairs {triples[row, :2].astype(int).tolist()} of {length} bases"
        )
    return np.column_stack([np.sort(triples[:, :2], axis=1) - 1, triples[:, 2]])


def pairing(triples: np.ndarray, length: int) -> np.ndarray:
    """Sum, largest and number / 10 of the pairing probabilities of each base, (T, 3)."""
    found = np.zeros((length, 3), np.float32)
    for side in (triples[:, 0].astype(int), triples[:, 1].astype(int)):
        np.add.at(found[:, 0], side, triples[:, 2])
        np.maximum.at(found[:, 1], side, triples[:, 2])
        np.add.at(found[:, 2], side, 0.1)
    return found


class Stores:
    """The three stores, written together: row n of each is the same sequence."""

    def __init__(self, folder: Path, tokens, pairs, values):
        self.folder, self.tokens, self.pairs, self.values = folder, tokens, pairs, values

    def add(self, path: Path, row: int, name: str, sequence: str | None) -> int:
        """Append one sequence, give its row number. Raises InputError on other letters than A, C, G, U."""
        wrong = set(sequence or "?") - set(BASES)
        if wrong:
            raise seqformer.InputError(
                f"{path}: column 'sequence' holds {sorted(wrong)} in row {row}; expected {BASES}"
            )
        triples = read_pairs(self.folder, name, len(sequence))
        self.pairs.add(triples)
        self.values.add(pairing(triples, len(sequence)))
        return self.tokens.add(np.frombuffer(sequence.translate(LETTERS).encode(), np.uint8))


LETTERS = str.maketrans({letter: chr(number) for number, letter in enumerate(BASES)})


def sequences(path: Path, columns: list[str], stores: Stores) -> polars.DataFrame:
    """Store each sequence of a csv once; a row of the manifest for each, in the file's order. Raises InputError."""
    seen, parts = {}, []
    for first, batch in batches(path, ["sequence_id", "sequence", *columns]):
        new, rows, lengths = [], [], []
        for offset, (name, sequence) in enumerate(batch.select("sequence_id", "sequence").iter_rows()):
            if name not in seen:
                rows.append(stores.add(path, first + offset, name, sequence))
                new.append(offset)
                lengths.append(len(sequence))
                seen[name] = hash(sequence)
            elif seen[name] != hash(sequence):
                raise seqformer.InputError(f"{path}: {name} has another sequence in row {first + offset} than before")
        kept = batch[new].rename({"sequence_id": "id"}).drop("sequence").with_columns(polars.col(columns).cast(int))
        parts.append(kept.with_columns(row=polars.Series(rows, dtype=polars.Int64), frames=polars.Series(lengths)))
    return polars.concat(parts)


def with_profiles(table: polars.DataFrame, profiles: Profiles, path: Path) -> polars.DataFrame:
    """The rows of a manifest with what was measured of each. Raises InputError on a sequence longer than its row."""
    parts = []
    for some in table.iter_slices(BATCH):
        number = np.array([profiles.numbers[name] for name in some["id"]])
        lengths, values = some["frames"].to_numpy(), profiles.values[number]
        if lengths.max() > values.shape[1]:
            name = some["id"][int(lengths.argmax())]
            raise seqformer.InputError(f"{path}: {name} has {lengths.max()} bases, {values.shape[1]} reactivities")
        inside = np.arange(values.shape[1]) < lengths[:, None]
        noise = profiles.signal_to_noise[number]
        certainty = np.log1p(np.nan_to_num(noise).clip(0, LARGEST_SNR)).astype(np.float32)
        frames = {"reactivity": values[inside], "certainty": np.repeat(certainty, lengths, axis=0)}
        lists = (
            polars.DataFrame({"at": np.repeat(np.arange(some.height), lengths)} | frames)
            .group_by("at", maintain_order=True)
            .agg("reactivity", "certainty")
        )
        passed = np.nan_to_num(profiles.passed[number]).min(axis=1).astype(int)
        facts = {"signal_to_noise": np.nan_to_num(noise).mean(axis=1).clip(0), "SN_filter": passed}
        parts.append(some.with_columns(lists["reactivity"], lists["certainty"]).with_columns(**facts))
    return polars.concat(parts, rechunk=False)


def prepare_split(folder: Path, out: Path, split: str, stores: Stores) -> polars.DataFrame:
    """The manifest's rows of one split. Raises InputError."""
    path = folder / f"{split}_data.csv"
    if split == "train":
        table = sequences(path, [], stores)
    else:
        listed = folder / "test_sequences.csv"
        table = sequences(listed, ["id_min", "id_max"], stores).with_row_index("part")
        table = table.with_columns(polars.col("part").cast(polars.Int64) // PART)
        wrong = table.filter(polars.col("id_max") - polars.col("id_min") + 1 != polars.col("frames"))
        if wrong.height:
            raise seqformer.InputError(
                f"{listed}: id_min to id_max are not the bases of {seqformer.first_few(wrong['id'])}"
            )
    if split == "train" or path.is_file():
        with tempfile.TemporaryFile(dir=out) as scratch:
            profiles = read_profiles(path, scratch)
            missing = [name for name in table["id"] if name not in profiles.numbers]
            if missing:
                raise seqformer.InputError(f"{path}: no row of {seqformer.first_few(missing)}")
            table = with_profiles(table, profiles, path)
    return table.with_columns(split=polars.lit(split))


def prepare(folder: Path, out: Path) -> Path:
    """Write ``out/manifest.parquet``, ``out/tokens``, ``out/pairs`` and ``out/values``. Raises InputError."""
    folder, out = Path(folder), Path(out)
    if not (folder / "train_data.csv").is_file():
        raise seqformer.InputError(f"no table at {folder / 'train_data.csv'}")
    out.mkdir(parents=True, exist_ok=True)
    with (
        seqformer.StoreWriter(out / "tokens", "uint8") as tokens,
        seqformer.StoreWriter(out / "pairs", "float32") as pairs,
        seqformer.StoreWriter(out / "values", "float16") as values,
    ):
        stores = Stores(folder, tokens, pairs, values)
        table = polars.concat(
            [prepare_split(folder, out, split, stores) for split in ("train", "test")], how="diagonal", rechunk=False
        )
        (out / "manifest.parquet").unlink(missing_ok=True)  # the old one must never point into the new stores
    same = {f"{name}_row": polars.col("row") for name in ("pairs", "values")}
    names = {f"{name}_path": polars.lit(name) for name in ("pairs", "values")}
    table = table.with_columns(path=polars.lit("tokens"), **same, **names)
    seqformer.write_manifest(table, out / "manifest.parquet")
    for (split,), some in table.group_by("split", maintain_order=True):
        print(f"{split:6} {some.height:9,} sequences of {some['frames'].min()} to {some['frames'].max()} bases")
    return out / "manifest.parquet"


def main(
    folder: Annotated[Path, typer.Argument(help="Kaggle's files.")],
    out: Annotated[Path, typer.Argument(help="Folder for manifest.parquet and the stores.")],
) -> None:
    """Turn the Ribonanza files into a manifest and stores."""
    prepare(folder, out)


if __name__ == "__main__":
    seqformer.run_command(main)
