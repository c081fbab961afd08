"""The test images, made here as OCI archives: no registry is asked for anything.

The formats are the OCI image specification's (layout, manifest, configuration, layer). Owners and times are fixed, so the
same content has the same digest everywhere; only the Debian image's content depends on the day that it was made.
"""

import hashlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import tarfile

import build
from machine import Failure, say

DEBIAN = "localhost/podbay-debian:1"
WITH_AGENT = "localhost/podbay-debian-agent:1"
AGENT_ONLY = "localhost/podbay-agent:1"
PROGRAMS = build.HERE / "programs"
ARCHITECTURES = {"amd64": "amd64", "arm64": "arm64"}
USER = ("user", 1000, "/home/user")
PATHS = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEBIAN_PACKAGES = [
    "bash", "coreutils", "git", "ncurses-base", "ncurses-bin", "openssh-sftp-server", "procps", "python3", "rsync", "tmux",
]
# What the Debian image leaves out: nothing that a program needs.
DEBIAN_WITHOUT = [
    "dev", "proc", "sys", "run", "tmp", "var/cache/apt", "var/cache/debconf", "var/lib/apt/lists", "var/log",
    "usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "usr/share/zoneinfo",
]


def architecture():
    found = subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True).stdout.strip()
    if found not in ARCHITECTURES:
        raise Failure(f"the images are made for {' and '.join(ARCHITECTURES)}, not for {found}")
    return ARCHITECTURES[found]


class Layer:
    """One layer: a tar of what is added to it."""

    def __init__(self, path):
        self.path = path
        self.tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)

    def _entry(self, name, mode, owner):
        entry = tarfile.TarInfo(name)
        entry.mode, entry.uid, entry.gid = mode, owner, owner
        return entry

    def folder(self, name, mode=0o755, owner=0):
        entry = self._entry(name, mode, owner)
        entry.type = tarfile.DIRTYPE
        self.tar.addfile(entry)

    def file(self, name, content, mode=0o644, owner=0):
        entry = self._entry(name, mode, owner)
        entry.size = len(content)
        self.tar.addfile(entry, io.BytesIO(content))

    def link(self, name, target):
        entry = self._entry(name, 0o777, 0)
        entry.type, entry.linkname = tarfile.SYMTYPE, target
        self.tar.addfile(entry)

    def tree(self, top, without):
        """A whole folder, with its owners and times (Python compares them with its compiled files')."""
        for folder, folders, files in os.walk(top):
            folders.sort()
            for name in sorted(folders + files):
                path = os.path.join(folder, name)
                inside = os.path.relpath(path, top)
                if inside in without:
                    if name in folders:
                        folders.remove(name)
                    continue
                entry = self.tar.gettarinfo(path, inside)
                if entry is None or entry.isdev():
                    continue
                entry.uname = entry.gname = ""
                if entry.isreg():
                    with open(path, "rb") as content:
                        self.tar.addfile(entry, content)
                else:
                    self.tar.addfile(entry)

    def close(self):
        self.tar.close()


def digest_of(path):
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_archive(path, name, layers, config):
    """An OCI archive with one image of these layers. `ctr images import` takes the name from the index's annotation."""
    blobs = []

    def blob(content):
        data = json.dumps(content, sort_keys=True).encode()
        blobs.append(data)
        return {"digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}

    found = [(layer, f"sha256:{digest_of(layer)}") for layer in layers]
    kind = "application/vnd.oci.image"
    configuration = blob({
        "architecture": architecture(), "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": [digest for _, digest in found]},
    })
    manifest = blob({
        "schemaVersion": 2, "mediaType": f"{kind}.manifest.v1+json",
        "config": {"mediaType": f"{kind}.config.v1+json", **configuration},
        "layers": [{"mediaType": f"{kind}.layer.v1.tar", "digest": digest, "size": os.path.getsize(layer)}
                   for layer, digest in found],
    })
    index = {"schemaVersion": 2, "manifests": [{
        "mediaType": f"{kind}.manifest.v1+json", **manifest, "annotations": {"io.containerd.image.name": name}}]}
    draft = path.with_suffix(".new")
    archive = Layer(draft)
    archive.file("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    archive.file("index.json", json.dumps(index, sort_keys=True).encode())
    for data in blobs:
        archive.file(f"blobs/sha256/{hashlib.sha256(data).hexdigest()}", data)
    for layer, digest in found:
        entry = tarfile.TarInfo(f"blobs/{digest.replace(':', '/')}")
        entry.size = os.path.getsize(layer)
        with open(layer, "rb") as content:
            archive.tar.addfile(entry, content)
    archive.close()
    draft.rename(path)


def accounts(layer):
    """Root and one user, for images that bring none."""
    name, number, home = USER
    layer.folder("etc")
    layer.file("etc/passwd", f"root:x:0:0:root:/root:/bin/sh\n{name}:x:{number}:{number}::{home}:/bin/sh\n".encode())
    layer.file("etc/group", f"root:x:0:\n{name}:x:{number}:\n".encode())
    layer.folder("root", 0o700)
    layer.folder("home")
    layer.folder(home[1:], owner=number)
    layer.folder("tmp", 0o1777)


def compiled(source, work):
    program = work / "program"
    subprocess.run(["gcc", "-Os", "-static", "-s", "-Wall", "-Wextra", "-Werror", "-o", program, source], check=True)
    return program.read_bytes()


def pause(layer, work):
    layer.file("pause", compiled(PROGRAMS / "pause.c", work), 0o755)
    return {"Entrypoint": ["/pause"]}


def static(layer, work):
    layer.file("static", compiled(PROGRAMS / "static.c", work), 0o755)
    return {"Entrypoint": ["/static"], "Cmd": ["sleep"]}


def busybox(layer, work):
    # Not installed: Debian's busybox-static would replace the machine's busybox.
    build.apt_lists()
    build.unpack_packages(["busybox-static"], work / "package")
    program = next(path for path in (work / "package/bin/busybox", work / "package/usr/bin/busybox") if path.exists())
    accounts(layer)
    layer.folder("bin")
    layer.file("bin/busybox", program.read_bytes(), 0o755)
    applets = subprocess.run([program, "--list"], check=True, capture_output=True, text=True).stdout.split()
    for applet in sorted(set(applets) - {"busybox"}):
        layer.link(f"bin/{applet}", "busybox")
    return {"Cmd": ["sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}


def debian(layer, work):
    root = work / "root"
    # In a mount namespace of its own: a cut-off run leaves no mount.
    build.run(
        ["unshare", "-m", "--propagation", "private", "debootstrap", "--variant=minbase",
         f"--include={','.join(DEBIAN_PACKAGES)}", build.SUITE, str(root), build.mirror()],
        "debootstrap", "the Debian image's debootstrap")
    name, number, home = USER
    subprocess.run(["chroot", root, "useradd", "-u", str(number), "-m", "-d", home, "-s", "/bin/bash", name], check=True)
    layer.tree(root, set(DEBIAN_WITHOUT))
    for folder in ("dev", "proc", "sys", "run", "var/log"):
        layer.folder(folder)
    layer.folder("tmp", 0o1777)
    return {"Cmd": ["bash"], "Env": [PATHS, "LANG=C.UTF-8"]}


# Each image's name, what makes it, and what it is made from, as text: it is made again when that changes. The number is for
# a change of the maker itself.
IMAGES = {
    "localhost/pause:1": (pause, lambda: (PROGRAMS / "pause.c").read_text() + "1"),
    "localhost/podbay-busybox:1": (busybox, lambda: "1"),
    "localhost/podbay-static:1": (static, lambda: (PROGRAMS / "static.c").read_text() + "1"),
    DEBIAN: (debian, lambda: " ".join([build.SUITE, *DEBIAN_PACKAGES, *DEBIAN_WITHOUT, "1"])),
}


def image(name):
    """The image's archive, made if it isn't in the cache."""
    make, made_from = IMAGES[name]
    key = hashlib.sha256(f"{architecture()} {made_from()}".encode()).hexdigest()[:16]
    short = name.partition("/")[2].partition(":")[0]
    folder = build.cache() / "images"
    folder.mkdir(exist_ok=True)
    path = folder / f"{short}-{key}.tar"
    if path.exists():
        return path
    build.install(build.IMAGE_PACKAGES)
    say(f"making image {name}")
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    layer = Layer(work / "layer.tar")
    config = make(layer, work)
    layer.close()
    for old in folder.glob(f"{short}-*.tar"):
        old.unlink()
    write_archive(path, name, [layer.path], config)
    shutil.rmtree(work)
    say(f"made {name}: {os.path.getsize(path) / 1e6:.1f} MB, sha256 {digest_of(path)[:16]}…")
    return path


def images():
    """All images' archives, small ones first."""
    return [image(name) for name in IMAGES]


def agent_only(program, path):
    """Writes the archive of the image that brings the agent into pods, as deploy/agent-image makes it."""
    layer = Layer(path.with_suffix(".layer"))
    layer.file("podbay-agent", pathlib.Path(program).read_bytes(), 0o755)
    layer.close()
    write_archive(path, AGENT_ONLY, [layer.path], {"Entrypoint": ["/podbay-agent"], "User": "65532:65532"})
    layer.path.unlink()
    return path


def with_agent(program, double, path):
    """Writes the archive of the Debian image with this program as its agent, and the double of ContainerSSH's beside it if there is
    one. Not of the cache: each build's is another."""
    work = path.with_suffix(".work")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with tarfile.open(image(DEBIAN)) as archive:
        def blob(digest):
            return archive.extractfile(f"blobs/{digest.replace(':', '/')}")

        [found] = json.load(archive.extractfile("index.json"))["manifests"]
        manifest = json.load(blob(found["digest"]))
        [descriptor] = manifest["layers"]
        with open(work / "base.tar", "wb") as copy:
            shutil.copyfileobj(blob(descriptor["digest"]), copy)
        config = json.load(blob(manifest["config"]["digest"]))["config"]
    layer = Layer(work / "agent.tar")
    layer.file("usr/bin/containerssh-agent", pathlib.Path(program).read_bytes(), 0o755)
    if double:
        layer.file("usr/bin/containerssh-agent-double", pathlib.Path(double).read_bytes(), 0o755)
    layer.close()
    write_archive(path, WITH_AGENT, [work / "base.tar", layer.path], config)
    shutil.rmtree(work)
    return path
