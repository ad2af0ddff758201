"""Cores and memory nodes, read from a folder like the system's; the system call itself on this machine."""

import platform
import threading

import pytest

from quire.worker.numa import interleave_memory, nodes_of, num_cores, parse_cpu_list


@pytest.mark.parametrize(("text", "cpus"), [("0-2,8\n", {0, 1, 2, 8}), ("5", {5}), ("", set()), ("0-0,3-4", {0, 3, 4})])
def test_lists_of_cpus(text, cpus):
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize("text", ["a", "1-", "-3", "1-2-3"])
def test_what_is_no_list_is_refused(text):
    with pytest.raises(ValueError):
        parse_cpu_list(text)


def test_nodes_of_some_cpus(tmp_path):
    for node, cpus in enumerate(("0-3,16-19", "4-7", "8-11", "nonsense")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(cpus + "\n")
    assert nodes_of({2, 9}, tmp_path) == [0, 2]
    assert nodes_of({17}, tmp_path) == [0]
    assert nodes_of({40}, tmp_path) == []
    assert nodes_of({0}, tmp_path / "absent") == []


def test_threads_of_a_core_count_once(tmp_path):
    for cpu, siblings in enumerate(("0,4", "1,5", "2,6", "3,7", "0,4", "1,5")):
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(siblings + "\n")
    assert num_cores({0, 1, 2, 3, 4, 5}, tmp_path) == 4
    assert num_cores({1, 5}, tmp_path) == 1
    assert num_cores({0, 99}, tmp_path) == 2


@pytest.mark.skipif(platform.system() != "Linux", reason="a system call of Linux")
def test_the_system_takes_the_policy_and_gives_it_up():
    results = []

    def ask():  # a policy is its thread's own
        results.extend([interleave_memory([0]), interleave_memory([]), interleave_memory([1023])])

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert results == [True, True, False]
