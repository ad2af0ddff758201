"""What Linux control groups (containers, systemd slices) leave to this process."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def cpu_quota(root: Path = ROOT, membership: Path = MEMBERSHIP) -> float | None:
    """CPUs that this process may use at a time, None without a limit. The strictest of all ancestors counts."""
    quotas = [_quota(*_read(folder / "cpu.max").split()[:2]) for folder in _folders(root, membership, "")]
    quotas += [
        _quota(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))
        for folder in _folders(root, membership, "cpu")
    ]
    return min((quota for quota in quotas if quota is not None), default=None)


def memory_room(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int | None:
    """Bytes that may still be allocated, None without a limit. Page cache counts as free: the kernel drops it."""
    rooms = [
        _room(folder, "memory.max", "memory.current", "inactive_file") for folder in _folders(root, membership, "")
    ]
    rooms += [
        _room(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        for folder in _folders(root, membership, "memory")
    ]
    return min((room for room in rooms if room is not None), default=None)


def _folders(root: Path, membership: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's group and its ancestors. An empty controller means the unified hierarchy (v2).

    Inside a container the path may be that of the host and not exist; the limits then stand at the top.
    """
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        top = root / controller if controller else root
        folder = top / path.lstrip("/")
        while folder != top:
            yield folder
            folder = folder.parent
        yield top


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _quota(quota: str = "", period: str = "") -> float | None:
    if not (quota.isdigit() and period.isdigit() and int(quota) and int(period)):
        return None
    return int(quota) / int(period)


def _room(folder: Path, limit_name: str, usage_name: str, reclaimable_key: str) -> int | None:
    limit, usage = _read(folder / limit_name), _read(folder / usage_name)
    if not (limit.isdigit() and usage.isdigit()):
        return None
    statistics = dict(line.split()[:2] for line in _read(folder / "memory.stat").splitlines() if " " in line)
    return max(0, int(limit) - int(usage) + int(statistics.get(reclaimable_key, 0)))
