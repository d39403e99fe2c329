"""The columns of results.csv, all of them, in their order."""

from ..fundus.fov import DOUBTFUL
from .columns import Column
from .journal import Record
from .measurements import COLUMNS as MEASURED
from .photograph import COLUMNS as PHOTOGRAPHED
from .quality import COLUMNS as QUALITY

COLUMNS = (
    Column("path", "", "The file, relative to the root folder in run.json.", str),
    Column("status", "", "done, or failed: then errors.csv says why, and the other columns are empty.", str),
    Column(
        "frame",
        "",
        "Which frame of the file, from 1; above 1 only in multi-frame DICOM and multi-page TIFF.",
        int,
    ),
    Column("sha256", "", "SHA-256 of the file.", str),
    Column("height_px", "px", "Rows of the photograph, upright.", int),
    Column("width_px", "px", "Columns of the photograph, upright.", int),
    *PHOTOGRAPHED,
    Column("fov_center_row_px", "px", "Row of the centre of the field of view."),
    Column("fov_center_column_px", "px", "Column of the centre of the field of view."),
    Column(
        "fov_diameter_px",
        "px",
        "Diameter of the disc of the field of view; where no disc was found, the diagonal of what was taken.",
    ),
    Column(
        "fov_confidence",
        "",
        "Overlap (IoU) of the field of view with the region that differs from the background, times the share of its "
        "edge that was found to be sharp, 0 to 1; at most 0.5 where the disc is larger than the frame or its centre "
        "lies outside.",
    ),
    Column(
        "fov_full_frame",
        "",
        "1 where no disc was found and the whole frame, or the rectangle inside its borders, was taken; else 0.",
        int,
    ),
    *QUALITY,
    *MEASURED,
    Column(
        "tokens_computed_fraction",
        "",
        "Tokens that went through a block, averaged over the blocks, as a share of all tokens of the windows that were "
        "computed. Class and register tokens count as computed, so that without pruning it is "
        "a little above 1. Photographs of one batch share the mean.",
    ),
    Column("seconds", "s", "Time spent on the file: reading, network, measuring, writing. Stages of files overlap."),
)


def has_doubtful_field(record: Record) -> bool:
    """Whether a photograph, or one of its frames, has no disc or one of low confidence."""
    return any(row.get("fov_full_frame") or row.get("fov_confidence", 1.0) < DOUBTFUL for row in record.rows)


def doubtful_fields(count: int) -> str:
    """Warning for doubtful fields of view; many are not fundus photographs, or their frame was misread."""
    return (
        f"{count:,} with a doubtful field of view: look at them first "
        f"(fov_full_frame 1 or fov_confidence below {DOUBTFUL} in results.csv)"
    )
