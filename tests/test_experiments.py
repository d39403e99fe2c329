"""Experiment files, and configurations as values: keys, dead keys, digests."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from fire.parser import DefaultParseValue

from conftest import ROOT
from reg4pru_monai.configuration import check_configuration, configuration_digest, merged_configuration
from reg4pru_monai.networks import UNetSegmenter, build_network
from reg4pru_monai.policies import POLICIES, build_policy
from reg4pru_monai.presets import PRESETS
from reg4pru_monai.runtime import ConfigurationError
from reg4pru_monai.segmenter import build_segmenter
from reg4pru_monai.sweeps.experiments import Experiment, read_experiment
from reg4pru_monai.sweeps.plan import TRAIN, Plan, parse_overrides, plan

PROVIDED = sorted((ROOT / "configs" / "experiments").glob("*.yaml"))
NEEDED = {
    "policies",
    "keep_rates",
    "stage_schedules",
    "reactivation",
    "routing",
    "route_windows",
    "decoders",
    "presets",
    "starts",
    "finetuned",
    "finetuned_eomt",
    "unets",
}


def write(folder: Path, **content: Any) -> Path:
    path = folder / "trial.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def planned(experiment: Experiment, folder: Path, **given: Any) -> Plan:
    return plan(experiment, folder, **given)


def tokens_computed(network: Any) -> float:
    """Share of the tokens of all blocks that a network computes, without the field of view."""
    shares, left = [], 1.0
    stages = {stage.block: stage for stage in network.encoder.policy.stages}
    for block in range(len(network.encoder.blocks)):
        if stage := stages.get(block):
            left = left - (1 - stage.keep) if stage.constant else left * stage.keep
        shares.append(left if block < network.encoder.reactivate else 1.0)
    return sum(shares) / len(shares)


# --- the provided experiments


def test_what_the_project_asks_about_is_provided() -> None:
    assert {path.stem for path in PROVIDED} >= NEEDED
    values = {path.stem: read_experiment(path) for path in PROVIDED}
    policies = {member.settings["policy"] for member in values["policies"].members}
    assert policies == set(POLICIES)
    rates = {member.settings.get("keep_rate") for member in values["keep_rates"].members}
    assert rates == {None, 0.5, 0.6, 0.7, 0.8, 0.9}
    routed = {member.name for member in values["routing"].members}
    assert {f"{name}+reg4pru" for name in routed if "reg4pru" not in name and name != "dynamicvit"} <= routed


@pytest.mark.parametrize("path", PROVIDED, ids=lambda path: path.stem)
def test_a_provided_experiment_expands_checks_and_builds(path: Path, tmp_path: Path) -> None:
    experiment = read_experiment(path)
    assert experiment.description
    assert experiment.baseline in {member.name for member in experiment.members}
    jobs = planned(experiment, tmp_path).jobs
    assert len({job.digest for job in jobs}) == len({job.folder for job in jobs}) == len(jobs) > 1
    for member in experiment.members:
        parser = merged_configuration([TRAIN, *member.configs], member.settings)
        architecture = parser.get_parsed_content("architecture")
        if architecture["preset"] in PRESETS:
            assert len(build_segmenter(**{**architecture, "preset": "tiny"}).encoder.blocks) == 8
        else:
            assert isinstance(build_network(**architecture), UNetSegmenter)
    assert not list(tmp_path.iterdir())


def settings_of(name: str) -> dict[str, dict[str, Any]]:
    """The settings of each member of a provided experiment."""
    experiment = read_experiment(ROOT / "configs" / "experiments" / f"{name}.yaml")
    return {each.name: merged_configuration([TRAIN, *each.configs], each.settings).get() for each in experiment.members}


@pytest.mark.parametrize("name", ["finetuned", "finetuned_eomt"])
def test_policies_are_compared_among_equals(name: str) -> None:
    """Nothing but the policy differs, and selectors begin at the keep rate: 1 / (1 + exp(-0.85)) = 0.70."""
    found = settings_of(name)
    learned = {"dynamicvit", "reg4pru", "gumbel", "gumbel+reg4pru"}
    for member, settings in found.items():
        assert settings["policy"] == member
        assert settings["policy_options"] == ({"keep_logit": 0.85} if member in learned else {})
        differing = {key for key in settings if settings[key] != found["dense"][key]}
        assert differing <= {"policy", "policy_options"}, member
        assert settings["keep_rate"] == 0.7
    if name == "finetuned":
        assert found.keys() == {*POLICIES, "cropr+reg4pru", "gumbel+reg4pru", "random+reg4pru"}
    else:
        assert found.keys() >= {"dense", "dynamicvit", "reg4pru"}


def test_u_nets_have_the_steps_of_a_start_and_of_what_follows() -> None:
    starts, unets = settings_of("starts"), settings_of("unets")
    for decoder, name in (("skip", "finetuned"), ("eomt", "finetuned_eomt")):
        start, then = starts[f"{decoder}-dense"], settings_of(name)["dense"]
        assert (start["decoder"], start["preset"]) == (then["decoder"], then["preset"])
        for unet in unets.values():
            assert unet["max_epochs"] == start["max_epochs"] + then["max_epochs"]
            for key in ("diameter", "soft_label", "crop_size", "crops_per_image", "batch_size", "augmentation", "amp"):
                assert unet[key] == start[key] == then[key], key


@pytest.mark.parametrize("name", ["policies", "stage_schedules"])
def test_budgets_are_equal_where_the_description_says_so(name: str) -> None:
    experiment = read_experiment(ROOT / "configs" / "experiments" / f"{name}.yaml")
    found = {}
    for member in experiment.members:
        parser = merged_configuration([TRAIN, *member.configs], member.settings)
        found[member.name] = tokens_computed(build_segmenter(**parser.get_parsed_content("architecture")))
    assert found.pop("dense", 1.0) == 1.0
    assert list(found.values()) == pytest.approx([0.63] * len(found), abs=0.006)


def test_the_example_of_the_documentation_is_one(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (text,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "experiments.md").read_text(), re.M | re.S)
    (tmp_path / "experiments").mkdir()
    path = tmp_path / "experiments" / "own.yaml"
    path.write_text(text.replace("../", "../configs/"))
    experiment = read_experiment(path)
    assert len(planned(experiment, tmp_path / "runs").jobs) == 6
    assert experiment.members[-1].name == "reg4pru-crop_size_224"


# --- reading


def test_members_and_products_follow_what_they_share(tmp_path: Path) -> None:
    (tmp_path / "wide.yaml").write_text("crop_size: 200\n")
    (tmp_path / "narrow.yaml").write_text("crop_size: 100\n")
    path = write(
        tmp_path,
        set={"max_epochs": 3, "policy_options#ramp": 0.1},
        members={"plain": None, "long": {"set": {"max_epochs": 9}, "configs": "wide.yaml"}},
        vary={"configs": ["wide.yaml", "narrow.yaml"], "stages": [[2, 4], None], "policy": ["dense"]},
        seeds=[1, 2],
    )
    experiment = read_experiment(path)
    members = {member.name: member for member in experiment.members}
    products = [f"{width}-stages_{stages}-dense" for width in ("wide", "narrow") for stages in ("2_4", "None")]
    assert list(members) == ["plain", "long", *products]
    assert members["plain"].settings == {"max_epochs": 3, "policy_options::ramp": 0.1}
    assert members["long"].settings["max_epochs"] == 9
    assert members["long"].configs == (tmp_path / "wide.yaml",)
    last = members["narrow-stages_2_4-dense"]
    assert last.settings == {**members["plain"].settings, "stages": [2, 4], "policy": "dense"}
    assert (experiment.name, experiment.seeds, experiment.baseline) == ("trial", (1, 2), None)
    jobs = planned(experiment, tmp_path / "runs").jobs
    assert [job.name for job in jobs[:2]] == ["plain-seed1", "long-seed1"]
    assert len(jobs) == 12
    (options,) = [jobs[0].settings[key] for key in jobs[0].settings if key.startswith("policy_options")]
    assert options == 0.1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"member": {"a": {}}}, "unknown key 'member': did you mean 'members'?"),
        ({"members": {"a": {"sets": {}}}}, "unknown key 'members::a::sets': did you mean 'set'?"),
        ({"set": {"policy": "dense"}}, "no members; give members: {NAME: {set: …}} or vary: {KEY: [VALUES]}"),
        ({"members": ["a"]}, "members must be a mapping NAME: {configs: […], set: {…}}"),
        ({"vary": {"policy": "dense"}}, "vary must be a mapping KEY: [VALUES], got {'policy': 'dense'}"),
        ({"vary": {"policy": []}}, "vary must be a mapping KEY: [VALUES]"),
        ({"vary": {"keep_rate": [0.5, 0.5]}}, "two members are called 'keep_rate_0.5'"),
        ({"members": {"a b": {}}}, "member name 'a b' must be of letters, digits"),
        ({"members": {"good": {}}, "baseline": "god"}, "baseline 'god' is no member: did you mean 'good'?"),
        ({"members": {"a": {}}, "seeds": []}, "seeds must be different whole numbers such as [42, 43], got []"),
        ({"members": {"a": {}}, "seeds": [1, 1]}, "seeds must be different whole numbers"),
        ({"members": {"a": {}}, "seeds": [True]}, "seeds must be different whole numbers"),
        ({"members": {"a": {"set": ["x"]}}}, "trial.yaml: a: set must be a mapping of keys to values, got ['x']"),
        ({"members": {"a": {"set": {"seed": 3}}}}, "'seed' cannot be set here; give seeds in the experiment"),
        ({"members": {"a": {"set": {"resume": True}}}}, "'resume' cannot be set here; give nothing: the sweep chooses"),
        ({"members": {"a": {"configs": ["b.yaml"]}}}, "b.yaml does not exist; configs are relative to"),
        ({"members": {"a": {"configs": {}}}}, "no message"),
        ({"members": {"a": {"configs": 3}}}, "a: configs must be a list of files, got 3"),
    ],
    ids=str,
)
def test_a_mistake_in_a_file_is_named(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, **content)
    if message == "no message":
        assert read_experiment(path).members[0].configs == ()
        return
    with pytest.raises(ConfigurationError) as caught:
        read_experiment(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: [", "is no YAML file"),
        (b"members:\n  a: {}\n  a: {}\n", "a key is given twice in the mapping at line 2"),
        (b"- a", "is no experiment"),
        (b"\xff", "is no YAML file"),
    ],
)
def test_a_file_that_is_no_experiment_is_named(text: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "trial.yaml"
    with pytest.raises(ConfigurationError, match=r"trial\.yaml: cannot be read"):
        read_experiment(path)
    path.write_bytes(text)
    with pytest.raises(ConfigurationError, match=message):
        read_experiment(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 3", "own.yaml: 'seed' cannot be set here; give seeds in the experiment"),
        ("+tags: {a: b}", "own.yaml: '+tags' cannot be set here; give nothing: the sweep chooses it"),
        ("tags::a: b", "own.yaml: 'tags::a' cannot be set here"),
        ("- a", "own.yaml must be a mapping of keys to values, got ['a']"),
        ("a: [", "own.yaml: is no configuration file of YAML or JSON"),
    ],
)
def test_an_overlay_sets_nothing_that_belongs_to_the_sweep(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(text)
    for content in ({"members": {"a": {"configs": "own.yaml"}}}, {"vary": {"configs": ["own.yaml"]}}):
        with pytest.raises(ConfigurationError) as caught:
            read_experiment(write(tmp_path, **content))
        assert message in str(caught.value)


def test_an_empty_overlay_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("# nothing\n")
    assert read_experiment(write(tmp_path, members={"a": {"configs": "own.yaml"}})).members[0].settings == {}


# --- every member is checked before the first starts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_epoch": 3}, "unknown key 'max_epoch': did you mean 'max_epochs'?"),
        ({"train::dataloader::batchsize": 3}, "did you mean 'train::dataloader::batch_size'?"),
        ({"train::handlers::1::val_intervall": 3}, "did you mean 'train::handlers::1::val_interval'?"),
        ({"validate::key_metric::ap::metric_fn::bin": 9}, "did you mean 'validate::key_metric::ap::metric_fn::bins'?"),
        ({"train::inferer": {"_target_": "SlidingWindowInferer", "roi_sise": 64}}, "mean 'train::inferer::roi_size'?"),
        ({"train::trainer::_disable_": True}, "did you mean 'train::trainer::"),
        ({"phantoms": {"trian": 4}}, "did you mean 'phantoms::train'?"),
        ({"policy_options": {"rampp": 0.1}}, "policy reg4pru: unknown option 'rampp', did you mean 'ramp'?"),
        ({"policy": "dense", "policy_options": {"rampp": 0.1}}, "policy dense: unknown option 'rampp'"),
        ({"policy": "random", "policy_options": {"route_keep": 0.1}}, "it takes keep_range, ramp, seed"),
        ({"policy": "gumbel", "policy_options": {"keep_range": 3}}, "policy_options do not suit the policy gumbel: "),
        ({"masked_attention": 0.5}, "masked_attention belongs to the decoder eomt"),
        ({"tracking::tracking_uri": "x"}, "'tracking' no longer reads '@tracking_uri', which belongs to the sweep"),
        ({"evaluation#output_dir": "x"}, "'@output_dir', which belongs to the sweep and cannot be set here; give --ou"),
        ({"tracking": {"experiment": "x"}}, "'tracking' no longer reads '@run_name'"),
        ({"stages": [3], "reactivate": 2}, "pruning stages must lie before the reactivation block"),
    ],
    ids=str,
)
def test_a_mistake_in_a_member_is_named(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    experiment = read_experiment(write(tmp_path, members={"good": {}, "wrong": {"set": settings}}))
    with pytest.raises(ConfigurationError, match=r"^member wrong: ") as caught:
        planned(experiment, tmp_path / "runs")
    assert message in str(caught.value)


def test_two_members_that_are_one_training_are_named(tmp_path: Path) -> None:
    same = {"a": {}, "b": {"set": {"policy": "dense"}}, "c": {"set": {"keep_rate": 0.7, "device": "cpu"}}}
    experiment = read_experiment(write(tmp_path, members=same))
    with pytest.raises(ConfigurationError, match=r"^members a and c are the same training: their settings"):
        planned(experiment, tmp_path / "runs")
    with pytest.raises(ConfigurationError, match=r"^members a and b are the same training"):
        planned(experiment, tmp_path / "runs", overrides={"policy": "dense"})


def test_a_key_that_nothing_reads_any_more_is_dead(tmp_path: Path) -> None:
    overlay = tmp_path / "own.yaml"
    overlay.write_text("optimizer: {_target_: torch.optim.SGD, params: $@network.parameters(), lr: '@learning_rate'}\n")
    known = merged_configuration([TRAIN], {}).get()
    entries = ("initialize", "training", "finalize")
    check_configuration(merged_configuration([TRAIN, overlay], {"learning_rate": 0.1}).get(), known, "t", entries)
    dead = merged_configuration([TRAIN, overlay], {"weight_decay": 0.1}).get()
    with pytest.raises(ConfigurationError, match="key 'weight_decay' has no effect: nothing that runs reads it"):
        check_configuration(dead, known, "train.yaml", entries)


def test_no_key_of_the_bundle_is_dead() -> None:
    for name, entry in (("train", "training"), ("evaluate", "evaluating"), ("inference", "run")):
        merged = merged_configuration([TRAIN.with_name(f"{name}.yaml")], {}).get()
        changed = {key: [value, "changed"] if isinstance(value, str) else value for key, value in merged.items()}
        plain = {key: value for key, value in changed.items() if key not in ("run", "_meta_")}
        check_configuration({**merged, **plain}, merged, name, ("initialize", entry, "evaluator"))


def test_a_policy_takes_its_own_options_and_dense_those_of_all() -> None:
    assert build_policy("dense", 8, (), ramp=0.1, route_keep=0.5, scorer_weight=1.0).stages == ()
    assert build_policy("cropr+reg4pru", 8, (), scorer_weight=1.0, route_keep=0.5).stages == ()
    with pytest.raises(ValueError, match="policy cropr: unknown option 'route_keep'"):
        build_policy("cropr", 8, (), route_keep=0.5)


# --- the digest


def digest(**settings: Any) -> str:
    return configuration_digest(merged_configuration([TRAIN], settings).get())


def test_the_digest_is_of_what_changes_the_result() -> None:
    same = {"output_dir": "a", "run_name": "b", "experiment": "c", "tracking_uri": "d", "tags": {"e": "f"}}
    same |= {"resume": True, "device": "cpu", "num_workers": 3, "bundle_root": "g"}
    assert digest(**same) == digest() == digest(keep_rate=0.7, amp=merged_configuration([TRAIN], {})["amp"])
    assert digest(max_epochs=3.0, compile="True") == digest(max_epochs=3, compile=True)
    others = [{"seed": 1}, {"keep_rate": 0.6}, {"phantoms::size": 64}, {"train::trainer::clip_norm": 2.0}]
    assert len({digest(), *(digest(**other) for other in others)}) == 5
    assert len(digest()) == 16


def test_a_data_set_enters_by_its_content(phantom_set: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(phantom_set, tmp_path / "elsewhere"))
    there = digest(dataset_dir=str(phantom_set))
    assert there == digest(dataset_dir=str(copy)) == digest(dataset_dir=[str(copy)], phantoms={})
    assert there != digest()
    splits = (copy / "splits.json").read_text()
    (copy / "splits.json").write_text(splits.replace("phantom_003", "x").replace("phantom_004", "phantom_003"))
    (copy / "splits.json").write_text((copy / "splits.json").read_text().replace("x", "phantom_004"))
    assert digest(dataset_dir=str(copy)) != there
    (copy / "splits.json").write_text(splits)
    shutil.copy(copy / "masks" / "phantom_000.png", copy / "masks" / "phantom_001.png")
    assert digest(dataset_dir=str(copy)) != there


@pytest.mark.parametrize("key", ["backbone", "start_from"])
def test_the_file_of_weights_enters_by_its_content(key: str, tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"1")
    second.write_bytes(b"1")
    assert digest(**{key: str(first)}) == digest(**{key: str(second)}) != digest()
    second.write_bytes(b"2")
    assert digest(**{key: str(first)}) != digest(**{key: str(second)})


# --- commands


@pytest.mark.parametrize("path", PROVIDED, ids=lambda path: path.stem)
def test_a_command_says_exactly_the_settings_of_its_member(path: Path, tmp_path: Path) -> None:
    for job in planned(read_experiment(path), tmp_path / "with space, comma", tracking_uri="sqlite:///a b.db").jobs:
        words = job.command({"mlflow.parentRunId": "1" * 32, "member": "None"})
        read = parse_words(words[5:])
        assert read.pop("config_file") == [str(file) for file in job.files]
        assert read.pop("tags") == {"mlflow.parentRunId": "1" * 32, "member": "None"}
        assert read == job.settings
        assert all(Path(file).is_absolute() for file in (*job.files, job.settings["output_dir"]))


def parse_words(words: list[str]) -> dict[str, Any]:
    """As fire reads them for MONAI."""
    return {key[2:]: DefaultParseValue(value) for key, value in zip(words[::2], words[1::2], strict=True)}


def test_overrides_are_pairs_and_not_those_of_the_sweep() -> None:
    words = ["--max_epochs", "20", "--stages=[2,5]", "--train#trainer#clip_norm", "0.5", "--backbone", "None"]
    expected = {"max_epochs": 20, "stages": [2, 5], "train::trainer::clip_norm": 0.5, "backbone": None}
    assert parse_overrides(words) == expected
    for wrong in (["--max_epochs"], ["max_epochs", "3"], ["--", "3"]):
        with pytest.raises(ConfigurationError, match="settings behind -- must be pairs such as --max_epochs 20"):
            parse_overrides(wrong)
    with pytest.raises(ConfigurationError, match="'output_dir' cannot be set here; give --output-dir"):
        parse_overrides(["--output_dir", "x"])


def test_an_experiment_that_ships_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policies").mkdir()  # a folder of the user
    assert read_experiment(Path("policies")) == read_experiment(ROOT / "configs" / "experiments" / "policies.yaml")
    with pytest.raises(ConfigurationError, match=r"polices: neither a file nor an exp.*: did you mean 'policies'\?"):
        read_experiment(Path("polices"))
