package runtime

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kata-qat/kata-qat/internal/containerdconfig"
	"github.com/kata-qat/kata-qat/provision/plan"
)

const dropInFile = "/etc/containerd/conf.d/60-kata-qat.toml"

// layouts are the configurations of containerd that there are, the file that our
// handlers are to be in, and the plugin whose table they are in.
var layouts = map[string]struct {
	of, version, config string
	more                map[string]string
	file, plugin        string
	says                []string // what else is in a file afterwards
}{
	"schema 3 with conf.d":      {of: "containerd", version: "2.4.2", config: "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n", file: dropInFile, plugin: containerdconfig.CRIv2},
	"schema 4 without imports":  {of: "containerd", version: "2.4.2", config: "# mine\nversion = 4 # new\n[grpc]\n", file: dropInFile, plugin: containerdconfig.CRIv2, says: []string{"# mine\nversion = 4 # new\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n[grpc]\n"}},
	"schema 2 on containerd 2":  {of: "containerd", version: "2.0.0", config: "version = 2\nimports = [\"/opt/*/x.toml\"]\n", file: dropInFile, plugin: containerdconfig.CRIv1, says: []string{`imports = ["/opt/*/x.toml", "/etc/containerd/conf.d/*.toml"]`}},
	"relative imports":          {of: "containerd", version: "2.1.4", config: "imports = ['config.d/*.toml']\nversion = 3\n", file: "/etc/containerd/config.d/60-kata-qat.toml", plugin: containerdconfig.CRIv2},
	"no configuration":          {of: "containerd", version: "2.4.2", file: dropInFile, plugin: containerdconfig.CRIv2, says: []string{"version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n"}},
	"1.7":                       {of: "containerd", version: "1.7.35", config: "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.nri.v1.nri\"]\n    disable = true # the default\n", file: "/etc/containerd/config.toml", plugin: containerdconfig.CRIv1, says: []string{"disable = false # the default\n"}},
	"1.7 without NRI":           {of: "containerd", version: "1.7.35", config: "version = 2", file: "/etc/containerd/config.toml", plugin: containerdconfig.CRIv1, says: []string{"version = 2\n\n# BEGIN kata-qat", "disable = false"}},
	"1.7 with CRI in an import": {of: "containerd", version: "1.7.35", config: "version = 2\nimports = ['/a.toml']\n", more: map[string]string{"/a.toml": "[plugins.'io.containerd.grpc.v1.cri']\nx = 1\n"}, file: "/a.toml", plugin: containerdconfig.CRIv1},
	"k3s that imports":          {of: "k3s", version: "2.2.3", config: "version = 3\nimports = ['/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d/*.toml']\n", file: "/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d/60-kata-qat.toml", plugin: containerdconfig.CRIv2},
	"older k3s":                 {of: "k3s", version: "2.0.5", config: "version = 3\n", file: "/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.tmpl", plugin: containerdconfig.CRIv2, says: []string{base + "\n# BEGIN"}},
	"rke2 with 1.7":             {of: "rke2", version: "1.7.23", config: "version = 2\n", more: map[string]string{"/var/lib/rancher/rke2/agent/etc/containerd/config.toml.tmpl": base + "# mine\n"}, file: "/var/lib/rancher/rke2/agent/etc/containerd/config.toml.tmpl", plugin: containerdconfig.CRIv1, says: []string{base + "# mine\n\n# BEGIN"}},
}

func eachLayout(t *testing.T, f func(t *testing.T, n *node, file, plugin string, says []string)) {
	for name, l := range layouts {
		t.Run(name, func(t *testing.T) {
			n := newNode(t).on(l.of, l.version, l.config)
			for file, text := range l.more {
				n.write(file, text)
			}
			f(t, n, l.file, l.plugin, l.says)
		})
	}
}

func TestContainerdServesTheHandlerOnEveryLayout(t *testing.T) {
	eachLayout(t, func(t *testing.T, n *node, file, plugin string, says []string) {
		before := n.tree()
		out := n.mustApply()
		if n.restarts != 1 || !out.Changed || out.Pending {
			t.Errorf("%d restarts, outcome %+v", n.restarts, out)
		}
		text := n.read(file)
		if !strings.HasPrefix(text, "{{") {
			entry, _ := n.get(file, containerdconfig.Runtimes(plugin, "kata-qat")...).(map[string]any)
			want := map[string]any{
				"runtime_type": "io.containerd.kata-qat.v2", "runtime_path": "/usr/local/bin/containerd-shim-kata-qat-v2",
				"privileged_without_host_devices": true, "pod_annotations": []any{"io.katacontainers.*"},
				"container_annotations": []any{"io.kubernetes.container.terminationMessage*"},
				"options":               map[string]any{"ConfigPath": "/etc/kata-qat/kata/kata-qat/configuration.toml"},
			}
			if diff := cmp.Diff(want, entry); diff != "" {
				t.Errorf("the entry (-want +got):\n%s", diff)
			}
		}
		all := text + n.read(filepath.Join(n.flavour.dir, "config.toml"))
		for _, s := range says {
			if !strings.Contains(all, s) {
				t.Errorf("no %q in:\n%s", s, all)
			}
		}
		if validates := n.version >= "2.2"; strings.Contains(all, "required_plugins") != validates {
			t.Errorf("containerd %s: required_plugins expected: %v, in:\n%s", n.version, validates, all)
		}

		done := n.tree()
		if out := n.mustApply(); out.Changed || n.restarts != 1 {
			t.Errorf("the second run: %d restarts, %+v", n.restarts, out)
		}
		if diff := cmp.Diff(done, n.tree()); diff != "" {
			t.Errorf("the second run changed:\n%s", diff)
		}
		n.undo()
		if diff := cmp.Diff(before, n.tree()); diff != "" {
			t.Errorf("after the undo (-before +after):\n%s", diff)
		}
		if n.restarts != 2 {
			t.Errorf("%d restarts after the undo, expected 2", n.restarts)
		}
	})
}

// A run that is killed anywhere is completed by another, and undone to the byte.
func TestARunThatIsKilledIsCompletedAndUndone(t *testing.T) {
	eachLayout(t, func(t *testing.T, n *node, _, _ string, _ []string) {
		before := n.tree()
		n.mustApply()
		done := n.tree()
		n.undo()
		delete(done, plan.Directory+"/journal.json")
		killed := errors.New("killed")
		for at := 0; ; at++ {
			seen := 0
			e := n.engine(n.options())
			e.Fault = func(string) error {
				if seen++; seen > at {
					return killed
				}
				return nil
			}
			if _, err := e.Apply(t.Context()); !errors.Is(err, killed) {
				if at < 10 || err != nil {
					t.Fatalf("%d places to be killed at, %v", at, err)
				}
				return
			}
			n.mustApply()
			after := n.tree()
			delete(after, plan.Directory+"/journal.json")
			if diff := cmp.Diff(done, after); diff != "" {
				t.Fatalf("killed at place %d and completed:\n%s", at, diff)
			}
			n.undo()
			if diff := cmp.Diff(before, n.tree()); diff != "" {
				t.Fatalf("killed at place %d, completed and undone:\n%s", at, diff)
			}
		}
	})
}

func TestAContainerdThatDoesNotComeBackGetsItsConfigurationBack(t *testing.T) {
	eachLayout(t, func(t *testing.T, n *node, _, _ string, _ []string) {
		n.refuses = "io.containerd.kata-qat.v2"
		if err := n.start(); err != nil {
			t.Fatal(err)
		}
		_, err := n.apply()
		if err == nil || !strings.Contains(err.Error(), "rolled back") || !strings.Contains(err.Error(), "journalctl -u "+n.flavour.units[len(n.flavour.units)-1]) {
			t.Fatalf("error %v", err)
		}
		if n.server == nil || n.restarts != 2 {
			t.Errorf("containerd runs: %v, %d restarts", n.server != nil, n.restarts)
		}
		for name, content := range n.tree() {
			if strings.Contains(content, n.refuses) && !strings.HasPrefix(name, plan.Directory) {
				t.Errorf("left in %s:\n%s", name, content)
			}
		}
		n.refuses = ""
		n.mustApply()
		n.undo()
	})
}

// A later run that goes wrong puts back what the one before had made, which is
// still undone to the byte.
func TestALaterRunRollsBackToTheOneBefore(t *testing.T) {
	eachLayout(t, func(t *testing.T, n *node, _, _ string, _ []string) {
		before := n.tree()
		n.mustApply()
		good := n.tree()
		delete(good, plan.Directory+"/journal.json")
		n.refuses = "io.containerd.kata-more.v2"
		_, err := n.apply(func(o *Options) { o.Handlers = []string{"kata-qat", "kata-more"} })
		if err == nil || !strings.Contains(err.Error(), "rolled back") {
			t.Fatalf("error %v", err)
		}
		now := n.tree()
		for _, name := range []string{n.flavour.dir, "/var/lib/kata-qat"} {
			for f, content := range good {
				if strings.HasPrefix(f, name) && now[f] != content {
					t.Errorf("%s became\n%s, was\n%s", f, now[f], content)
				}
			}
		}
		n.undo()
		if diff := cmp.Diff(before, n.tree()); diff != "" {
			t.Errorf("after the undo (-before +after):\n%s", diff)
		}
	})
}

// One that was killed between the change and the restart is rolled back to what
// was there before it, not to what it left.
func TestAKilledRunIsNotTakenForGood(t *testing.T) {
	n := newNode(t).on("containerd", "2.4.2", "version = 3\n")
	before := n.tree()
	if err := n.start(); err != nil {
		t.Fatal(err)
	}
	e := n.engine(n.options())
	e.Fault = func(point string) error {
		if point == "written /etc/containerd/config.toml" {
			return errors.New("killed")
		}
		return nil
	}
	if _, err := e.Apply(t.Context()); err == nil || n.restarts != 0 {
		t.Fatalf("%v, %d restarts", err, n.restarts)
	}
	n.refuses = "io.containerd.kata-qat.v2"
	if _, err := n.apply(); err == nil || !strings.Contains(err.Error(), "rolled back") {
		t.Fatal(err)
	}
	if got := n.read("/etc/containerd/config.toml"); got != before["/etc/containerd/config.toml"] {
		t.Errorf("config.toml is\n%s", got)
	}
}

func TestWhatOthersRequireOfNRIStays(t *testing.T) {
	n := newNode(t)
	n.write("/etc/containerd/conf.d/10-nri.toml", `version = 3
[plugins."io.containerd.nri.v1.nri".default_validator]
  required_plugins = ["topology"]
  tolerate_missing_plugins_annotation = "mine"
`)
	n.mustApply()
	validator, _ := n.get(dropInFile, "plugins", containerdconfig.NRI, "default_validator").(map[string]any)
	want := map[string]any{"enable": true, "required_plugins": []any{"topology", "kata-qat"}, "tolerate_missing_plugins_annotation": "mine"}
	if diff := cmp.Diff(want, validator); diff != "" {
		t.Error(diff)
	}
}

func TestWhatIsRefused(t *testing.T) {
	const entry = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata-qat]\n  runtime_type = 'x'\n"
	for name, tc := range map[string]struct {
		prepare func(*node)
		change  func(*Options)
		says    string
	}{
		"an entry in the main file":    {prepare: func(n *node) { n.write("/etc/containerd/config.toml", "version = 3\n"+entry) }, says: `/etc/containerd/config.toml:2: plugins."io.containerd.cri.v1.runtime".containerd.runtimes.kata-qat is there already`},
		"an entry in an imported file": {prepare: func(n *node) { n.write("/etc/containerd/conf.d/kata-deploy.toml", "\n"+entry) }, says: "/etc/containerd/conf.d/kata-deploy.toml:2: "},
		"an entry in a template":       {prepare: func(n *node) { n.on("k3s", "2.0.5", "version = 3\n"+entry) }, change: func(o *Options) { o.Replace = true }, says: "config.toml:2: plugins."},
		"a drop-in of somebody's":      {prepare: func(n *node) { n.write(dropInFile, "version = 3\n") }, says: "was not written by kata-qat"},
		"plugins taken off the list": {prepare: func(n *node) {
			n.write("/etc/containerd/conf.d/zz.toml", "[plugins.'io.containerd.nri.v1.nri'.default_validator]\nrequired_plugins = ['x']\n")
		}, says: `zz.toml:2: required_plugins is read after`},
		"schema 1":                       {prepare: func(n *node) { n.write("/etc/containerd/config.toml", "root = '/x'\n") }, says: "is of schema 1"},
		"schema 5":                       {prepare: func(n *node) { n.write("/etc/containerd/config.toml", "version = 5\n") }, says: "is of schema 5"},
		"schema 3 with 1.7":              {prepare: func(n *node) { n.version = "1.7.35" }, says: "which containerd v1.7.35 does not read"},
		"1.6":                            {prepare: func(n *node) { n.on("containerd", "1.6.20", "version = 2\n") }, says: "has no NRI"},
		"no TOML":                        {prepare: func(n *node) { n.write("/etc/containerd/config.toml", "version = \n") }, says: "/etc/containerd/config.toml:1"},
		"an import that is not there":    {prepare: func(n *node) { n.write("/etc/containerd/config.toml", "version = 3\nimports = ['/x.toml']\n") }, says: "x.toml: no such file"},
		"another socket of NRI":          {prepare: func(n *node) { n.cfg.NRI.Socket = "/run/other.sock" }, says: "NRI serves on /var/run/nri/nri.sock"},
		"k3s that was never started":     {prepare: func(n *node) { n.on("k3s", "2.0.5", ""); n.write(n.flavour.dir+"/x", "") }, says: "start it once"},
		"another shim of that name":      {prepare: func(n *node) { n.program("/usr/local/bin/containerd-shim-kata-x-v2") }, change: func(o *Options) { o.Handlers = []string{"kata-x"} }, says: "is not our shim"},
		"another shim in shim.toml":      {prepare: func(n *node) { n.write("/etc/kata-qat/shim.toml", "[runtimes]\nkata-qat = '/x'\n") }, says: `shim.toml:2: runtimes.kata-qat is "/x"`},
		"an unknown key in shim.toml":    {prepare: func(n *node) { n.write("/etc/kata-qat/shim.toml", "x = 1\n") }, says: "shim.toml"},
		"our shim is not installed":      {prepare: func(n *node) { n.remove("/usr/local/bin/containerd-shim-kata-qat-v2") }, says: "our shim: /usr/local/bin/containerd-shim-kata-qat-v2 is not there"},
		"a containerd nobody knows":      {prepare: func(n *node) { n.version = "" }, says: "version of containerd"},
		"a containerd that does not run": {prepare: func(n *node) { n.refuses = "version"; n.server = nil }, says: "is not healthy"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			tc.prepare(n)
			_ = n.start()
			defer n.stop()
			before := n.tree()
			change := tc.change
			if change == nil {
				change = func(*Options) {}
			}
			_, err := n.engine(n.options(change)).Apply(t.Context())
			if err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, expected one line with %q", err, tc.says)
			}
			if diff := cmp.Diff(before, n.tree()); diff != "" {
				t.Errorf("something was changed:\n%s", diff)
			}
		})
	}
}

func TestWhatIsReplacedComesBack(t *testing.T) {
	n := newNode(t)
	n.write("/etc/containerd/config.toml", `version = 3 # mine
imports = ['/etc/containerd/conf.d/*.toml']
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata-qat]
  runtime_type = 'x'
  snapshotter = 'y'
# runc's
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'z'
`)
	n.write("/etc/kata-qat/shim.toml", "# mine\n[runtimes]\nkata-qat = '/x' # old\nother = '/y'\n")
	before := n.tree()
	replace := func(o *Options) { o.Replace = true }
	n.mustApply(replace)
	if got := n.read("/etc/containerd/config.toml"); strings.Contains(got, "snapshotter") || !strings.Contains(got, "# runc's\n[plugins") {
		t.Errorf("config.toml is\n%s", got)
	}
	if want := fmt.Sprintf("# mine\n[runtimes]\nkata-qat = %q # old\nother = '/y'\n", rustShim); n.read("/etc/kata-qat/shim.toml") != want {
		t.Errorf("shim.toml is\n%s", n.read("/etc/kata-qat/shim.toml"))
	}
	if out := n.mustApply(); out.Changed {
		t.Errorf("the second run: %+v", out)
	}
	n.undo()
	if diff := cmp.Diff(before, n.tree()); diff != "" {
		t.Errorf("after the undo (-before +after):\n%s", diff)
	}
}

func TestWithoutARestartOnlyFilesAreWritten(t *testing.T) {
	n := newNode(t)
	if _, err := n.engine(n.options(func(o *Options) { o.NoRestart = true })).Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n.restarts != 0 {
		t.Error("containerd was restarted")
	}
	n.read(dropInFile)
	n.mustApply()
	if n.restarts != 1 {
		t.Errorf("%d restarts by the run that may, expected 1: containerd has not read it", n.restarts)
	}
}

func TestAPodMayAskOnlyInStandaloneMode(t *testing.T) {
	n := newNode(t)
	n.cfg.Standalone = true
	n.mustApply()
	got := n.get(dropInFile, append(containerdconfig.Runtimes(containerdconfig.CRIv2, "kata-qat"), "pod_annotations")...)
	if diff := cmp.Diff([]any{"io.katacontainers.*", "kata-qat.io/*"}, got); diff != "" {
		t.Error(diff)
	}
}
