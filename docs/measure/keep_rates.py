"""One checkpoint at several keep rates, on each data set and on all: AP, Dice, GFLOPs, speed-up over dense.

python docs/measure/keep_rates.py CHECKPOINT DATA [DATA ...] [--keep-rates 1.0 0.7 0.5 0.3] [--part test]
    [--behind] [--random]

Tokens are removed before the stage's own block. The speed-up is measured image by image, variants in turn.
"""

import argparse

from yardstick import Late

from reg4pru_monai.bundle import entries
from reg4pru_monai.inference import load_pipeline
from reg4pru_monai.networks import transformer
from reg4pru_monai.policies import build_policy
from reg4pru_monai.reproduce.evaluate import evaluate_variants
from reg4pru_monai.segmenter import Segmenter


def variants(network: Segmenter, keep_rates: list[float], behind: bool, random: bool) -> dict[str, Segmenter]:
    """Dense and each keep rate; if wanted also with removal behind the block, and with as many random tokens."""
    found = {"dense": network.dense()}
    for keep in keep_rates:
        pruned = network.with_keep_rate(keep)
        found[f"{keep}"] = pruned
        if keep < 1 and behind:
            found[f"{keep} behind"] = pruned.with_policy(Late(pruned.encoder.policy))
        if keep < 1 and random:
            found[f"{keep} random"] = pruned.with_policy(build_policy("random", 0, pruned.encoder.policy.stages))
    return {name: each.eval() for name, each in found.items()}


def main(arguments: list[str] | None = None) -> None:
    """Evaluate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--keep-rates", type=float, nargs="+", default=[1.0, 0.7, 0.5, 0.3])
    parser.add_argument("--part", default="test", choices=["train", "validation", "test", "all"])
    parser.add_argument("--behind", action="store_true", help="also with removal behind the stage's own block")
    parser.add_argument("--random", action="store_true", help="also with random sets of tokens")
    chosen = parser.parse_args(arguments)
    pipeline = load_pipeline(chosen.checkpoint, device="cpu")
    network = transformer(pipeline.network, "keep_rates.py")
    networks = variants(network, chosen.keep_rates, chosen.behind, chosen.random)
    rows = evaluate_variants(pipeline, networks, entries(chosen.data, chosen.part))
    sets = [name.removesuffix("/ap") for name in rows["dense"] if name.endswith("/ap")]
    print("| keep rate | GFLOPs | speed-up |" + "".join(f" {name} AP | {name} Dice |" for name in [*sets, "all"]))
    print("|---" * (5 + 2 * len(sets)) + "|")
    for name, row in rows.items():
        cells = []
        for start in [*(f"{each}/" for each in sets), ""]:
            ap, low, high, dice = (row[f"{start}{key}"] for key in ("ap", "ap_low", "ap_high", "dice"))
            cells += [f"{ap:.4f} [{low:.4f}, {high:.4f}]", f"{dice:.4f}"]
        print(f"| {name} | {row['gflops']:.1f} | {row['speedup']:.2f} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
