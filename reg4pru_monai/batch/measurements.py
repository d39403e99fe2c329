"""Measurements of the vessels in a mask: areas, lengths, widths, branches; each with its unit in its name."""

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.spatial import KDTree
from skimage.graph import pixel_graph
from skimage.morphology import skeletonize

from ..fundus import FieldOfView
from .columns import Column

_SMOOTHING = 1 / 250  # of the FOV diameter, the width of the Gaussian that takes the pixel steps out of centre lines
_MIN_SMOOTHING = 2.0  # px; half of it leaves errors of 1 % in the length of sloping lines
_SHORTEST = 1 / 100  # of the FOV diameter, about the widest vessel: what is shorter is not counted as a branch
_CELLS = 256  # of the box counting, along the FOV diameter
_BOXES = (2, 4, 8, 16, 32)  # cells on a side of a box: 1/128 to 1/8 of the FOV diameter

COLUMNS = (
    Column(
        "vessel_area_fraction",
        "",
        "Vessel area density: vessel pixels in the field of view over all pixels of the visible field of view.",
    ),
    Column(
        "skeleton_length_px",
        "px",
        "Summed length of the vessel centre lines, which end up to half a vessel width before the vessel does. The "
        "centre lines are the skeleton of the mask (thinning of Zhang and Suen, 1984) without spurs: end pieces at a "
        "branch point shorter than 1/100 of the field-of-view diameter. To take the pixel steps out, each branch is "
        "smoothed with its ends fixed by a Gaussian of standard deviation 1/250 of the diameter, at least 2 px: "
        "straight vessels of any slope come out within 1 %, where counted steps give up to 8 % too much. Bends with a "
        "radius below 1/50 of the diameter are shortened by more than 2 %.",
    ),
    Column("skeleton_length_fov", "FOV diameters", "skeleton_length_px over the diameter of the field of view."),
    Column(
        "skeleton_length_mm",
        "mm",
        "skeleton_length_px times the millimetres per pixel; empty where they are unknown, "
        "or differ by more than 1 % between rows and columns.",
    ),
    Column(
        "skeleton_density_per_px",
        "1/px",
        "Skeleton length density: skeleton_length_px over the area of the visible field of view in px².",
    ),
    Column(
        "skeleton_density_per_fov",
        "1/FOV diameter",
        "Skeleton length density with the diameter of the field of view as the unit of length: "
        "skeleton_density_per_px times the diameter in px.",
    ),
    Column(
        "skeleton_density_per_mm",
        "1/mm",
        "skeleton_density_per_px over the millimetres per pixel; empty where they are unknown, "
        "or differ by more than 1 % between rows and columns.",
    ),
    Column(
        "mean_width_px",
        "px",
        "Mean vessel width, averaged along the vessels: vessel area over length. The length is that of the centre "
        "lines, made longer by the half width at every free end, which the skeleton does not reach, and shorter by the "
        "half width for each branch beyond two that meets in a point, as areas overlap there. Bars of any slope "
        "and rings come out within 1 %, branching bars within 3 %, a disc as its mean chord, π/4 of the diameter. "
        "Empty without vessels.",
    ),
    Column("mean_width_fov", "FOV diameters", "mean_width_px over the diameter of the field of view."),
    Column(
        "mean_width_mm",
        "mm",
        "mean_width_px times the millimetres per pixel; empty where they are unknown, "
        "or differ by more than 1 % between rows and columns.",
    ),
    Column(
        "fractal_dimension",
        "",
        "Box-counting dimension of the vessel area (not of the skeleton): minus the slope of log(boxes touched) over "
        "log(box side), least squares over sides of 1/128, 1/64, 1/32, 1/16 and 1/8 of the field-of-view diameter, "
        "without those under 1 px; for each side the position of the grid that needs the fewest boxes. 1 for a line, 2 "
        "for a filled area. Empty without vessels, or with fewer than two sides.",
    ),
    Column(
        "branch_count",
        "",
        "Branches of the skeleton, each from one branch point or free end to the next, that are at least 1/100 of the "
        "field-of-view diameter long.",
        int,
    ),
    Column(
        "branch_point_count",
        "",
        "Points in which three or more of the counted branches meet; points joined by shorter branches are one, so a "
        "crossing of two vessels mostly counts once.",
        int,
    ),
    Column(
        "tortuosity",
        "",
        "Length of the counted branches over the straight distance between their ends, sum over sum: the mean of this "
        "ratio with the distances as weights, so that a nearly closed loop cannot dominate. 1 for straight vessels, "
        "π/2 for a semicircle; closed loops are left out. Empty without branches.",
    ),
)


class _Branches(NamedTuple):
    """The P branches of a skeleton with N pixels.

    points: (N, 2) row and column of the pixels. degrees: (N,) neighbours of a pixel along the branches. paths: the
    numbers of the pixels of each branch, ends included. lengths, chords: (P,) float, px; chord is the straight distance
    between the ends.
    """

    points: np.ndarray
    degrees: np.ndarray
    paths: list[np.ndarray]
    lengths: np.ndarray
    chords: np.ndarray

    @property
    def ends(self) -> np.ndarray:
        """(P, 2) int, numbers of the first and the last pixel."""
        return np.array([(path[0], path[-1]) for path in self.paths], int).reshape(-1, 2)


def measure_vessels(
    mask: np.ndarray, fov: FieldOfView, millimetres_per_pixel: float | None = None
) -> dict[str, float | int | None]:
    """Measure the vessels inside the field of view; the keys are the names in COLUMNS, in their order.

    A quantity that does not exist (the width of no vessel, millimetres without a scale) is None. Safe in threads.

    mask: (H, W) bool. fov: of the same image. Raises ValueError for another shape or dtype, or a scale not positive.
    """
    _check(mask, fov, millimetres_per_pixel)
    r0, c0, r1, c1 = fov.box
    visible = fov.mask[r0:r1, c0:c1]
    vessels = np.pad(mask[r0:r1, c0:c1] & visible, 1)  # thinning treats vessels at the edge of an image differently
    area, visible_area = int(np.count_nonzero(vessels)), int(np.count_nonzero(visible))
    branches = _trace(vessels, fov.diameter)
    length = float(branches.lengths.sum())
    width = _mean_width(vessels, area, branches)
    density = length / visible_area if visible_area else None
    center = (fov.center[0] - r0 + 1, fov.center[1] - c0 + 1)
    return {
        "vessel_area_fraction": area / visible_area if visible_area else None,
        **_in_units("skeleton_length", length, fov.diameter, millimetres_per_pixel),
        **_in_units("skeleton_density_per", density, 1 / fov.diameter, _inverse(millimetres_per_pixel)),
        **_in_units("mean_width", width, fov.diameter, millimetres_per_pixel),
        "fractal_dimension": _fractal_dimension(vessels, center, fov.diameter),
        **_count(branches, fov.diameter),
    }


def _check(mask: np.ndarray, fov: FieldOfView, millimetres_per_pixel: float | None) -> None:
    if mask.shape != fov.shape:
        raise ValueError(f"mask must have the shape of its photograph, {fov.shape}, got {mask.shape}")
    if mask.dtype != bool:
        raise ValueError(f"mask must be bool, got {mask.dtype}; compare it with a threshold first")
    if millimetres_per_pixel is not None and not 0 < millimetres_per_pixel < np.inf:
        raise ValueError(f"millimetres_per_pixel must be positive, got {millimetres_per_pixel}")


def _inverse(value: float | None) -> float | None:
    return None if value is None else 1 / value


def _in_units(name: str, pixels: float | None, diameter: float, millimetres: float | None) -> dict[str, float | None]:
    """A length in pixels, in field-of-view diameters and in millimetres; for its inverse, give those of the scales."""
    return {
        f"{name}_px": pixels,
        f"{name}_fov": None if pixels is None else pixels / diameter,
        f"{name}_mm": None if pixels is None or millimetres is None else pixels * millimetres,
    }


# --- centre lines ----------------------------------------------------------------------------------------------------


def _trace(vessels: np.ndarray, diameter: float) -> _Branches:
    """The branches of the skeleton, without spurs. vessels: (H, W) bool, False along the border."""
    sigma = max(_MIN_SMOOTHING, _SMOOTHING * diameter)
    skeleton = _thin(vessels, math.ceil(_SHORTEST * diameter))
    branches = _branches(skeleton, sigma)
    degrees = branches.degrees[branches.ends]
    spurs = (branches.lengths < _SHORTEST * diameter) & (degrees.min(1) == 1) & (degrees.max(1) > 2)
    if not spurs.any():
        return branches
    pixels = np.concatenate([path for path, spur in zip(branches.paths, spurs, strict=True) if spur])
    rows, columns = branches.points[pixels[branches.degrees[pixels] < 3]].T
    skeleton[rows, columns] = False
    return _branches(skeletonize(skeleton), sigma)  # again, as a branch point may now be more than one pixel wide


def _thin(vessels: np.ndarray, side: int) -> np.ndarray:
    """Skeleton (H, W) bool by Zhang and Suen, or by Lee et al. (1994) where that loses a vessel.

    Zhang and Suen's eats bands at exactly 45° from one end where they become an even number of pixels wide; Lee's does
    not, but takes four times as long. A vessel is lost where blocks of side x side pixels are far from the skeleton.
    """
    skeleton = skeletonize(vessels)
    covered = _per_block(vessels, side)
    wide = covered == side**2  # the inside of a wide area is far from its skeleton, too
    near = ndimage.binary_dilation((_per_block(skeleton, side) > 0) | wide, np.ones((3, 3)), iterations=2)
    return skeletonize(vessels, method="lee") > 0 if covered[~near].any() else skeleton


def _per_block(mask: np.ndarray, side: int) -> np.ndarray:
    """How many pixels of a mask (H, W) bool are True in each block of side x side pixels."""
    rows, columns = (-(-length // side) for length in mask.shape)
    row, column = np.nonzero(mask)
    return np.bincount(row // side * columns + column // side, minlength=rows * columns).reshape(rows, columns)


def _branches(skeleton: np.ndarray, sigma: float) -> _Branches:
    """Trace a skeleton (H, W) bool; lengths are those of the branches smoothed by sigma, px."""
    points = np.argwhere(skeleton)
    graph = _without_clusters(pixel_graph(skeleton, connectivity=2)[0].tocsr())
    paths = _paths(graph)
    lines = [points[path].astype(float) for path in paths]
    chords = np.array([np.hypot(*(line[-1] - line[0])) for line in lines])
    return _Branches(points, np.diff(graph.indptr), paths, _lengths(lines, sigma), chords)


def _without_clusters(graph: csr_array) -> csr_array:
    """Join adjacent branch points by the shortest links only, so that one branch point remains.

    graph: (N, N) distances of neighbouring pixels, px.
    """
    degrees = np.diff(graph.indptr)
    links = graph.tocoo()
    among = (degrees[links.row] > 2) & (degrees[links.col] > 2)
    clusters = csr_array((links.data[among], (links.row[among], links.col[among])), shape=graph.shape)
    tree = minimum_spanning_tree(clusters)
    found = csr_array(graph - clusters + tree + tree.T)
    found.sort_indices()
    return found


def _paths(graph: csr_array) -> list[np.ndarray]:
    """Branches of a pixel graph from node to node, and closed loops, as ordered pixel indices.

    A node is a pixel whose number of neighbours is not two.
    """
    starts, neighbours = graph.indptr.tolist(), graph.indices.tolist()
    inner = np.diff(graph.indptr) == 2
    inside = inner.tolist()
    passed: set[int] = set()  # pixels inside paths
    taken: set[tuple[int, int]] = set()  # last steps reversed: no path is walked again from its other end

    def walk(start: int, following: int) -> np.ndarray:
        path = [start, following]
        while path[-1] != start and inside[path[-1]]:
            first = starts[path[-1]]
            path.append(neighbours[first + (neighbours[first] == path[-2])])
        passed.update(path[1:-1])
        taken.add((path[-1], path[-2]))
        return np.array(path)

    nodes = np.flatnonzero(~inner).tolist()
    steps = ((node, neighbours[at]) for node in nodes for at in range(starts[node], starts[node + 1]))
    paths = [walk(*step) for step in steps if step not in taken]
    loops = (pixel for pixel in np.flatnonzero(inner).tolist() if pixel not in passed)
    return paths + [walk(pixel, neighbours[starts[pixel]]) for pixel in loops]


def _lengths(lines: list[np.ndarray], sigma: float) -> np.ndarray:
    """Length (P,) of each line of pixels (n, 2) float, smoothed with its ends fixed, px."""
    if not lines:
        return np.zeros(0)
    reach = int(4 * sigma + 0.5)  # of SciPy's Gaussian: lines so much longer do not touch each other in one array
    longer = [np.pad(line, ((reach, reach), (0, 0)), "reflect", reflect_type="odd") for line in lines]
    smooth = ndimage.gaussian_filter1d(np.concatenate(longer), sigma, axis=0)  # odd: straight lines stay straight
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(smooth, axis=0).T))])
    stops = np.cumsum([len(line) for line in longer])
    starts = np.concatenate([[0], stops[:-1]])
    return along[stops - reach - 1] - along[starts + reach]


# --- what is measured on them ----------------------------------------------------------------------------------------


def _mean_width(vessels: np.ndarray, area: int, branches: _Branches) -> float | None:
    """Area over length, px, with the length of what the skeleton misses at ends and counts twice at branch points.

    A band of half width r along a network has the area 2 r (L + r Σ (2 - degree)), the sum over its nodes: exact for
    square ends, right-angled T junctions and crossings.
    """
    if not area:
        return None
    nodes = branches.degrees != 2
    inner = vessels[1:-1, 1:-1]
    edge = inner & ~(vessels[2:, 1:-1] & vessels[:-2, 1:-1] & vessels[1:-1, 2:] & vessels[1:-1, :-2])
    distance, _ = KDTree(np.argwhere(edge) + 1).query(branches.points[nodes])
    length = branches.lengths.sum() + ((2 - branches.degrees[nodes]) * (distance + 0.5)).sum()
    return float(area / length) if length > 0 else None


def _count(branches: _Branches, diameter: float) -> dict[str, float | int | None]:
    """Branches, branch points and tortuosity."""
    counted = branches.lengths >= _SHORTEST * diameter
    joined, ends, pixels = branches.ends[~counted], branches.ends[counted], len(branches.points)
    links = coo_array((np.ones(len(joined)), (joined[:, 0], joined[:, 1])), shape=(pixels, pixels))
    nodes = connected_components(links, directed=False)[1] if pixels else np.zeros(0, int)
    open_ones = counted & (branches.chords > 0)
    return {
        "branch_count": int(counted.sum()),
        "branch_point_count": int((np.bincount(nodes[ends].ravel()) > 2).sum()),
        "tortuosity": float(branches.lengths[open_ones].sum() / branches.chords[open_ones].sum())
        if open_ones.any()
        else None,
    }


def _fractal_dimension(vessels: np.ndarray, center: tuple[float, float], diameter: float) -> float | None:
    """Box-counting dimension; None without vessels. vessels: (H, W) bool; center: of the field of view in it, px."""
    cell = diameter / _CELLS
    sides = [side for side in _BOXES if side * cell >= 1]
    if len(sides) < 2 or not vessels.any():
        return None
    rows, columns = (
        np.clip(((place - middle) / cell + _CELLS / 2).astype(int), 0, _CELLS - 1)
        for place, middle in zip(np.nonzero(vessels), center, strict=True)
    )
    cells = np.zeros((_CELLS, _CELLS), bool)
    cells[rows, columns] = True
    counts = [_fewest_boxes(cells, side) for side in sides]
    return float(-np.polyfit(np.log(sides), np.log(counts), 1)[0])


def _fewest_boxes(cells: np.ndarray, side: int) -> int:
    """How many boxes of side x side cells cover the True cells, on the best of all side² positions of their grid."""
    windows = ndimage.maximum_filter(np.pad(cells, side), side, mode="constant")
    number = len(windows) // side
    return int(windows.reshape(number, side, number, side).sum((0, 2)).min())
