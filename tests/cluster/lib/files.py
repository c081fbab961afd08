"""The files that the cluster's parts read: certificates, kubeconfigs, configurations. All lie in the run folder."""

import base64
import json
import subprocess

from api import PKI
from machine import BRIDGE, DATA, PODS_CGROUP, RUN, SOCKET

KUBECONFIG = RUN / "kubeconfig"
ETC = RUN / "etc"
AUDIT = RUN / "audit"
NODE = "127.0.0.1"
# Who has a client certificate, as X.509 subject (organisations are Kubernetes groups).
CLIENTS = {
    "admin": "/O=system:masters/CN=admin",
    "apiserver-kubelet-client": "/O=system:masters/CN=apiserver-kubelet-client",
    "controller-manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
}
API_NAMES = ("IP:127.0.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,"
             "DNS:kubernetes.default.svc.cluster.local,IP:10.96.0.1")

# Requires an own configuration: the machine's would add extensions of a CA to every certificate.
OPENSSL = """[req]
distinguished_name = name
prompt = no
[name]
"""


def openssl(*words):
    subprocess.run(["openssl", *words], check=True, capture_output=True)


def certificates():
    """One CA, and what each part shows. Made anew at each start: the keys die with the cluster."""
    PKI.mkdir(mode=0o700)
    config = PKI / "openssl.cnf"
    config.write_text(OPENSSL)
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]

    def certificate(name, subject, *extensions, signed=True):
        by = ["-CA", str(PKI / "ca.crt"), "-CAkey", str(PKI / "ca.key")] if signed else []
        added = [word for extension in extensions for word in ("-addext", extension)]
        openssl("req", "-x509", "-config", str(config), *new_key, *by, "-days", "30", "-subj", subject, *added,
                "-keyout", str(PKI / f"{name}.key"), "-out", str(PKI / f"{name}.crt"))

    usage = "keyUsage=critical,digitalSignature"
    certificate("ca", "/CN=podbay-cluster", "basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,digitalSignature",
                "subjectKeyIdentifier=hash", signed=False)
    certificate("apiserver", "/CN=kube-apiserver", usage, "extendedKeyUsage=serverAuth", f"subjectAltName={API_NAMES}")
    # The kubelet's one pair: client of the API server, and server to it.
    certificate("node", f"/O=system:nodes/CN=system:node:{NODE}", usage, "extendedKeyUsage=clientAuth,serverAuth",
                "subjectAltName=IP:127.0.0.1")
    for name, subject in CLIENTS.items():
        certificate(name, subject, usage, "extendedKeyUsage=clientAuth")
    openssl("genrsa", "-out", str(PKI / "tokens.key"), "2048")
    openssl("rsa", "-in", str(PKI / "tokens.key"), "-pubout", "-out", str(PKI / "tokens.pub"))


def kubeconfig(identity, path, port):
    """With the certificates inside: it can be copied and read alone."""
    def data(name):
        return base64.b64encode((PKI / name).read_bytes()).decode()

    content = {
        "apiVersion": "v1", "kind": "Config", "current-context": "podbay-cluster",
        "clusters": [{"name": "podbay-cluster", "cluster": {
            "server": f"https://127.0.0.1:{port}", "certificate-authority-data": data("ca.crt")}}],
        "users": [{"name": identity, "user": {
            "client-certificate-data": data(f"{identity}.crt"), "client-key-data": data(f"{identity}.key")}}],
        "contexts": [{"name": "podbay-cluster", "context": {
            "cluster": "podbay-cluster", "user": identity, "namespace": "default"}}],
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(content, indent=1) + "\n")  # JSON is YAML


def configurations(ports):
    """Writes everything but the certificates. JSON where the reader takes YAML."""
    (ETC / "cni").mkdir(parents=True)
    AUDIT.mkdir()
    for identity in ("controller-manager", "scheduler", "node"):
        kubeconfig(identity, ETC / f"{identity}.kubeconfig", ports["apiserver"])
    # Nobody is there: a lookup fails at once. With an empty file containerd would give pods the machine's.
    (ETC / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    (ETC / "audit.yaml").write_text(json.dumps({
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata"}]}))
    (ETC / "kubelet.yaml").write_text(json.dumps(kubelet(ports), indent=1))
    (ETC / "containerd.toml").write_text(CONTAINERD)
    (ETC / "cni/10-bridge.conflist").write_text(json.dumps({
        "cniVersion": "0.4.0", "name": "podbay", "plugins": [{
            "type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipMasq": False, "hairpinMode": True,
            "ipam": {"type": "host-local", "dataDir": str(RUN / "ipam"),
                     # No default route: nothing that a pod sends leaves the machine.
                     "ranges": [[{"subnet": "10.244.0.0/24"}]]}}]}))


def kubelet(ports):
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "address": "127.0.0.1", "port": ports["kubelet"], "healthzPort": 0, "readOnlyPort": 0,
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": False},
                           "x509": {"clientCAFile": str(PKI / "ca.crt")}},
        "authorization": {"mode": "AlwaysAllow"},
        "tlsCertFile": str(PKI / "node.crt"), "tlsPrivateKeyFile": str(PKI / "node.key"),
        "cgroupDriver": "cgroupfs", "cgroupRoot": f"/{PODS_CGROUP}", "cgroupsPerQOS": True,
        "enforceNodeAllocatable": [], "failCgroupV1": False, "failSwapOn": False, "oomScoreAdj": 0,
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "clusterDomain": "cluster.local", "clusterDNS": [], "resolvConf": str(ETC / "resolv.conf"),
        "makeIPTablesUtilChains": False, "protectKernelDefaults": False,
        # A full disk of the machine must not taint the node, nor take the images away.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"imagefs.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
                         "imagefs.inodesFree": "0%", "memory.available": "100Mi"},
        "maxPods": 250, "podPidsLimit": -1, "registerNode": True, "serializeImagePulls": False,
        "syncFrequency": "10s", "nodeStatusUpdateFrequency": "5s", "runtimeRequestTimeout": "1m",
        "enableProfilingHandler": False, "enableDebuggingHandlers": True,
        "podLogsDir": str(DATA / "pod-logs"), "volumePluginDir": str(DATA / "volume-plugins"),
        "registryPullQPS": 0, "eventRecordQPS": 0, "kubeAPIQPS": 100, "kubeAPIBurst": 200,
        "logging": {"verbosity": 2},
    }


# restrict_oom_score_adj: without CAP_SYS_RESOURCE every sandbox would fail.
CONTAINERD = f"""version = 2
root = "{DATA}/containerd"
state = "{RUN}/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  enable_selinux = false
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "/usr/sbin/runc"
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{ETC}/cni"
"""
