"""The angle of view of a fundus camera, which says how large the eye is in a photograph."""

from typing import Any

USUAL = 45.0  # degrees: of most cameras for screening, and what is assumed where the angle is not known
LOWEST, HIGHEST = 10.0, 90.0  # beyond, a plane picture is a projection that one number does not describe


def checked_angle(value: Any) -> float | None:
    """Degrees between LOWEST and HIGHEST, from a number or text; None where it is not known: None, empty text.

    Raises ValueError.
    """
    if value is None or value == "":
        return None
    try:
        angle = float(value)
    except (TypeError, ValueError):
        angle = float("nan")
    if isinstance(value, bool) or not LOWEST <= angle <= HIGHEST:
        raise ValueError(
            f"the angle of view must be in degrees, {LOWEST:.0f} to {HIGHEST:.0f}, got {value!r}; leave it out where "
            "it is not known, or wider than a disc can show"
        )
    return angle


def angle_of_view(value: Any, by_angle: bool) -> float | None:
    """What a user tells weights, as ``checked_angle``. Raises ValueError too where these have no use for an angle."""
    angle = checked_angle(value)
    if angle is not None and not by_angle:
        raise ValueError(
            f"an angle of view ({angle:g}) has no effect: these weights see all photographs at one diameter (by_angle "
            "false); leave it out, or use weights that were trained by angle"
        )
    return angle


def diameter_for(angle: float | None, diameter: float) -> float:
    """Pixels across the field of view at canonical scale. diameter: of one of USUAL degrees.

    In proportion to the angle, as photographs taken by one lens: a vessel is as wide whatever the camera shows of the
    eye. An ideal lens goes by tan(angle / 2) instead, which from 30 to 60 degrees is 8 % more.
    """
    return diameter if angle is None else diameter * angle / USUAL
