// Package apiserver starts a real API server with its etcd, on loopback, in a
// directory of its own: enough for whatever only writes objects. There is no
// scheduler, no controller and no kubelet, unless a machine is to join that has
// one. It is up in two seconds, needs no privilege, and is gone with the test.
package apiserver

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// The users that there are. Nobody may do nothing until a role says otherwise.
const (
	Admin  = "admin"
	Nobody = "nobody"
)

// Server is one API server.
type Server struct {
	URL  string
	dir  string
	node *Node // that is to join; nil for none
	api  *exec.Cmd
	end  <-chan struct{} // of api
}

// Stop ends the API server before the test does.
func (s *Server) Stop() {
	_ = s.api.Process.Kill() // it may have ended by itself
	<-s.end
}

// ForTest starts an API server that ends with the test.
func ForTest(t testing.TB) *Server {
	t.Helper()
	s := &Server{}
	s.begin(t)
	return s
}

// begin starts etcd and the API server, and waits until that is ready.
func (s *Server) begin(t testing.TB) {
	t.Helper()
	bin, err := tools()
	if err != nil {
		t.Fatal(err)
	}
	s.dir = t.TempDir()
	if err := s.writeKeys(); err != nil {
		t.Fatal(err)
	}
	etcd, peer, api := freeAddress(t), freeAddress(t), freeAddress(t)
	s.URL = "https://" + api
	host, port, _ := net.SplitHostPort(api)
	s.start(t, filepath.Join(bin, "etcd"), "--data-dir", s.path("etcd"), "--unsafe-no-fsync", "--log-level", "warn",
		"--listen-client-urls", "http://"+etcd, "--advertise-client-urls", "http://"+etcd, "--listen-peer-urls", "http://"+peer)
	args := []string{"--etcd-servers", "http://" + etcd,
		"--bind-address", host, "--secure-port", port, "--endpoint-reconciler-type", "none",
		"--cert-dir", s.dir, "--service-cluster-ip-range", "10.96.0.0/24",
		"--service-account-issuer", "https://kubernetes", "--service-account-key-file", s.path("sa.key"), "--service-account-signing-key-file", s.path("sa.key"),
		"--token-auth-file", s.path("tokens.csv")}
	if s.node != nil {
		args = append(args, s.node.serverArgs()...)
	} else {
		// Who would make service accounts' tokens and taint nodes is not here.
		args = append(args, "--advertise-address", host, "--authorization-mode", "RBAC",
			"--disable-admission-plugins", "ServiceAccount,TaintNodesByCondition")
	}
	s.api, s.end = s.start(t, filepath.Join(bin, "kube-apiserver"), args...)
	if err := s.waitReady(); err != nil {
		t.Fatal(err)
	}
}

// tools is the directory of the programs.
func tools() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("look for build/tools/kubernetes: the working directory is in no Go module")
		}
	}
	dir = filepath.Join(dir, "build", "tools", "kubernetes")
	for _, name := range []string{"etcd", "kube-apiserver"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return "", fmt.Errorf("%s is missing in %s: run make kube-tools", name, dir)
		}
	}
	return dir, nil
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

// writeKeys makes what the server signs with and knows its users by.
func (s *Server) writeKeys() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	block := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	tokens := Admin + "-token," + Admin + ",1,system:masters\n" + Nobody + "-token," + Nobody + ",2\n"
	if s.node != nil {
		tokens += kubelet + "-token,system:node:" + s.node.Name + ",3,system:nodes\n"
	}
	return errors.Join(
		os.WriteFile(s.path("sa.key"), pem.EncodeToMemory(block), 0o600),
		os.WriteFile(s.path("tokens.csv"), []byte(tokens), 0o600),
	)
}

// start starts a program whose output is in a log, and kills it with the test.
func (s *Server) start(t testing.TB, program string, args ...string) (cmd *exec.Cmd, ended <-chan struct{}) {
	t.Helper()
	name := filepath.Base(program)
	log, err := os.Create(s.path(name + ".log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd = exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	// A session of its own: ^C at a terminal is for the test. The kernel kills it
	// should the test be killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait() // it is killed
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		<-done
		if b, err := os.ReadFile(s.path(name + ".log")); err == nil && t.Failed() {
			lines := strings.Split(strings.TrimSpace(string(b)), "\n")
			t.Logf("the end of the log of %s:\n%s", name, strings.Join(lines[max(0, len(lines)-10):], "\n"))
		}
	})
	return cmd, done
}

// startTimeout is for a machine that is very busy.
const startTimeout = 2 * time.Minute

func (s *Server) waitReady() error {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	request, err := http.NewRequest(http.MethodGet, s.URL+"/readyz", nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+Admin+"-token")
	deadline := time.NewTimer(startTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	last := "no answer"
	for {
		if r, err := client.Do(request); err == nil {
			b, _ := io.ReadAll(r.Body)
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				return nil
			}
			last = string(b)
		}
		select {
		case <-s.end:
			return errors.New("the API server has ended")
		case <-deadline.C:
			return fmt.Errorf("the API server was not ready within %v: %s", startTimeout, last)
		case <-tick.C:
		}
	}
}

// Config is how a user reaches the server.
func (s *Server) Config(user string) *rest.Config {
	return &rest.Config{Host: s.URL, BearerToken: user + "-token", TLSClientConfig: rest.TLSClientConfig{CAFile: s.path("apiserver.crt")}}
}

// Kubeconfig writes a kubeconfig of a user and returns its path.
func (s *Server) Kubeconfig(t testing.TB, user string) string {
	t.Helper()
	return s.KubeconfigOf(t, user, user+"-token")
}

// KubeconfigOf writes a kubeconfig of whoever has a token.
func (s *Server) KubeconfigOf(t testing.TB, user, token string) string {
	t.Helper()
	ca, err := os.ReadFile(s.path("apiserver.crt"))
	if err != nil {
		t.Fatal(err)
	}
	file := s.path("kubeconfig." + user)
	if err := os.WriteFile(file, kubeconfig(s.URL, ca, user, token), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// kubeconfig is one that needs no other file.
func kubeconfig(url string, ca []byte, user, token string) []byte {
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: %q, certificate-authority-data: %s}}]
users: [{name: %[3]s, user: {token: %[4]s}}]
contexts: [{name: test, context: {cluster: test, user: %[3]s}}]
current-context: test
`, url, base64.StdEncoding.EncodeToString(ca), user, token)
}

// Kubectl runs kubectl as a user and returns what it printed.
func (s *Server) Kubectl(t testing.TB, user, stdin string, args ...string) (string, error) {
	t.Helper()
	bin, err := tools()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(bin, "kubectl"), args...)
	cmd.Env = s.Env(t, user)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Env is an environment in which programs are that user, and kubectl is found.
func (s *Server) Env(t testing.TB, user string) []string {
	t.Helper()
	bin, err := tools()
	if err != nil {
		t.Fatal(err)
	}
	return append(os.Environ(), "KUBECONFIG="+s.Kubeconfig(t, user), "HOME="+s.dir, "PATH="+bin+":"+os.Getenv("PATH"))
}

// Eventually tries until there is no error, for what the server does when it
// comes to it.
func Eventually(t testing.TB, try func() error) {
	t.Helper()
	deadline := time.Now().Add(startTimeout)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v", startTimeout, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// freeAddress is one of loopback that nobody listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
