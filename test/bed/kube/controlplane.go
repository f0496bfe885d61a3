package kube

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Kubeconfig is the cluster administrator's.
const Kubeconfig = keyDir + "/admin.kubeconfig"

const keyDir = Dir + "/keys"

// server is where everybody finds the API server.
const server = "https://" + nodeIP + ":443"

// users are who may talk to the API server, each by a token: name, groups.
var users = map[string][2]string{
	"admin":              {"admin", "system:masters"},
	"controller-manager": {"system:kube-controller-manager", ""},
	"scheduler":          {"system:kube-scheduler", ""},
	"kubelet":            {"system:node:" + NodeName, "system:nodes"},
}

func kubeconfig(user string) string { return filepath.Join(keyDir, user+".kubeconfig") }

// writeKeys writes the tokens, and the key that signs those of service accounts.
// The API server makes its certificate itself.
func writeKeys() error {
	if err := os.MkdirAll(keyDir, 0o700); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	if err := os.WriteFile(filepath.Join(keyDir, "service-accounts.key"), block, 0o600); err != nil {
		return err
	}
	var tokens string
	for user, as := range users {
		token := rand.Text()
		tokens += fmt.Sprintf("%s,%s,%s,%q\n", token, as[0], user, as[1])
		config := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: bed, cluster: {server: %q, certificate-authority: %s/apiserver.crt}}]
users: [{name: %s, user: {token: %s}}]
contexts: [{name: bed, context: {cluster: bed, user: %[3]s}}]
current-context: bed
`, server, keyDir, user, token)
		if err := os.WriteFile(kubeconfig(user), []byte(config), 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(keyDir, "tokens.csv"), []byte(tokens), 0o600)
}

// startControlPlane starts etcd, the API server, the controller manager and the
// scheduler.
func (b *Bed) startControlPlane(ctx context.Context) (err error) {
	const etcd = "http://127.0.0.1:2379"
	signer := filepath.Join(keyDir, "service-accounts.key")
	if b.Etcd, err = b.Run("etcd", nil, "etcd", "--data-dir", Dir+"/etcd", "--unsafe-no-fsync", "--log-level", "warn",
		"--listen-client-urls", etcd, "--advertise-client-urls", etcd, "--listen-peer-urls", "http://127.0.0.1:2380"); err != nil {
		return err
	}
	if b.APIServer, err = b.Run("apiserver", nil, "kube-apiserver", "--etcd-servers", etcd,
		"--bind-address", "0.0.0.0", "--secure-port", "443", "--advertise-address", nodeIP, "--cert-dir", keyDir,
		"--service-cluster-ip-range", "10.96.0.0/24", "--service-account-issuer", "https://kubernetes.default.svc",
		"--service-account-key-file", signer, "--service-account-signing-key-file", signer,
		"--token-auth-file", keyDir+"/tokens.csv", "--anonymous-auth=false",
		"--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction",
		"--allow-privileged", "--kubelet-preferred-address-types", "InternalIP", "--profiling=false"); err != nil {
		return err
	}
	if err := wait(ctx, "the API server", b.apiReady); err != nil {
		return err
	}
	manager, scheduler := kubeconfig("controller-manager"), kubeconfig("scheduler")
	if b.ControllerManager, err = b.Run("controller-manager", nil, "kube-controller-manager",
		"--kubeconfig", manager, "--authentication-kubeconfig", manager, "--authorization-kubeconfig", manager,
		"--leader-elect=false", "--use-service-account-credentials", "--service-account-private-key-file", signer,
		"--root-ca-file", keyDir+"/apiserver.crt", "--node-monitor-period", "1s", "--kube-api-qps", "500", "--kube-api-burst", "500",
		"--flex-volume-plugin-dir", volumePlugins, "--cert-dir", keyDir, "--bind-address", "127.0.0.1"); err != nil {
		return err
	}
	b.Scheduler, err = b.Run("scheduler", nil, "kube-scheduler",
		"--kubeconfig", scheduler, "--authentication-kubeconfig", scheduler, "--authorization-kubeconfig", scheduler,
		"--leader-elect=false", "--kube-api-qps", "500", "--kube-api-burst", "500", "--bind-address", "127.0.0.1")
	return err
}

// apiReady connects to the API server and asks whether it is ready. Its
// certificate is there a while after it was started.
func (b *Bed) apiReady(ctx context.Context) error {
	if b.APIServer.PID() == 0 {
		return errors.New("it has ended")
	}
	if b.Client == nil {
		if err := b.connect(); err != nil {
			b.Client = nil
			return err
		}
	}
	_, err := b.Client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
	if unknown := new(x509.UnknownAuthorityError); errors.As(err, unknown) {
		b.Client = nil // the file was not whole when it was read: read it again
	}
	return err
}
