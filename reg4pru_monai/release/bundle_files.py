"""What a release writes into the bundle beside the weights: the model card, the licences, and the metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import replacing
from ..results import main_variant
from ..runtime import ConfigurationError
from .card import model_card
from .data_sets import data_license, data_source
from .kept import write_json

FACTS, COMMENTS = "docs/facts.json", "docs/comments.json"
METADATA, CARD, LICENCES = "configs/metadata.json", "docs/README.md", "docs/data_license.txt"
_METRICS = {"average_precision": "ap", "dice": "dice", "auc": "auc", "cldice": "cldice"}


def read_facts(bundle: Path) -> dict[str, Any]:
    """What the last release found. Raises ConfigurationError."""
    path = bundle / FACTS
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"{path} does not exist; reg4pru release writes it") from None
    except ValueError as error:
        raise ConfigurationError(f"{path}: not readable ({error}); reg4pru release writes it anew") from error


def read_comments(bundle: Path) -> dict[str, str]:
    """What somebody who looked at the failures says of them, by photograph. Raises ConfigurationError."""
    path = bundle / COMMENTS
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {str(name): str(text) for name, text in found.items()}
    except (ValueError, AttributeError) as error:
        raise ConfigurationError(f'{path}: must be JSON such as {{"HRF 07_dr": "..."}} ({error})') from error


def write_card(bundle: Path) -> list[Path]:
    """The model card and the licences from the facts. Returns the files. Raises ConfigurationError, OSError."""
    facts = read_facts(bundle)
    texts = {CARD: model_card(facts, read_comments(bundle)), LICENCES: data_license(facts)}
    for name, text in texts.items():
        with replacing(bundle / name) as beside:
            beside.write_text(text, encoding="utf-8")
    return [bundle / name for name in texts]


def write_metadata(bundle: Path, facts: Mapping[str, Any]) -> None:
    """Replace the fields of metadata.json that follow from the facts; the others stay. Raises OSError."""
    path = bundle / METADATA
    metadata = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, metadata | released_fields(facts), indent=4)


def released_fields(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of metadata.json that follow from the facts: metrics on each test part."""
    weights = facts["weights"]
    metrics = {
        f"{name}_{title}": round(own["metrics"][f"{main_variant(own['metrics'])}/{key}"], 4)
        for name, own in facts["results"].items()
        for title, key in _METRICS.items()
    }
    return {
        "eval_metrics": metrics,
        "data_source": data_source(facts["training"]["data_sets"]),
        "weights": {weights["file"]: {"sha256": weights["sha256"], "bytes": weights["bytes"]}},
    }
