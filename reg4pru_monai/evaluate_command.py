"""``reg4pru evaluate``, and what it prints and writes."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .commands import readable
from .files import check_folder, replacing, write_rows

if TYPE_CHECKING:
    from .evaluate_masks import Result


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of masks or probabilities, anybody's.")],
    ground_truth: Annotated[Path, typer.Argument(help="Folder of vessel masks; files are paired by name.")],
    photographs: Annotated[Path | None, typer.Option(help="Folder of photographs, for the fields of view.")] = None,
    groups: Annotated[Path | None, typer.Option(help="CSV file with the columns name and group.")] = None,
    second_observer: Annotated[Path | None, typer.Option(help="Folder of masks by a second observer.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for metrics.json, per_image.csv, reliability.png.")
    ] = None,
) -> None:
    """Compare masks or probabilities with ground truth: overlap, boundaries, topology, thin vessels, calibration."""
    from .evaluate_masks import evaluate_masks

    with readable(ValueError, OSError):
        if output:
            check_folder(output)
        result = evaluate_masks(
            predictions, ground_truth, photographs=photographs, groups=groups, second_observer=second_observer
        )
        found = result.to_dict()
        written = write(output, result, found) if output else []
    typer.echo(table(found))
    for path in written:
        typer.echo(f"written: {path}")


# --- the terminal ----------------------------------------------------------------------------------------------------


def table(found: dict[str, Any]) -> str:
    """The result as text. found: what ``Result.to_dict`` returned."""
    settings, second = found["settings"], found.get("second_observer")
    columns = {"pooled": found["pooled"], "mean of images": found["per_image"]}
    if second:
        columns |= {"2nd observer, pooled": second["pooled"], "2nd observer, mean": second["per_image"]}
    lines = [f"{settings['images']} images, {settings['predictions']}, field of view {settings['field_of_view']}"]
    lines += ["", *_lines(columns)]
    if found["groups"]:
        by_group = {f"{name} ({group['images']})": group["per_image"] for name, group in found["groups"].items()}
        lines += ["", "mean of images by group", *_lines(by_group)]
    lines += [
        "",
        "brackets: 95 % interval over subjects. (-): lower is better. "
        f"px: of a field of view of {settings['canonical_diameter_px']:g}",
    ]
    return "\n".join([*lines, *found["notes"]])


def _lines(columns: dict[str, Any]) -> list[str]:
    from .mask_metrics import LOWER_IS_BETTER

    width = max(29, *(len(title) + 3 for title in columns))
    lines = [f"{'':<34}" + "".join(f"{title:<{width}}" for title in columns)]
    for name in max(columns.values(), key=len):  # pooled ones are fewer
        title = f"{name} (-)" if name in LOWER_IS_BETTER else name
        lines.append(f"{title:<34}" + "".join(f"{_cell(values.get(name)):<{width}}" for values in columns.values()))
    return [line.rstrip() for line in lines]


def _cell(value: dict[str, float | None] | None) -> str:
    """0.812 [0.790, 0.834]; empty where a metric is not pooled."""
    if value is None:
        return ""
    middle, low, high = ("n/a" if value[key] is None else f"{value[key]:.4g}" for key in ("value", "low", "high"))
    return middle if value["low"] is None else f"{middle} [{low}, {high}]"


# --- the files -------------------------------------------------------------------------------------------------------


def write(output: Path, result: "Result", found: dict[str, Any]) -> list[Path]:
    """Write metrics.json, per_image.csv and, of probabilities, reliability.png: all or none. Raises OSError."""
    from .plots import save_reliability

    names = ["metrics.json", "per_image.csv"] + ["reliability.png"] * result.predictions.probabilities
    rows = result.rows()
    with ExitStack() as stack:
        beside = {name: stack.enter_context(replacing(output / name)) for name in names}
        beside["metrics.json"].write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        write_rows(beside["per_image.csv"], rows)
        if "reliability.png" in beside:
            save_reliability(beside["reliability.png"], {"predictions": result.predictions.calibration})
    if "reliability.png" not in names:  # of an earlier evaluation, it would be taken for one of this
        (output / "reliability.png").unlink(missing_ok=True)
    return [output / name for name in names]
