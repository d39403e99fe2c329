"""What a training step costs under each policy, as a ratio to a dense step: time and peak memory.

    python docs/measure/training_step.py --preset small --size 512 --batch 1 --rounds 12

Forward, losses and backward on random images and labels, interleaved in one process. The random window differs from
step to step, so times are means over the rounds; memory is given as the mean and as the largest of all rounds.
"""

import argparse
from statistics import mean

import torch

from reg4pru_monai.accounting import peak_memory, seconds
from reg4pru_monai.losses import TrainingStep
from reg4pru_monai.segmenter import build_segmenter


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--decoder", default="skip")
    parser.add_argument("--policies", nargs="+", default=["dense", "dynamicvit", "reg4pru", "gumbel", "cropr"])
    parser.add_argument("--size", type=int, default=512, help="pixels per side")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    device = torch.device(chosen.device)
    image = torch.randn(chosen.batch, 3, chosen.size, chosen.size, device=device)
    label = (torch.rand(chosen.batch, 1, chosen.size, chosen.size, device=device) < 0.1).float()

    def step(policy: str) -> None:
        steps[policy].zero_grad()
        torch.stack(list(steps[policy](image, label, torch.ones_like(label), 1.0).values())).sum().backward()

    names = ["dense", *(name for name in chosen.policies if name != "dense")]
    steps = {
        name: TrainingStep(build_segmenter(chosen.preset, name, chosen.decoder).to(device).train()) for name in names
    }
    times: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, list[float]] = {name: [] for name in names}
    for number in range(chosen.rounds + 1):
        for name in names:
            torch.manual_seed(number)
            needed = seconds(lambda name=name: step(name), device)[0]  # type: ignore[misc]
            if number:  # the first round warms up
                times[name].append(needed)
    for number in range(chosen.rounds):
        for name in names:
            torch.manual_seed(number)
            memory[name].append(peak_memory(lambda name=name: step(name), device))  # type: ignore[misc]
    print(
        f"{chosen.preset}, {chosen.decoder}, {chosen.batch} x {chosen.size} x {chosen.size}, {device}, "
        f"{chosen.threads} threads, {chosen.rounds} rounds"
    )
    print(f"{'policy':<16}{'ms':>9}{'x dense':>9}{'peak MiB':>10}{'x dense':>9}{'largest':>9}")
    for name in names:
        time, space = mean(times[name]), mean(memory[name])
        print(
            f"{name:<16}{1000 * time:>9.0f}{time / mean(times['dense']):>9.3f}{space:>10.0f}"
            f"{space / mean(memory['dense']):>9.3f}{max(memory[name]) / max(memory['dense']):>9.3f}"
        )


if __name__ == "__main__":
    main()
