"""The command line. Bad input is one line on standard error and exit code 2."""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from seqformer.cli.bench import bench
from seqformer.cli.cache import cache
from seqformer.cli.decoder import with_decoder
from seqformer.cli.download import download
from seqformer.cli.lm import app as lm_app
from seqformer.cli.plan import plan
from seqformer.cli.shards import index_tar
from seqformer.cli.student import student
from seqformer.cli.transcribe import transcribe
from seqformer.errors import InputError, nearest

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(lm_app, name="lm")
app.command()(bench)
app.command()(cache)
app.command()(download)
app.command()(index_tar)
app.command()(plan)
app.command()(student)
Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or the file of a blend.")]
Where = Annotated[list[str] | None, typer.Option(help="Keep rows by column=value.")]
Tta = Annotated[bool, typer.Option("--tta/--no-tta", help="Predict changed rows as well, as the config's tta says.")]
RunFolder = Annotated[Path, typer.Argument(help="A run folder, such as runs/demo.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the config.")]


@app.callback()
def settings(
    tune_cpu: Annotated[bool, typer.Option("--tune-cpu", help="First make this process faster on a CPU.")] = False,
) -> None:
    if tune_cpu:
        from seqformer.machine import tune_cpu as tune

        found = tune()
        typer.echo("CPU: " + (", ".join(f"{name} {change}" for name, change in found.items()) or "nothing to change"))


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A run's YAML, such as configs/demo.yaml.")],
    overrides: Overrides = None,
    root: Annotated[Path, typer.Option(help="Where run folders are made.")] = Path("runs"),
    accept_changes: Annotated[bool, typer.Option(help="Go on although the run was made with another config.")] = False,
    seeds: Annotated[str | None, typer.Option(help="Several runs of one config on the same folds, as 0,1,2.")] = None,
) -> None:
    """Train the folds of a config; an interrupted run goes on where it stopped."""
    from seqformer.config import read_config

    plain = read_config(config, overrides or [])
    load_competition(plain.get("competition"))
    from seqformer.train.crossval import train_run
    from seqformer.train.seeds import train_seeds

    if seeds is None:
        train_run(plain, root, accept_changes)
    elif not all(seed.strip().isdecimal() for seed in seeds.split(",")):
        raise InputError(f"--seeds {seeds}: expected whole numbers, such as 0,1,2")
    else:
        train_seeds(plain, root, [int(seed) for seed in seeds.split(",")], accept_changes)


@app.command()
@with_decoder
def predict(
    runs: Runs,
    manifest: Annotated[Path, typer.Argument(help="The rows to predict.")],
    out: Annotated[Path, typer.Argument(help="The parquet file to write: id, prediction.")],
    make: Callable,
    where: Where = None,
    tta: Tta = True,
) -> None:
    """Predict the rows of a manifest with all finished folds of one run, several runs or a blend together."""
    import polars

    from seqformer.train.crossval import write_table

    decoder = make()
    trained, table = open_runs(runs), read_rows(manifest, where)
    found = trained.predict(table, tta, decoder)
    values = [value if isinstance(value, str) else value.tolist() for value in found.values()]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_table(polars.DataFrame({"id": list(found), "prediction": values}), out)
    typer.echo(f"{len(found)} rows -> {out}")


@app.command()
@with_decoder
def score(
    runs: Runs,
    manifest: Annotated[Path, typer.Argument(help="Rows with the target column, none of them trained on.")],
    make: Callable,
    where: Where = None,
    seen: Annotated[bool, typer.Option(help="Score rows although folds were trained on them.")] = False,
    tta: Tta = True,
) -> None:
    """Score the ensemble of a run's folds, of several runs or of a blend on rows that no fold was trained on."""
    trained, table = open_runs(runs), read_rows(manifest, where)
    name, value, rows = trained.score(table, seen, tta, make([] if seen else table["id"].to_list()))
    folds = sum(len(run.names) for run in getattr(trained, "runs", [trained]))
    typer.echo(f"{name} {value:.4f} on {rows} rows, {folds} folds")


@app.command()
def blend(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders with the same rows and folds.")],
    out: Annotated[Path, typer.Option(help="The file to write, such as runs/blend.json, for predict and score.")],
    equal: Annotated[bool, typer.Option(help="Equal weights, nothing fitted.")] = False,
) -> None:
    """Weigh several runs by their out-of-fold predictions; the score is of folds the weights were not fitted on."""
    from seqformer.blend import blend_runs
    from seqformer.train.log import RunLog

    for run in runs:
        open_run(run)
    path = out if out.suffix == ".json" else out / "blend.json"
    found = blend_runs(runs, path, equal)
    rows = [[Path(run["run"]).name, f"{run['weight']:.4f}", f"{run['score']:.4f}"] for run in found["runs"]]
    rows.append(["equal weights", "", f"{found['equal']:.4f}"])
    rows += [] if equal else [["blend, cross-fitted", "", f"{found['score']:.4f}"]]
    with RunLog(None) as log:
        log.table(f"{path}: {found['rows']} rows", ["run", "weight", found["metric"]], rows)


@app.command()
def pseudo(
    run: RunFolder,
    manifest: Annotated[Path, typer.Argument(help="Rows to label or, with --own or --metric, those of the run.")],
    out: Annotated[Path, typer.Argument(help="The manifest to write, for data.pseudo of a config.")],
    threshold: Annotated[float, typer.Option(help="Leave out labels less probable than this.")] = 0.0,
    column: Annotated[str | None, typer.Option(help="The column to write, the run's target by default.")] = None,
    where: Where = None,
    tta: Tta = True,
    own: Annotated[bool, typer.Option(help="Out-of-fold predictions of the run's own rows, as a target.")] = False,
    metric: Annotated[bool, typer.Option(help="The run's metric of each of these instead.")] = False,
) -> None:
    """Label rows by each fold's model apart, so that a run with the same folds can train on them without a leak."""
    from seqformer.data.manifest import write_manifest
    from seqformer.oof import read_out_of_fold
    from seqformer.pseudo import label_rows, own_targets

    trained, table = open_run(run), read_rows(manifest, where)
    if own or metric:
        write_manifest(own_targets(read_out_of_fold(run), table, column, metric), out)
        typer.echo(f"{table.height} rows with out-of-fold targets -> {out}")
        return
    labelled, low, grouped = label_rows(trained, table, column, threshold, tta)
    write_manifest(labelled, out)
    left = [f"{low} below {threshold:g}"] * bool(low) + [f"{grouped} of groups that the fold validates"] * bool(grouped)
    told = f"; left out: {', '.join(left)}" if left else ""
    typer.echo(f"{labelled.height} labels of {table.height} rows by {len(trained.names)} folds -> {out}{told}")


app.command()(transcribe)


@app.command()
def save(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(help="The folder to write: config.json, model.safetensors, README.md.")],
    fold: Annotated[str, typer.Option(help="Which fold's model: its number, or full.")] = "0",
    push: Annotated[str | None, typer.Option(help="Upload it to the Hugging Face hub as well, as owner/name.")] = None,
) -> None:
    """Save a fold's model for load_pretrained, and for other runs to start from."""
    import json

    from seqformer.pretrained import push_to_hub, save_pretrained

    trained = open_run(run)
    model, facts = trained.fold(fold), {"run": trained.config.run, "fold": fold}
    if (run / "metrics.json").is_file():
        metrics = json.loads((run / "metrics.json").read_text())
        if "out_of_fold" in metrics:
            facts[f"{metrics['metric']}, out of fold"] = f"{metrics['out_of_fold']:.4f} on {metrics['rows']:,} rows"
    save_pretrained(model, folder, facts)
    typer.echo(f"{run} fold {fold} -> {folder}")
    if push:
        push_to_hub(model, push, facts)
        typer.echo(f"-> {push}")


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(help="An fnmatch pattern.")] = "*",
    in_dim: Annotated[int, typer.Option(help="Features of an input frame.")] = 80,
    ladder: Annotated[bool, typer.Option(help="From Conformer to Squeezeformer, one change at a time.")] = False,
) -> None:
    """List the backbone presets with their parameters."""
    if ladder:
        from seqformer.profile_table import print_ladder

        return print_ladder()
    import torch

    from seqformer.model import create_backbone, list_backbones

    found = list_backbones(pattern)
    if not found:
        raise InputError(f"no backbone matches {pattern!r}; {nearest(pattern, list_backbones())}")
    for name in found:
        with torch.device("meta"):
            backbone = create_backbone(name, in_dim=in_dim)
        parameters = sum(parameter.numel() for parameter in backbone.parameters())
        typer.echo(f"{name:18} {parameters:>12,} parameters  dim {backbone.dim}  stride {backbone.stride}")


@app.command()
def profile(
    name: Annotated[str, typer.Argument(help="A backbone, such as squeezeformer_s.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Its arguments, such as depth=8.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Length of the item, at 10 ms a frame.")] = 30.0,
    frames: Annotated[int | None, typer.Option(help="Its length in input frames instead.")] = None,
    in_dim: Annotated[int, typer.Option(help="Features of an input frame.")] = 80,
    batch: Annotated[int, typer.Option(help="Items, for memory and milliseconds.")] = 1,
    time: Annotated[bool, typer.Option(help="Time it on this machine as well.")] = True,
    json: Annotated[str | None, typer.Option(help="Write JSON to this file, or - for standard output.")] = None,
) -> None:
    """Parameters and FLOPs by part, receptive field, memory for backward and milliseconds of a backbone."""
    from seqformer.config import read_keywords
    from seqformer.profile import profile_backbone
    from seqformer.profile_table import print_profile

    length = round(100 * seconds) if frames is None else frames
    found = profile_backbone(name, length, in_dim, batch, time, read_keywords(overrides or []))
    print_profile(found, json)


@app.command()
def validate(manifest: Annotated[Path, typer.Argument(help="A manifest.")], read: bool = False) -> None:
    """Check a manifest; with --read, read every row as well."""
    from seqformer.data.dataset import RowReader
    from seqformer.data.manifest import read_manifest

    table = read_manifest(manifest)
    if read:
        reader = RowReader(table)
        for index in range(len(reader)):
            reader[index]
    typer.echo(f"{manifest}: {table.height} rows, {', '.join(table.columns)}")


@app.command()
def analyze(
    run: RunFolder,
    fold: Annotated[int, typer.Option(help="A finished fold.")] = 0,
    rows: Annotated[int, typer.Option(help="At most so many of its validation rows.")] = 64,
    out: Annotated[Path | None, typer.Option(help="The folder to write, <run>/analysis by default.")] = None,
) -> None:
    """How alike frames are, how large learned scales and how far heads look, by depth of a trained backbone."""
    from seqformer.analyze import analyze_run

    analyze_run(open_run(run).folder, fold, rows, out)


@app.command()
def new_competition(
    name: Annotated[str, typer.Argument(help="Small letters, digits and _.")],
    root: Annotated[Path, typer.Option(help="Where competitions/ and configs/ are.")] = Path("."),
) -> None:
    """Write a folder and a config to start from, which run on made-up data at once."""
    from seqformer.new_competition import new_competition as write

    for path in write(name, root):
        typer.echo(path)
    typer.echo(f"\npython -m competitions.{name}.prepare data/{name}\nseqformer train configs/{name}.yaml")


def open_run(folder: Path):
    """The trained run at a folder, its competition's plugin loaded."""
    from seqformer.config import read_config
    from seqformer.predict import TrainedRun

    if (folder / "config.yaml").is_file():
        load_competition(read_config(folder / "config.yaml").get("competition"))
    return TrainedRun(folder)


def open_runs(places: list[Path]):
    """What predicts together: a run, several runs equally, or those of a blend file by its weights."""
    from seqformer.ensemble import Ensemble, read_blend

    if len(places) == 1:
        return read_blend(places[0], open_run) if places[0].suffix == ".json" else open_run(places[0])
    return Ensemble([open_run(place) for place in places])


def read_rows(manifest: Path, where: list[str] | None) -> Any:
    """A manifest's rows, kept by ``column=value`` conditions."""
    from seqformer.data.manifest import read_manifest

    conditions: dict[str, list[str]] = {}
    for item in where or []:
        column, sign, value = item.partition("=")
        if not sign:
            raise InputError(f"--where {item!r}: expected column=value")
        conditions.setdefault(column, []).append(value)
    return read_manifest(manifest, conditions)


def load_competition(name: str | None) -> None:
    """Import ``competitions/<name>/plugin.py`` of the working folder or the checkout, if there is one.

    The name comes from a config and is a plain name: it chooses among folders that are there, and holds no path.
    """
    if name is None:
        return
    roots = [Path.cwd() / "competitions", Path(__file__).resolve().parents[2] / "competitions"]
    known = sorted({path.parent.name for root in roots for path in root.glob("*/prepare.py")})
    if name not in known:
        raise InputError(f"no folder competitions/{name} here; {nearest(str(name), known)}")
    path = next(root / name / "plugin.py" for root in roots if (root / name).is_dir())
    module = f"competitions.{name}.plugin"
    if path.is_file() and module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, path)
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])


def run_command(function: Callable) -> None:
    """Run a typed function as a program: arguments from the command line, errors as ``main`` shows them."""
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    program.command()(function)
    main(program)


def main(program: typer.Typer = app) -> None:
    """The ``seqformer`` program, or another with its way of showing errors."""
    try:
        program()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output went away, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, a folder without permission: its text names the file
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
