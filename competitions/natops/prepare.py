"""A data set of the UEA / UCR archive -> manifest and store: ``python -m competitions.natops.prepare SOURCES... OUT``.

SOURCES are a folder or files: ``<name>_TRAIN.ts`` and ``<name>_TEST.ts`` as the archive has them, or parquet tables of
the same cases (see ``archive.py``). Files are told apart by the end of their names, ``train`` or ``test``. OUT gets
``manifest.parquet`` and ``series/`` (float32). Columns: ``label``; ``split``, train or test; ``tenth``, 0 to 9, which
tenth of the cases of its class a case is in, in the order of the file: where cases follow each other in time, folds
grouped by it keep neighbours together.
"""

from pathlib import Path
from typing import Annotated

import typer

import seqformer
from competitions.natops.archive import read_table, read_ts

READERS = {".ts": read_ts, ".parquet": read_table}
SPLITS = ("train", "test")


def prepare(sources: list[Path], out: Path) -> Path:
    """Check all cases, write ``out/manifest.parquet`` and ``out/series``, print a table, return the manifest.

    Raises InputError, with ``out`` as it was, naming the file and the line, row, column or dimension at fault.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise seqformer.InputError(f"{out} is a file; the prepared data need a folder")
    cases = read_cases(find_splits([Path(source) for source in sources]))
    manifest, rows = out / "manifest.parquet", []
    with seqformer.StoreWriter(out / "series", dtype="float32") as writer:
        for case in cases:
            x = case.pop("x")
            place = {"path": "series", "row": writer.add(x), "frames": len(x)}
            rows.append({"id": case.pop("id"), **place, **case})
        manifest.unlink(missing_ok=True)  # the old one must never point into the new store
    seqformer.write_manifest(rows, manifest)
    print_summary(rows, cases_channels=writer.frame_shape[0])
    return manifest


def find_splits(sources: list[Path]) -> dict[str, Path]:
    """{train: file, test: file} of a folder or of some files. Raises InputError unless there is one of each."""
    found: dict[str, list[Path]] = {split: [] for split in SPLITS}
    files = [place for source in sources for place in (sorted(source.glob("*")) if source.is_dir() else [source])]
    for path in files:
        split = next((split for split in SPLITS if path.stem.lower().endswith(split)), None)
        if path.suffix in READERS and split:
            found[split].append(path)
    for split, paths in found.items():
        if len(paths) != 1:
            names = seqformer.first_few([path.name for path in paths]) or "none"
            wanted = f"*{split.upper()}.ts or *{split}.parquet"
            raise seqformer.InputError(f"{seqformer.first_few(sources)}: expected one file {wanted}, found {names}")
        if not paths[0].is_file():
            raise seqformer.InputError(f"no file at {paths[0]}")
    return {split: paths[0] for split, paths in found.items()}


def read_cases(paths: dict[str, Path]) -> list[dict]:
    """All cases with their split and tenth. Raises InputError when the files differ in channels, or share an id."""
    cases, first = [], None
    for split, path in paths.items():
        some = READERS[path.suffix](path)
        channels = some[0]["x"].shape[1]
        if first is not None and channels != first:
            raise seqformer.InputError(f"{path} has {channels} channels, {paths[SPLITS[0]]} {first}")
        first = channels
        for label in dict.fromkeys(case["label"] for case in some):
            members = [case for case in some if case["label"] == label]
            for place, case in enumerate(members):
                case |= {"split": split, "tenth": 10 * place // len(members)}
        cases += some
    seen: dict[str, str] = {}
    for case in cases:
        if case["id"] in seen:
            raise seqformer.InputError(
                f"id {case['id']!r} is in {paths[seen[case['id']]]} and in {paths[case['split']]}"
            )
        seen[case["id"]] = case["split"]
    return cases


def print_summary(rows: list[dict], cases_channels: int) -> None:
    """One table: split, cases, classes, channels, fewest and most frames."""
    print("split  cases  classes  channels  frames")
    for split in SPLITS:
        some = [row for row in rows if row["split"] == split]
        frames, labels = [row["frames"] for row in some], {row["label"] for row in some}
        print(f"{split:5}  {len(some):5}  {len(labels):7}  {cases_channels:8}  {min(frames)} to {max(frames)}")


def main(
    sources: Annotated[list[Path], typer.Argument(help="A folder, or the files of train and test.")],
    out: Annotated[Path, typer.Argument(help="Folder for manifest.parquet and series/.")],
) -> None:
    """Turn a data set of the time series archive into a manifest and a store."""
    prepare(sources, out)


if __name__ == "__main__":
    seqformer.run_command(main)
