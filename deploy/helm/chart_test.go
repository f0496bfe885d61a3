//go:build kube

// Package helm tests the chart: by Helm itself, by the parser of the
// configuration, and against a real API server.
package helm

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/provision/cluster"
)

const (
	program = "../../build/tools/helm/helm"
	chart   = "kata-qat"
)

// helm runs Helm and returns what it printed; on an error that is in it.
func helm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v: run make helm-tools", err)
	}
	cmd := exec.Command(program, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return stderr.String(), err
	}
	return string(out), nil
}

// valuesFiles are what the chart is tried with, "" for its own values.
func valuesFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("testdata: %v, %v", files, err)
	}
	return append(files, "")
}

func withValues(file string, args ...string) []string {
	if file != "" {
		args = append(args, "--values", file)
	}
	return args
}

// render returns the objects of the chart.
func render(t *testing.T, file string, args ...string) []*unstructured.Unstructured {
	t.Helper()
	out, err := helm(t, withValues(file, append([]string{"template", "kata-qat", chart, "--namespace", "kata-qat"}, args...)...)...)
	if err != nil {
		t.Fatalf("helm template: %v: %s", err, out)
	}
	var objects []*unstructured.Unstructured
	for _, doc := range strings.Split(out, "\n---\n") {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if o.Object != nil {
			objects = append(objects, o)
		}
	}
	return objects
}

// named returns the objects of a kind by their name.
func named(objects []*unstructured.Unstructured, kind string) map[string]*unstructured.Unstructured {
	all := make(map[string]*unstructured.Unstructured)
	for _, o := range objects {
		if o.GetKind() == kind {
			all[o.GetName()] = o
		}
	}
	return all
}

// containers are those of a DaemonSet or a Job, init containers first.
func containers(t *testing.T, o *unstructured.Unstructured) []map[string]any {
	t.Helper()
	var all []map[string]any
	for _, field := range []string{"initContainers", "containers"} {
		list, _, err := unstructured.NestedSlice(o.Object, "spec", "template", "spec", field)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			all = append(all, c.(map[string]any))
		}
	}
	return all
}

func containerNames(t *testing.T, o *unstructured.Unstructured) (names []string) {
	for _, c := range containers(t, o) {
		names = append(names, c["name"].(string))
	}
	return names
}

func TestChartIsLintedWithEveryValues(t *testing.T) {
	for _, file := range valuesFiles(t) {
		if out, err := helm(t, withValues(file, "lint", "--strict", "--quiet", chart)...); err != nil {
			t.Errorf("%s: %v: %s", file, err, out)
		}
	}
}

func TestConfigurationIsWhatTheDaemonTakes(t *testing.T) {
	for _, file := range valuesFiles(t) {
		data, _, err := unstructured.NestedString(named(render(t, file), "ConfigMap")["kata-qat"].Object, "data", "config.toml")
		if err != nil {
			t.Fatal(err)
		}
		c, err := config.Parse("config.toml", []byte(data))
		if err != nil {
			t.Errorf("%s: %v in\n%s", file, err, data)
			continue
		}
		if c.Provision.BootUnit {
			t.Errorf("%s: a unit would provision with another configuration at boot", file)
		}
		if file == "testdata/two-runtimes.yaml" {
			if p, ok := c.ProfileOf("kata-qat-gk"); !ok || p != "guest-kernel" {
				t.Errorf("%s: the profile of kata-qat-gk is %q", file, p)
			}
			if len(c.Provision.PF) != 3 || c.Provision.PF[0].Services != "sym;asym" || !c.Provision.PF[1].Exclude || *c.Provision.PF[2].VFs != 16 || *c.Provision.PF[0].Match.NUMA != 0 {
				t.Errorf("%s: the rules are %+v", file, c.Provision.PF)
			}
			if c.Containerd.Namespace != `a<b>&"c"` || c.MemlockAllowance != 1<<30 {
				t.Errorf("%s: namespace %q, allowance %d", file, c.Containerd.Namespace, c.MemlockAllowance)
			}
		}
	}
}

func TestValuesThatAreNotThereAreRefused(t *testing.T) {
	for _, set := range []string{
		"nope=1", "config.nope=1", "config.kubelet.nope=1", "runtimes[0].nope=1", "runtimes[0].name=Kata", "devicePlugin.policy=random",
		"host.runDir=run", "uninstall.timeout=soon", "image.digest=abc", "config.conf.processes=many",
	} {
		if out, err := helm(t, "template", "kata-qat", chart, "--set", set); err == nil {
			t.Errorf("%s was taken", set)
		} else if !strings.Contains(out, "at '"+pointer(set)) {
			t.Errorf("%s: the error does not name it: %s", set, out)
		}
	}
}

// pointer is where a setting of --set stands, as JSON has it; of one that is not
// there, what it is not in.
func pointer(set string) string {
	path, _, _ := strings.Cut(set, "=")
	path = strings.NewReplacer(".", "/", "[", "/", "]", "").Replace(path)
	return strings.TrimSuffix(strings.TrimSuffix("/"+path, "nope"), "/")
}

func TestStepsAreInOrderAndCanBeSwitchedOff(t *testing.T) {
	for file, want := range map[string][]string{
		"":                           {"host", "guest-vfio", "runtime", "daemon", "labels"},
		"testdata/two-runtimes.yaml": {"host", "guest-guest-kernel", "guest-vfio", "runtime", "daemon", "labels"},
		"testdata/daemon-only.yaml":  {"daemon"},
	} {
		if diff := cmp.Diff(want, containerNames(t, named(render(t, file), "DaemonSet")["kata-qat"])); diff != "" {
			t.Errorf("%s: the containers (-want +got):\n%s", file, diff)
		}
	}
}

func TestUninstallUndoesWhatWasDoneInTheOtherOrder(t *testing.T) {
	for file, want := range map[string][]string{
		"":                           {"runtime", "guest-vfio", "done"},
		"testdata/two-runtimes.yaml": {"runtime", "guest-guest-kernel", "guest-vfio", "host", "done"},
	} {
		if diff := cmp.Diff(want, containerNames(t, named(render(t, file), "DaemonSet")["kata-qat-uninstall"])); diff != "" {
			t.Errorf("%s: the containers (-want +got):\n%s", file, diff)
		}
	}
	for _, o := range render(t, "testdata/daemon-only.yaml") {
		if strings.Contains(o.GetName(), "uninstall") {
			t.Errorf("nothing is to be undone, but there is %s %s", o.GetKind(), o.GetName())
		}
	}
}

// rights are the capabilities that each container may have at most; see
// docs/kubernetes.md for why.
var rights = map[string][]string{
	"host":               {"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETGID", "SETUID", "SYS_CHROOT", "SYS_MODULE"},
	"runtime":            {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SYS_CHROOT"},
	"guest-vfio":         nil,
	"guest-guest-kernel": nil,
	"daemon":             nil,
	"labels":             nil,
	"done":               nil,
}

func TestNoContainerHasMoreThanItNeeds(t *testing.T) {
	for _, file := range valuesFiles(t) {
		objects := render(t, file)
		for _, kind := range []string{"DaemonSet", "Job"} {
			for name, o := range named(objects, kind) {
				annotations, _, _ := unstructured.NestedStringMap(o.Object, "spec", "template", "metadata", "annotations")
				if annotations["tolerate-missing-plugins.kata-qat.io/pod"] != "true" {
					t.Errorf("%s: %s %s is not created while the daemon is not there", file, kind, name)
				}
				for _, c := range containers(t, o) {
					checkRights(t, file+": "+name, c)
				}
			}
		}
	}
}

func checkRights(t *testing.T, where string, c map[string]any) {
	t.Helper()
	name := c["name"].(string)
	allowed, known := rights[name]
	if !known {
		t.Errorf("%s: container %s is not in the table", where, name)
	}
	s, _, _ := unstructured.NestedMap(c, "securityContext")
	if s["privileged"] != false || s["allowPrivilegeEscalation"] != false || s["readOnlyRootFilesystem"] != true {
		t.Errorf("%s: container %s: %v", where, name, s)
	}
	drop, _, _ := unstructured.NestedStringSlice(c, "securityContext", "capabilities", "drop")
	add, _, _ := unstructured.NestedStringSlice(c, "securityContext", "capabilities", "add")
	if !slices.Equal(drop, []string{"ALL"}) || !slices.Equal(add, allowed) {
		t.Errorf("%s: container %s drops %q and adds %q, expected %q", where, name, drop, add, allowed)
	}
	mounts, _, _ := unstructured.NestedSlice(c, "volumeMounts")
	for _, m := range mounts {
		m := m.(map[string]any)
		readOnly, _ := m["readOnly"].(bool)
		switch m["name"] {
		case "token":
			if name != "labels" && name != "daemon" {
				t.Errorf("%s: container %s can speak to the API server", where, name)
			}
		case "root":
			if name == "daemon" || !readOnly && name != "host" && name != "runtime" {
				t.Errorf("%s: container %s has the whole host", where, name)
			}
		case "sys", "dev", "bundles", "pod-resources", "config":
			if !readOnly {
				t.Errorf("%s: container %s may write %s", where, name, m["name"])
			}
		}
	}
}

func TestRuntimeClassesAreThoseOfProvisionCluster(t *testing.T) {
	wanted, err := cluster.Objects(cluster.Options{
		Namespace: "kata-qat", Handlers: []string{"kata-qat"}, Memory: cluster.DefaultMemory, CPU: cluster.DefaultCPU,
		NodeSelector: map[string]string{cluster.NodeLabel: "true"},
	})
	if err != nil {
		t.Fatal(err)
	}
	objects := render(t, "")
	for _, kind := range []string{"RuntimeClass", "ClusterRole"} {
		for _, want := range wanted {
			if want.GetKind() != kind {
				continue
			}
			got := named(objects, kind)[want.GetName()]
			if got == nil {
				t.Errorf("the chart has no %s", want)
				continue
			}
			got.SetLabels(want.GetLabels())
			if diff := cmp.Diff(want.Object, got.Object); diff != "" {
				t.Errorf("%s (-provision cluster +chart):\n%s", want, diff)
			}
		}
	}
}

func TestVersionsAgree(t *testing.T) {
	b, err := os.ReadFile("../../VERSION")
	if err != nil {
		t.Fatal(err)
	}
	version := strings.TrimSpace(string(b))
	var c struct{ Version, AppVersion string }
	if b, err = os.ReadFile("kata-qat/Chart.yaml"); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	if c.Version != version || c.AppVersion != version {
		t.Errorf("the chart is %s and for %s, VERSION is %s", c.Version, c.AppVersion, version)
	}
	image := containers(t, named(render(t, ""), "DaemonSet")["kata-qat"])[0]["image"].(string)
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	if made := strings.TrimSuffix(image, version) + "$(VERSION)"; !strings.Contains(string(makefile), made) {
		t.Errorf("the chart uses %s, which make image does not make", image)
	}
}

func TestWhatIsGeneratedIsInStep(t *testing.T) {
	cmd := exec.Command("go", "run", "./deploy/helm/generate", "-check")
	cmd.Dir = "../.."
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.Discard, &out
	if err := cmd.Run(); err != nil {
		t.Errorf("%v: %s", err, out.String())
	}
}
