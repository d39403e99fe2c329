"""The columns of results.csv, all of them, in their order."""

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
        "Which frame of the file, from 1; more than 1 only in multi-frame DICOM and TIFF of several pages.",
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
        "Diameter of the disc of the field of view; where no disc was found, the diagonal of the frame.",
    ),
    Column("fov_confidence", "", "Overlap (IoU) of that disc with the bright region, 0 to 1."),
    Column("fov_full_frame", "", "1 where no disc was found and the whole frame was taken, else 0.", int),
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


def has_no_disc(record: Record) -> bool:
    """Whether no round field of view was found in a photograph, or in a frame of it."""
    return any(row.get("fov_full_frame") for row in record.rows)


def without_a_disc(count: int) -> str:
    """What is said of such photographs: most are not what they were taken for."""
    return (
        f"{count:,} without a round field of view, measured over the whole frame: look at them first "
        "(fov_full_frame in results.csv)"
    )
