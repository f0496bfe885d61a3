package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"github.com/kata-qat/kata-qat/internal/containerdconfig"
	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/provision/guest"
)

func TestFindingKata(t *testing.T) {
	const distribution = "/usr/bin/containerd-shim-kata-v2"
	packages := func(version, base string) func(*node) {
		return func(n *node) {
			n.remove("/opt/kata")
			n.program(distribution)
			n.shims[distribution] = version
			n.write(base, kataBase)
		}
	}
	for name, tc := range map[string]struct {
		prepare  func(*node)
		kata     Language
		is, says string
	}{
		"a release: runtime-rs first": {is: "Kata 4.1.0, runtime-rs (" + rustShim + "), configured by " + rustBase},
		"the Go runtime, as asked":    {kata: Go, is: "Kata 4.1.0, the Go runtime (" + goShim + "), configured by " + goBase},
		"only the Go runtime":         {prepare: func(n *node) { n.remove("/opt/kata/runtime-rs") }, is: "Kata 4.1.0, the Go runtime (" + goShim + "), configured by " + goBase},
		"kata-deploy's links": {prepare: func(n *node) {
			n.remove(goBase)
			n.write(filepath.Dir(goBase)+"/runtimes/qemu/configuration-qemu.toml", kataBase)
			n.link(goBase, "runtimes/qemu/configuration-qemu.toml")
		}, kata: Go, is: "Kata 4.1.0, the Go runtime (" + goShim + "), configured by " + filepath.Dir(goBase) + "/runtimes/qemu/configuration-qemu.toml"},
		"a package":               {prepare: packages(go41, "/usr/share/defaults/kata-containers/configuration.toml"), is: "Kata 4.1.0, the Go runtime (" + distribution + "), configured by /usr/share/defaults/kata-containers/configuration.toml"},
		"a package of runtime-rs": {prepare: packages(rust41, "/usr/share/defaults/kata-containers/runtime-rs/configuration.toml"), is: "Kata 4.1.0, runtime-rs (" + distribution + "), configured by /usr/share/defaults/kata-containers/runtime-rs/configuration.toml"},
		"an administrator's":      {prepare: packages(go41, "/etc/kata-containers/configuration.toml"), is: "Kata 4.1.0, the Go runtime (" + distribution + "), configured by /etc/kata-containers/configuration.toml"},
		"a VERSION file": {prepare: func(n *node) {
			delete(n.shims, rustShim)
			n.write("/opt/kata/VERSION", "4.0.0\n")
		}, is: "Kata 4.0.0, runtime-rs (" + rustShim + "), configured by " + rustBase},
		"one runtime too old, the other not": {prepare: func(n *node) {
			n.shims[rustShim] = strings.ReplaceAll(rust41, "4.1.0", "3.32.0")
			n.shims[goShim] = strings.ReplaceAll(go41, "4.1.0", "3.32.0")
		}, is: "Kata 3.32.0, the Go runtime (" + goShim + "), configured by " + goBase},

		"none":               {prepare: func(n *node) { n.remove("/opt/kata") }, says: "kata containers is not on this machine: looked for " + rustShim},
		"none of that kind":  {prepare: func(n *node) { n.remove("/opt/kata/runtime-rs") }, kata: Rust, says: "which is the other runtime"},
		"too old":            {prepare: packages(strings.ReplaceAll(go41, "4.1.0", "3.1.3"), "/etc/kata-containers/configuration.toml"), says: "kata 3.1.3 (" + distribution + ") is too old: its go runtime cold-plugs devices since 3.2.0"},
		"a version of none":  {prepare: func(n *node) { delete(n.shims, rustShim) }, says: "there is no /opt/kata/VERSION"},
		"no configuration":   {prepare: func(n *node) { n.remove(rustBase) }, kata: Rust, says: "has no configuration for QEMU: looked for " + rustBase},
		"another hypervisor": {prepare: func(n *node) { n.write(rustBase, "[hypervisor.clh]\n") }, kata: Rust, says: "no [hypervisor.qemu]"},
		"no TOML":            {prepare: func(n *node) { n.write(rustBase, "[hypervisor\n") }, kata: Rust, says: rustBase + ":1"},
		"no program":         {prepare: func(n *node) { n.remove(rustShim); n.write(rustShim, "") }, says: "is no executable file"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			if tc.prepare != nil {
				tc.prepare(n)
			}
			out, err := n.engine(n.options(func(o *Options) { o.Kata = tc.kata })).Plan(t.Context())
			if tc.says != "" {
				if err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "\n") {
					t.Errorf("error %v, expected one line with %q", err, tc.says)
				}
				return
			}
			if got := out.Steps[0].Is; got != tc.is {
				t.Errorf("found %q (%v), expected %q", got, err, tc.is)
			}
		})
	}
}

// shipped are the keys that a Kata 4.1 of this language has in its configuration for
// QEMU.
func shipped(t *testing.T, language Language) map[string]bool {
	t.Helper()
	b, err := os.ReadFile("testdata/kata-4.1.0-" + string(language) + ".keys")
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{
		// In comments only, and in what both decode into (katautils/config.go and
		// kata-types/src/config/hypervisor/mod.rs).
		"hypervisor.qemu.initrd": true,
		// In those for images that are measured, such as configuration-qemu-coco-dev
		// of either language.
		"hypervisor.qemu.kernel_verity_params": true,
	}
	for line := range strings.Lines(string(b)) {
		if key := strings.TrimSpace(line); !strings.HasPrefix(key, "#") {
			keys[key] = true
		}
	}
	if len(keys) < 80 {
		t.Fatalf("%d keys of Kata", len(keys))
	}
	return keys
}

// leaves are the values of a document by their path.
func leaves(path string, v any, all map[string]any) map[string]any {
	if table, ok := v.(map[string]any); ok {
		for key, below := range table {
			leaves(strings.TrimPrefix(path+"."+key, "."), below, all)
		}
		return all
	}
	all[path] = v
	return all
}

// ourDropIn is that of the only handler, as a strict decoder reads it.
func (n *node) ourDropIn(language Language) map[string]any {
	n.t.Helper()
	files, err := Files(n.t.Context(), n.options(func(o *Options) { o.Kata = language }))
	if err != nil {
		n.t.Fatal(err)
	}
	for _, f := range files {
		if filepath.Base(f.Path) != dropInName || !strings.Contains(f.Path, "config.d") {
			continue
		}
		var v map[string]any
		if err := toml.NewDecoder(strings.NewReader(f.Content)).DisallowUnknownFields().Decode(&v); err != nil {
			n.t.Fatalf("%v in:\n%s", err, f.Content)
		}
		return leaves("", v, map[string]any{})
	}
	n.t.Fatal("there is no drop-in")
	return nil
}

const measured = "root_hash=12,salt=34,data_blocks=2,data_block_size=4096,hash_block_size=4096"

// Whatever the guest is and whatever Kata's configuration says, a drop-in has only
// keys that Kata ships.
func TestADropInHasOnlyKeysThatKataShips(t *testing.T) {
	plain := strings.NewReplacer(`kernel_verity_params = "root_hash=1"`, "", `pod_resource_api_sock = "/k.sock"`, "").Replace(kataBase)
	for _, language := range []Language{Rust, Go} {
		known := shipped(t, language)
		for name, base := range map[string]string{"as shipped": plain, "with a measured image and kubelet's API": kataBase} {
			for _, root := range []string{guest.InitrdFile, guest.ImageFile, "measured"} {
				for _, profile := range []edits.Profile{edits.ProfileVFIO, edits.ProfileGuestKernel} {
					n := newNode(t)
					n.cfg.Profile = profile
					n.write(rustBase, base)
					n.write(goBase, base)
					n.remove(guest.DefaultOut)
					n.guest(string(profile), root)
					for key := range n.ourDropIn(language) {
						// Only where Kata's own configuration has it, whatever its release.
						if !known[key] && !(key == "runtime.pod_resource_api_sock" && base == kataBase) {
							t.Errorf("%s, %s, %s, %s: %s is no key of Kata's", language, name, root, profile, key)
						}
					}
				}
			}
		}
	}
}

func TestADropInSaysWhatAPodWithVFsNeeds(t *testing.T) {
	const dir = "/var/lib/kata-qat/guest/"
	modules := []any{"tun", "vfio", "vfio-pci disable_denylist=1"}
	for name, tc := range map[string]struct {
		language Language
		profile  edits.Profile
		root     string
		base     string // added to Kata's
		want     map[string]any
	}{
		"runtime-rs, vfio, an initrd": {Rust, edits.ProfileVFIO, guest.InitrdFile, "", map[string]any{
			"hypervisor.qemu.kernel": dir + "vfio/current/vmlinuz", "hypervisor.qemu.initrd": dir + "vfio/current/initrd", "hypervisor.qemu.image": "",
			"hypervisor.qemu.machine_type": "q35", "hypervisor.qemu.kernel_params": "quiet rdinit=/kata-qat-init", "hypervisor.qemu.cold_plug_vfio": "root-port",
			"hypervisor.qemu.pcie_root_port": int64(16), "hypervisor.qemu.enable_iommu": true, "agent.kata.kernel_modules": modules, "runtime.vfio_mode": "vfio",
		}},
		"the Go runtime, guest-kernel, an image where an initrd was": {Go, edits.ProfileGuestKernel, guest.ImageFile, "[hypervisor.qemu]\ninitrd = \"/i\"\nrootfs_type = \"erofs\"\n", map[string]any{
			"hypervisor.qemu.kernel": dir + "guest-kernel/current/vmlinuz", "hypervisor.qemu.image": dir + "guest-kernel/current/image", "hypervisor.qemu.initrd": "",
			"hypervisor.qemu.rootfs_type": "ext4", "hypervisor.qemu.machine_type": "q35", "hypervisor.qemu.kernel_params": "quiet rdinit=/kata-qat-init",
			"hypervisor.qemu.cold_plug_vfio": "root-port", "hypervisor.qemu.hot_plug_vfio": "no-port", "hypervisor.qemu.pcie_root_port": int64(16),
			"agent.kata.kernel_modules": modules, "runtime.vfio_mode": "guest-kernel",
		}},
		"a measured image": {Rust, edits.ProfileGuestKernel, "measured", "", map[string]any{
			"hypervisor.qemu.kernel": dir + "guest-kernel/current/vmlinuz", "hypervisor.qemu.image": dir + "guest-kernel/current/image", "hypervisor.qemu.kernel_verity_params": measured,
			"hypervisor.qemu.machine_type": "q35", "hypervisor.qemu.kernel_params": "quiet rdinit=/kata-qat-init", "hypervisor.qemu.cold_plug_vfio": "root-port",
			"hypervisor.qemu.pcie_root_port": int64(16), "agent.kata.kernel_modules": modules, "runtime.vfio_mode": "guest-kernel",
		}},
		"what Kata's own image and kubelet's API need is taken back": {Go, edits.ProfileVFIO, guest.InitrdFile,
			"[hypervisor.qemu]\nkernel_verity_params = \"root_hash=1\"\n[runtime]\npod_resource_api_sock = \"/k.sock\"\n", map[string]any{
				"hypervisor.qemu.kernel": dir + "vfio/current/vmlinuz", "hypervisor.qemu.initrd": dir + "vfio/current/initrd", "hypervisor.qemu.image": "",
				"hypervisor.qemu.kernel_verity_params": "", "hypervisor.qemu.machine_type": "q35", "hypervisor.qemu.kernel_params": "quiet rdinit=/kata-qat-init",
				"hypervisor.qemu.cold_plug_vfio": "root-port", "hypervisor.qemu.hot_plug_vfio": "no-port", "hypervisor.qemu.pcie_root_port": int64(16),
				"hypervisor.qemu.enable_iommu": true, "agent.kata.kernel_modules": modules, "runtime.vfio_mode": "vfio", "runtime.pod_resource_api_sock": "",
			}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.cfg.Profile = tc.profile
			base := map[Language]string{Rust: rustBase, Go: goBase}[tc.language]
			n.write(base, strings.NewReplacer(`kernel_verity_params = "root_hash=1"`, "", `pod_resource_api_sock = "/k.sock"`, "").Replace(kataBase))
			if tc.base != "" {
				n.write(filepath.Dir(base)+"/config.d/50-more.toml", tc.base)
			}
			n.remove(guest.DefaultOut)
			n.guest(string(tc.profile), tc.root)
			if diff := cmp.Diff(tc.want, n.ourDropIn(tc.language)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestKatasOwnGuestIsLeftAsItIs(t *testing.T) {
	n := newNode(t)
	n.remove(guest.DefaultOut)
	files, err := Files(t.Context(), n.options(func(o *Options) { o.Guest = KatasGuest }))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f.Path, "config.d/60-kata-qat.toml") {
			for _, key := range []string{"kernel", "initrd", "image"} {
				if strings.Contains(f.Content, "\n"+key) {
					t.Errorf("it has %s:\n%s", key, f.Content)
				}
			}
		}
	}
}

// Kata's update replaces its files; another run follows it, and what a person put
// beside ours stays.
func TestAnUpdateOfKataIsFollowed(t *testing.T) {
	n := newNode(t)
	beside := filepath.Dir(rustBase) + "/config.d/"
	n.write(beside+"10-kata-deploy.toml", "[runtime]\nenable_debug = true\n")
	n.write(beside+"30-kernel-params.toml", "[hypervisor.qemu]\nkernel_params = \"loglevel=3\"\n")
	n.mustApply()
	const dir = "/etc/kata-qat/kata/kata-qat/"
	n.write(dir+"config.d/70-mine.toml", "[runtime]\nenable_tracing = true\n")
	if got := n.get(dir+"config.d/60-kata-qat.toml", "hypervisor", "qemu", "kernel_params"); got != "loglevel=3 rdinit=/kata-qat-init" {
		t.Errorf("kernel_params %q", got)
	}
	if got := n.read(dir + "config.d/10-kata-deploy.toml"); !strings.Contains(got, "enable_debug = true") {
		t.Errorf("the copy is\n%s", got)
	}

	n.write(rustBase, kataBase+"# 4.2\n")
	n.remove(beside + "10-kata-deploy.toml")
	out := n.mustApply()
	if !out.Changed || n.restarts != 1 {
		t.Errorf("outcome %+v, %d restarts, expected none more: Kata reads its files for each pod", out, n.restarts)
	}
	if !strings.Contains(n.read(dir+"configuration.toml"), "# 4.2") {
		t.Error("the copy was not made again")
	}
	entries, err := os.ReadDir(n.path(dir + "config.d"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if diff := cmp.Diff([]string{"30-kernel-params.toml", "60-kata-qat.toml", "70-mine.toml"}, names); diff != "" {
		t.Errorf("config.d (-want +got):\n%s", diff)
	}
	n.undo()
	if got := n.read(dir + "config.d/70-mine.toml"); got == "" {
		t.Error("the undo removed what was not ours")
	}
}

func TestAHandlerThatCannotBeServedIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare  func(*node)
		handlers []string
		says     string
	}{
		"not the daemon's":   {handlers: []string{"runsc"}, says: `"runsc" is none of handlers`},
		"no handler's name":  {handlers: []string{"kata-../x"}, says: `runtime handler "kata-../x"`},
		"twice":              {handlers: []string{"kata", "kata"}, says: "named twice"},
		"no guest":           {prepare: func(n *node) { n.remove(guest.DefaultOut) }, says: "run kata-qat provision guest --profile vfio first"},
		"a guest of another": {prepare: func(n *node) { n.remove(guest.DefaultOut + "/vfio"); n.link(guest.DefaultOut+"/vfio", "guest-kernel") }, says: "is for profile guest-kernel, expected vfio"},
		"half a guest":       {prepare: func(n *node) { n.remove(guest.DefaultOut + "/vfio/current/initrd") }, says: "has no initrd: make it again"},
		"undone by a later drop-in": {prepare: func(n *node) {
			n.write(filepath.Dir(rustBase)+"/config.d/90-x.toml", "[hypervisor.qemu]\ncold_plug_vfio = \"no-port\"\n")
		}, says: "90-x.toml:2: hypervisor.qemu.cold_plug_vfio is read after 60-kata-qat.toml"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			if tc.prepare != nil {
				tc.prepare(n)
			}
			_, err := Files(t.Context(), n.options(func(o *Options) { o.Handlers = tc.handlers }))
			if err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, expected one line with %q", err, tc.says)
			}
		})
	}
}

func TestEveryHandlerHasItsOwn(t *testing.T) {
	n := newNode(t)
	n.cfg.Profiles = map[string]edits.Profile{"kata-gk": edits.ProfileGuestKernel}
	n.mustApply(func(o *Options) { o.Handlers = []string{"kata-qat", "kata-gk"} })
	if target, err := os.Readlink(n.path("/usr/local/bin/containerd-shim-kata-gk-v2")); err != nil || target != "containerd-shim-kata-qat-v2" {
		t.Errorf("the shim of kata-gk: %q, %v", target, err)
	}
	for handler, mode := range map[string]string{"kata-qat": "vfio", "kata-gk": "guest-kernel"} {
		if got := n.get("/etc/kata-qat/kata/"+handler+"/config.d/60-kata-qat.toml", "runtime", "vfio_mode"); got != mode {
			t.Errorf("%s: vfio_mode %v", handler, got)
		}
		if got := n.get("/etc/kata-qat/shim.toml", "runtimes", handler); got != rustShim {
			t.Errorf("%s: %v", handler, got)
		}
		if got := n.get(dropInFile, append(containerdconfig.Runtimes(containerdconfig.CRIv2, handler), "options", "ConfigPath")...); got != "/etc/kata-qat/kata/"+handler+"/configuration.toml" {
			t.Errorf("%s: ConfigPath %v", handler, got)
		}
	}
}
