//go:build kube && !bed

package examples

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kata-qat/kata-qat/internal/ociimage"
	"github.com/kata-qat/kata-qat/test/bed/kube"
	"github.com/kata-qat/kata-qat/test/docs"
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

// envoy stands in for Envoy: it serves TLS with what Envoy would read, and says what
// Envoy says where the device does not work.
const envoy = `#!/bin/sh
set -e
test -s "$2"
if grep -q 'provider_name: qat' /config/sds.yaml; then echo "Failed to start QAT."; fi
exec openssl s_server -quiet -www -accept 8443 -cert /tls/tls.crt -key /tls/tls.key
`

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
	all := standIns(t, "docker.io/library/haproxy:3.0.23", "docker.io/library/nginx:1.28", "registry.example/dpdk-qat:22.11")
	// With QAT_Engine, as far as its stand-in goes.
	module := ociimage.File{Path: "usr/lib/x86_64-linux-gnu/ossl-modules/qatprovider.so", Content: read(filepath.Join(debian(t), "modules", "qatprovider.so"))}
	for _, ref := range []string{"registry.example/haproxy-qat:3.0.23", "registry.yours/haproxy-qat:3.0.23"} {
		all = append(all, standIn(ref, append(debianFiles(t), module)))
	}
	kubectl := standIn("registry.k8s.io/kubectl:v1.34.1", []ociimage.File{{Path: "bin/kubectl", Content: read(filepath.Join(root, "build", "tools", "kubernetes", "kubectl"))}})
	kubectl.Config.Entrypoint = []string{"/bin/kubectl"}
	dir := filepath.Join(root, "build", "tools", "haproxy-ingress")
	controller := standIn("quay.io/jcmoraisjr/haproxy-ingress:v0.16.1", slices.Concat(
		busybox(t), tree(t, filepath.Join(dir, "rootfs"), ""), []ociimage.File{{Path: "haproxy-ingress-controller", Content: read(filepath.Join(dir, "controller"))}},
	))
	controller.Config.Entrypoint = []string{"/start.sh"}
	all = append(all, kubectl, controller)
	for _, ref := range []string{"docker.io/envoyproxy/envoy:v1.38.0", "docker.io/envoyproxy/envoy-contrib:v1.38.0"} {
		all = append(all, standIn(ref, append(debianFiles(t), ociimage.File{Path: "usr/local/bin/envoy", Content: []byte(envoy)})))
	}
	return all
}

// setUp is a part of the cluster with a namespace of its own, and with a copy of
// deploy that can be changed.
type setUp struct {
	*simcluster.Cluster
	t          *testing.T
	namespace  string
	dir        string // has deploy
	kubeconfig string // of somebody who works in the namespace
}

func newSetUp(t *testing.T, namespace string) *setUp {
	t.Helper()
	s := &setUp{Cluster: cluster(t), t: t, namespace: namespace, dir: t.TempDir()}
	if err := os.CopyFS(filepath.Join(s.dir, examples), os.DirFS(filepath.Join(moduleRoot(t), examples))); err != nil {
		t.Fatal(err)
	}
	s.shrink()
	b, err := os.ReadFile(kube.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	s.kubeconfig = filepath.Join(s.dir, "kubeconfig")
	if err := os.WriteFile(s.kubeconfig, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s.sh(".", "kubectl config set-context --current --namespace="+namespace)
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

// examples is where the set-ups are, in the module and in the copy.
const examples = "deploy/examples"

// shrink has nothing ask for whole processors, of which the node has few, and
// nothing be held to so little.
func (s *setUp) shrink() {
	s.t.Helper()
	limit, request := regexp.MustCompile(`(limits: {)cpu: "\d+", `), regexp.MustCompile(`(requests: {)cpu: "\d+"`)
	changed := 0
	err := filepath.WalkDir(filepath.Join(s.dir, examples), func(path string, e fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".yaml" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		changed += len(request.FindAll(b, -1))
		return os.WriteFile(path, request.ReplaceAll(limit.ReplaceAll(b, []byte("$1")), []byte("${1}cpu: 10m")), 0o644)
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if changed < 5 {
		s.t.Fatalf("only %d requests for processors are found", changed)
	}
}

// edit changes a file of the copied set-ups.
func (s *setUp) edit(file, from, to string) {
	s.t.Helper()
	file = filepath.Join(s.dir, examples, file)
	b, err := os.ReadFile(file)
	if err != nil {
		s.t.Fatal(err)
	}
	text := strings.Replace(string(b), from, to, 1)
	if text == string(b) {
		s.t.Fatalf("%s has no %q", file, from)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// shell is a command line as a person gives it, in a directory of the copy.
func (s *setUp) shell(ctx context.Context, dir, line string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "sh", "-c", line)
	cmd.Dir = filepath.Join(s.dir, dir)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.kubeconfig, "HOME="+s.dir)
	return cmd
}

// sh runs a command line and returns what it printed.
func (s *setUp) sh(dir, line string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := s.shell(ctx, dir, line)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("%s: %v: %s%s", line, err, out, stderr.String())
	}
	return string(out)
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

// apply applies a kustomization.
func (s *setUp) apply(name string) {
	s.t.Helper()
	s.sh(examples, "kubectl apply --namespace "+s.namespace+" -k "+name)
}

// ready waits until a Deployment's pod is ready and the one before is gone, and
// returns it.
func (s *setUp) ready(deployment string) (pod *corev1.Pod) {
	s.t.Helper()
	s.kubectl("rollout", "status", "deployment/"+deployment, "--timeout=100s")
	hurry := metav1.DeleteOptions{GracePeriodSeconds: new(int64)}
	*hurry.GracePeriodSeconds = 1
	eventually(s.t, deployment+" has one pod", func() bool {
		pods, err := s.Client.CoreV1().Pods(s.namespace).List(s.t.Context(), metav1.ListOptions{LabelSelector: "app=" + deployment})
		if err != nil {
			s.t.Fatal(err)
		}
		for _, p := range pods.Items {
			if p.DeletionTimestamp == nil {
				pod = &p
			} else if *p.DeletionGracePeriodSeconds > 1 {
				_ = s.Client.CoreV1().Pods(s.namespace).Delete(s.t.Context(), p.Name, hurry) // it may be gone
			}
		}
		return len(pods.Items) == 1 && pod != nil
	})
	return pod
}

func (s *setUp) inside(p *corev1.Pod, container, script string) string {
	s.t.Helper()
	out, err := s.Exec(s.t.Context(), p.Namespace, p.Name, container, script)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// web starts the backend, and has HAProxy's pods know its name: the cluster has no
// DNS.
func (s *setUp) web() {
	s.t.Helper()
	s.apply("web")
	const spec = "      automountServiceAccountToken: false\n"
	s.edit("haproxy/base/haproxy.yaml", spec, spec+"      hostAliases: [{ip: "+s.ready("web").Status.PodIP+", hostnames: [web]}]\n")
}

// forwarding is a port of the machine, which one set-up can have at a time.
var forwarding sync.Mutex

// forward has kubectl forward a port until the test has done what it wants with it.
func (s *setUp) forward(line string, use func()) {
	s.t.Helper()
	forwarding.Lock()
	defer forwarding.Unlock()
	ctx, stop := context.WithCancel(s.t.Context())
	cmd := s.shell(ctx, ".", "exec "+line)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() {
		stop()
		_ = cmd.Wait() // it is killed
	}()
	if first := bufio.NewScanner(out); !first.Scan() || !strings.HasPrefix(first.Text(), "Forwarding from") {
		s.t.Fatalf("%s: %q", line, first.Text())
	}
	use()
}

// behind runs what is to reach a Service: in a network in which the Service's address
// leads to its pod, as kube-proxy, which the bed has not, would have it.
func (s *setUp) behind(service string, port int, pod *corev1.Pod, target int, use func(address string)) {
	s.t.Helper()
	address := strings.TrimSpace(s.kubectl("get", "service", service, "--output=jsonpath={.spec.clusterIP}"))
	// Programs that are started, and sockets that are opened, are in this thread's network.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		s.t.Fatal(err)
	}
	defer own.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		s.t.Fatal(err)
	}
	defer func() {
		if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(err) // nothing else would be where it should
		}
	}()
	s.sh(".", "ip link set lo up && ip addr add "+address+"/32 dev lo")
	l, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(port)))
	if err != nil {
		s.t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return // closed
			}
			go relay(from, net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(target)))
		}
	}()
	use(address)
}

func relay(from net.Conn, target string) {
	defer from.Close()
	to, err := net.Dial("tcp", target)
	if err != nil {
		return // the client sees it
	}
	defer to.Close()
	go func() { _, _ = io.Copy(to, from) }()
	_, _ = io.Copy(from, to)
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
	t.Parallel()
	doc := docs.For(t)
	check := func(s *setUp, vfs int) {
		s.t.Helper()
		p := s.ready("haproxy")
		mustAnswer(s.t, p.Status.PodIP, s.inside(p, "haproxy", "cat /tls/tls.crt"))
		if got := groupsOf(s.t, p, "haproxy"); len(got) != vfs {
			s.t.Errorf("it has %v, expected %d VFs", got, vfs)
		}
	}
	s := newSetUp(t, "haproxy")
	s.web()
	s.sh(examples+"/haproxy", doc.Line("kubectl apply -k software"))
	check(s, 0)
	mustContain(t, "log", s.sh(".", doc.Line("kubectl logs")), "qat-tls: QAT_TLS=off: serving TLS in software")
	s.forward(doc.Line("kubectl port-forward"), func() {
		mustContain(t, "answer", s.sh(".", doc.Line("curl")), "hello from web-")
	})

	s.apply("haproxy/qat")
	check(s, 2)
	mustContain(t, "log", s.kubectl("logs", "deployment/haproxy"), "qat-tls: QAT in use: OpenSSL provider qatprovider, /dev/vfio/")
}

// The real controller writes the configuration, from our ConfigMap and an Ingress;
// HAProxy beside it has the VFs, and the controller has none.
func TestTheIngressControllerServes(t *testing.T) {
	t.Parallel()
	doc := docs.For(t)
	const dir = examples + "/haproxy-ingress"
	s := newSetUp(t, "haproxy-qat")
	s.sh(dir, doc.Line("kubectl apply -k qat"))
	s.sh(dir, doc.Line("kubectl apply -n haproxy-qat -k demo"))
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
	const inUse = "qat-tls: QAT in use: OpenSSL provider qatprovider, /dev/vfio/"
	mustContain(t, "HAProxy's log", s.sh(".", doc.Line("kubectl -n haproxy-qat logs")), inUse)
	mustContain(t, "the controller's configuration", s.inside(p, "haproxy", "cat /etc/haproxy/haproxy.cfg"), ".if defined(QAT_PROVIDER)", "ssl-propquery ?provider=qatprovider", "ssl-mode-async")
	if got := groupsOf(t, p, "haproxy"); len(got) != 2 {
		t.Errorf("HAProxy has %v, expected two VFs", got)
	}
	if got := groupsOf(t, p, "controller"); len(got) != 0 {
		t.Errorf("the controller has %v", got)
	}
	s.behind("haproxy-ingress", 443, p, 8443, func(address string) {
		mustContain(t, "answer", s.sh(".", "ADDRESS="+address+"; "+doc.Line("curl")), "hello from web-")
	})
	// Its counters do not move.
	mustContain(t, "verify", s.sh(".", strings.ReplaceAll(doc.Line("kata-qat verify"), "/POD", "/"+p.Name)+" || test $? = 1"), "hardware in use: no (PF 0000:6b:00.0 got no request")

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

	// And with it, as the tutorial has it.
	for _, u := range userWrites(t, "docs/tutorial.md") {
		s.write("kustomization.yaml", strings.ReplaceAll(u.kustomization, remote, ""))
		s.write("ingress.yaml", u.ingress)
	}
	s.sh(".", doc.Line("kubectl apply -k ."))
	s.sh(".", doc.Line("kubectl apply -f ingress.yaml"))
	p = s.ready("haproxy-ingress")
	mustAnswer(t, p.Status.PodIP, first)
	mustContain(t, "HAProxy's log", s.sh(".", doc.Line("kubectl -n haproxy-qat logs")), inUse)

	// With QAT or not at all, by the controller's own keys. Debian's HAProxy knows
	// no engines and refuses them; ours is built with USE_ENGINE=1.
	s.apply("haproxy-ingress/qat-required")
	eventually(t, "HAProxy refuses the engine", func() bool {
		logs, err := s.Kubectl(t.Context(), "logs", "--namespace", s.namespace, "--selector=app=haproxy-ingress", "--container=haproxy", "--tail=50", "--ignore-errors")
		return err == nil && strings.Contains(logs, "'ssl-engine'")
	})
}

func (s *setUp) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func TestEnvoyRunsInACluster(t *testing.T) {
	t.Parallel()
	doc := docs.For(t)
	s := newSetUp(t, "envoy")
	s.apply("envoy/software")
	if got := groupsOf(t, s.ready("envoy"), "envoy"); len(got) != 0 {
		t.Errorf("without QAT it has %v", got)
	}
	s.sh(examples+"/envoy", doc.Line("kubectl apply -k qat"))
	if got := groupsOf(t, s.ready("envoy"), "envoy"); len(got) != 2 {
		t.Errorf("it has %v, expected 2 VFs", got)
	}
	mustContain(t, "log", s.sh(".", doc.Line("kubectl logs")), "Failed to start QAT.")
	s.forward(doc.Line("kubectl port-forward"), func() { s.sh(".", doc.Line("curl")) })
}

func TestOpenSSLSpeedRunsInACluster(t *testing.T) {
	t.Parallel()
	doc := docs.For(t)
	s := newSetUp(t, "openssl-speed")
	s.edit("openssl/job.yaml", "          env:\n", "          env:\n            - {name: SECONDS_EACH, value: '1'}\n")
	s.sh(examples+"/openssl", doc.Line("kubectl apply -k ."))
	s.sh(".", doc.Line("kubectl wait"))
	says := []string{"QAT in use", "== software", "== QAT: -provider default -provider qatprovider"}
	mustContain(t, "log", s.sh(".", doc.Line("kubectl logs job/")), says...)
	// The tutorial has it, too.
	mustContain(t, "answer", s.sh(".", doc.Line("kubectl apply -k deploy/examples/openssl")), "job.batch/openssl-speed unchanged")
	mustContain(t, "log", s.sh(".", doc.Line("kubectl logs -f job/")), says...)
}

// Behind a simulated node there is no device: the Job does its work in software.
func TestCryptoPerfRunsInACluster(t *testing.T) {
	t.Parallel()
	doc := docs.For(t)
	s := newSetUp(t, "crypto-perf")
	for range 2 { // request and limit
		s.edit("dpdk/job.yaml", `, qat.intel.com/cy: "1"`, "")
	}
	s.edit("dpdk/job.yaml", "          env:\n", "          env:\n            - {name: TOTAL_OPS, value: '10000'}\n")
	s.sh(examples+"/dpdk", doc.Line("kubectl apply -k ."))
	s.sh(".", doc.Line("kubectl wait"))
	mustContain(t, "log", s.sh(".", doc.Line("kubectl logs job/")), "running in software", "cryptodev type: crypto_openssl")
}
