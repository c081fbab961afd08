"""What has to be there before a cluster can start: Debian packages and the one Go binary.

Everything made lies in the cache folder, under a name that says what it was made from; so a second start makes nothing.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import time

from machine import Failure, say, tail

HERE = pathlib.Path(__file__).resolve().parent.parent
SOURCES = HERE / "kubernetes"
KUBERNETES = "1.34.4"
PROGRAMS = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl"]
# A file that each needed package brings.
PACKAGES = {
    "/usr/bin/containerd": "containerd",
    "/usr/sbin/runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "/usr/bin/openssl": "openssl",
    "/usr/bin/nsenter": "util-linux",
    "/usr/sbin/mkfs.ext4": "e2fsprogs",
    "/sbin/ip": "iproute2",
}
IMAGE_PACKAGES = {
    "/usr/bin/gcc": "gcc",
    "/usr/include/stdio.h": "libc6-dev",
    "/usr/sbin/debootstrap": "debootstrap",
}
# Where apt looks for the Go that builds, when the machine has none.
SUITE, BACKPORTS = "bookworm", "bookworm-backports"


def cache():
    """The cache folder, made if need be."""
    chosen = os.environ.get("PODBAY_CLUSTER_CACHE")
    folder = pathlib.Path(chosen).resolve() if chosen else HERE.parent.parent / "target" / "cluster"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run(command, log_name, what, **options):
    """Runs a long command with its output in a log of the cache; tells every half minute that it still runs."""
    log = cache() / f"{log_name}.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **options)
        try:
            while True:
                try:
                    status = process.wait(timeout=30)
                    break
                except subprocess.TimeoutExpired:
                    say(f"… {what}: still at it")
        except BaseException:
            process.kill()
            process.wait()
            raise
    if status:
        raise Failure(f"{what} failed with status {status} (log: {log}):{tail(log)}")


def apt(*words, log_name="apt", what, **options):
    # The sandbox user could not write to a cache that only root may enter.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "-q", "-y", "-o", "APT::Sandbox::User=root", *words], log_name, what, env=environment, **options)


def apt_lists():
    """The package lists, if there are none yet."""
    if not list(pathlib.Path("/var/lib/apt/lists").glob("*_Packages*")):
        apt("update", what="apt-get update")


def install(packages):
    """Installs those Debian packages that are missing, told by a file of theirs that is."""
    missing = [package for file, package in packages.items() if not os.path.exists(file)]
    if not missing:
        return
    say(f"installing Debian packages: {' '.join(missing)}")
    apt_lists()
    words = ["install", "--no-install-recommends", *missing]
    try:
        apt(*words, what="apt-get install")
    except Failure:  # lists that are older than the archive name files that are gone
        apt("update", what="apt-get update")
        apt(*words, what="apt-get install")


def unpack_packages(packages, folder, *options):
    """Downloads Debian packages and unpacks them into a folder, without installing them."""
    folder.mkdir(parents=True)
    apt(*options, "download", *packages, what=f"download of {' '.join(packages)}", cwd=folder)
    for archive in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
        archive.unlink()


def mirror():
    """The Debian archive that apt uses on this machine."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(CODENAME) $(COMPONENT)", "Identifier: Packages"],
        check=True, capture_output=True, text=True).stdout
    sites = [line.split()[0] for line in listed.splitlines() if line.split()[1:] == [SUITE, "main"]]
    if not sites:
        raise Failure(f"apt on this machine has no archive with {SUITE}/main: this needs Debian 12's")
    return sites[0]


def backported_go():
    """A Go from Debian's backports, unpacked into the cache. It is too old itself for Kubernetes, but not too old (1.21)
    to fetch, and check, the Go that go.mod asks for."""
    top = cache() / "go"
    command = top / "usr/lib/go-1.23/bin/go"
    if command.exists():
        return command
    say("no Go 1.24 here: taking one from Debian's backports, into the cache only")
    draft = cache() / "go.new"
    shutil.rmtree(draft, ignore_errors=True)
    lists = cache() / "apt"
    (lists / "lists/partial").mkdir(parents=True, exist_ok=True)
    source = lists / "backports.list"
    source.write_text(f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror()} {BACKPORTS} main\n")
    options = [word for option in (
        f"Dir::Etc::SourceList={source}", "Dir::Etc::SourceParts=-", f"Dir::State::Lists={lists}/lists",
        "Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache=") for word in ("-o", option)]
    apt(*options, "update", what="apt-get update of the backports")
    unpack_packages(["golang-1.23-go", "golang-1.23-src"], draft, *options)
    shutil.rmtree(lists)
    draft.rename(top)
    return command


def go():
    """The go command, its version for our module, and the environment to run it in."""
    candidates = [os.environ.get("GO"), shutil.which("go"), "/usr/local/go/bin/go"]
    for command in [name for name in candidates if name and os.access(name, os.X_OK)] + [None]:
        command = command or str(backported_go())
        environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
        if "/go/usr/lib/" in command:
            environment["GOTOOLCHAIN"] = "auto"
        asked = subprocess.run(
            [command, "env", "GOVERSION"], cwd=SOURCES, env=environment, capture_output=True, text=True)
        if asked.returncode == 0 and new_enough(asked.stdout.strip()):
            return command, asked.stdout.strip(), environment
    raise Failure(f"no Go of version 1.24 or later: install one and name it in $GO ({asked.stderr.strip()})")


def new_enough(version):
    try:
        return tuple(map(int, version.removeprefix("go").split()[0].split(".")[:2])) >= (1, 24)
    except (ValueError, IndexError):
        return False


def sources_key():
    """Names what the binary is built from: the sources and the version stamped into it."""
    digest = hashlib.sha256(KUBERNETES.encode())
    for name in ("go.mod", "go.sum", "main.go"):
        digest.update((SOURCES / name).read_bytes())
    return digest.hexdigest()[:16]


def kubernetes():
    """The folder with a link per program to the one binary, built if it isn't in the cache."""
    key = sources_key()
    built = sorted(cache().glob(f"kubernetes-{key}-*/kubernetes"))
    # A cache from elsewhere serves a machine without Go, too.
    if built and not shutil.which("go") and not os.path.exists("/usr/local/go/bin/go"):
        return link(built[0].parent)
    command, version, environment = go()
    folder = cache() / f"kubernetes-{key}-{version.replace(' ', '-')}"
    if not (folder / "kubernetes").exists():
        build(command, environment, folder, version)
    return link(folder)


def build(command, environment, folder, version):
    say(f"building Kubernetes {KUBERNETES} with {version}: about 7 minutes on two cores, with an empty Go build cache")
    began = time.monotonic()
    stamp = "k8s.io/component-base/version"
    major, minor, _ = KUBERNETES.split(".")
    flags = " ".join(["-s", "-w", *(f"-X {stamp}.{name}={value}" for name, value in (
        ("gitVersion", f"v{KUBERNETES}"), ("gitMajor", major), ("gitMinor", minor), ("gitTreeState", "clean")))])
    folder.mkdir(exist_ok=True)
    draft = folder / "kubernetes.new"
    run(["nice", command, "build", "-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", flags, "-o", str(draft), "."],
        "go-build", "the build of Kubernetes", cwd=SOURCES, env=environment)
    draft.rename(folder / "kubernetes")
    say(f"built Kubernetes in {time.monotonic() - began:.0f} s")
    for old in cache().glob("kubernetes-*"):
        if old != folder:
            shutil.rmtree(old)


def link(folder):
    """A link per program; kubectl also as `bin/kubectl` of the cache, a path that tests can know."""
    public = cache() / "bin"
    public.mkdir(exist_ok=True)
    for path, target in [*((folder / name, "kubernetes") for name in PROGRAMS),
                         (public / "kubectl", f"../{folder.name}/kubectl")]:
        if not path.is_symlink() or os.readlink(path) != target:
            path.unlink(missing_ok=True)
            path.symlink_to(target)
    return folder
