"""Print the tables of docs/results.md from the output folders of trainings and evaluations.

python docs/measure/results_table.py runs/chase/*/
"""

import json
import sys
from pathlib import Path

import yaml

COLUMNS = (
    ("AP", "{v}/ap"),
    ("AP, 95 % interval", "{v}/ap_low {v}/ap_high"),
    ("Dice", "{v}/dice"),
    ("AUC", "{v}/auc"),
    ("clDice", "{v}/cldice"),
    ("sens.", "{v}/sensitivity"),
    ("spec.", "{v}/specificity"),
    ("images/s", "{v}/images_per_second"),
    ("GFLOPs", "{v}/gflops"),
)


def cell(metrics: dict[str, float], names: str, variant: str) -> str:
    """One number, or two as a range."""
    values = [metrics[name] for name in names.format(v=variant).split()]
    digits = 4 if max(values) < 1.0001 and "second" not in names else 2 if max(values) < 10 else 0
    return "–".join(f"{value:.{digits}f}" for value in values)


def rows(folder: Path) -> list[str]:
    """The dense and the pruned row of one run."""
    metrics = json.loads((folder / "metrics.json").read_text())
    settings = yaml.safe_load((folder / "configuration.yaml").read_text())
    lines = []
    for variant in ("dense", "pruned"):
        start = [folder.name, str(settings.get("max_epochs", "")), variant]
        lines.append("| " + " | ".join(start + [cell(metrics, names, variant) for _, names in COLUMNS]) + " |")
    return lines


def main(folders: list[str]) -> None:
    """Print the accuracy table and, under it, the speed of pruned against dense."""
    print("| run | epochs | evaluated | " + " | ".join(title for title, _ in COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 3) + "|")
    finished = [Path(folder) for folder in folders if (Path(folder) / "metrics.json").is_file()]
    for folder in finished:
        print("\n".join(rows(folder)))
    print("\n| run | measured speed-up | FLOP ratio | efficiency | peak memory dense / pruned, MiB |")
    print("|---|---|---|---|---|")
    for folder in finished:
        m = json.loads((folder / "metrics.json").read_text())
        ratio = m["dense/gflops"] / m["pruned/gflops"]
        memory = f"{m['dense/peak_memory_mib']:.0f} / {m['pruned/peak_memory_mib']:.0f}"
        print(f"| {folder.name} | {m['pruned/speedup']:.2f}× | {ratio:.2f}× | {m['efficiency']:.2f} | {memory} |")


if __name__ == "__main__":
    main(sys.argv[1:])
