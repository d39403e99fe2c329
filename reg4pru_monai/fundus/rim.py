"""The rim of the field of view: what a photograph would show if the retina went on."""

import numpy as np
from scipy import ndimage

from .fov import REACH, FieldOfView
from .frame import CanonicalFrame
from .outline import ANGLES

RIM = 0.005  # of the diameter: within it the green channel fades, on CHASE_DB1 and HRF alike
NARROWEST = 5  # px of the photograph: as far as JPEG smears the edge; narrower in a small photograph it would stay
WIDEST = 0.05  # of the diameter, which NARROWEST does not exceed in a tiny one


def mirror_rim(image: np.ndarray, frame: CanonicalFrame, fov: FieldOfView, rim: float) -> tuple[np.ndarray, np.ndarray]:
    """Fill the dark rim with what each ray shows at its inner edge, and continue the retina beyond by a mirror image.

    At its edge the photograph fades within a few pixels, which looks like a vessel along the edge. Continuing the disc
    against that is from Soares et al. (IEEE TMI 25(9), 2006); they grow the region by means, a mirror keeps vessels.
    The mirror begins behind the rim; within it, what runs parallel to the edge would be seen twice.

    image: (C, h, w) float32 at canonical scale, the crop of ``frame``. rim: its width as a share of the diameter; at
    least ``NARROWEST`` pixels of the photograph.
    Returns the image and where it is defined, (h, w) bool: the field of view and ``REACH`` diameters beyond its edge.
    """
    r0, c0, r1, _ = frame.box
    scale = frame.size[0] / (r1 - r0)
    center = [(fov.center[axis] - start + 0.5) * scale - 0.5 for axis, start in enumerate((r0, c0))]
    width = max(rim, min(NARROWEST / fov.diameter, WIDEST)) * fov.diameter
    down, right = np.arange(frame.size[0])[:, None] - center[0], np.arange(frame.size[1])[None, :] - center[1]
    radius = np.hypot(down, right) / scale  # px of the photograph
    nearest = float(fov.edge_at(ANGLES, width).min())
    at_row, at_col = np.nonzero(radius > nearest)
    beyond = radius[at_row, at_col]
    angle = np.arctan2(down[at_row, 0], right[0, at_col])
    ring = beyond <= fov.edge_at(angle) + REACH * fov.diameter
    defined = radius <= nearest
    defined[at_row[ring], at_col[ring]] = True
    edge = fov.edge_at(angle, width)
    ring &= beyond > edge
    at_row, at_col, beyond, edge = at_row[ring], at_col[ring], beyond[ring], edge[ring]
    factor = (edge - np.maximum(beyond - edge - width, 0)) / beyond
    source = down[at_row, 0] * factor + center[0], right[0, at_col] * factor + center[1]
    filled = image.copy()
    for plane, before in zip(filled, image, strict=True):
        plane[at_row, at_col] = ndimage.map_coordinates(before, source, order=1, mode="nearest")
    return filled, defined
