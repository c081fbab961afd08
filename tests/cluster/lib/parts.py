"""The cluster's parts: how each is started, and when it is ready."""

import json
import os
import socket
import subprocess
import urllib.request

from api import PKI, get, get_json
from files import AUDIT, ETC, NODE
from machine import DATA, DISK, LOGS, RUN, SOCKET, WORK, Failure, running, spawn, tail, wait_for

# In the order in which they are started.
PARTS = ["etcd", "containerd", "apiserver", "controller-manager", "scheduler", "kubelet"]
PROGRAMS = {"etcd": "etcd", "apiserver": "kube-apiserver", "kubelet": "kubelet",
            "controller-manager": "kube-controller-manager", "scheduler": "kube-scheduler"}
# Fixed paths of containerd, the CNI library and the kubelet: the namespace has its own, so nothing stays on the machine.
PRIVATE = ["/run/containerd", "/var/lib/kubelet", "/run/netns", "/var/lib/cni", "/var/log/containers"]
CONTROLLERS = ("*,-node-ipam-controller,-node-route-controller,-cloud-node-lifecycle-controller,"
               "-service-lb-controller,-bootstrap-signer-controller,-token-cleaner-controller")
# Ports by the server that listens on them, all on 127.0.0.1.
PORTS = {"etcd": ["etcd", "etcd-peer"], "apiserver": ["apiserver"], "kubelet": ["kubelet"]}


def make_disk():
    """A sparse file with a file system for all that containerd and the kubelet keep: 20 GB at most, thrown away with one
    unlink, where a tree of ten thousand files can take the machine's disk half a minute."""
    with open(DISK, "wb") as disk:
        disk.truncate(20_000_000_000)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-E", "nodiscard", "-m", "0", DISK], check=True)


def hold_namespace():
    """Starts the holder of the mount namespace that containerd and the kubelet live in. Every mount they make is gone
    with the last process in it, whatever crashes."""
    mounts = "".join(f"mount -t tmpfs -o mode=755 podbay-cluster {path} && " for path in PRIVATE)
    folders = " ".join(str(DATA / name) for name in ("pod-logs", "volume-plugins", "kubelet"))
    DATA.mkdir(parents=True)
    make_disk()
    spawn("holder", ["unshare", "-m", "--propagation", "private", "sh", "-c",
                     # No barriers: nothing has to outlive the machine.
                     f"mount -o loop,nodiscard,nobarrier {DISK} {DATA} || echo 'no loop device: a plain folder does too';"
                     f"{mounts} mkdir {folders} && : >{RUN}/holder-is-ready && exec sleep infinity"])

    def ready():
        if running("holder") is None:
            raise Failure(f"the mount namespace's holder ended:{tail(LOGS / 'holder.log')}")
        return (RUN / "holder-is-ready").exists()

    wait_for("the mount namespace", 10, ready, every=0.005)


def member():
    """A pid in the mount namespace: the holder, or who is left of it after a crash."""
    for name in ("holder", "containerd", "kubelet"):
        if pid := running(name):
            return pid
    raise Failure("nothing is left of the cluster's mount namespace: take it down and start it again")


def flags(**values):
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


def command(part, state):
    ports = state["ports"]
    api = ports["apiserver"]
    match part:
        case "etcd":
            client, peer = f"http://127.0.0.1:{ports['etcd']}", f"http://127.0.0.1:{ports['etcd-peer']}"
            # No fsync: the data is thrown away anyhow. A killed etcd still finds it, only a killed machine doesn't.
            words = flags(
                name="podbay", data_dir=WORK / "etcd", log_level="warn", listen_client_urls=client,
                advertise_client_urls=client, listen_peer_urls=peer, initial_advertise_peer_urls=peer,
                initial_cluster=f"podbay={peer}") + ["--unsafe-no-fsync"]
        case "containerd":
            return ["containerd", "--config", str(ETC / "containerd.toml")]
        case "apiserver":
            # Without the reconciler's "none" it would publish the machine's real address as kubernetes' endpoint.
            words = flags(
                etcd_servers=f"http://127.0.0.1:{ports['etcd']}", bind_address="127.0.0.1", secure_port=api,
                endpoint_reconciler_type="none", service_cluster_ip_range="10.96.0.0/16",
                authorization_mode="Node,RBAC", enable_admission_plugins="NodeRestriction",
                client_ca_file=PKI / "ca.crt", tls_cert_file=PKI / "apiserver.crt", tls_private_key_file=PKI / "apiserver.key",
                kubelet_client_certificate=PKI / "apiserver-kubelet-client.crt",
                kubelet_client_key=PKI / "apiserver-kubelet-client.key", kubelet_certificate_authority=PKI / "ca.crt",
                kubelet_preferred_address_types="InternalIP",
                service_account_issuer="https://kubernetes.default.svc", service_account_key_file=PKI / "tokens.pub",
                service_account_signing_key_file=PKI / "tokens.key",
                audit_policy_file=ETC / "audit.yaml", audit_log_path=AUDIT / "audit.log", audit_log_mode="blocking",
                audit_log_maxsize=10000, allow_privileged="true", profiling="false")
        case "controller-manager":
            words = flags(
                kubeconfig=ETC / "controller-manager.kubeconfig", service_account_private_key_file=PKI / "tokens.key",
                root_ca_file=PKI / "ca.crt", leader_elect="false", profiling="false", secure_port=0,
                use_service_account_credentials="true", controllers=CONTROLLERS)
        case "scheduler":
            words = flags(kubeconfig=ETC / "scheduler.kubeconfig", leader_elect="false", profiling="false", secure_port=0)
        case "kubelet":
            # A node name that is an address becomes the node's InternalIP, loopback or not.
            words = flags(config=ETC / "kubelet.yaml", kubeconfig=ETC / "node.kubeconfig", hostname_override=NODE,
                          root_dir=DATA / "kubelet", cert_dir=DATA / "kubelet/pki")
        case _:
            raise Failure(f"no part of the cluster is named {part}")
    return [os.path.join(state["programs"], PROGRAMS[part]), *words]


def start(part, state):
    """Starts a part that doesn't run."""
    for name in PORTS.get(part, []):
        if why := state_of_port(state["ports"][name]):
            raise Failure(f"{part} can't be started: port {state['ports'][name]} on 127.0.0.1 {why}")
    spawn(part, command(part, state), inside=member() if part in ("containerd", "kubelet") else None)


def state_of_port(port):
    """Why nothing can listen on the port; None when it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Go does: closed connections are no obstacle
        try:
            probe.bind(("127.0.0.1", port))
            return None
        except OSError as error:
            return f"is taken ({error.strerror})"


def alive(part):
    """Fails with the end of its log when the part isn't running."""
    if running(part) is None:
        raise Failure(f"{part} isn't running; the end of its log:{tail(LOGS / f'{part}.log')}")
    return True


def ctr(*words, timeout=60):
    return subprocess.run(["ctr", "-a", str(SOCKET), "-n", "k8s.io", *words], capture_output=True, text=True, timeout=timeout)


def runtime_answers():
    try:
        return ctr("version", timeout=5).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def etcd_healthy(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=3) as answer:
            return json.load(answer).get("health") == "true"
    except (OSError, ValueError):
        return False


def node(state):
    return get_json(state["ports"]["apiserver"], f"/api/v1/nodes/{NODE}", "admin")


def node_ready(state):
    """Whether the node is Ready and takes pods: a fresh one has a taint until the controller manager's next round."""
    found = node(state) or {}
    conditions = {entry["type"]: entry["status"] for entry in found.get("status", {}).get("conditions", [])}
    return conditions.get("Ready") == "True" and not found.get("spec", {}).get("taints")


def kubelet_knows_its_pods(state):
    """A kubelet that just started answers exec with 404 until it has read its pods from the API server."""
    wanted = get_json(state["ports"]["apiserver"], f"/api/v1/pods?fieldSelector=spec.nodeName={NODE}", "admin")
    known = get_json(state["ports"]["kubelet"], "/pods", "apiserver-kubelet-client")
    if wanted is None or known is None:
        return False
    uids = {pod["metadata"]["uid"] for pod in known.get("items") or []}
    return all(pod["metadata"]["uid"] in uids for pod in wanted["items"]
               if pod.get("status", {}).get("phase") in ("Pending", "Running"))


def ready(part, state):
    """Whether a running part does its work."""
    ports = state["ports"]
    kubelet_client = "apiserver-kubelet-client"
    # Asks the runtime's CRI, which containerd serves a little later than its own API.
    cri = lambda: get(ports["kubelet"], "/runningpods/", kubelet_client)[0] == 200
    match part:
        case "apiserver":
            return get(ports["apiserver"], "/readyz", "admin")[0] == 200
        case "kubelet":
            healthy = get(ports["kubelet"], "/healthz", kubelet_client)[0] == 200
            return healthy and (not running("apiserver") or kubelet_knows_its_pods(state) and node_ready(state))
        case "containerd":
            return runtime_answers() and (not running("kubelet") or cri())
        case "etcd":
            return etcd_healthy(ports["etcd"]) and (not running("apiserver") or ready("apiserver", state))
        case _:  # they listen nowhere: that they run is all that is seen
            return True


def wait_ready(part, state, seconds=60):
    """Until a part is ready."""
    wait_for(f"{part} to be ready (logs: {LOGS})", seconds, lambda: alive(part) and ready(part, state))
