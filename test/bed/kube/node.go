package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kata-qat/kata-qat/test/bed"
)

// Usual paths of a node.
const (
	ContainerdSocket = "/run/containerd/containerd.sock"
	ContainerdConfig = "/etc/containerd/config.toml"
	volumePlugins    = "/var/lib/kubelet/volumeplugins"
	cniBin           = "/usr/lib/cni"
)

// StandinRecord is where Kata's stand-in records what it was given.
const StandinRecord = Dir + "/kata-standin.jsonl"

const runcRoot = "/run/containerd/runc"

type table = map[string]any

// containerdConfig is that of a node before anyone has thought of Kata: a runtime
// and a network. NRI is on, as it is by default.
func containerdConfig(runc string) table {
	return table{
		"version": 3,
		"imports": []string{"/etc/containerd/conf.d/*.toml"},
		"disabled_plugins": []string{
			"io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
			"io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp",
		},
		"plugins": table{
			"io.containerd.cri.v1.images": table{"pinned_images": table{"sandbox": bed.Pause}},
			"io.containerd.cri.v1.runtime": table{
				"disable_apparmor": true,
				// Without CAP_SYS_RESOURCE, as in many CI machines, a lower
				// oom_score_adj than that of containerd kills every sandbox.
				"restrict_oom_score_adj": true,
				"cni":                    table{"bin_dirs": []string{cniBin}, "conf_dir": "/etc/cni/net.d"},
				"containerd": table{
					"default_runtime_name": "runc",
					"runtimes": table{"runc": table{
						"runtime_type": bed.RuncType,
						"options":      table{"BinaryName": runc, "Root": runcRoot},
					}},
				},
			},
		},
	}
}

const network = `{"cniVersion": "1.0.0", "name": "bed", "plugins": [{
	"type": "bridge", "bridge": "cni0", "isGateway": true,
	"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}
}]}`

// startContainerd starts containerd and gives it the images of package bed.
func (b *Bed) startContainerd(ctx context.Context) error {
	runc, err := bed.FindRunc(b.tools)
	if err != nil {
		return err
	}
	config, err := toml.Marshal(containerdConfig(runc))
	if err != nil {
		return fmt.Errorf("write containerd's configuration: %w", err)
	}
	for file, content := range map[string][]byte{ContainerdConfig: config, "/etc/cni/net.d/10-bed.conflist": []byte(network)} {
		if err := os.RemoveAll(filepath.Dir(file)); err != nil { // the host's own
			return err
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, content, 0o644); err != nil {
			return err
		}
	}
	env := []string{"KATA_STANDIN_RECORD=" + StandinRecord, "KATA_STANDIN_RUNC=" + runc, "KATA_STANDIN_RUNC_ROOT=" + runcRoot}
	if b.Containerd, err = b.Run("containerd", env, "containerd"); err != nil {
		return err
	}
	if err := wait(ctx, "containerd", b.containerdReady); err != nil {
		return err
	}
	images, err := bed.ImageArchive(ctx, b.tools)
	if err != nil {
		return err
	}
	return b.ImportImages(ctx, images)
}

func (b *Bed) containerdReady(ctx context.Context) error {
	if out, err := exec.CommandContext(ctx, "ctr", "version").CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// ImportImages gives the node the images of an archive, an OCI layout.
func (b *Bed) ImportImages(ctx context.Context, archive []byte) error {
	// --local: the transfer service, the default of containerd 2, wants to
	// know the platform before it has read the image.
	cmd := exec.CommandContext(ctx, "ctr", "--namespace", "k8s.io", "images", "import", "--local", "-")
	cmd.Stdin = bytes.NewReader(archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import images: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// kubeletConfig lets the kubelet work beside others on a machine: it does not
// take the machine's swap, disk or version of cgroups for a reason to refuse.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
containerRuntimeEndpoint: unix://` + ContainerdSocket + `
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
makeIPTablesUtilChains: false
volumePluginDir: ` + volumePlugins + `
resolvConf: ""
evictionHard: {memory.available: 64Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}
nodeStatusUpdateFrequency: 1s
kubeAPIQPS: 500
kubeAPIBurst: 500
`

// startNode starts the kubelet and waits until pods can run.
func (b *Bed) startNode(ctx context.Context) (err error) {
	config := Dir + "/kubelet.yaml"
	if err := os.WriteFile(config, []byte(kubeletConfig), 0o644); err != nil {
		return err
	}
	b.Kubelet, err = b.Run("kubelet", nil, "kubelet", "--config", config, "--kubeconfig", kubeconfig("kubelet"),
		"--hostname-override", NodeName, "--node-ip", nodeIP, "--cert-dir", keyDir)
	if err != nil {
		return err
	}
	return wait(ctx, "the node", b.NodeReady)
}

// NodeReady tells whether pods can run on the node, and if not, why.
func (b *Bed) NodeReady(ctx context.Context) error {
	node, err := b.Client.CoreV1().Nodes().Get(ctx, NodeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			return fmt.Errorf("the node is not ready: %s", c.Message)
		}
	}
	if len(node.Status.Conditions) == 0 || len(node.Spec.Taints) > 0 {
		return errors.New("the node is not ready: it is new")
	}
	// Without it pods are refused (ServiceAccount admission).
	_, err = b.Client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
	return err
}

// WaitAllocatable waits until the node offers so many of a resource.
func (b *Bed) WaitAllocatable(ctx context.Context, name corev1.ResourceName, n int64) error {
	return wait(ctx, fmt.Sprintf("%d of %s", n, name), func(ctx context.Context) error {
		node, err := b.Client.CoreV1().Nodes().Get(ctx, NodeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if q := node.Status.Allocatable[name]; q.Value() != n {
			return fmt.Errorf("the node has %d", q.Value())
		}
		return nil
	})
}

// shareMounts makes mounts of containers seen on the node, where a pod wants
// that, and the other way round.
func shareMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	return nil
}
