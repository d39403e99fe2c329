"""How a run on Ray divides a cluster: actors that run the network, and what is left for files. Needs no Ray."""

from typing import NamedTuple

from .settings import SettingsError

SHARE = 7 / 8  # of the CPUs, for the network: it takes most of the time
_LEAST = 0.01  # CPUs; Ray counts in ten-thousandths


class RayOptions(NamedTuple):
    """What the user may say; None is up to :func:`plan`.

    address: of a running cluster (HOST:PORT or "auto"), None for RAY_ADDRESS or a cluster of this machine for this run
    only. actors: processes that hold the network. cpus, gpus: of each, fractions allowed.
    """

    address: str | None = None
    actors: int | None = None
    cpus: float | None = None
    gpus: float | None = None


class Plan(NamedTuple):
    """actors: processes that hold the network; cpus, gpus: of each.

    tasks: that read at a time, and as many that measure and write; task_cpus: of each. Together no more than there is,
    so that no stage waits for a processor that another one holds.
    """

    actors: int
    cpus: float
    gpus: float
    tasks: int
    task_cpus: float

    @property
    def threads(self) -> int:
        """Of torch, in each actor."""
        return max(1, int(self.cpus))

    def fits(self, cpus: float, gpus: float) -> bool:
        """Whether a cluster with so many CPUs and GPUs has a place for all actors."""
        needed = self.actors * self.cpus + 2 * self.tasks * self.task_cpus
        return needed <= cpus + 1e-6 and self.actors * self.gpus <= gpus + 1e-6

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        return f"Ray: {self.actors} x {self.cpus:g} CPUs{gpus}"


def plan(options: RayOptions, cpus: float, gpus: float) -> Plan:
    """Divide a cluster with so many CPUs and GPUs. Raises SettingsError where it is too small for what was asked.

    Default: a GPU for each actor where there are any, else one CPU for each and 7/8 of the CPUs for actors; at least
    one actor, with half a CPU where there is only one.
    """
    if cpus < 4 * _LEAST:
        raise SettingsError(
            "the Ray cluster has no CPUs; photographs are read and written on CPUs: add nodes with some"
        )
    each = (1.0 if gpus >= 1 else 0.0) if options.gpus is None else options.gpus
    _check(options, gpus, each)
    actors = options.actors or (_fitting(gpus, each) if each else 0)
    own = options.cpus or min(1.0, cpus / 2 / max(actors, 1))
    actors = actors or max(1, min(int(cpus * SHARE / own), _fitting(cpus - _LEAST, own)))
    left = cpus - actors * own
    if left < _LEAST:
        raise SettingsError(
            f"{actors} Ray actors with {own:g} CPUs each leave none of the cluster's {cpus:g} CPUs to read and write "
            "photographs; give fewer --ray-actors or --ray-cpus"
        )
    tasks = max(1, int(left / 2))
    return Plan(actors, own, each, tasks, min(1.0, int(left / 2 / tasks * 100) / 100 or left / 2))


def _fitting(total: float, each: float) -> int:
    return int(total / each + 1e-6)


def _check(options: RayOptions, gpus: float, each: float) -> None:
    for name, value in (("--ray-actors", options.actors), ("--ray-cpus", options.cpus)):
        if value is not None and value <= 0:
            raise SettingsError(f"{name} must be more than 0, got {value:g}")
    if each < 0 or (each > 1 and each != int(each)):
        raise SettingsError(f"--ray-gpus must be a fraction of a GPU or a whole number, got {each:g}")
    if each and _fitting(gpus, each) < (options.actors or 1):
        raise SettingsError(
            f"the Ray cluster has {gpus:g} GPUs, too few for {options.actors or 1} actors with {each:g} each; give "
            "fewer --ray-actors, or --ray-gpus 0 to use CPUs"
        )
