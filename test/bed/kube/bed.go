// Package kube makes a Kubernetes cluster of one node on this machine: real
// etcd, API server, scheduler, controller manager, kubelet and containerd, in
// namespaces of their own, with a node's usual paths. It knows clusters and
// nodes; it knows nothing of QAT.
//
// A bed needs root, cgroups, runc, a static busybox, iproute2, the CNI plugins of
// containernetworking-plugins, and the programs of `make tools kube-tools`. It
// needs no network: the images are made from what is there.
package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kata-qat/kata-qat/test/bed"
)

// NodeName is the name of the one node.
const NodeName = "bed"

// Options say what the cluster's node has.
type Options struct {
	// Machine is a directory of which sys and dev are laid over the machine's
	// own, so that devices can be simulated. It must lie below /run.
	Machine string
	// Tools is where `make tools kube-tools` put their programs; by default
	// build/tools of the module that the working directory is in.
	Tools string
}

// Bed is a running cluster. There is one in a process, and it lasts as long.
type Bed struct {
	Etcd, APIServer, Scheduler, ControllerManager, Kubelet, Containerd *Service

	Config *rest.Config
	Client kubernetes.Interface

	tools string

	mu       sync.Mutex
	services []*Service
}

// upTimeout is how long the cluster may take; on a quiet machine with two
// processors it takes some 6 s.
const upTimeout = 2 * time.Minute

var once sync.Mutex

// Start starts the cluster and returns when its node is ready and has the images
// of package bed. It works once, below Main.
func Start(ctx context.Context, o Options) (_ *Bed, err error) {
	if !Inside() {
		return nil, errors.New("start a Kubernetes bed: not in namespaces of its own: call it below kube.Main")
	}
	if !once.TryLock() {
		return nil, errors.New("start a Kubernetes bed: this process has one already")
	}
	ctx, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	b := new(Bed)
	defer func() {
		if err != nil {
			err = fmt.Errorf("start a Kubernetes bed: %w%s", err, b.Logs(5))
		}
	}()
	if b.tools, err = bed.ToolsDir(o.Tools); err != nil {
		return nil, err
	}
	if err := b.linkTools(); err != nil {
		return nil, err
	}
	if err := cover(o.Machine); err != nil {
		return nil, err
	}
	if err := writeKeys(); err != nil {
		return nil, err
	}
	if err := b.serveSystemctl(); err != nil {
		return nil, err
	}
	// Containers' mounts come back from them and go into them: kubelet's volumes.
	if err := shareMounts(); err != nil {
		return nil, err
	}
	var runtime, control error
	var both sync.WaitGroup
	both.Go(func() { runtime = b.startContainerd(ctx) })
	both.Go(func() { control = b.startControlPlane(ctx) })
	both.Wait()
	if err := errors.Join(runtime, control); err != nil {
		return nil, err
	}
	return b, b.startNode(ctx)
}

// linkTools puts the programs into the bed's PATH.
func (b *Bed) linkTools() error {
	for _, dir := range []string{b.tools, filepath.Join(b.tools, "kubernetes")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("%w: run make tools kube-tools", err)
		}
		for _, e := range entries {
			if e.Type().IsRegular() && !strings.HasPrefix(e.Name(), ".") {
				if err := Link(filepath.Join(dir, e.Name()), filepath.Join(binDir, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	for _, name := range []string{"containerd", "ctr", "containerd-shim-runc-v2", "containerd-shim-kata-v2", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl"} {
		if _, err := os.Stat(filepath.Join(binDir, name)); err != nil {
			return fmt.Errorf("%s is missing in %s: run make tools kube-tools", name, b.tools)
		}
	}
	for _, name := range []string{"bridge", "host-local", "loopback"} {
		if _, err := os.Stat(filepath.Join(cniBin, name)); err != nil {
			return fmt.Errorf("%w: run test/setup.sh", err)
		}
	}
	return nil
}

// Link makes a link, in the place of what is there.
func Link(target, name string) error {
	if err := os.RemoveAll(name); err != nil {
		return err
	}
	return os.Symlink(target, name)
}

// Run starts a service of the node. It has the bed's PATH, and env added to the
// environment.
func (b *Bed) Run(name string, env []string, args ...string) (*Service, error) {
	s := newService(name, env, args)
	if err := s.Start(); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.services = append(b.services, s)
	return s, nil
}

// find returns a service by its name, nil if there is none.
func (b *Bed) find(name string) *Service {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.services {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// Logs are the last lines of all services' logs, for who wants to know what went
// wrong.
func (b *Bed) Logs(lines int) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out strings.Builder
	for _, s := range b.services {
		fmt.Fprintf(&out, "\n--- the end of %s's log:\n%s", s.Name, s.Tail(lines))
	}
	return out.String()
}

// Kubectl runs kubectl as the cluster's administrator and returns its output.
func (b *Bed) Kubectl(ctx context.Context, args ...string) (string, error) {
	return b.kubectl(ctx, "", args...)
}

func (b *Bed) kubectl(ctx context.Context, in string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "kubectl", append([]string{"--kubeconfig", Kubeconfig}, args...)...)
	var out, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in), &out, &stderr
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out.String(), nil
}

// Apply applies manifests, by server-side apply.
func (b *Bed) Apply(ctx context.Context, yaml string) error {
	_, err := b.kubectl(ctx, yaml, "apply", "--server-side", "-f", "-")
	return err
}

// Delete deletes what manifests name, and waits until it is gone.
func (b *Bed) Delete(ctx context.Context, yaml string) error {
	_, err := b.kubectl(ctx, yaml, "delete", "--ignore-not-found", "-f", "-")
	return err
}

// connect makes the client of the cluster's administrator.
func (b *Bed) connect() error {
	config, err := clientcmd.BuildConfigFromFlags("", Kubeconfig)
	if err != nil {
		return err
	}
	config.QPS = -1 // tests do not hold each other up
	b.Config = config
	b.Client, err = kubernetes.NewForConfig(config)
	return err
}
