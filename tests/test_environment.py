"""Packages, hardware and the load of the machine."""

import logging
import threading
import time
from importlib.metadata import version

import pytest
import torch

from reg4pru_monai import environment, runtime
from reg4pru_monai.environment import SystemMetrics, frozen_packages, hardware


def test_the_packages_are_listed_as_pip_does() -> None:
    lines = frozen_packages().splitlines()
    assert f"torch=={version('torch')}" in lines
    assert len(lines) == len({line.lower() for line in lines})
    assert lines == sorted(lines, key=lambda line: line.split("==")[0].lower())


def test_hardware_tells_the_threads_of_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert hardware(torch.device("cpu")).endswith(f"({torch.backends.cpu.get_cpu_capability()}), 2 threads")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert hardware(torch.device("cpu")).endswith(", 1 thread")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    assert hardware(torch.device("cuda")) == "a GPU"


def test_a_processor_that_is_not_told_is_named_by_its_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(path: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(runtime.Path, "read_text", absent)
    monkeypatch.setattr(runtime.platform, "machine", lambda: "some machine")
    assert environment.device_name(torch.device("cpu")).startswith("some machine (")


def busy_for(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_load_is_sampled_between_two_questions() -> None:
    with SystemMetrics(seconds=0.05) as load:
        busy_for(0.3)
        busy = load.means()
        again = load.means()  # at once: a sample of its own
    assert busy.keys() == again.keys() >= {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"}
    assert 0 < busy["system/cpu_utilization_percentage"] <= 100
    assert busy["system/system_memory_usage_megabytes"] > 100
    assert not load._thread.is_alive()


def test_an_interval_shorter_than_a_sample_gets_one() -> None:
    with SystemMetrics(seconds=60) as load:
        assert load.means().keys() == load.means().keys() >= {"system/cpu_utilization_percentage"}


def test_the_load_is_asked_for_in_one_thread_and_its_first_value_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def cpu_percent() -> float:  # as psutil: 0 when a thread asks for the first time
        name = threading.current_thread().name
        asked.append(name)
        return 80.0 if asked.count(name) > 1 else 0.0

    monkeypatch.setattr("psutil.cpu_percent", cpu_percent)
    with SystemMetrics(seconds=0.02) as load:
        means = []
        for _ in range(3):
            time.sleep(0.1)
            means.append(load.means()["system/cpu_utilization_percentage"])
    assert set(asked) == {"SystemMetrics"}
    assert means == [80.0] * 3


class BrokenMonitor:
    """A GPU that is lost: neither an ImportError nor a RuntimeError."""

    def __init__(self) -> None:
        raise LookupError("GPU is lost")


def test_a_gpu_that_cannot_be_asked_costs_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mlflow.system_metrics.metrics.gpu_monitor.GPUMonitor", BrokenMonitor)
    with SystemMetrics(seconds=0.01) as load:
        found = load.means()
    assert found.keys() == {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"}
    assert warnings_in(caplog) == ["the load of the GPU is not logged (LookupError: GPU is lost)"]


def test_a_sample_that_fails_costs_one_warning_and_not_the_next_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing = threading.Event()
    failing.set()

    def cpu_percent() -> float:
        if failing.is_set():
            raise OSError("no /proc")
        return 50.0

    monkeypatch.setattr("psutil.cpu_percent", cpu_percent)
    monkeypatch.setattr(environment, "_monitor", {"CPU": environment._monitor("CPU")}.get)
    with SystemMetrics(seconds=0.01) as load:
        assert load.means() == {}
        time.sleep(0.1)
        failing.clear()
        load.means()  # may hold a sample of before
        time.sleep(0.1)
        assert load.means()["system/cpu_utilization_percentage"] == 50
    assert warnings_in(caplog) == ["the load of the CPU is not logged (OSError: no /proc)"]


def test_of_several_gpus_the_mean_is_kept_under_one_name() -> None:
    found = {"cpu_utilization_percentage": 50.0, "system_memory_usage_megabytes": 900.0, "disk_usage_percentage": 3.0}
    for gpu, used in ((0, 10.0), (1, 30.0)):
        found |= {f"gpu_{gpu}_utilization_percentage": used, f"gpu_{gpu}_memory_usage_megabytes": 10 * used}
        found |= {f"gpu_{gpu}_power_usage_percentage": 99.0}
    assert environment._selected([found, found | {"cpu_utilization_percentage": 70.0}]) == {
        **{"system/cpu_utilization_percentage": 60.0, "system/system_memory_usage_megabytes": 900.0},
        **{"system/gpu_utilization_percentage": 20.0, "system/gpu_memory_usage_megabytes": 200.0},
    }
