"""OpenVaccine -> manifest and stores: ``python -m competitions.openvaccine.prepare FOLDER OUT``.

FOLDER holds Kaggle's ``train.json`` and ``test.json`` (a JSON object a line) and ``bpps/<id>.npy``, or the same as
``train.parquet`` and ``test.parquet`` with sparse base pairs in ``train_bpp.parquet`` and ``test_bpp.parquet`` (lists
``i``, ``j``, ``p``). OUT gets ``manifest.parquet``; ``unlabelled.parquet``, its test rows without their truth, to be
labelled by a run; ``tokens/`` (T, 3): base, bracket and loop type; ``pairs/`` (n, 4): two positions, their pairing
probability, and 1 where the predicted structure pairs them.

| column | meaning |
|---|---|
| degradation | (T, 5): reactivity, deg_Mg_pH10, deg_pH10, deg_Mg_50C, deg_50C; empty beyond ``seq_scored`` |
| certainty | (T, 5): 1 / (error^2 + 0.2^2), mean 1 over the training set; where there are no errors, 1 |
| values | (T, 3): sum, largest and number of the pairing probabilities of a position |
| weight | log1p(signal_to_noise) / 2, at most 1.2; 1 where it is not known |
| split, cluster, seq_length, SN_filter | as in the source; where it has no ``cluster``, each row is one |
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import polars
import typer

import seqformer

TARGETS = ("reactivity", "deg_Mg_pH10", "deg_pH10", "deg_Mg_50C", "deg_50C")
ERRORS = ("reactivity_error", "deg_error_Mg_pH10", "deg_error_pH10", "deg_error_Mg_50C", "deg_error_50C")
ALPHABETS = {"sequence": "ACGU", "structure": ".()", "predicted_loop_type": "SMIBHEX"}
LEAST_PROBABILITY = 0.005
NOISE_FLOOR = 0.2  # what an error of 0 counts as: the spread that no model explains


def read_split(folder: Path, split: str) -> polars.DataFrame:
    """The rows of one file, checked, with a column ``pairs`` of (n, 3) arrays. Raises InputError."""
    paths = [path for end in ("json", "parquet") if (path := folder / f"{split}.{end}").is_file()]
    if not paths:
        raise seqformer.InputError(f"{folder} has neither {split}.json nor {split}.parquet")
    path = paths[0]
    try:
        table = polars.read_ndjson(path) if path.suffix == ".json" else polars.read_parquet(path)
    except polars.exceptions.PolarsError as error:
        raise seqformer.InputError(f"{path} is not readable: {' '.join(str(error).split())}") from error
    for column in ("id", "seq_scored", *ALPHABETS):
        if column not in table.columns:
            raise seqformer.InputError(f"{path} has no column {column!r}; found {', '.join(table.columns)}")
    for row, values in enumerate(table.select("id", *ALPHABETS).iter_rows(named=True)):
        for column, alphabet in ALPHABETS.items():
            wrong = set(values[column]) - set(alphabet)
            if wrong or len(values[column]) != len(values["sequence"]):
                found = f"holds {sorted(wrong)}" if wrong else "is not as long as the sequence"
                raise seqformer.InputError(f"{path}: {column} of row {row} ({values['id']}) {found}")
    return table.with_columns(split=polars.lit(split))


def pairs_of(folder: Path, split: str, table: polars.DataFrame) -> dict[str, np.ndarray]:
    """{id: (n, 3) of i, j, probability}, i < j, from the sparse table or the matrices. Raises InputError."""
    path, ids = folder / f"{split}_bpp.parquet", table["id"].to_list()
    if path.is_file():
        rows = polars.read_parquet(path).iter_rows()
        found = {name: np.column_stack([i, j, p]).astype(np.float32) for name, i, j, p in rows}
    else:
        files = {name: folder / "bpps" / f"{name}.npy" for name in ids}
        found = {name: _sparse(file) for name, file in files.items() if file.is_file()}
    missing = [name for name in ids if name not in found]
    if missing:
        raise seqformer.InputError(
            f"{folder}: no base pairs for {seqformer.first_few(missing)} in {path.name} or bpps/"
        )
    return found


def _sparse(path: Path) -> np.ndarray:
    try:
        matrix = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise seqformer.InputError(f"{path} is not a readable matrix: {error}") from error
    i, j = np.nonzero(np.triu(matrix, 1) >= LEAST_PROBABILITY)
    return np.column_stack([i, j, matrix[i, j]]).astype(np.float32)


def brackets(structure: str) -> dict[tuple[int, int], float]:
    """{(i, j): 1} of a dot-bracket structure. Raises ValueError when brackets do not close."""
    open_at, found = [], {}
    for position, letter in enumerate(structure):
        if letter == "(":
            open_at.append(position)
        elif letter == ")":
            if not open_at:
                raise ValueError(f"a bracket at {position} closes nothing")
            found[open_at.pop(), position] = 1.0
    if open_at:
        raise ValueError(f"the bracket at {open_at[-1]} is never closed")
    return found


def example(row: dict, triples: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict]:
    """Tokens (T, 3), pairs (n, 4) and the manifest's columns of one row. Raises InputError."""
    length = len(row["sequence"])
    tokens = np.array([[ALPHABETS[name].index(letter) for letter in row[name]] for name in ALPHABETS], np.uint8).T
    try:
        paired = brackets(row["structure"])
    except ValueError as error:
        raise seqformer.InputError(f"{row['id']}: structure: {error}") from error
    probability = {(int(i), int(j)): float(p) for i, j, p in triples}
    pairs = [(i, j, probability.get((i, j), 0.0), paired.get((i, j), 0.0)) for i, j in {**probability, **paired}]
    pairs = np.array(sorted(pairs), np.float32).reshape(-1, 4)
    matrix = np.zeros((length, length), np.float32)
    for (i, j), p in probability.items():
        matrix[i, j] = matrix[j, i] = p
    pairing = np.column_stack([matrix.sum(0), matrix.max(0), (matrix > 0).sum(0) / 10])
    columns = {name: row[name] for name in ("id", "split", "cluster", "SN_filter") if name in row}
    columns |= {"seq_length": length, "values": pairing.tolist()}
    if row.get(TARGETS[0]) is not None:
        values, errors = (np.array([row[name] for name in names if name in row]).T for names in (TARGETS, ERRORS))
        columns["degradation"] = _padded(values, length)
        if errors.size and not np.isnan(errors.astype(float)).any():
            columns["certainty"] = _padded(1 / (errors**2 + NOISE_FLOOR**2), length)
    noise = row.get("signal_to_noise")
    return tokens, pairs, columns | {"weight": 1.0 if noise is None else float(min(np.log1p(max(noise, 0)) / 2, 1.2))}


def _padded(values: np.ndarray, length: int) -> list:
    return values.tolist() + [None] * (length - len(values))


def prepare(folder: Path, out: Path) -> Path:
    """Write ``out/manifest.parquet``, ``out/tokens`` and ``out/pairs``; print a table. Raises InputError."""
    folder, out, rows = Path(folder), Path(out), []
    tables = [read_split(folder, split) for split in ("train", "test")]
    with (
        seqformer.StoreWriter(out / "tokens", "uint8") as tokens,
        seqformer.StoreWriter(out / "pairs", "float32") as pairs,
    ):
        for table in tables:
            triples = pairs_of(folder, table["split"][0], table)
            for row in table.iter_rows(named=True):
                letters, found, columns = example(row, triples[row["id"]])
                place = {"path": "tokens", "row": tokens.add(letters), "frames": len(letters)}
                rows.append(columns | place | {"pairs_path": "pairs", "pairs_row": pairs.add(found)})
        table = finish(rows)
        (out / "manifest.parquet").unlink(missing_ok=True)  # the old one must never point into the new stores
    seqformer.write_manifest(table, out / "manifest.parquet")
    seqformer.write_manifest(table.filter(split="test").drop("degradation"), out / "unlabelled.parquet")
    for (split, length), some in table.group_by("split", "seq_length", maintain_order=True):
        print(f"{split:6} {length:4} bases  {len(some):6,} rows  {some['cluster'].n_unique():6,} clusters")
    return out / "manifest.parquet"


def finish(rows: list[dict]) -> polars.DataFrame:
    """One table of all rows: certainties of mean 1, clusters for all."""
    table = polars.DataFrame(rows, infer_schema_length=None)
    if "cluster" not in table.columns:
        table = table.with_row_index("cluster")
    if "certainty" in table.columns:
        level = table["certainty"].explode().explode().mean()
        scaled = polars.element().list.eval(polars.element() / level)
        ones = table["frames"].map_elements(
            lambda n: [[1.0] * 5] * n, return_dtype=polars.List(polars.List(polars.Float64))
        )
        table = table.with_columns(polars.col("certainty").list.eval(scaled).fill_null(ones))
    return table


def main(
    folder: Annotated[Path, typer.Argument(help="Kaggle's files, or their parquet form.")],
    out: Annotated[Path, typer.Argument(help="Folder for manifest.parquet and the stores.")],
) -> None:
    """Turn the OpenVaccine files into a manifest and stores."""
    prepare(folder, out)


if __name__ == "__main__":
    seqformer.run_command(main)
