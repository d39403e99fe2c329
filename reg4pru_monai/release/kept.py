"""Steps of a release, whose results are kept in a folder, so that an interrupted release goes on where it ended."""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..files import replacing


class Kept:
    """Results of steps, one JSON file each. about: what all of them depend on; say: where progress is reported."""

    def __init__(self, folder: Path, about: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self.folder, self.about, self.say = folder, dict(about), say

    def step(self, name: str, make: Callable[[], Any], **about: Any) -> Any:
        """What ``make`` returned, now or in an earlier call with the same ``about``; as it comes back from JSON."""
        path = self.folder / f"{name}.json"
        header = plain({**self.about, **about})
        known = _read(path)
        if known.get("about") == header:
            self.say(f"{name}: kept from an earlier call")
            return known["result"]
        self.say(f"{name} …")
        begun = time.perf_counter()
        result = plain(make())
        write_json(path, {"about": header, "seconds": round(time.perf_counter() - begun, 1), "result": result})
        self.say(f"{name}: {time.perf_counter() - begun:.0f} s")
        return result


def plain(value: Any) -> Any:
    """The value as it comes back from JSON, where what is not finite is null."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def write_json(path: Path, value: Any, indent: int = 1) -> None:
    """Write plain values. Raises OSError."""
    with replacing(path) as beside:
        beside.write_text(
            json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )


def _read(path: Path) -> dict[str, Any]:
    """The content of a kept step; nothing where there is none, or it was damaged."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and "result" in known else {}
