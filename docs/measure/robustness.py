"""Checkpoints on clean → on degraded photographs: AP, as in the model card; to choose on validation.

python docs/measure/robustness.py DATA [DATA ...] --checkpoints FILE [FILE ...] [--part validation] [--limit 9]
"""

import argparse
from collections.abc import Mapping

from reg4pru_monai.bundle import entries
from reg4pru_monai.inference import load_pipeline
from reg4pru_monai.release.measuring import robustness
from reg4pru_monai.release.sources import select


def change(row: Mapping[str, Mapping[str, float]]) -> str:
    """AP of a row of ``robustness``, before and after."""
    return f"{row['clean']['ap']:.4f} → {row['degraded']['ap']:.4f}"


def main(arguments: list[str] | None = None) -> None:
    """Evaluate and print the table, a column for each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--checkpoints", nargs="+", required=True)
    parser.add_argument("--part", default="validation", choices=["train", "validation", "test", "all"])
    parser.add_argument("--limit", type=int, default=9, help="photographs of each data set")
    chosen = parser.parse_args(arguments)
    pipelines = {name: load_pipeline(name, device="cpu") for name in chosen.checkpoints}
    print("| photographs |" + "".join(f" {name} |" for name in pipelines) + "\n|---" + "|---" * len(pipelines) + "|")
    every = entries(chosen.data, chosen.part)  # together: the part of one alone is another
    for data in dict.fromkeys(entry["dataset"] for entry in every):
        photographs = select([entry for entry in every if entry["dataset"] == data], chosen.limit)
        found = [robustness(pipeline, photographs)["rows"] for pipeline in pipelines.values()]
        for name in dict.fromkeys(name for rows in found for name in rows):  # not all go by the angle of view
            print(
                f"| {data}, {name} |" + "".join(f" {change(rows[name]) if name in rows else '–'} |" for rows in found)
            )


if __name__ == "__main__":
    main()
