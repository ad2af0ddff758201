import os

import pytest

from quire.worker.control_groups import cpu_quota, memory_room
from quire.worker.threads import num_usable_cpus


@pytest.fixture
def tree(tmp_path):
    """A function that writes cgroup files below a root, and the membership file."""

    def write(membership, files):
        for name, content in files.items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        (tmp_path / "membership").write_text(membership)
        return tmp_path / "root", tmp_path / "membership"

    return write


def test_no_files_no_limits(tmp_path):
    assert cpu_quota(tmp_path, tmp_path / "absent") is None
    assert memory_room(tmp_path, tmp_path / "absent") is None
    assert num_usable_cpus(tmp_path, tmp_path / "absent") == len(os.sched_getaffinity(0))


def test_v2_takes_the_strictest_ancestor(tree):
    where = tree(
        "0::/outer/inner\n",
        {
            "cpu.max": "max 100000\n",
            "outer/cpu.max": "150000 100000\n",
            "outer/inner/cpu.max": "400000 100000\n",
            "outer/memory.max": "max\n",
            "outer/memory.current": "5\n",
            "outer/inner/memory.max": "1000\n",
            "outer/inner/memory.current": "700\n",
            "outer/inner/memory.stat": "anon 400\ninactive_file 250\n",
        },
    )
    assert cpu_quota(*where) == 1.5
    assert memory_room(*where) == 550


def test_v1_with_a_path_of_the_host(tree):
    where = tree(
        "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n",
        {
            "cpu/cpu.cfs_quota_us": "50000\n",
            "cpu/cpu.cfs_period_us": "100000\n",
            "memory/memory.limit_in_bytes": "2000\n",
            "memory/memory.usage_in_bytes": "1500\n",
            "memory/memory.stat": "total_inactive_file 100\n",
        },
    )
    assert cpu_quota(*where) == 0.5
    assert memory_room(*where) == 600


def test_v1_without_limits(tree):
    where = tree("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"})
    assert cpu_quota(*where) is None


@pytest.mark.parametrize(("quota", "cpus"), [("10000 100000", 1), ("100000 100000", 1), ("110000 100000", 2)])
def test_threads_round_a_fraction_up_within_affinity(tree, quota, cpus):
    where = tree("0::/\n", {"cpu.max": quota})
    assert num_usable_cpus(*where) == min(cpus, len(os.sched_getaffinity(0)))
