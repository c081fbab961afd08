"""Processes and their memory, from /proc."""

import os


def program(pid):
    """The executable's path; empty for a process that is gone."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def parents():
    """Each process's parent."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    # The name in parentheses may hold anything, so count from its end.
                    found[int(name)] = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
    return found


def descendants(root):
    """All processes below one."""
    children = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    below, todo = [], [root]
    while todo:
        for child in children.get(todo.pop(), []):
            below.append(child)
            todo.append(child)
    return below


def memory(pids):
    """RSS and PSS of these processes together, in bytes. PSS counts a page that n processes share as 1/n."""
    total = {"rss": 0, "pss": 0}
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", encoding="utf-8") as file:
                for line in file:
                    key, _, rest = line.partition(":")
                    if key.lower() in total:
                        total[key.lower()] += int(rest.split()[0]) * 1024
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def cpu_seconds(pids):
    """User and system time that these processes have used."""
    ticks = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        except OSError:
            continue
    return ticks / os.sysconf("SC_CLK_TCK")
