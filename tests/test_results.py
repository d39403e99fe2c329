"""What is said of an evaluation."""

import math

from reg4pru_monai.results import HEADLINE, description, headline, table

DATASETS = {
    f"{variant}/dataset/{name}/{key}": value
    for variant, more in (("dense", 0.25), ("pruned", 0.0))
    for name, start in (("CHASE_DB1", 0.5), ("my eyes", 0.625))
    for key, value in (("ap", start + more), ("ap_low", start - 0.125), ("ap_high", start + 0.25), ("dice", 0.875))
} | {"dataset/CHASE_DB1/images": 8.0, "dataset/my eyes/images": 27.0}

PARAMETERS = {
    **{"preset": "tiny", "decoder": "skip", "policy": "reg4pru", "keep_rate": 0.7, "diameter": 1024},
    **{"dataset": "HRF"},
}
MEASURED_WITH = {"hardware": "some processor, 1 thread", "dtype": "float32", "batch_size": "8"}


def result(**other: float) -> dict[str, float]:
    """A result in which every value tells its variant: 0.5 dense, 0.25 pruned."""
    names = {key: value for variant, value in (("dense", 0.5), ("pruned", 0.25)) for key, value in of(variant, value)}
    return names | {"efficiency": 0.75, "pruned/speedup": 1.5, "dense/speedup": 1.0} | other


def of(variant: str, value: float) -> list[tuple[str, float]]:
    keys = [key.removesuffix("_low").removesuffix("_high") for key in HEADLINE["pruned"]]
    keys += ["per_image/surface_dice", "per_image/dice", "full_frame/ap"]
    ends = {"": 0.0, "_low": -0.125, "_high": 0.125}
    return [(f"{variant}/{key}{end}", value + shift) for key in keys for end, shift in ends.items()]


def test_what_goes_to_mlflow_leaves_room_for_the_curves_of_a_training() -> None:
    found = headline(result())
    # loss, segmentation, a policy's own, learning rate; AP and Dice; load of processor, memory and GPU, its memory
    assert len(found) + 4 + 2 + 4 < 40
    assert (found["pruned/ap"], found["pruned/ap_low"], found["dense/ap_high"]) == (0.25, 0.125, 0.625)
    assert (found["pruned/auc_low"], found["pruned/auc_high"]) == (0.125, 0.375)
    assert found["pruned/surface_dice"] == 0.25
    assert found["efficiency"] == 0.75
    assert "pruned/full_frame/ap" not in found


def test_what_is_undefined_is_left_out() -> None:
    found = headline(result(**{"pruned/thin_vessel_recall": math.nan}))
    assert headline(result()).keys() - found.keys() == {"pruned/thin_vessel_recall"}


def test_that_ap_and_dice_are_undefined_is_not_left_out() -> None:
    found = headline(result(**{"pruned/ap": math.nan, "pruned/ap_low": math.nan, "dense/dice": math.nan}))
    assert math.isnan(found["pruned/ap"])
    assert math.isnan(found["dense/dice"])
    assert "pruned/ap_low" not in found


def test_a_description_opens_with_the_result() -> None:
    given = result(**{"pruned/latency_ms": 29191.4, "pruned/gflops": 128.123})
    lines = description(given, PARAMETERS, MEASURED_WITH, 30, "test").split("\n")
    assert lines[0] == (
        "**AP 0.250 [0.125, 0.375] pruned, AP 0.500 [0.375, 0.625] dense; pruned is 1.50× as fast.** "
        "preset tiny, decoder skip, policy reg4pru, keep_rate 0.7, 1024 px across; 30 test images of HRF."
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert [row[0] for row in rows] == ["", "---", "dense", "pruned", "", "---", "dense", "pruned"]
    assert len({len(row) for row in rows[:4]}) == 1
    assert rows[3][rows[0].index("Thin-vessel recall")] == "0.250 [0.125, 0.375]"
    assert rows[7][1:] == ["0.25", "29191", "128.1", "0.25", "1.50", "0.75"]
    assert "some processor, 1 thread, float32, 8 windows at a time" in lines[-3] + lines[-4] + lines[-5]


def test_groups_and_the_second_observer_have_rows_of_their_own() -> None:
    groups = {"group/healthy/images": 2.0, "group/glaucoma/images": 1.0, "pruned/group/healthy/dice": 0.875}
    text = description(result(**groups, **{"second_observer/dice": 0.75}), PARAMETERS, MEASURED_WITH, 3, "validation")
    assert "| second observer | – | 0.750 | – |" in text
    assert "| healthy | 2 | – | 0.875 | – | – |" in text
    assert "| glaucoma | 1 | – |" in text
    assert "`validation/per_image.csv`" in text


def test_a_second_observer_of_fewer_images_is_told() -> None:
    for drawn, title in ((2.0, "second observer (2 of 3 images)"), (3.0, "second observer")):
        given = result(**{"second_observer/dice": 0.75, "second_observer/images": drawn})
        assert f"| {title} | – | 0.750 |" in description(given, PARAMETERS, MEASURED_WITH, 3, "test")


def test_a_network_that_prunes_nothing_is_not_called_pruned() -> None:
    text = description(result(), PARAMETERS | {"policy": "dense"}, MEASURED_WITH, 3, "test")
    assert text.startswith("**AP 0.500 [0.375, 0.625] dense, 0.5 images/s.** ")


def test_the_table_has_a_line_for_each_variant() -> None:
    lines = table(result()).split("\n")
    assert lines[1].split() == ["dense", "0.5000", "0.5000", "0.5000", "0.5000", "0.50", "0.5"]
    assert lines[2].split()[:2] == ["pruned", "0.2500"]


def test_of_two_data_sets_ap_goes_to_mlflow_and_there_is_still_room() -> None:
    found = headline(result(**DATASETS))
    assert found.keys() - headline(result()).keys() == {"pruned/dataset/CHASE_DB1/ap", "pruned/dataset/my_eyes/ap"}
    assert headline(result()).keys() - found.keys() == {"pruned/auc_low", "pruned/auc_high"}
    assert found["pruned/dataset/my_eyes/ap"] == 0.625
    assert len(found) + 4 + 2 + 4 < 40


def test_each_data_set_has_a_row() -> None:
    text = description(result(**DATASETS), PARAMETERS, MEASURED_WITH, 35, "test")
    assert "Each data set, pruned:" in text
    assert "| CHASE_DB1 | 8 | 0.500 [0.375, 0.750] | 0.875 | – | – |" in text
    assert "| my eyes | 27 | 0.625 [0.500, 0.875] | 0.875 | – | – |" in text


def test_what_was_evaluated_dense_only_is_told_so() -> None:
    """A U-Net: no row of zeros, no speed-up, and the headline metrics are those of dense."""
    given = {name: value for name, value in result(**DATASETS).items() if not name.startswith(("pruned", "effic"))}
    found = headline(given)
    assert {name.split("/")[0] for name in found} == {"dense"}
    assert found["dense/sensitivity"] == 0.5
    assert "dense/speedup" not in found
    assert found["dense/dataset/CHASE_DB1/ap"] == 0.75
    text = description(given, PARAMETERS | {"policy": "dense"}, MEASURED_WITH, 35, "test")
    assert "Each data set, dense:" in text
    assert "| pruned |" not in text
    assert table(given).splitlines()[-1].startswith("dense")
