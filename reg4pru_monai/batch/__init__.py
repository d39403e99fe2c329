"""Folders of photographs in; masks, measurements and a report out; nothing lost."""

from .segment import Summary, segment_photographs
from .settings import Settings, settings_of

__all__ = ["Settings", "Summary", "segment_photographs", "settings_of"]
