"""``reg4pru …``: thin, no logic of its own."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

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


@app.command()
def summary(
    training: Annotated[Path, typer.Argument(help="The --output_dir of a training or evaluation.")],
    segmented: Annotated[Path | None, typer.Option(help="The --output_dir of an inference.")] = None,
) -> None:
    """Print the result of a training as a table, and where its pictures and its MLflow store are."""
    from .bundle import table
    from .tracking import resolve_uri

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
    uri = resolve_uri(None, training.parent)
    typer.echo(f"MLflow:    {f'mlflow ui --backend-store-uri {shlex.quote(uri)}' if uri.startswith('sqlite') else uri}")


@app.command()
def release(
    checkpoint: Annotated[Path, typer.Argument(help="best.pt of a training.")],
    target: Annotated[Path, typer.Argument(help="File to write, such as models/model.pt of the bundle.")],
) -> None:
    """Write the weights of a checkpoint in half precision, to ship them."""
    from .weights import CheckpointError, write_release

    try:
        write_release(checkpoint, target)
    except CheckpointError as error:
        raise typer.BadParameter(str(error)) from None
    typer.echo(f"{target}: {target.stat().st_size / 2**20:.1f} MiB")


def _size(text: str) -> tuple[int, int]:
    try:
        rows, columns = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise typer.BadParameter(f"size must be ROWSxCOLUMNS, such as 512x640, got {text!r}") from None
    return rows, columns


if __name__ == "__main__":
    app()
