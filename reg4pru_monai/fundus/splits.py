"""Which subjects train and which test: stated in a file, by the data set, or drawn by name; never by image."""

import csv
import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from .layouts import Dataset, DatasetError, Layout, Sample, listing

PARTS = ("train", "validation", "test")
EVERY = "all"  # of the parts: to test on a data set of which nothing was trained on
TEST_FRACTION = 0.25  # of the subjects, where neither the data set nor splits.json states a split
SPLITS_FILE, SUBJECTS_FILE = "splits.json", "subjects.csv"


def with_parts(root: Path, layout: Layout, samples: list[Sample]) -> list[Sample]:
    """Samples with their part: from splits.json, the folder, the official rule, or a hash of the subject."""
    stated = _stated_subjects(root)
    samples = [replace(s, subject=stated.get(s.name, s.subject)) for s in samples]
    if (root / SPLITS_FILE).exists():
        return _stated_parts(root / SPLITS_FILE, samples)
    subjects = _ranked({s.subject for s in samples}, "test")
    drawn = set(subjects[: round(TEST_FRACTION * len(subjects))])
    is_test = layout.is_test or drawn.__contains__
    return [s if s.part else replace(s, part="test" if is_test(s.subject) else "train") for s in samples]


def _stated_subjects(root: Path) -> dict[str, str]:
    """Name -> subject from subjects.csv (columns name, subject), if there is one."""
    path = root / SUBJECTS_FILE
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if not {"name", "subject"} <= set(rows.fieldnames or ()):
            raise DatasetError(f"{path}: needs the columns name and subject, got {rows.fieldnames}")
        return {row["name"]: row["subject"] for row in rows}


def _stated_parts(path: Path, samples: list[Sample]) -> list[Sample]:
    """Samples with the parts of splits.json: {"train": [names], "test": [names], "validation": [names], optional}."""
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
        parts = {str(name): part for part in splits for name in splits[part]}
        total = sum(len(splits[part]) for part in splits)
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(f'{path}: is not JSON of the form {{"train": [names], "test": [names]}}: {error}') from error
    names = {s.name for s in samples}
    problems = {
        f"unknown part (choose from {', '.join(PARTS)})": sorted(set(splits) - set(PARTS)),
        "in two parts": sorted(n for n in parts if sum(n in splits[p] for p in splits) > 1)
        if total > len(parts)
        else [],
        "in the folder but in no part": sorted(names - set(parts)),
        "in a part but not in the folder": sorted(set(parts) - names),
    }
    for problem, items in problems.items():
        if items:
            raise DatasetError(f"{path}: {problem}: {listing(items)}; correct the file")
    samples = [replace(s, part=parts[s.name]) for s in samples]
    _check_disjoint(path, samples)
    return samples


def _check_disjoint(path: Path, samples: Iterable[Sample]) -> None:
    parts: dict[str, set[str]] = {}
    for sample in samples:
        parts.setdefault(sample.subject, set()).add(sample.part)
    torn = sorted(subject for subject, found in parts.items() if len(found) > 1)
    if torn:
        raise DatasetError(f"{path}: subject(s) in more than one part: {listing(torn)}; keep each person in one part")


def validation_subjects(dataset: Dataset, fraction: float, seed: int) -> set[tuple[str, str]]:
    """(data set, subject) held out from training; none where the split itself names a validation part."""
    held_out: set[tuple[str, str]] = set()
    stated = {s.dataset for s in dataset.samples if s.part == "validation"}
    for name in {s.dataset for s in dataset.samples} - stated if fraction else ():
        subjects = _ranked({s.subject for s in dataset.samples if s.dataset == name and s.part == "train"}, str(seed))
        held_out |= {(name, subject) for subject in subjects[: max(1, round(fraction * len(subjects)))]}
    return held_out


def _ranked(subjects: Iterable[str], salt: str) -> list[str]:
    """Subjects in an order that depends on nothing but their names and the salt."""
    return sorted(subjects, key=lambda subject: (hashlib.sha256(f"{salt}:{subject}".encode()).digest(), subject))
