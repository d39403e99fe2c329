"""The model card of the bundle: every number in it comes from the facts of a release."""

from collections.abc import Mapping
from math import inf
from textwrap import fill
from typing import Any

from ..fundus.angle import USUAL
from ..mask_metrics import CALIBRATION_BINS
from . import card_tables as tables
from .card_tables import Facts, number
from .data_sets import CC_BY, CC_BY_URL, KNOWN


def model_card(facts: Facts, comments: Mapping[str, str]) -> str:
    """Markdown of docs/README.md. comments: what somebody saw in a failure, by "DATA_SET PHOTOGRAPH"."""
    sections = [
        _title(),
        _model(facts),
        _data(facts),
        _training(facts),
        _metrics(facts),
        _calibration(facts),
        _speed(facts),
        _robustness(facts),
        _quality(facts),
        _resolution(facts),
        _failures(facts, comments),
        _limitations(facts),
        _commands(),
        _versions(facts),
        _LICENCE,
    ]
    return "\n\n".join(_wrapped(block) for block in "\n\n".join(sections).split("\n\n")) + "\n"


def _wrapped(block: str) -> str:
    """A paragraph in lines of 120 characters; anything else as it is."""
    if "\n" in block or block.startswith(("#", "|", "!", "<", "`", "*")):
        return block
    return fill(block, 120, break_long_words=False, break_on_hyphens=False)


def _title() -> str:
    return """<!-- Made by `reg4pru card` from facts.json and comments.json; do not edit. -->

# Fundus vessel segmentation with token pruning

Segments the blood vessels of the retina in colour fundus photographs. The network is a small vision transformer that
drops tokens on the way and brings them back before its end, trained with Reg4Pru (Wyatt, Clark and Voiculescu,
[arXiv 2602.02163](https://arxiv.org/abs/2602.02163)).

## Intended use

Research: comparing pruning methods, segmenting vessels for studies whose results are checked by people. It is **not a
medical device**. It must not be used for diagnosis, screening or any decision about a patient."""


def _model(facts: Facts) -> str:
    model, threshold = facts["model"], facts["threshold"]["value"]
    stages = model["stages"]
    blocks = ", ".join(str(block) for block, _ in stages)
    keep = ", ".join(dict.fromkeys(f"{100 * share:.0f} %" for _, share in stages))
    pruning = "no tokens are dropped"
    if stages and model["policy"] != "dense":
        back = f"all come back before block {model['reactivate']}"
        pruning = f"before blocks {blocks}, {keep} of the tokens go on; {back}"
    window = " × ".join(str(side) for side in model["window"])
    rows = [
        [
            "network",
            f"preset `{model['preset']}`: {model['blocks']} blocks, {model['channels']} channels, patches of "
            f"{model['patch']} × {model['patch']} pixels; decoder `{model['decoder']}`; "
            f"{model['parameters'] / 1e6:.1f} million parameters with the selectors",
        ],
        ["pruning", f"policy `{model['policy']}`: {pruning} (blocks count from 0)"],
        [
            "input",
            "RGB photograph of any size. The field of view is found and resized to a diameter of "
            f"{_diameter(model)}; colours are normalised (`{model['normalization']}`)",
        ],
        [
            "output",
            "probability of vessel for each pixel of the photograph, 0 outside the field of view; mask from "
            f"{threshold:g} on",
        ],
        ["inference", f"windows of {window} pixels, overlapping by {model['overlap']:.0%}, blended"],
        ["file", f"`{facts['weights']['file']}`, half precision, {facts['weights']['bytes'] / 2**20:.1f} MiB"],
        ["SHA-256", f"`{facts['weights']['sha256']}`"],
    ]
    lines = ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows)]
    return "## Model\n\n" + "\n".join(lines)


def _diameter(model: Mapping[str, Any]) -> str:
    found = f"{model['diameter']} pixels"
    if not model.get("by_angle"):
        return found
    usual = f"{USUAL:.0f} degrees"
    return f"{found} at an angle of view of {usual} and in proportion at others, {usual} where the angle is not known"


def _data(facts: Facts) -> str:
    names = [*dict.fromkeys([*facts["training"]["data_sets"], *facts["results"]])]
    sources = []
    for name in names:
        known = KNOWN.get(name)
        if known:
            licence = f"[{CC_BY}]({CC_BY_URL})" if known.licence == CC_BY else known.licence
            owner = f" {known.attribution}." if known.attribution else ""
            sources.append(
                f'* **{name}**: {known.authors}, "{known.title}", {known.where}.{owner} {licence}. '
                f"[Source]({known.url})."
            )
        else:
            sources.append(f"* **{name}**: no public data set that this project knows.")
    some = [
        f"{own['images']} of the {own['of_images']} test photographs of {name}"
        for name, own in facts["results"].items()
        if own["images"] < own["of_images"]
    ]
    tried = f" **Only {' and '.join(some)} were measured for this card.**" if some else ""
    return "\n\n".join(
        [
            "## Data",
            f"Split by people: no one has photographs in two parts. {_chose(facts)} The test part chose nothing."
            f"{tried}",
            tables.data(facts),
            "\n".join(sources),
            "The photographs are not part of the bundle. The pictures below show test photographs, changed: reduced, "
            "and drawn over with the segmentation. Licences of all data sets that can be read: "
            "[data_license.txt](data_license.txt).",
        ]
    )


def _chose(facts: Facts) -> str:
    threshold = facts["threshold"]
    if not threshold.get("inherited"):
        return "Validation chose the weights and the threshold."
    return (
        f"{threshold['images']} of the training photographs, of {threshold['subjects']} people, were held out until "
        "recipe and threshold had been chosen on them; the last training used them too, and its last weights ship."
    )


def _training(facts: Facts) -> str:
    training = facts["training"]
    energy = "not measured" if training["energy_kwh"] is None else f"{training['energy_kwh']:.2f} kWh"
    settings = training["settings"]
    shown = [f"`{key}` {_shown(settings[key])}" for key in sorted(settings)]
    rows = [
        ["started from", _before(training["before"])],
        ["epochs", _epochs(training)],
        ["optimiser steps", _steps(training)],
        ["time", _time(training["seconds"])],
        ["energy", energy],
        ["hardware", training["made_with"].get("hardware", "not recorded")],
        ["seed", str(training["seed"])],
    ]
    lines = ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows)]
    text = (
        "## Training\n\nBinary cross-entropy plus Dice loss inside the field of view, and the losses of the pruning "
        "policy; moving average of the weights.\n\n"
    )
    return text + "\n".join(lines) + (f"\n\nSettings: {', '.join(shown)}." if shown else "")


def _before(earlier: Facts | None) -> str:
    if earlier is None:
        return "scratch"
    further = f"; these from {_before(earlier['before'])}" if earlier.get("before") else ""
    return (
        f"weights trained with policy {earlier['policy']}; epochs: {_epochs(earlier)}; optimiser steps: "
        f"{_steps(earlier)}; time: {_time(earlier['seconds'])}{further}"
    )


def _epochs(training: Facts) -> str:
    epoch = "" if training["best_epoch"] is None else f", weights of epoch {training['best_epoch']}"
    ap = training["validation_ap"]  # only of the best checkpoint
    best = "" if ap is None else f"{' (best validation AP)' if epoch else ''}; validation AP {number(ap)}"
    blended = training.get("blended")  # missing in what releases said before there was such a thing
    mixed = f", blended: {blended['share']:.0%} of the weights that it started from" if blended else ""
    return f"{training['epochs']}{epoch}{best}{mixed}"


def _steps(training: Facts) -> str:
    return "not recorded" if training["steps"] is None else str(training["steps"])


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not recorded"
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "default" if value is None else str(value)


def _metrics(facts: Facts) -> str:
    threshold = facts["threshold"]
    grouped = tables.groups(facts)
    unseen = [name for name, own in facts["results"].items() if not own["trained_on"]]
    parts = [
        "## Metrics",
        "On the test photographs, in the pixels of the photograph, inside the field of view. Brackets: 95 % interval "
        "over people. Pruned is what ships; dense is the same network without pruning.",
        f"Not trained on: {', '.join(unseen)}." if unseen else "",
        tables.accuracy(facts),
        _threshold(threshold),
        f"Means over the photographs of each group, pruned:\n\n{grouped}" if grouped else "",
        f"The weights as trained and as shipped, in half precision:\n\n{tables.half_precision(facts)}",
        "Test-time flips (`--flips`) average four flips of every window. Pruned; time of the network:\n\n"
        + tables.flips(facts),
    ]
    return "\n\n".join(part for part in parts if part)


def _threshold(threshold: Facts) -> str:
    value, (best, half) = f"{threshold['value']:g}", (number(threshold[key]) for key in ("dice", "dice_at_half"))
    if threshold.get("inherited"):
        return (
            f"The threshold {value} is that of the weights before: it gave them the highest Dice on the "
            f"{threshold['images']} photographs that they had not seen, {best}, and {half} at 0.5."
        )
    return (
        f"The threshold {value} has the highest mean Dice of the {threshold['images']} validation photographs: {best}, "
        f"and {half} at 0.5."
    )


def _calibration(facts: Facts) -> str:
    errors = [f"{name} {tables.main_interval(own['metrics'], 'ece')}" for name, own in facts["results"].items()]
    return (
        "## Calibration\n\nExpected calibration error of the probability of vessel, over pixels in the field of view "
        f"({CALIBRATION_BINS} bins): {', '.join(errors)}. The probabilities were not calibrated after training; on "
        "other cameras they can be further off."
    )


def _speed(facts: Facts) -> str:
    quiet = all(row.get("busy", inf) <= row.get("processors", 0) for row in facts["speed"])
    busy = " **Not to be relied on: other programs kept the machine busy, or its load was not recorded.**"
    warning = "" if quiet else busy
    return (
        "## Speed and memory\n\nTime and peak memory of the network, one photograph at a time, dense and pruned in "
        f"turn; medians of {facts['speed'][0]['repeats']}. File to mask: everything, pruned. Memory is what PyTorch "
        f"allocates beyond the weights.{warning}\n\n{tables.speed(facts)}"
    )


def _robustness(facts: Facts) -> str:
    counts = [f"{len(own['photographs'])} of {name}" for name, own in facts["robustness"].items()]
    left_out = [f"{title} on {name}" for name, own in facts["robustness"].items() for title in own["left_out"]]
    rest = f" Left out, because the photographs become too large: {', '.join(left_out)}." if left_out else ""
    return (
        f"## Robustness\n\nThe same test photographs, clean and made worse ({', '.join(counts)}: the first of each "
        "group by name), pruned. All are scored in the field of view of the clean photograph, turned, scaled or cut "
        "like the photograph, so that a field of view that is not found counts as an error."
        f"{rest}\n\n{tables.robustness(facts)}"
    )


def _quality(facts: Facts) -> str:
    shown = tables.quality(facts)
    found = f"\n\nDice (mean of photographs) where an indicator of quality is lowest:\n\n{shown}" if shown else ""
    return (
        "## Bad quality\n\nNothing is refused: a photograph of poor quality gets a mask too. `reg4pru segment` "
        "writes indicators of its quality (focus, light, contrast, completeness of the field of view) beside the "
        f"results, to be judged by people.{found}"
    )


def _resolution(facts: Facts) -> str:
    trained = facts["training_photographs"]
    tested = [
        f"{name} {own['diameter_px'][0]:.0f} to {own['diameter_px'][1]:.0f}{_angles(own)}"
        for name, own in facts["results"].items()
    ]
    low, high = trained["diameter_px"]
    return (
        f"## Resolution\n\nPhotographs are brought to a field of view of {_diameter(facts['model'])}. Diameters in "
        f"pixels: training photographs {low:.0f} to {high:.0f}{_angles(trained)}; tested {', '.join(tested)}. Half and "
        "twice the resolution stand under Robustness. Photographs with much fewer pixels across than they are brought "
        "to are enlarged and hold no thin vessels; of those with more, vessels of one or two pixels are lost."
    )


def _angles(photographs: Mapping[str, Any]) -> str:
    known = [f"{angle:g}" for angle in photographs.get("angles_deg", ())]
    return f" ({' and '.join(known)} degrees)" if known else ""


def _failures(facts: Facts, comments: Mapping[str, str]) -> str:
    parts = [
        "## Failure cases",
        "The test photographs with the lowest Dice. Green: found; red: missed; blue: false.",
    ]
    for failure in facts["failures"]:
        name = f"{failure['data_set']} {failure['photograph']}"
        comment = comments.get(name)
        parts.append(f"**{name}**, Dice {number(failure['dice'])}." + (f" {comment}" if comment else ""))
        parts.append(f"![Segmentation of {name}]({failure['picture']})")
    parts.append(f"All test photographs: [contact sheet]({facts['contact_sheet']}).")
    return "\n\n".join(parts)


def _limitations(facts: Facts) -> str:
    own, sets = facts["training"]["parts"]["train"], " and ".join(facts["training"]["data_sets"])
    return f"""## Limitations

* Trained on {own["images"]} photographs of {own["subjects"]} people from {sets}. Other cameras, other fields of view
  and diseases that are not in them were not seen. Measure on your own photographs before you rely on it.
* The references are drawings of one observer. Observers differ, most of all on thin vessels.
* Few test photographs: intervals are wide, and both eyes of a person are not independent.
* Haemorrhages, the rim of the optic disc, reflexes and the edge of the field of view may be taken for vessels; thin and
  low-contrast vessels are missed first.
* Angiograms and red-free photographs were not tried."""


def _commands() -> str:
    return """## Commands

Run these in the folder of the bundle, which `reg4pru bundle` prints, with the Python package `reg4pru-monai` installed.
`my_data` is a data set, `photos` a folder of photographs.

```bash
python -m monai.bundle run training --config_file configs/train.yaml --dataset_dir my_data
python -m monai.bundle run evaluating --config_file configs/evaluate.yaml --dataset_dir my_data
python -m monai.bundle run --config_file configs/inference.yaml --dataset_dir photos --output_dir runs/segmented
```

Evaluation also works as an overlay, `--config_file "['configs/train.yaml','configs/evaluate.yaml']"`. `reg4pru segment
photo.jpg` segments photographs without a configuration. Evaluation, inference and `reg4pru segment` use
`models/model.pt`, unless `--checkpoint` names another. The settings are in the configuration files, each with a
comment. The method, the metrics and all commands are described in `docs/` in the repository of the package.

## Loading and export

`models/model.pt` holds the weights under the key `network` and the settings of their training under
`configuration`. `reg4pru_monai.load_pipeline()` returns the network with its preprocessing; `monai.bundle.load` returns
the content of the file.

TorchScript can trace the network but not script it. In the checks of MONAI's model zoo, the bundle therefore belongs on
the list of those that do not support TorchScript (`exclude_verify_torchscript_list`). `reg4pru export` writes a trace,
ONNX or a program of `torch.export`, and compares it with the network."""


def _versions(facts: Facts) -> str:
    return (
        f"## Versions\n\nMeasured by `{facts['command']}`; all numbers: "
        f"[facts.json](facts.json).\n\n{tables.versions(facts)}"
    )


_LICENCE = """## Licence

Apache License 2.0, for code and weights; see [LICENSE](../LICENSE). The pictures of photographs are under the licences
of their data sets. The method is by Wyatt, Clark and Voiculescu; please cite their paper."""
