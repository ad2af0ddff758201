"""How many threads the model may use, and how they behave."""

import math
import os
from pathlib import Path

from quire.worker.control_groups import MEMBERSHIP, ROOT, cpu_quota
from quire.worker.numa import num_cores, usable_cpus


def num_usable_cpus(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int:
    """CPUs that affinity and control groups leave to this process, at least 1.

    A fraction is rounded up: threads that are throttled now and then do more than threads that are missing.
    """
    affinity = len(usable_cpus())
    quota = cpu_quota(root, membership)
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def default_num_threads() -> int:
    """Threads of the model where the user names none: one for each core, as far as `num_usable_cpus` allows.

    The second thread of a core would share its arithmetic units, and leaves none to the HTTP process.
    """
    return min(num_usable_cpus(), num_cores(usable_cpus()))


def prepare_torch() -> None:
    """Settings that torch's libraries read when they are loaded. No effect once torch is imported, nor where the user
    has decided.

    OpenMP's threads sleep where they wait for each other. A spinning thread holds the core that its peer needs as soon
    as anything else runs on the machine, an HTTP server for one, and a step then takes several times as long.

    MKL sums in the same order on every thread and at every address. Otherwise a sequence's numbers depend on which
    thread computes it, and so on how many others there are.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
