"""What a finished training adds to its run beside the result: the network as MLflow model, and pictures of its work."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .inference import load_pipeline
from .runtime import ConfigurationError
from .tracking import Tracker
from .tracking_store import reason

logger = logging.getLogger(__name__)


class AfterTraining:
    """Two additions, each of which can be left out. None of them fails a training that is over: it warns."""

    def __init__(self, entries: Sequence[Mapping[str, str]], log_model: Any = True, inspect_images: Any = 3) -> None:
        """Raises ConfigurationError, before the training begins.

        entries: image, name and angle of view of each validation photograph. log_model: whether the network is logged
        as MLflow model (`serving`). inspect_images: of how many photographs `inspection` draws pictures, from the first
        on.
        """
        if str(log_model).lower() not in ("true", "false"):
            raise ConfigurationError(f"log_model must be true or false, got {log_model!r}")
        if not isinstance(inspect_images, int) or inspect_images < 0:
            raise ConfigurationError(f"inspect_images must be a whole number, 0 for none, got {inspect_images!r}")
        self.photographs = list(entries[:inspect_images])
        self.log_model = str(log_model).lower() == "true"

    def run(self, tracker: Tracker, checkpoint: Path, device: torch.device) -> None:
        """Add both to the run, the quick one first. checkpoint: the best weights."""
        if self.log_model:
            tracker.log_model(checkpoint)
        try:
            self._inspect(tracker, checkpoint, device)
        except Exception as error:  # whatever it is, the training is over and its result is there
            remedy = f"reg4pru inspect PHOTO --checkpoint {checkpoint} draws them later"
            logger.warning("the pictures of the network are not complete (%s): %s", reason(error), remedy)

    def _inspect(self, tracker: Tracker, checkpoint: Path, device: torch.device) -> None:
        if not self.photographs:
            return
        from .inspection.photograph import inspect_photograph

        pipeline = load_pipeline(checkpoint, str(device))
        for entry in self.photographs:
            folder = f"inspection/{entry['name']}"
            place, name = tracker.output_dir / folder, entry["name"]
            for file in inspect_photograph(pipeline, entry["image"], place, name, entry.get("angle")):
                tracker.log_artifact(file, folder)
