//go:build !entry

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/doctor"
)

func writeFile(t *testing.T, root, name, content string) {
	t.Helper()
	file := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// diagnosis runs doctor for programs.
func diagnosis(t *testing.T, root string) (int, *doctor.Report) {
	t.Helper()
	code, stdout, stderr := kataQAT(t, "doctor", "-o", "json", "--host-root", root)
	var r doctor.Report
	if err := json.Unmarshal([]byte(stdout), &r); err != nil || stderr != "" {
		t.Fatalf("%v, stderr %q, in %s", err, stderr, stdout)
	}
	return code, &r
}

func TestDoctorForPrograms(t *testing.T) {
	root := host(t)
	code, r := diagnosis(t, root)
	if code != 1 || len(r.Checks) != len(doctor.Checks) {
		t.Errorf("exit %d with %d checks, expected 1 with %d", code, len(r.Checks), len(doctor.Checks))
	}
	if c := r.Result("autoprobe"); c.State != doctor.Fail || c.Mend != "kata-qat provision host" || len(c.Evidence) != 1 || c.Evidence[0].Value != "1" {
		t.Errorf("got %+v", c)
	}
	if c := r.Result("config"); c.State != doctor.OK {
		t.Errorf("got %+v", c)
	}
}

func TestDoctorGoesOnWithABadConfiguration(t *testing.T) {
	root := host(t)
	writeFile(t, root, "/etc/kata-qat/config.toml", "handler = \"kata\"\n")
	code, r := diagnosis(t, root)
	if c := r.Result("config"); code != 1 || c.State != doctor.Fail || !strings.Contains(c.Evidence[0].Value, `unknown key "handler"`) {
		t.Errorf("exit %d, %+v", code, c)
	}
	if c := r.Result("pf"); c.State != doctor.OK {
		t.Errorf("got %+v", c)
	}
}

// The flags that provision host was run with are what the host is to be like.
func TestDoctorKnowsTheFlagsOfProvision(t *testing.T) {
	root := host(t)
	const services = "/sys/bus/pci/devices/0000:6b:00.0/qat/cfg_services"
	writeFile(t, root, "/etc/kata-qat/provision.env", "# by provision host\nPROVISION_FLAGS=--services=dc --pf=0000:6b:00.0\n")
	_, r := diagnosis(t, root)
	if c := r.Result("services"); c.State != doctor.Fail || c.Evidence[0] != (doctor.Evidence{Path: services, Value: "sym;asym", Want: "dc"}) {
		t.Errorf("got %+v", c)
	}
	writeFile(t, root, "/etc/kata-qat/provision.env", "PROVISION_FLAGS=--nonsense\n")
	_, r = diagnosis(t, root)
	if c := r.Result("config"); c.State != doctor.Fail || !strings.Contains(c.Evidence[0].Value, "/etc/kata-qat/provision.env: flag provided but not defined: -nonsense") {
		t.Errorf("got %+v", c)
	}
}

func TestDoctorShowsProblemsOnly(t *testing.T) {
	code, stdout, _ := kataQAT(t, "doctor", "--problems", "--host-root", host(t))
	if code != 1 || !strings.Contains(stdout, "FAIL  autoprobe") || strings.Contains(stdout, "  ok  ") || strings.Contains(stdout, "skip  ") {
		t.Errorf("exit %d\n%s", code, stdout)
	}
}
