"""The pictures of an inspection, and the page that holds them all and loads nothing."""

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure  # not pyplot: no display, no global state
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.stats import rankdata

from ..batch.report_text import markup
from ..metrics import compute_confusion, compute_dice
from .photograph import Inspection, StageMap

ACTIVE, BACK = "#bdbdbd", "#56b4e9"  # grey; the sky blue of Okabe and Ito
GONE = 0.2  # grey of tokens removed earlier
SIDE = 3.6  # inches of a panel
COLUMNS = 4  # panels in a row
CHANGE = "change of the probability (orange: more)"
DIFFERENCE = 0.3  # probability at which the colours of differences end
TEXTS = {  # title and text of each picture
    "removed": (
        "Which tokens were removed",
        "Each small square is a token: a coloured one left before the block that its colour names, a grey one went "
        "through all blocks, and the bars count the tokens in each block.",
    ),
    "scores": (
        "How each stage decided",
        "Above, how a stage ranks the tokens still there; below, the lowest ranks, which it removes (in colour), "
        "and what left earlier (dark).",
    ),
    "reactivated": (
        "What came back",
        "All removed tokens come back {back}, with the features they left with: blue, and so are vessels in them.",
    ),
    "probabilities": (
        "What pruning and routing change",
        "Routing: a random half of the tokens waits during {window}, as training does to get the network used to "
        "tokens that come back.",
    ),
    "blocks": (
        "The prediction after each block",
        "The decoder reads all tokens after each block as if the network ended there, removed ones as they left; "
        "the curves say how near that is to the final vessels of the dense network.",
    ),
}


class Picture(NamedTuple):
    """name: of the file. title, text: on the page. png: the picture."""

    name: str
    title: str
    text: str
    png: bytes


def draw(found: Inspection) -> list[Picture]:
    """All pictures of an inspection. Without stages there are no scores, and nothing comes back."""
    makers = {
        "removed": _removed,
        "scores": _scores,
        "reactivated": _reactivated,
        "probabilities": _probabilities,
        "blocks": _blocks,
    }
    if not found.stages:
        del makers["scores"], makers["reactivated"]
    back = f"before block {found.reactivate}" if found.reactivate < _depth(found) else "after the last block"
    window = f"blocks {found.window.start} to {found.window.end - 1}"
    return [
        Picture(name, TEXTS[name][0], TEXTS[name][1].format(back=back, window=window), make(found))
        for name, make in makers.items()
    ]


def colours(stages: Sequence[StageMap]) -> list[tuple[float, float, float]]:
    """A colour for each stage, from dark to light, told apart without red and green."""
    return [to_rgb(matplotlib.colormaps["plasma"](x)) for x in np.linspace(0.25, 0.92, max(len(stages), 2))][
        : len(stages)
    ]


def painted(found: Inspection, layers: Sequence[tuple[np.ndarray, Any]]) -> np.ndarray:
    """The photograph in grey with tokens in colour, black outside the field of view: (H, W, 3) in [0, 1].

    layers: token grid (rows, columns) bool, and the colour, of each.
    """
    picture = np.clip(1.3 * found.photograph.mean(2, keepdims=True), 0, 1).repeat(3, axis=2)
    for tokens, colour in layers:
        picture = np.where(found.pixels(tokens)[..., None], 0.3 * picture + 0.7 * np.array(to_rgb(colour)), picture)
    return picture * found.inside[..., None]


def _depth(found: Inspection) -> int:
    return len(found.variants["dense"].after)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="compressed")


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _show(axes: Any, picture: np.ndarray, title: str, **how: Any) -> Any:
    """A panel."""
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()
    return axes.imshow(picture, **how)


def _removed(found: Inspection) -> bytes:
    stages, chosen = found.stages, colours(found.stages)
    figure = _figure(3 * SIDE + 0.6, SIDE + 0.5)
    photograph, map_, bars = figure.subplots(1, 3)
    _show(photograph, found.photograph, "the photograph")
    title = "colour: removed; grey: kept throughout" if stages else "no token is removed"
    _show(map_, painted(found, [(s.removed, c) for s, c in zip(stages, chosen, strict=True)]), title)
    _count(bars, found, chosen)
    return _png(figure)


def _count(axes: Any, found: Inspection, chosen: Sequence[Any]) -> None:
    """Bars over the blocks: the tokens that each computed, and on top those that were away."""
    total, blocks = int(found.tokens.sum()), np.arange(_depth(found))
    away = [s.removed.sum() * ((s.block <= blocks) & (blocks < found.reactivate)) for s in found.stages]
    bottom = total - np.sum(away, axis=0) if away else np.full(len(blocks), total)
    axes.bar(blocks, bottom, 0.9, color=ACTIVE, label="computed in the block")
    for stage, colour, height in zip(found.stages, chosen, away, strict=True):
        label = f"removed before block {stage.block}: {stage.removed.sum() / total:.0%}"
        axes.bar(blocks, height, 0.9, bottom, color=colour, label=label)
        bottom = bottom + height
    if found.stages:
        axes.axvline(found.reactivate - 0.5, color="black", linestyle="--", label="removed tokens come back")
    axes.set(xlabel="block", ylabel="tokens in the field of view", xticks=blocks, ylim=(0, 1.02 * total))
    axes.set_title("what each block computes, and what waits" if found.stages else "nothing is removed", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_box_aspect(0.9)
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: isinstance(handles[i], Line2D))  # the line last
    ordered = [handles[i] for i in order], [labels[i] for i in order]
    axes.figure.legend(*ordered, loc="outside lower center", ncols=3, fontsize=9)


def _scores(found: Inspection) -> bytes:
    columns = min(COLUMNS, len(found.stages))
    rows = -(-len(found.stages) // columns)
    figure = _figure(columns * SIDE + 0.9, rows * 2 * (SIDE + 0.25))
    panels = figure.subplots(2 * rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    earlier = np.zeros_like(found.tokens)
    for number, (stage, colour) in enumerate(zip(found.stages, colours(found.stages), strict=True)):
        above, below = panels[2 * (number // columns) : 2 * (number // columns) + 2, number % columns]
        low, high = np.nanmin(stage.score), np.nanmax(stage.score)
        _show(above, _ranks(found, stage), f"scores before block {stage.block}, from {low:.3g} to {high:.3g}")
        title = f"removed before block {stage.block}: {stage.removed.sum()} of {np.isfinite(stage.score).sum()}"
        _show(below, painted(found, [(earlier, "black"), (stage.removed, colour)]), title)
        earlier = earlier | stage.removed
    if len(found.stages) > 1:
        gone = Patch(facecolor=str(GONE), edgecolor="black", label="dark grey: removed by an earlier stage")
        figure.legend(handles=[gone], loc="outside lower center", fontsize=9)
    bar = figure.colorbar(ScalarMappable(Normalize(0, 100), "viridis"), ax=panels, shrink=0.5)
    bar.set_label("rank of the score, % of the tokens still there; the lowest are removed")
    return _png(figure)


def _ranks(found: Inspection, stage: StageMap) -> np.ndarray:
    """Scores by their rank, which alone decides: (H, W, 3); dark grey where there was no token left to score."""
    scored = np.isfinite(stage.score)
    rank = np.zeros(stage.score.shape)
    rank[scored] = rankdata(stage.score[scored]) / scored.sum()
    picture = matplotlib.colormaps["viridis"](rank)[..., :3]
    picture[~scored] = GONE
    return np.stack([found.pixels(plane) for plane in np.moveaxis(picture, 2, 0)], axis=2) * found.inside[..., None]


def _reactivated(found: Inspection) -> bytes:
    """Where tokens came back, the vessels in them, and what the blocks behind do with them."""
    pruned, after = found.variants["pruned"], found.reactivate < _depth(found)
    figure = _figure((2 + after) * SIDE + 0.9 * after, SIDE + 0.8)
    panels = figure.subplots(1, 2 + after)
    _show(
        panels[0],
        painted(found, [(found.removed, BACK)]),
        f"blue: {found.removed.sum()} of {found.tokens.sum()} tokens come back",
    )
    back, vessels = found.pixels(found.removed), pruned.probability >= 0.5
    picture = np.full((*vessels.shape, 3), GONE) * found.inside[..., None]
    picture[vessels] = 1
    picture[vessels & back] = to_rgb(BACK)
    share = (vessels & back).sum() / max(vessels.sum(), 1)
    _show(panels[1], picture, f"the vessels found: {share:.0%} in tokens that came back")
    if after:
        change = pruned.probability - pruned.after[found.reactivate - 1]
        image = _difference(panels[2], change, found, f"what changes after that, from block {found.reactivate} on")
        figure.colorbar(image, ax=panels[2], shrink=0.8, label=CHANGE, extend="both")
    patches = [Patch(color=BACK, label="in tokens that came back")]
    patches.append(Patch(facecolor="white", edgecolor="black", label="vessels in tokens that stayed"))
    figure.legend(handles=patches, loc="outside lower center", ncols=2, fontsize=9)
    return _png(figure)


def _probabilities(found: Inspection) -> bytes:
    """Rows: dense, pruned, what pruning changes. Columns: all tokens, routed, what routing changes."""
    rows = [(name, variant.probability, variant.routed) for name, variant in found.variants.items()]
    height = 2 * len(rows) - 1
    figure = _figure(3 * SIDE + 1.0, height * (SIDE + 0.25) + 0.2)
    panels = figure.subplots(height, 3, squeeze=False)
    window = f"blocks {found.window.start} to {found.window.end - 1}"
    for axes, (name, plain, routed) in zip(panels, rows, strict=False):
        _probability(axes[0], plain, found, name)
        probability = _probability(axes[1], routed, found, f"{name}, routed: half skips {window}")
        difference = _compared(axes[2], plain, routed, found, "changed by routing")
    figure.colorbar(
        probability, ax=panels[0, -1] if height == 1 else panels[:2], shrink=0.6, label="vessel probability"
    )
    if height > 1:
        (_, dense, dense_routed), (_, pruned, pruned_routed) = rows
        _compared(panels[2][0], dense, pruned, found, "changed by pruning")
        _compared(panels[2][1], dense_routed, pruned_routed, found, "changed by pruning, routed")
        _compared(panels[2][2], dense, pruned_routed, found, "changed by both")
    figure.colorbar(difference, ax=panels[-1], shrink=0.8, label=CHANGE, extend="both")
    return _png(figure)


def _probability(axes: Any, probability: np.ndarray, found: Inspection, title: str) -> Any:
    """With the edge of the field of view, which is as black as what is surely no vessel."""
    axes.contour(found.inside, [0.5], colors="0.5", linewidths=0.5)
    return _show(axes, probability, title, cmap="gray", vmin=0, vmax=1)


def _compared(axes: Any, one: np.ndarray, other: np.ndarray, found: Inspection, title: str) -> Any:
    return _difference(axes, other - one, found, f"{title} (Dice {dice(one >= 0.5, other >= 0.5):.3f})")


def _difference(axes: Any, change: np.ndarray, found: Inspection, title: str) -> Any:
    """White is no change, black is outside the field of view."""
    colours = matplotlib.colormaps["PuOr_r"].with_extremes(bad="black")
    seen = np.ma.masked_where(~found.inside, change)
    return _show(axes, seen, title, cmap=colours, vmin=-DIFFERENCE, vmax=DIFFERENCE)


def _blocks(found: Inspection) -> bytes:
    """For each block a map of each variant, one above the other; below, the agreement with the final vessels."""
    depth, names = _depth(found), list(found.variants)
    columns = min(COLUMNS, depth)
    rows = -(-depth // columns) * len(names)
    figure = Figure(figsize=(columns * SIDE, rows * (SIDE + 0.25) + 3), layout="constrained")
    panels = figure.subplots(
        rows + 1, columns, squeeze=False, gridspec_kw={"height_ratios": [SIDE + 0.25] * rows + [2.6]}
    )
    for axes in panels.flat:
        axes.set_axis_off()
    for block in range(depth):
        for number, name in enumerate(names):
            axes = panels[block // columns * len(names) + number][block % columns]
            _probability(axes, found.variants[name].after[block], found, f"{name}, after block {block}")
    _agreement(figure.add_subplot(panels[0][0].get_gridspec()[rows, :]), found)
    return _png(figure)


def _agreement(axes: Any, found: Inspection) -> None:
    final = found.variants["dense"].probability >= 0.5
    for (name, variant), (style, colour) in zip(found.variants.items(), (("o-", "black"), ("s-", BACK)), strict=False):
        axes.plot([dice(each >= 0.5, final) for each in variant.after], style, color=colour, label=name)
    for number, stage in enumerate(found.stages):
        label = None if number else "tokens are removed"
        axes.axvline(stage.block - 0.5, color="grey", linestyle=":", label=label)
    if found.stages:
        axes.axvline(found.reactivate - 0.5, color="black", linestyle="--", linewidth=1, label="they come back")
    axes.set(xlabel="after block", ylabel="Dice with the final\nvessels of dense", ylim=(0, 1.03))
    axes.set_xticks(range(_depth(found)))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="lower right")


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Dice of two masks, bool; 1 where both are empty, because they agree."""
    return float(np.nan_to_num(compute_dice(compute_confusion(one, other)), nan=1.0))


def page(name: str, found: Inspection, pictures: Sequence[Picture]) -> str:
    """inspect.html, which loads nothing. name: of the photograph, from a file system and so untrusted."""
    title = markup(f"{name}: what the network does")
    height, width = found.inside.shape
    facts = (
        f"One image of {width} × {height} pixels at canonical scale, not cut into windows as other commands do, so "
        f"their results may differ a little. Tokens of {found.patch} × {found.patch} pixels, {found.tokens.sum()} of "
        f"them in the field of view; black is outside. {_depth(found)} blocks, counted from 0."
    )
    parts = [
        f'<section><h2>{each.title}</h2><p>{each.text}</p><img alt="{each.title}" '
        f'src="data:image/png;base64,{b64encode(each.png).decode()}"></section>'
        for each in pictures
    ]
    return "\n".join(
        (_HEAD.format(title=title), f"<h1>{title}</h1>", f"<p>{facts}</p>", *parts, "</body>", "</html>", "")
    )


_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
body {{ margin: 0 auto; max-width: 100rem; padding: 1.5rem; color: #1a2530; background: #ffffff;
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }}
h2 {{ margin: 2.5rem 0 0.3rem; }}
p {{ margin: 0.3rem 0 0.8rem; max-width: 60rem; }}
img {{ max-width: 100%; height: auto; }}
</style>
</head>
<body>"""
