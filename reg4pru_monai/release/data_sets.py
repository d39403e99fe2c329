"""Public data sets: whose they are, and under which licence."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

NOTED = "2026-11-21"
CC_BY = "Creative Commons Attribution 4.0 International (CC BY 4.0)"
CC_BY_URL = "https://creativecommons.org/licenses/by/4.0/"


class PublicDataSet(NamedTuple):
    """name: as ``fundus.layouts`` recognises it. short: for one line. attribution: who is to be named."""

    name: str
    licence: str
    short: str
    authors: str
    title: str
    where: str
    url: str
    attribution: str = ""


DATA_SETS = (
    PublicDataSet(
        "CHASE_DB1",
        CC_BY,
        "CC BY 4.0, Fraz et al. 2012",
        "Fraz et al.",
        "An ensemble classification-based approach applied to retinal blood vessel segmentation",
        "IEEE Transactions on Biomedical Engineering 59(9), 2012",
        "https://researchinnovation.kingston.ac.uk/en/datasets/chasedb1-retinal-vessel-reference-dataset-4/",
        "Kingston University",
    ),
    PublicDataSet(
        "HRF",
        CC_BY,
        "CC BY 4.0, Budai et al. 2013",
        "Budai et al.",
        "Robust vessel segmentation in fundus images",
        "International Journal of Biomedical Imaging, 2013",
        "https://www5.cs.fau.de/research/data/fundus-images/",
        "Friedrich-Alexander-Universität Erlangen-Nürnberg",
    ),
    PublicDataSet(
        "FIVES",
        CC_BY,
        "CC BY 4.0, Jin et al. 2022",
        "Jin et al.",
        "FIVES: A Fundus Image Dataset for Artificial Intelligence based Vessel Segmentation",
        "Scientific Data 9:475, 2022",
        "https://doi.org/10.1038/s41597-022-01564-3",
    ),
    PublicDataSet(
        "DRIVE",
        "Free for research and education; no redistribution",
        "free for research, Staal et al. 2004",
        "Staal et al.",
        "Ridge-based vessel segmentation in color images of the retina",
        "IEEE Transactions on Medical Imaging 23(4), 2004",
        "https://drive.grand-challenge.org/",
    ),
    PublicDataSet(
        "STARE",
        "No licence stated",
        "no licence stated, Hoover et al. 2000",
        "Hoover et al.",
        "Locating blood vessels in retinal images by piecewise threshold probing of a matched filter response",
        "IEEE Transactions on Medical Imaging 19(3), 2000",
        "https://cecas.clemson.edu/~ahoover/stare/",
    ),
)
KNOWN: Mapping[str, PublicDataSet] = {each.name: each for each in DATA_SETS}


def data_source(names: Collection[str]) -> str:
    """One line for metadata.json about the data sets that weights were trained on."""
    used = [f"{name} ({KNOWN[name].short})" if name in KNOWN else str(name) for name in names]
    return f"{' and '.join(used)}; other public data sets are read as well, see docs/data_license.txt"


def data_license(facts: Mapping[str, Any]) -> str:
    """The text of docs/data_license.txt: every data set that is read, and what the weights have of it."""
    parts = [
        "This bundle contains no photographs but small pictures of test photographs in docs/, changed: reduced, and\n"
        "drawn over with the segmentation. The data sets below are read by it, and have licences of their own.\n"
        f"The licences were noted on {NOTED}; the download pages decide."
    ]
    for each in DATA_SETS:
        owner = f" {each.attribution}." if each.attribution else ""
        address = f" {CC_BY_URL}" if each.licence == CC_BY else ""
        parts.append(
            f"{each.name} - {_use(each.name, facts)}\n  {each.licence}{address}\n"
            f'  {each.authors}, "{each.title}",\n  {each.where}.{owner}\n  {each.url}'
        )
    parts.append(
        "Generated photographs (phantoms) are made by reg4pru-monai itself and are under the Apache License 2.0."
    )
    return "\n\n".join(parts) + "\n"


def _use(name: str, facts: Mapping[str, Any]) -> str:
    uses = []
    if name in facts["training"]["data_sets"]:
        uses.append("the weights in models/model.pt were trained on its training part")
    if name in facts["results"]:
        uses.append("its test part was used for the model card")
    return "; ".join(uses) or "not used for the weights"
