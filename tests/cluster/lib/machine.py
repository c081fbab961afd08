"""The machine under the cluster: where things lie, its processes, cgroups, sysctls, and the one lock.

Owns what must be undone at take-down and how it is found again after a crash. Knows nothing of Kubernetes.
"""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

# Fixed, so that `down` finds a cluster whichever checkout started it. RUN is short: a Unix socket's path is at
# most 107 bytes (unix(7)).
RUN = pathlib.Path("/run/podbay-cluster")
WORK = pathlib.Path("/var/lib/podbay-cluster")
# Mounted, in the cluster's own mount namespace only, from a file.
DISK = WORK / "disk"
DATA = WORK / "data"
STATE = RUN / "state.json"
PIDS = RUN / "pids"
LOGS = RUN / "logs"
SOCKET = RUN / "containerd.sock"
BRIDGE = "podbay0"
# Pods are below the first (the kubelet's cgroupRoot), the cluster's own programs in the second.
PODS_CGROUP = "podbay-cluster"
PROGRAMS_CGROUP = "podbay-cluster-programs"
CGROUPS = pathlib.Path("/sys/fs/cgroup")
# What the kubelet and the bridge plugin set.
SYSCTLS = [
    "vm.overcommit_memory", "vm.panic_on_oom", "kernel.panic", "kernel.panic_on_oops",
    "kernel.keys.root_maxkeys", "kernel.keys.root_maxbytes", "net.ipv4.ip_forward",
]

_began = time.monotonic()


class Failure(Exception):
    """Something that the caller can act on; told as one message without a traceback."""


def say(message):
    """One step of progress, with the seconds since the command's start."""
    print(f"[{time.monotonic() - _began:6.1f} s] {message}", file=sys.stderr, flush=True)


def tail(log, lines=15):
    """The end of a log, indented, for an error message."""
    try:
        text = pathlib.Path(log).read_text(errors="replace")
    except OSError:
        return ""
    return "".join(f"\n    {line}" for line in text.splitlines()[-lines:])


def wait_for(what, seconds, probe, every=0.05):
    """Waits until `probe()` is true. A Failure that it raises ends the wait at once."""
    until = time.monotonic() + seconds
    while True:
        if probe():
            return
        if time.monotonic() > until:
            raise Failure(f"waited {seconds} s in vain for {what}")
        time.sleep(every)


@contextlib.contextmanager
def only_one():
    """One command at a time on the machine, whichever checkout it is from.

    The name is in the abstract namespace (unix(7)): it leaves no file and is free again when its process dies.
    """
    held = socket.socket(socket.AF_UNIX)
    told = False

    def take():
        nonlocal told
        try:
            held.bind("\0podbay-cluster")
            return True
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        if not told:
            say("another cluster command runs: waiting for it")
            told = True
        return False

    wait_for("the other cluster command to end", 1800, take, every=0.2)
    with held:
        yield


# --- state -----------------------------------------------------------------------------------------------------


def load_state():
    """What `up` noted before it changed anything; None without a cluster."""
    try:
        return json.loads(STATE.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        say(f"{STATE} can't be read ({error}): going on without it")
        return None


def save_state(state):
    """Whole or not at all: a crash must not leave half a file."""
    STATE.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    draft = STATE.with_suffix(".new")
    draft.write_text(json.dumps(state, indent=1))
    draft.rename(STATE)


def sysctl_file(name):
    return pathlib.Path("/proc/sys") / name.replace(".", "/")


def read_sysctls():
    return {name: sysctl_file(name).read_text().strip() for name in SYSCTLS if sysctl_file(name).exists()}


# --- processes -------------------------------------------------------------------------------------------------


def boot():
    return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid):
    """Clock ticks from boot to the process's start; None when it is gone. A zombie is gone, as it waits only to be
    reaped, which PID 1 may do seconds later; but only with its last thread, which closes files and ports."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2:].split()
    state, threads, started = fields[0], int(fields[17]), int(fields[19])
    return None if state in "ZX" and threads <= 1 else started


def command_line(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def note_pid(name, pid):
    PIDS.mkdir(exist_ok=True)
    (PIDS / name).write_text(f"{pid} {start_time(pid) or 0} {boot()}")


def running(name):
    """The pid of a part that this cluster started and that still runs. A pid that another process got since, also
    after a reboot, isn't it: start time and boot must be the noted ones."""
    try:
        pid, started, booted = (PIDS / name).read_text().split()
    except (OSError, ValueError):
        return None
    return int(pid) if booted == boot() and start_time(pid) == int(started) else None


def spawn(name, command, inside=None):
    """Starts a part in the programs' cgroup, in its own session, with its output in its log.

    `inside`: a pid whose mount namespace it joins.
    """
    LOGS.mkdir(exist_ok=True)
    enter = ["nsenter", "-m", "-t", str(inside), "--"] if inside else []
    with open(LOGS / f"{name}.log", "ab") as log:
        # The shell enters the cgroup and becomes the program: not a moment of it is outside.
        process = subprocess.Popen(
            ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(programs_cgroup() / "cgroup.procs"), *enter, *command],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "LANG": "C.UTF-8"},
        )
    note_pid(name, process.pid)
    process.returncode = 0  # it outlives this command: no warning about a child left running


def kill_part(name):
    """kill -9 of one part, back when it is really gone."""
    pid = running(name)
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_for(f"the end of {name}", 20, lambda: running(name) is None, every=0.01)
    return True


def own_processes():
    """Every live process of the cluster: those in its cgroups, those noted at their start, and shims of its containerd."""
    pids = {pid for name in os.listdir(PIDS) if (pid := running(name))} if PIDS.is_dir() else set()
    for top in own_cgroups():
        for folder, _, _ in os.walk(top):
            with contextlib.suppress(OSError):
                pids.update(map(int, (pathlib.Path(folder) / "cgroup.procs").read_text().split()))
    for entry in os.listdir("/proc"):
        if entry.isdigit() and str(SOCKET) in (words := command_line(entry)):
            if words[0].rpartition("/")[2].startswith("containerd"):
                pids.add(int(entry))
    return {pid for pid in pids if pid > 1 and pid != os.getpid() and start_time(pid) is not None}


def kill_all():
    """Again and again, since one that is about to die may start another."""
    def none_left():
        left = own_processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    wait_for("the cluster's processes to end", 60, none_left, every=0.02)


def try_rights():
    """Fails with the reason where this machine forbids what containers need: mounts, overlayfs, veth, cgroups."""
    trial = ('mount -t tmpfs none "$1" && cd "$1" && mkdir l u w m && mount -t overlay -o lowerdir=l,upperdir=u,workdir=w none m'
             " && touch m/it && ip link add podbay-try type veth")
    # In namespaces of its own, which end with it and take all of it along.
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(["unshare", "--mount", "--net", "sh", "-c", trial, "sh", folder], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        raise Failure(f"mounts, overlayfs or veth are not to be had: {tried.stderr.strip() or tried.returncode}")
    trial = programs_cgroup().with_name(f"podbay-try-{os.getpid()}")
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        raise Failure(f"no cgroup can be made: {error}") from error


# --- cgroups ---------------------------------------------------------------------------------------------------


def cgroup2_alone():
    return (CGROUPS / "cgroup.controllers").exists()


def hierarchies():
    """Each cgroup hierarchy's root; one with cgroup v2."""
    if cgroup2_alone():
        return [CGROUPS]
    return sorted({entry.resolve() for entry in CGROUPS.iterdir() if (entry / "cgroup.procs").exists()})


def own_cgroups():
    return [root / name for root in hierarchies() for name in (PODS_CGROUP, PROGRAMS_CGROUP) if (root / name).is_dir()]


def programs_cgroup():
    """One hierarchy is enough to find processes by; not cpuset, which takes no process before it is set up."""
    if cgroup2_alone():
        return CGROUPS / PROGRAMS_CGROUP
    usable = [root for root in hierarchies() if root.name in ("pids", "freezer", "memory", "devices")]
    if not usable:
        raise Failure(f"no cgroup hierarchy pids, freezer, memory or devices is mounted under {CGROUPS}")
    return sorted(usable, key=lambda root: root.name != "pids")[0] / PROGRAMS_CGROUP


def make_cgroups():
    """The kubelet wants its cgroupRoot to be there in every hierarchy."""
    for root in hierarchies():
        if root.name == "unified":
            continue
        pods = root / PODS_CGROUP
        pods.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):  # version 1 starts them empty, and then takes no process
            if not cgroup2_alone() and (root / name).exists():
                (pods / name).write_text((root / name).read_text())
        if cgroup2_alone():
            enabled = "".join(f"+{name} " for name in (root / "cgroup.controllers").read_text().split())
            (root / "cgroup.subtree_control").write_text(enabled)
            (pods / "cgroup.subtree_control").write_text(enabled)
    programs_cgroup().mkdir(exist_ok=True)


def remove_cgroups():
    def all_gone():
        kill_all()  # one that moved from cgroup to cgroup while they were read
        for top in own_cgroups():
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):  # busy for a moment after its last process: tried again
                    os.rmdir(folder)
        return not own_cgroups()

    wait_for("the cluster's cgroups to be empty", 20, all_gone)


# --- what is left ----------------------------------------------------------------------------------------------


def own_mounts():
    """Mount points in this namespace that are the cluster's; none, unless something went wrong: it mounts in its own."""
    points = [line.split()[4] for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point.startswith((f"{RUN}/", f"{WORK}/", "/run/netns/cni-"))]


def own_loops():
    """Loop devices on the cluster's disk; each goes with its mount."""
    found = []
    for file in pathlib.Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it goes at this moment
            if file.read_text().startswith(f"{WORK}/"):
                found.append(file.parent.parent.name)
    return found


def bridge_ports():
    with contextlib.suppress(OSError):
        return os.listdir(f"/sys/class/net/{BRIDGE}/brif")
    return []


def leftovers():
    """What of a cluster is on the machine, one line each."""
    found = [f"process {pid}: {' '.join(command_line(pid))[:150]}" for pid in sorted(own_processes())]
    found += [f"mount {point}" for point in own_mounts()]
    found += [f"loop device {loop}" for loop in own_loops()]
    found += [f"network namespace {entry}" for entry in pathlib.Path("/run/netns").glob("cni-*")]
    # The bridge plugin names its end of a pod's link "veth" and eight hexadecimal digits.
    links = os.listdir("/sys/class/net")
    found += [f"link {link}" for link in links if link == BRIDGE or (
        link.startswith("veth") and len(link) == 12 and all(digit in "0123456789abcdef" for digit in link[4:]))]
    found += [f"cgroup {folder}" for folder in own_cgroups()]
    found += [f"folder {folder}" for folder in (RUN, WORK) if folder.exists()]
    return found


def take_down(keep_logs=None):
    """Takes everything down, whatever state it is in, and can be repeated when it was cut off. The state is the last
    thing to go."""
    if keep_logs and LOGS.is_dir():
        shutil.copytree(LOGS, keep_logs, dirs_exist_ok=True)
    state = load_state() or {}
    ports = bridge_ports()
    kill_all()
    for point in reversed(own_mounts()):
        subprocess.run(["umount", "-l", point], check=False)
    # The file first: what is still to be written to the disk in it then needs not reach the machine's.
    DISK.unlink(missing_ok=True)
    wait_for("the cluster's disk to be unmounted", 60, lambda: not own_loops())
    # A pod's link goes with its network namespace, which the kernel clears away a little later.
    with contextlib.suppress(Failure):
        wait_for("", 5, lambda: not any(os.path.exists(f"/sys/class/net/{port}") for port in ports))
    for link in [*ports, BRIDGE]:
        if os.path.exists(f"/sys/class/net/{link}"):
            subprocess.run(["ip", "link", "del", link], check=False)
    remove_cgroups()
    for name, value in state.get("sysctls", {}).items():
        if sysctl_file(name).read_text().strip() != value:
            sysctl_file(name).write_text(value)
    subprocess.run(["rm", "-rf", "--one-file-system", str(WORK)], check=True)
    for folder in state.get("folders", []):
        with contextlib.suppress(OSError):  # somebody else's files are in it by now
            os.rmdir(folder)
    subprocess.run(["rm", "-rf", "--one-file-system", str(RUN)], check=True)
    if left := leftovers():
        raise Failure("still there after take-down:" + "".join(f"\n    {line}" for line in left))
