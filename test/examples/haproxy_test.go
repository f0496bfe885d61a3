//go:build bed

package examples

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kata-qat/kata-qat/test/simnode"
)

// serve starts the backend and HAProxy of an overlay, and returns HAProxy's pod when
// it serves.
func serve(t *testing.T, n *simnode.Node, overlay string, env map[string]string) *pod {
	t.Helper()
	all := render(t, "haproxy/"+overlay)
	start(t, n, all, "Deployment", "web", nil)
	p := start(t, n, all, "Deployment", "haproxy", env)
	eventually(t, "HAProxy answers: "+p.log("haproxy"), func() bool {
		r, err := http.Get("http://127.0.0.1:8080/healthz")
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
	return p
}

// client trusts the certificate that the pod has made, and nothing else.
func client(t *testing.T, p *pod) *http.Client {
	t.Helper()
	certificate, err := os.ReadFile(p.volume("tls", "tls.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(certificate) {
		t.Fatalf("no certificate in %s", certificate)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "web.example"}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

// mustServe does real handshakes and requests.
func mustServe(t *testing.T, p *pod) {
	t.Helper()
	// The backend may not be up yet.
	c := client(t, p)
	var body []byte
	eventually(t, "an HTTP/2 request reaches the backend", func() bool {
		r, err := c.Get("https://127.0.0.1:8443/")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if r.ProtoMajor != 2 {
			t.Fatalf("the protocol is %s, expected HTTP/2", r.Proto)
		}
		body, err = io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode == http.StatusOK
	})
	mustContain(t, "answer", string(body), "hello from ")
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		cmd := program(t, "bin/openssl", "s_client", "-connect", "127.0.0.1:8443", "-servername", "web.example", "-verify_hostname", "web.example",
			"-CAfile", p.volume("tls", "tls.crt"), "-verify_return_error", "-alpn", "h2", version)
		cmd.Stdin = strings.NewReader("")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("openssl s_client %s: %v\n%s", version, err, out)
		}
		mustContain(t, "openssl s_client "+version, string(out), "Verify return code: 0 (ok)", "ALPN protocol: h2", "Cipher is ")
	}
	if cmd := program(t, "bin/openssl", "s_client", "-connect", "127.0.0.1:8443", "-tls1_1", "-cipher", "DEFAULT:@SECLEVEL=0"); cmd.Run() == nil {
		t.Error("it accepts TLS 1.1")
	}
}

func TestHAProxyServesInSoftwareWithoutQAT(t *testing.T) {
	p := serve(t, startNode(t), "software", nil)
	mustServe(t, p)
	mustContain(t, "log", p.log("haproxy"), "qat-tls: QAT_TLS=off: serving TLS in software")
	s, err := p.containers["haproxy"].OCISpec()
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Linux.Devices) > 0 {
		t.Errorf("it has devices: %v", s.Linux.Devices)
	}
}

// The pod of the overlay qat has its two VFs, whatever becomes of them.
func TestHAProxyWithTwoVFs(t *testing.T) {
	n := startNode(t)
	for _, c := range []struct {
		name   string
		env    map[string]string
		says   string
		loaded string // in HAProxy's memory
	}{
		{"with no module in the image", nil, "QAT not usable (provider: /usr/lib/x86_64-linux-gnu/ossl-modules/qatprovider.so: cannot open shared object file: No such file or directory; " +
			"engine: /usr/lib/x86_64-linux-gnu/engines-3/qatengine.so: cannot open shared object file: No such file or directory): serving TLS in software", ""},
		{"with a provider", map[string]string{"OPENSSL_MODULES": "/modules"}, "QAT in use: OpenSSL provider qatprovider, /dev/vfio/100", "/modules/qatprovider.so"},
		{"with a provider that finds no device", map[string]string{"OPENSSL_MODULES": "/modules", "STANDIN_NO_DEVICE": "1"},
			"QAT not usable (provider: finds no device it can use; of locked memory it may have ", ""},
		{"with an engine that HAProxy was built without", map[string]string{"OPENSSL_ENGINES": "/modules"}, "QAT in use: OpenSSL engine qatengine, /dev/vfio/100", ""},
		{"with an engine that finds no device", map[string]string{"OPENSSL_ENGINES": "/modules", "STANDIN_NO_DEVICE": "1"}, "engine: finds no device it can use; of locked memory it may have ", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := serve(t, n, "qat", c.env)
			mustServe(t, p)
			mustContain(t, "log", p.log("haproxy"), "qat-tls: ", c.says)
			if strings.HasSuffix(c.name, "built without") {
				mustContain(t, "log", p.log("haproxy"), "HAProxy was built without engines (USE_ENGINE=1): serving TLS in software")
			}
			r, err := p.containers["haproxy"].Exec(t.Context(), "sh", "-c", "stat -c '%n %a %u:%g' /dev/vfio/*; cat /proc/[0-9]*/maps | grep -o '/modules/.*' | head -n 1")
			if err != nil {
				t.Fatal(err)
			}
			mustContain(t, "nodes", r.Stdout, "/dev/vfio/100 660 99:99\n/dev/vfio/101 660 99:99\n")
			if c.loaded != "" {
				mustContain(t, "HAProxy's memory", r.Stdout, c.loaded)
			} else if strings.Contains(r.Stdout, "/modules/") {
				t.Errorf("HAProxy has loaded a module: %s", r.Stdout)
			}
			sandbox, err := p.OCISpec()
			if err != nil {
				t.Fatal(err)
			}
			var groups []string
			for _, d := range sandbox.Linux.Devices {
				groups = append(groups, d.Path)
			}
			mustContain(t, "devices of the sandbox, which are in the VM when it boots", fmt.Sprint(groups), "[/dev/vfio/100 /dev/vfio/101]")
		})
	}
}

// QAT_TLS=required is for those who would rather have no ingress than a slow one.
func TestHAProxyEndsWhenQATIsRequired(t *testing.T) {
	n := startNode(t)
	all := render(t, "haproxy/qat")
	p := start(t, n, all, "Deployment", "haproxy", map[string]string{"QAT_TLS": "required"})
	if code := exitCode(t, p.containers["haproxy"]); code != 1 {
		t.Errorf("it ended with %d, expected 1", code)
	}
	mustContain(t, "log", p.log("haproxy"), "cannot open shared object file", "not started, because QAT_TLS=required")
}

// A pod that got no VFs is told what is missing; a plain one serves.
func TestHAProxyWithoutDevicesSaysWhatToAskFor(t *testing.T) {
	p := serve(t, startNode(t), "software", map[string]string{"QAT_TLS": "auto"})
	mustServe(t, p)
	mustContain(t, "log", p.log("haproxy"), "QAT not usable (no device: neither a VFIO group nor /dev/qat_* is in this container; does it ask for qat.intel.com/...?): serving TLS in software")
}

// The ingress controller writes HAProxy's configuration; this part of it is ours.
func TestTheControllersGlobalSectionParses(t *testing.T) {
	global := find(t, render(t, "haproxy-ingress/qat"), "ConfigMap", "haproxy-ingress").Data["config-global"]
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	text := "global\n    daemon\n    " + strings.ReplaceAll(global, "\n", "\n    ") + "\ndefaults\n    mode http\n    timeout client 1s\n    timeout server 1s\n    timeout connect 1s\nlisten web\n    bind 127.0.0.1:1\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, env, fails string }{
		{"in software", "QAT_TLS=auto", ""},
		{"with a provider", "QAT_PROVIDER=qatprovider", ""},
		{"with an engine that HAProxy was built without", "QAT_ENGINE=qatengine", "ssl-engine"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := program(t, "sbin/haproxy", "-c", "-f", file)
			cmd.Env = append(cmd.Env, c.env, "OPENSSL_MODULES="+filepath.Join(debian(t), "modules"))
			out, err := cmd.CombinedOutput()
			if (err == nil) != (c.fails == "") {
				t.Errorf("haproxy -c: %v\n%s", err, out)
			}
			mustContain(t, "haproxy -c", string(out), c.fails)
		})
	}
}
