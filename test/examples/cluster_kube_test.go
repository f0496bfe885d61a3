//go:build kube && !bed

package examples

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kata-qat/kata-qat/internal/ociimage"
	"github.com/kata-qat/kata-qat/test/bed/kube"
	"github.com/kata-qat/kata-qat/test/simcluster"
)

func TestMain(m *testing.M) { os.Exit(simcluster.Main(m.Run)) }

// start starts the cluster that the tests share, with kata-qat on its node.
var start = sync.OnceValues(func() (*simcluster.Cluster, error) {
	ctx := context.Background()
	c, err := simcluster.Start(ctx, simcluster.Machine())
	if err != nil {
		return nil, err
	}
	return c, c.Install(ctx, nil)
})

var imported sync.Once

// cluster is a running cluster whose node has an image by each name that the
// set-ups use: the real program where it can be had, a stand-in otherwise.
func cluster(t *testing.T) *simcluster.Cluster {
	t.Helper()
	c, err := start()
	if err != nil {
		t.Fatal(err)
	}
	imported.Do(func() {
		var layout bytes.Buffer
		if _, err := ociimage.Write(&layout, images(t)...); err != nil {
			t.Fatal(err)
		}
		if err := c.ImportImages(t.Context(), layout.Bytes()); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() {
		if t.Failed() {
			ctx := context.WithoutCancel(t.Context())
			pods, _ := c.Kubectl(ctx, "get", "pods", "--all-namespaces", "--output=wide")
			events, _ := c.Kubectl(ctx, "get", "events", "--all-namespaces", "--field-selector=type=Warning", "--output=custom-columns=POD:.involvedObject.name,MESSAGE:.message")
			t.Logf("%s\n%s\nthe end of the daemon's log:\n%s", pods, events, c.Daemon.Tail(10))
		}
	})
	return c
}

func images(t *testing.T) []ociimage.Image {
	t.Helper()
	root := moduleRoot(t)
	read := func(name string) []byte {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatalf("%v: run make kube-tools examples-setup", err)
		}
		return b
	}
	all := standIns(t, "docker.io/library/haproxy:3.0.23", "docker.io/library/nginx:1.28")
	// With QAT_Engine, as far as its stand-in goes.
	module := ociimage.File{Path: "usr/lib/x86_64-linux-gnu/ossl-modules/qatprovider.so", Content: read(filepath.Join(debian(t), "modules", "qatprovider.so"))}
	all = append(all, standIn("registry.example/haproxy-qat:3.0.23", append(debianFiles(t), module)))
	kubectl := standIn("registry.k8s.io/kubectl:v1.34.1", []ociimage.File{{Path: "bin/kubectl", Content: read(filepath.Join(root, "build", "tools", "kubernetes", "kubectl"))}})
	kubectl.Config.Entrypoint = []string{"/bin/kubectl"}
	dir := filepath.Join(root, "build", "tools", "haproxy-ingress")
	controller := standIn("quay.io/jcmoraisjr/haproxy-ingress:v0.16.1", slices.Concat(
		busybox(t), tree(t, filepath.Join(dir, "rootfs"), ""), []ociimage.File{{Path: "haproxy-ingress-controller", Content: read(filepath.Join(dir, "controller"))}},
	))
	controller.Config.Entrypoint = []string{"/start.sh"}
	all = append(all, kubectl, controller)
	for _, ref := range []string{"docker.io/envoyproxy/envoy:v1.38.0", "docker.io/envoyproxy/envoy-contrib:v1.38.0"} {
		listens := "#!/bin/sh\ntest -s \"$2\" && test -s /tls/tls.key && exec nc -ll -p 8443 -e /bin/cat\n"
		all = append(all, standIn(ref, append(busybox(t), ociimage.File{Path: "usr/local/bin/envoy", Content: []byte(listens)})))
	}
	return all
}

// setUp is a part of the cluster with a namespace of its own.
type setUp struct {
	*simcluster.Cluster
	t         *testing.T
	namespace string
}

func newSetUp(t *testing.T, namespace string) *setUp {
	t.Helper()
	s := &setUp{Cluster: cluster(t), t: t, namespace: namespace}
	if err := s.NewNamespace(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if _, err := s.Kubectl(ctx, "delete", "deployments,jobs", "--all", "--namespace", namespace, "--wait=false"); err != nil {
			t.Error(err)
		}
		if err := s.RemovePods(ctx, namespace); err != nil {
			t.Error(err)
		}
	})
	return s
}

// kubectl runs kubectl in the namespace.
func (s *setUp) kubectl(args ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	out, err := s.Kubectl(ctx, append([]string{"--namespace", s.namespace}, args...)...)
	if err != nil {
		s.t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// apply applies a kustomization of deploy/examples with patches laid over it. The
// node is small: nothing gets more than a hundredth of a processor.
func (s *setUp) apply(name string, patches ...string) {
	s.t.Helper()
	dir := s.t.TempDir()
	base, err := filepath.Rel(dir, filepath.Join(moduleRoot(s.t), "deploy", "examples", name))
	if err != nil {
		s.t.Fatal(err)
	}
	var kustomization strings.Builder
	fmt.Fprintf(&kustomization, "resources: [%s]\npatches:\n", base)
	for _, p := range patches {
		fmt.Fprintf(&kustomization, "  - {patch: %q}\n", p)
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(kustomization.String()), 0o644); err != nil {
		s.t.Fatal(err)
	}
	rendered := string(kustomize(s.t, dir))
	for _, cpu := range []string{`"1"`, `"2"`, `"4"`} {
		rendered = strings.ReplaceAll(rendered, "cpu: "+cpu, "cpu: 10m")
	}
	file := filepath.Join(dir, "rendered.yaml")
	if err := os.WriteFile(file, []byte(rendered), 0o644); err != nil {
		s.t.Fatal(err)
	}
	s.kubectl("apply", "--server-side", "--filename", file)
}

// ready waits until a Deployment's pod is ready, and returns it.
func (s *setUp) ready(deployment string) *corev1.Pod {
	s.t.Helper()
	s.kubectl("rollout", "status", "deployment/"+deployment, "--timeout=100s")
	pods, err := s.Client.CoreV1().Pods(s.namespace).List(s.t.Context(), metav1.ListOptions{LabelSelector: "app=" + deployment})
	if err != nil {
		s.t.Fatal(err)
	}
	living := slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
	if len(living) != 1 {
		s.t.Fatalf("%s has %d pods", deployment, len(living))
	}
	return &living[0]
}

func (s *setUp) inside(p *corev1.Pod, container, script string) string {
	s.t.Helper()
	out, err := s.Exec(s.t.Context(), p.Namespace, p.Name, container, script)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// web starts the backend, and returns the patch by which a Deployment's pods know
// its name: the cluster has no DNS.
func (s *setUp) web(deployment string) string {
	s.t.Helper()
	s.apply("web")
	return fmt.Sprintf("{apiVersion: apps/v1, kind: Deployment, metadata: {name: %s}, spec: {template: {spec: {hostAliases: [{ip: %s, hostnames: [web]}]}}}}",
		deployment, s.ready("web").Status.PodIP)
}

// mustAnswer asks for https://web.example at an address, by HTTP/2, until the backend
// answers through it.
func mustAnswer(t *testing.T, ip, certificate string) {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(certificate)) {
		t.Fatalf("no certificate in %q", certificate)
	}
	transport := &http.Transport{
		ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "web.example"},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(ip, "8443"))
		},
	}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: 30 * time.Second}
	last := errors.New("no answer")
	defer func() {
		if t.Failed() {
			t.Log(last)
		}
	}()
	eventually(t, "the backend answers through "+ip, func() bool {
		r, err := client.Get("https://web.example/")
		if err != nil {
			last = err
			return false
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		last = fmt.Errorf("%s %s: %s, %w", r.Proto, r.Status, body, err)
		return r.ProtoMajor == 2 && r.StatusCode == http.StatusOK && strings.HasPrefix(string(body), "hello from web-")
	})
}

func groupsOf(t *testing.T, p *corev1.Pod, container string) []string {
	t.Helper()
	spec, err := kube.OCISpec(kube.ContainerID(p, container))
	if err != nil {
		t.Fatal(err)
	}
	var groups []string
	for _, d := range spec.Linux.Devices {
		if strings.HasPrefix(d.Path, "/dev/vfio/") && d.Path != "/dev/vfio/vfio" {
			groups = append(groups, d.Path)
		}
	}
	return groups
}

func TestHAProxyRunsInACluster(t *testing.T) {
	for overlay, want := range map[string]struct {
		vfs  int
		says string
	}{
		"software": {0, "qat-tls: QAT_TLS=off: serving TLS in software"},
		"qat":      {2, "qat-tls: QAT in use: OpenSSL provider qatprovider, /dev/vfio/"},
	} {
		t.Run(overlay, func(t *testing.T) {
			s := newSetUp(t, "plain-"+overlay)
			s.apply("haproxy/"+overlay, s.web("haproxy"))
			p := s.ready("haproxy")
			mustAnswer(t, p.Status.PodIP, s.inside(p, "haproxy", "cat /tls/tls.crt"))
			mustContain(t, "log", s.kubectl("logs", p.Name), want.says)
			if got := groupsOf(t, p, "haproxy"); len(got) != want.vfs {
				t.Errorf("it has %v, expected %d VFs", got, want.vfs)
			}
		})
	}
}

// The real controller writes the configuration, from our ConfigMap and an Ingress;
// HAProxy beside it has the VFs, and the controller has none.
func TestTheIngressControllerServes(t *testing.T) {
	s := newSetUp(t, "haproxy-qat")
	s.apply("haproxy-ingress/qat")
	s.apply("haproxy-ingress/demo")
	s.kubectl("wait", "--for=condition=complete", "--timeout=100s", "job/certificate")
	s.ready("web")
	p := s.ready("haproxy-ingress")
	certificate := func() string {
		b, err := base64.StdEncoding.DecodeString(s.kubectl("get", "secret", "web-tls", `--output=jsonpath={.data.tls\.crt}`))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	first := certificate()
	mustAnswer(t, p.Status.PodIP, first)
	mustContain(t, "HAProxy's log", s.kubectl("logs", p.Name, "--container=haproxy"), "qat-tls: QAT in use: OpenSSL provider qatprovider, /dev/vfio/")
	mustContain(t, "the controller's configuration", s.inside(p, "haproxy", "cat /etc/haproxy/haproxy.cfg"), ".if defined(QAT_PROVIDER)", "ssl-propquery ?provider=qatprovider", "ssl-mode-async")
	if got := groupsOf(t, p, "haproxy"); len(got) != 2 {
		t.Errorf("HAProxy has %v, expected two VFs", got)
	}
	if got := groupsOf(t, p, "controller"); len(got) != 0 {
		t.Errorf("the controller has %v", got)
	}

	// A second certificate Job leaves the certificate that is there.
	s.kubectl("delete", "job", "certificate")
	s.apply("haproxy-ingress/demo")
	s.kubectl("wait", "--for=condition=complete", "--timeout=100s", "job/certificate")
	if certificate() != first {
		t.Error("the certificate was replaced")
	}

	// The same ingress goes on without hardware.
	s.apply("haproxy-ingress/software")
	p = s.ready("haproxy-ingress")
	mustAnswer(t, p.Status.PodIP, first)
	if p.Spec.RuntimeClassName != nil || len(groupsOf(t, p, "haproxy")) != 0 {
		t.Errorf("without QAT it has a RuntimeClass or VFs: %v", p.Spec.RuntimeClassName)
	}
	if text := s.inside(p, "haproxy", "cat /etc/haproxy/haproxy.cfg"); strings.Contains(text, "ssl-provider") {
		t.Error("without QAT the configuration is still that for QAT")
	}

	// With QAT or not at all, by the controller's own keys. Debian's HAProxy knows
	// no engines and refuses them; ours is built with USE_ENGINE=1.
	s.apply("haproxy-ingress/qat-required")
	eventually(t, "HAProxy refuses the engine", func() bool {
		logs, err := s.Kubectl(t.Context(), "logs", "--namespace", s.namespace, "--selector=app=haproxy-ingress", "--container=haproxy", "--tail=50", "--ignore-errors")
		return err == nil && strings.Contains(logs, "'ssl-engine'")
	})
}

func TestEnvoyRunsInACluster(t *testing.T) {
	for overlay, vfs := range map[string]int{"software": 0, "qat": 2} {
		t.Run(overlay, func(t *testing.T) {
			s := newSetUp(t, "envoy-"+overlay)
			s.apply("envoy/" + overlay)
			if got := groupsOf(t, s.ready("envoy"), "envoy"); len(got) != vfs {
				t.Errorf("it has %v, expected %d VFs", got, vfs)
			}
		})
	}
}

func TestOpenSSLSpeedRunsInACluster(t *testing.T) {
	s := newSetUp(t, "openssl-speed")
	s.apply("openssl", "{apiVersion: batch/v1, kind: Job, metadata: {name: openssl-speed}, spec: {template: {spec: {containers: [{name: openssl, env: [{name: SECONDS_EACH, value: '1'}]}]}}}}")
	s.kubectl("wait", "--for=condition=complete", "--timeout=100s", "job/openssl-speed")
	mustContain(t, "log", s.kubectl("logs", "job/openssl-speed"), "QAT in use", "== software", "== QAT: -provider default -provider qatprovider")
}
