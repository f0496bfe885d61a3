package apiserver

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// Node is a machine with a kubelet that is to join.
type Node struct {
	Name string
	// Host is where that machine finds this one. What listens on loopback here
	// must be reachable there, as it is in QEMU's user network.
	Host string
}

// kubelet is the kubelet's user.
const kubelet = "kubelet"

// ForNode starts an API server for a machine that is to join, with what makes a
// DaemonSet's pods run there: a scheduler, and the controllers that concern such
// pods. None looks after the node's condition: it is ready from the beginning, and
// stays so.
func ForNode(t testing.TB, n Node) *Server {
	t.Helper()
	s := &Server{node: &n}
	s.begin(t)
	bin, err := tools()
	if err != nil {
		t.Fatal(err)
	}
	config := s.Kubeconfig(t, Admin)
	s.start(t, filepath.Join(bin, "kube-controller-manager"), "--kubeconfig", config, "--leader-elect=false", "--secure-port", "0",
		"--controllers", "daemonset-controller,serviceaccount-controller,root-ca-certificate-publisher-controller,job-controller,garbage-collector-controller",
		"--root-ca-file", s.path("apiserver.crt"))
	s.start(t, filepath.Join(bin, "kube-scheduler"), "--kubeconfig", config, "--leader-elect=false", "--secure-port", "0")
	return s
}

// serverArgs are the API server's for it.
func (n *Node) serverArgs() []string {
	return []string{
		"--advertise-address", n.Host, "--authorization-mode", "Node,RBAC", "--allow-privileged",
		// kubelet is reached by the node's name: its address may not be.
		"--kubelet-preferred-address-types", "Hostname",
		"--disable-admission-plugins", "TaintNodesByCondition",
	}
}

// KubeletConfig is the kubeconfig of the node's kubelet, for the node.
func (s *Server) KubeletConfig() ([]byte, error) {
	ca, err := os.ReadFile(s.path("apiserver.crt"))
	if err != nil {
		return nil, err
	}
	return kubeconfig(fmt.Sprintf("https://%s:%s", s.node.Host, s.Port()), ca, kubelet, kubelet+"-token"), nil
}

// Port is where the server listens.
func (s *Server) Port() string {
	_, port, _ := net.SplitHostPort(s.URL[len("https://"):])
	return port
}
