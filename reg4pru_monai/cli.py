"""``reg4pru …``: thin, no logic of its own."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .commands import CouldNotRun, listed, readable
from .comparison.command import compare
from .evaluate_command import evaluate
from .inspection.command import inspect
from .planning.command import plan
from .release.command import card, release
from .reproduce.command import reproduce
from .serving_command import register, tracking
from .sweeps.command import sweep

app = typer.Typer(
    help="Retinal vessel segmentation with a token-pruned vision transformer.",
    no_args_is_help=True,
    rich_markup_mode=None,  # boxes would break long paths over lines
)


@app.command()
def phantoms(
    directory: Annotated[Path, typer.Argument(help="Folder to write into.")],
    count: Annotated[int, typer.Option(min=1, help="How many photographs.")] = 3,
    size: Annotated[str, typer.Option(help="Rows x columns, in pixels.")] = "512x640",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first one.")] = 1000,
) -> None:
    """Write generated fundus photographs, to try things on."""
    from .fundus.phantom import make_phantom
    from .plots import save_picture

    rows, columns = _size(size)
    try:
        for number in range(count):
            save_picture(directory / f"photograph_{number + 1}.png", make_phantom((rows, columns), seed + number).image)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    typer.echo(f"{count} photographs in {directory}")


@app.command(name="bundle")
def bundle_folder() -> None:
    """Print the folder of the shipped MONAI bundle, as in --config_file $(reg4pru bundle)/configs/train.yaml."""
    from .released import BUNDLE

    typer.echo(BUNDLE)


@app.command()
def summary(
    training: Annotated[Path, typer.Argument(help="The --output_dir of a training or evaluation.")],
    segmented: Annotated[Path | None, typer.Option(help="The --output_dir of an inference.")] = None,
) -> None:
    """Print the result of a training as a table, and where its pictures and its MLflow store are."""
    from .bundle import table
    from .tracking_store import masked, resolve_uri, store_folder

    path = training / "metrics.json"
    try:
        typer.echo(table(json.loads(path.read_text())))
    except FileNotFoundError:
        raise typer.BadParameter(f"{path} does not exist; give the --output_dir of a finished training") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise typer.BadParameter(f"{path} is no result of a training ({error!r})") from None
    typer.echo(f"\nPictures:  {training / 'overlays'}  {training / 'precision_recall.png'}")
    if segmented:
        typer.echo(f"Segmented: {segmented / 'overlays'}  {segmented / 'masks'}")
    uri = masked(resolve_uri(None, store_folder(training)))
    typer.echo(f"MLflow:    {f'mlflow ui --backend-store-uri {shlex.quote(uri)}' if uri.startswith('sqlite') else uri}")


@app.command(cls=CouldNotRun)
def segment(
    inputs: Annotated[
        list[str], typer.Argument(help="Files, folders, globs, manifests (.txt, .csv, .tsv), or URLs of them (s3://…).")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the results; made where it does not exist.")] = Path(
        "runs/segmented"
    ),
    bundle: Annotated[Path | None, typer.Option(help="Bundle to use [default: the installed one].")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights of a training, instead of the bundle's.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:0.")] = "auto",
    policy: Annotated[str | None, typer.Option(help="dense or random [default: as trained].")] = None,
    keep_rate: Annotated[float | None, typer.Option(help="Share of tokens kept [default: as trained].")] = None,
    flips: Annotated[
        bool, typer.Option("--flips", help="Average over four flips of every window: better, four times slower.")
    ] = False,
    outputs: Annotated[
        str, typer.Option(help="Of mask, probability, overlay, contour, nifti, dicom-seg; with commas.")
    ] = "mask,overlay",
    store: Annotated[
        str | None,
        typer.Option(help="Object storage for the outputs, such as s3://bucket/results [default: --output]."),
    ] = None,
    archives: Annotated[
        bool, typer.Option("--archives", help="Outputs in tar archives of 1 GB (WebDataset), not in files.")
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(help="Probability from which a pixel is vessel [default: the network's].")
    ] = None,
    mm_per_pixel: Annotated[
        float | None, typer.Option(help="Scale of all photographs, for measurements in millimetres.")
    ] = None,
    angle: Annotated[
        float | None,
        typer.Option(
            help="Angle of view of all photographs, in degrees [default: what DICOM says, else 45 is assumed]."
        ),
    ] = None,
    identifiers: Annotated[str, typer.Option(help="DICOM keywords that name a row, with commas.")] = "",
    max_pixels: Annotated[int, typer.Option(help="Larger photographs are refused.")] = 150_000_000,
    root: Annotated[str | None, typer.Option(help="Folder or URL that names are relative to.")] = None,
    shard: Annotated[str, typer.Option(help="I/N: only part I of N.")] = "1/1",
    batch_size: Annotated[int, typer.Option(help="Photographs whose windows share a forward pass.")] = 1,
    workers: Annotated[
        int | None, typer.Option(help="Threads to read, and to write [default: processors, 2 to 8].")
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: on a Ray cluster.")] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(help="Of a Ray cluster, HOST:PORT or auto [default: one of this machine, for this run]."),
    ] = None,
    ray_actors: Annotated[
        int | None, typer.Option(help="Processes with the network [default: by what the cluster has].")
    ] = None,
    ray_cpus: Annotated[float | None, typer.Option(help="CPUs, and threads, of each [default: 1].")] = None,
    ray_gpus: Annotated[
        float | None, typer.Option(help="GPUs of each, such as 1 or 0.5 [default: 1 where there are any].")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many photographs now.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew; earlier results go to earlier/.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
    parquet: Annotated[bool, typer.Option("--parquet", help="Also results.parquet.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but failures.")] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object per file, and a summary.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Say where the time went.")] = False,
) -> None:
    """Segment photographs: masks, measurements and a report. The same command again goes on where it ended.

    Exit status: 0 all done, 3 done but some failed, 1 could not run, 130 when stopped.
    """
    from .startup import import_monai_alone

    if bundle is None:  # the configuration of a bundle may need all of MONAI
        import_monai_alone()
    from .batch import command
    from .batch.inputs import parse_shard
    from .weights import CheckpointError

    choices = {
        "threshold": threshold,
        "outputs": tuple(listed(outputs)),
        "millimetres_per_pixel": mm_per_pixel,
        "angle": angle,
        "identifiers": tuple(listed(identifiers)),
        "max_pixels": max_pixels,
        "store": store,
        "archives": archives,
    }
    how: dict[str, Any] = {
        "root": root,
        "workers": workers,
        "batch_size": batch_size,
        "limit": limit,
        "overwrite": overwrite,
        "dry_run": dry_run,
        "parquet": parquet,
    }
    network = command.Network(bundle, checkpoint, device, policy, keep_rate, flips)
    mode = "json" if json_lines else "quiet" if quiet else "auto"
    with readable(*command.COULD_NOT_RUN, CheckpointError, ValueError):
        how["part"] = parse_shard(shard)
        how["ray"] = command.ray_options(engine, device, ray_address, ray_actors, ray_cpus, ray_gpus)
        code = command.segment(inputs, output, network, choices, how, mode, profile)
    raise typer.Exit(code)


@app.command(cls=CouldNotRun)
def status(
    output: Annotated[Path, typer.Argument(help="The --output of reg4pru segment.")],
    json_lines: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Say how far the segmentation of a folder is, across all shards: done, failed, missing and why."""
    from .startup import import_monai_alone

    import_monai_alone()
    from .batch import command

    with readable(*command.COULD_NOT_RUN, ValueError):
        typer.echo(command.status(output, json_lines))


@app.command(cls=CouldNotRun)
def blend(
    checkpoint: Annotated[Path, typer.Argument(help="Weights of a training, such as its checkpoints/best.pt.")],
    start: Annotated[Path, typer.Argument(help="The weights that this training started from.")],
    target: Annotated[Path, typer.Argument(help="File to write, such as checkpoints/blended.pt of the training.")],
    share: Annotated[float, typer.Option(help="Of START; the rest is of CHECKPOINT.")] = 0.5,
) -> None:
    """Write the mean of fine-tuned weights and those they came from: less of what was there before is lost."""
    from .weights import CheckpointError, blend_checkpoints

    with readable(CheckpointError, ValueError, OSError):
        blend_checkpoints(checkpoint, start, target, share)
    typer.echo(f"written: {target}")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Weights, such as best.pt of a training.")],
    target: Annotated[Path, typer.Argument(help="File to write: .onnx, .pt2 (torch.export) or .ts (TorchScript).")],
    size: Annotated[int, typer.Option(min=32, help="Side of the images it will take, in pixels.")] = 256,
    keep_rate: Annotated[
        float | None, typer.Option(help="Share of the tokens kept at each stage; 1.0 prunes nothing.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where a .pt2 or .ts file is to run: cpu, cuda:0.")] = "cpu",
) -> None:
    """Write a network for use without this package, compared with the original before it is put in place."""
    from .export import ExportError, export_checkpoint
    from .weights import CheckpointError

    try:
        difference = export_checkpoint(checkpoint, target, size, keep_rate, device)
    except (CheckpointError, ExportError, ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    typer.echo(
        f"{target}: {target.stat().st_size / 2**20:.1f} MiB, takes images (B, 3, {size}, {size}); "
        f"logits differ from the network's by at most {difference:.0e} of the largest"
    )


@app.command()
def benchmark(
    policies: Annotated[
        str, typer.Option(help="Pruning policies; dense is always measured.")
    ] = "dense,dynamicvit,reg4pru",
    keep_rates: Annotated[str, typer.Option(help="Shares of the tokens kept at each stage.")] = "0.7,0.5",
    presets: Annotated[str, typer.Option(help="Sizes of the network [default: small].")] = "",
    decoders: Annotated[str, typer.Option(help="skip, eomt or both [default: skip].")] = "",
    sizes: Annotated[str, typer.Option(help="Sides of the square image, pixels.")] = "512",
    batch_sizes: Annotated[str, typer.Option(help="Images per forward pass.")] = "1",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0, or several.")] = "auto",
    dtypes: Annotated[str, typer.Option(help="float32, bfloat16, float16; the latter two by autocast.")] = "float32",
    compiled: Annotated[str, typer.Option(help="no, yes or both: torch.compile.")] = "no",
    stages: Annotated[str, typer.Option(help="Schedule by name, or blocks such as 2,5,8 [default: step3].")] = "",
    reactivate: Annotated[str, typer.Option(help="Where tokens come back: name or block [default: penultimate].")] = "",
    fov: Annotated[bool, typer.Option("--fov", help="Images show a disc; tokens outside are skipped.")] = False,
    peers: Annotated[str, typer.Option(help="Other networks: all, none, or names.")] = "all",
    checkpoint: Annotated[Path | None, typer.Option(help="Trained weights, with their preset and decoder.")] = None,
    ap: Annotated[
        Path | None, typer.Option(help='JSON file of AP by row: {"dense": 0.83, "reg4pru@0.7": 0.83}.')
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for benchmark.json, .csv and, with --ap, .png.")] = None,
    repeats: Annotated[int, typer.Option(help="Interleaved repetitions.")] = 10,
    warmup: Annotated[int, typer.Option(help="Forward passes before.")] = 2,
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU [default: torch's].")] = None,
) -> None:
    """Measure speed, FLOPs and memory: pruned against dense against other networks. Lists take commas."""
    from . import benchmark_report as report
    from .benchmark import BenchmarkError, Plan, run_benchmark
    from .files import check_folder
    from .weights import CheckpointError

    try:
        plan = Plan(
            policies=listed(policies),
            keep_rates=listed(keep_rates, float, "--keep-rates"),
            presets=listed(presets),
            decoders=listed(decoders),
            sizes=listed(sizes, int, "--sizes"),
            batch_sizes=listed(batch_sizes, int, "--batch-sizes"),
            devices=listed(device),
            dtypes=listed(dtypes),
            compiled=_compiled(compiled),
            stages=_blocks(stages),
            reactivate=int(reactivate) if reactivate.isdigit() else reactivate or None,
            fov=fov,
            peers=listed(peers),
            checkpoint=checkpoint,
            repeats=repeats,
            warmup=warmup,
            threads=threads,
        )
        values = report.read_ap(ap, plan) if ap else {}
        made_with = report.environment(plan, shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))
        if output:
            check_folder(output)
        rows, skipped = run_benchmark(plan, values)
        typer.echo(report.table(rows, skipped, report.headline(plan, made_with)))
        written = report.write(output, plan, rows, skipped, made_with) if output else []
    except (ValueError, OSError, CheckpointError) as error:
        raise typer.BadParameter(str(error)) from None
    except BenchmarkError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    for path in written:
        typer.echo(f"written: {path}")


app.command(cls=CouldNotRun)(compare)
app.command(cls=CouldNotRun)(evaluate)
app.command(cls=CouldNotRun)(inspect)
app.command(cls=CouldNotRun)(register)
app.command(cls=CouldNotRun)(release)
app.command(cls=CouldNotRun)(card)
app.command(cls=CouldNotRun)(sweep)
app.command(cls=CouldNotRun)(reproduce)
app.command(cls=CouldNotRun)(plan)
app.add_typer(tracking, name="tracking")


def _blocks(text: str) -> str | list[int] | None:
    """Stages: a name, blocks with commas, or nothing."""
    return listed(text, int, "--stages") if text[:1].isdigit() else text or None


def _compiled(text: str) -> list[bool]:
    found = {"no": [False], "yes": [True], "both": [False, True]}.get(text)
    if found is None:
        raise ValueError(f"--compiled must be no, yes or both, got {text!r}")
    return found


def _size(text: str) -> tuple[int, int]:
    try:
        rows, columns = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise typer.BadParameter(f"size must be ROWSxCOLUMNS, such as 512x640, got {text!r}") from None
    return rows, columns


if __name__ == "__main__":
    app()
