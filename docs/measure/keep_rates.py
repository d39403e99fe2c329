"""One checkpoint at several keep rates, tokens removed before or behind the stage's own block: AP, Dice and GFLOPs.

python docs/measure/keep_rates.py CHECKPOINT DATA [--keep-rates 1.0 0.7 0.5 0.3] [--part test] [--random]
"""

import argparse

import torch
from yardstick import Late

from reg4pru_monai.accounting import count_flops
from reg4pru_monai.bundle import entries
from reg4pru_monai.evaluation import predict
from reg4pru_monai.fundus.fov import FieldOfView
from reg4pru_monai.fundus.io import read_mask
from reg4pru_monai.inference import load_pipeline
from reg4pru_monai.metrics import VesselMetrics
from reg4pru_monai.policies import build_policy
from reg4pru_monai.segmenter import Segmenter


def variants(network: Segmenter, keep_rates: list[float], random: bool) -> dict[str, Segmenter]:
    """Each keep rate with removal before and behind the block and, if wanted, with a random set of the same size."""
    found = {}
    for keep in keep_rates:
        pruned = network.with_keep_rate(keep)
        found[f"{keep} before"] = pruned
        if keep < 1:
            found[f"{keep} behind"] = pruned.with_policy(Late(pruned.encoder.policy))
        if keep < 1 and random:
            found[f"{keep} random"] = pruned.with_policy(build_policy("random", 0, pruned.encoder.policy.stages))
    return {name: each.eval() for name, each in found.items()}


def main(arguments: list[str] | None = None) -> None:
    """Evaluate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--keep-rates", type=float, nargs="+", default=[1.0, 0.7, 0.5, 0.3])
    parser.add_argument("--part", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--random", action="store_true", help="also with random sets of tokens")
    chosen = parser.parse_args(arguments)
    pipeline = load_pipeline(chosen.checkpoint, device="cpu")
    networks = variants(pipeline.network, chosen.keep_rates, chosen.random)
    metrics = {name: VesselMetrics() for name in networks}
    gflops: dict[str, float] = {}
    for entry in entries(chosen.data, chosen.part):
        item = pipeline.preprocessing(dict(entry))
        label = torch.from_numpy(read_mask(entry["label"])[None])
        fov = torch.from_numpy(FieldOfView(**item["image"].meta["fov"]).mask[None])
        for name, network in networks.items():
            run = (network, item, pipeline.preprocessing, pipeline.inferer, pipeline.device)
            if name not in gflops:
                gflops[name] = count_flops(lambda run=run: predict(*run)) / 1e9  # type: ignore[misc]
            found = predict(*run)
            metrics[name].update(found.probability, label, fov, entry["name"], group=entry["subject"])
    print("| keep rate, removal | GFLOPs | AP | AP, 95 % interval | Dice |\n|---|---|---|---|---|")
    for name, metric in metrics.items():
        m = metric.summary()
        print(
            f"| {name} | {gflops[name]:.1f} | {m['ap']:.4f} | {m['ap_low']:.4f}–{m['ap_high']:.4f} | {m['dice']:.4f} |"
        )


if __name__ == "__main__":
    main()
