//go:build lab

package charttest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kata-qat/kata-qat/internal/cpio"
	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/bed/apiserver"
	"github.com/kata-qat/kata-qat/test/lab"
)

const (
	// nodeName is also where the API server finds the node's kubelet: QEMU
	// forwards a port of this machine's loopback.
	nodeName = "localhost"
	// thisMachine is what QEMU's user network calls this machine.
	thisMachine = "10.0.2.2"
	// images has those that the node is given.
	images = "/opt/lab/images"
	// finished is a file of the node that is the end of it.
	finished = "/run/lab/finished"

	kataShimPath = "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2"
)

// texts are files of the node before anyone has thought of kata-qat: containerd
// with runc, a kubelet, and what a release of Kata has that provisioning looks
// at. Behind Kata's shim is the stand-in that runs runc.
var texts = map[string]string{
	"/etc/containerd/config.toml": `version = 3
imports = ["/etc/containerd/conf.d/*.toml"]
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "` + bed.Pause + `"
`,
	// CRI copies these.
	"/etc/resolv.conf": "", "/etc/hosts": "127.0.0.1 localhost\n",
	// No pod here has a network of its own, but the node is ready only with one.
	"/etc/cni/net.d/10-none.conflist": `{"cniVersion": "1.0.0", "name": "none", "plugins": [{"type": "none"}]}`,
	"/etc/systemd/system/containerd.service": `[Service]
ExecStart=/usr/bin/containerd --log-level warn
Environment=KATA_STANDIN_RUNC=/usr/sbin/runc KATA_STANDIN_RUNC_ROOT=/run/containerd/runc
Type=notify
Delegate=yes
KillMode=process
`,
	"/etc/systemd/system/kubelet.service": `[Service]
ExecStart=/opt/lab/kubelet --config /etc/kubelet.yaml --kubeconfig /etc/kubelet.kubeconfig --hostname-override ` + nodeName + `
`,
	// In the place of kube-proxy: the API server's Service.
	"/etc/systemd/system/api.socket": `[Socket]
ListenStream=10.96.0.1:443
`,
	"/etc/systemd/system/api.service": `[Service]
ExecStart=/usr/lib/systemd/systemd-socket-proxyd ` + thisMachine + `:%s
`,
	"/etc/kubelet.yaml": `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
port: %s
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failSwapOn: false
makeIPTablesUtilChains: false
resolvConf: ""
volumePluginDir: /var/lib/kubelet/volumeplugins
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
evictionHard: {memory.available: 32Mi}
nodeStatusUpdateFrequency: 4s
`,
	kataShimPath: `#!/bin/sh
if [ "$1" = --version ]; then
	echo 'Kata Containers containerd shim (Rust): id: io.containerd.kata.v2, version: 4.1.0, commit: 1'
	exit
fi
exec /opt/lab/containerd-shim-kata-v2 "$@"
`,
	"/opt/kata/share/defaults/kata-containers/runtime-rs/configuration-qemu-runtime-rs.toml": "[hypervisor.qemu]\nkernel_params = \"\"\n",
	"/usr/lib/firmware/qat_4xxx.bin": "", "/usr/lib/firmware/qat_4xxx_mmp.bin": "",
}

// script makes the machine a node, and keeps it until it is told.
const script = `
	busybox ip link set lo up
	busybox ip addr add 10.96.0.1/32 dev lo
	until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done
	busybox ip addr add 10.0.2.15/24 dev eth0
	busybox ip link set eth0 up
	busybox ip route add default via ` + thisMachine + `
	echo "cgroups: $(stat -f -c %T /sys/fs/cgroup)"
	systemctl start containerd api.socket
	for image in ` + images + `/*; do ctr -n k8s.io images import --local $image >/dev/null; done
	systemctl start kubelet
	until [ -e ` + finished + ` ]; do sleep 0.1; done
	journalctl --no-pager -o cat -u containerd -u kubelet -p warning | tail -5
`

// machine is the lab's guest while it runs.
type machine struct {
	end chan struct{}
	res *lab.Result
	err error
}

// startMachine boots a machine with one QAT card that joins the server's cluster.
// The kernel uses its IOMMU, but was not given all the parameters that provisioning
// gives it.
func startMachine(t *testing.T, server *apiserver.Server, kubeletPort string) *machine {
	t.Helper()
	cfg := lab.Config{
		PFs: []lab.PF{{Family: "4xxx", ACS: true}}, IOMMU: true, Memory: 3072,
		Disk: lab.SystemDisk(t), Files: files(t, server, kubeletPort),
		Cmdline: "net.ifnames=0 systemd.show_status=0",
		QEMUArgs: []string{
			"-netdev", fmt.Sprintf("user,id=net,hostfwd=tcp:127.0.0.1:%s-:%[1]s", kubeletPort),
			"-device", "virtio-net-pci,netdev=net",
		},
		Script: script, Timeout: 15 * time.Minute, Log: writer{t},
	}
	ctx, cancel := context.WithCancel(t.Context())
	m := &machine{end: make(chan struct{})}
	go func() {
		defer close(m.end)
		m.res, m.err = lab.Boot(ctx, cfg)
	}()
	t.Cleanup(func() {
		cancel()
		<-m.end
	})
	return m
}

// files are those of the node, by their paths there.
func files(t *testing.T, server *apiserver.Server, kubeletPort string) map[string]string {
	t.Helper()
	tools, err := bed.ToolsDir("")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{
		"/usr/sbin/runc": "/usr/sbin/runc", "/usr/bin/busybox": "/bin/busybox",
		"/opt/lab/kubelet":                 filepath.Join(tools, "kubernetes/kubelet"),
		"/opt/lab/containerd-shim-kata-v2": filepath.Join(tools, "containerd-shim-kata-v2"),
		images + "/kata-qat.tar":           root + "build/image/kata-qat.tar",
	}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		all["/usr/bin/"+name] = filepath.Join(tools, name)
	}
	if all["/opt/lab/vfiotest"], err = lab.Build(t.Context(), "./test/lab/vfiotest"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	add := func(name string, content []byte) {
		file := filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
		if err := os.WriteFile(file, content, 0o755); err != nil {
			t.Fatal(err)
		}
		all[name] = file
	}
	for name, text := range texts {
		switch name {
		case "/etc/kubelet.yaml":
			text = fmt.Sprintf(text, kubeletPort)
		case "/etc/systemd/system/api.service":
			text = fmt.Sprintf(text, server.Port())
		}
		add(name, []byte(text))
	}
	kubeconfig, err := server.KubeletConfig()
	if err != nil {
		t.Fatal(err)
	}
	add("/etc/kubelet.kubeconfig", kubeconfig)
	archive, err := bed.ImageArchive(t.Context(), tools)
	if err != nil {
		t.Fatal(err)
	}
	add(images+"/bed.tar", archive)
	initrd := filepath.Join(dir, "initrd")
	if err := writeInitrd(initrd); err != nil {
		t.Fatal(err)
	}
	all["/opt/kata/share/kata-containers/kata-containers-initrd.img"] = initrd
	return all
}

// writeInitrd writes what stands for Kata's: no VM is started here.
func writeInitrd(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	a := cpio.NewWriter(f)
	for _, d := range []string{"usr/lib", "usr/sbin", "etc"} {
		a.Dir(d)
	}
	a.Link("lib", "usr/lib")
	a.Link("sbin", "usr/sbin")
	a.Bytes("init", 0o755, "#!/bin/sh\n")
	return errors.Join(a.Close(), f.Close())
}

// writer has the node's output in the test's log as it comes.
type writer struct{ t *testing.T }

func (w writer) Write(p []byte) (int, error) {
	w.t.Logf("node: %s", strings.TrimRight(string(p), "\n"))
	return len(p), nil
}
