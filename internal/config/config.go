// Package config reads /etc/kata-qat/config.toml. It is strict: an unknown key
// or a value out of its range is refused with the place where it stands, because
// a setting that is silently ignored is found only when a pod misbehaves.
package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/docker/go-units"
	"github.com/pelletier/go-toml/v2"

	"github.com/kata-qat/kata-qat/internal/devconf"
	"github.com/kata-qat/kata-qat/internal/placement"
	"github.com/kata-qat/kata-qat/internal/profile"
)

// Path is where the configuration is looked for, below the host's root.
const Path = "/etc/kata-qat/config.toml"

// Config is the whole configuration. The zero value is of no use: start from
// Default.
type Config struct {
	// Handlers are the runtime handlers whose pods get devices, as patterns
	// of path.Match: ["kata", "kata-*"].
	Handlers []string `toml:"handlers"`
	// Profile is the profile of a handler that Profiles does not name.
	Profile profile.Profile `toml:"profile"`
	// Profiles gives handlers another profile: { "kata-qat-gk" = "guest-kernel" }.
	Profiles map[string]profile.Profile `toml:"profiles"`
	// MemlockAllowance is added to the 16 MiB of locked memory that every VF
	// needs: "64MiB".
	MemlockAllowance Size `toml:"memlock_allowance"`
	// Standalone lets pods ask for VFs by annotation. Only for a node without
	// a kubelet: there the scheduler decides, and an annotation must not get
	// anyone a device.
	Standalone bool `toml:"standalone"`
	// AllowNoIOMMU accepts VFs in vfio's no-IOMMU mode, which protects the
	// host from nothing that a guest does.
	AllowNoIOMMU bool `toml:"allow_no_iommu"`
	// RunDir holds what exists only while the daemon runs: rendered
	// configuration files and sockets. It must have the same path for the
	// daemon and for the container runtime.
	RunDir string `toml:"run_dir"`

	NRI          NRI          `toml:"nri"`
	Containerd   Containerd   `toml:"containerd"`
	Kubelet      Kubelet      `toml:"kubelet"`
	DevicePlugin DevicePlugin `toml:"device_plugin"`
	CDI          CDI          `toml:"cdi"`
	Conf         Conf         `toml:"conf"`
	Metrics      Metrics      `toml:"metrics"`
	Events       Events       `toml:"events"`
	Provision    Provision    `toml:"provision"`
}

// NRI says how the container runtime is reached.
type NRI struct {
	Socket string `toml:"socket"`
	// Index is the plugin's place among the NRI plugins of the node, 00 to 99.
	Index string `toml:"index"`
}

// Containerd says where containerd keeps its bundles, below the host's root.
type Containerd struct {
	State     string `toml:"state"`
	Namespace string `toml:"namespace"`
}

// CDI says where CDI specs of the VFs are written.
type CDI struct {
	// Dir is below the host's root; "" for no specs.
	Dir string `toml:"dir"`
	// RemoveOnStop removes the specs when the daemon is stopped. By default
	// they stay, so that a restart of the daemon is not noticed.
	RemoveOnStop bool `toml:"remove_on_stop"`
}

// Kubelet says how kubelet is asked who holds what.
type Kubelet struct {
	// PodResources is the socket of kubelet's PodResources API; "" when
	// kubelet is not to be asked and only the container's own spec counts.
	PodResources string `toml:"pod_resources"`
	// Timeout of one question.
	Timeout Duration `toml:"timeout"`
	// Domain of the extended resources.
	Domain string `toml:"domain"`
}

// DevicePlugin says whether and how the VFs are offered to kubelet.
type DevicePlugin struct {
	// Enable is false where somebody else offers the VFs: Intel's device
	// plugin or DRA driver.
	Enable bool `toml:"enable"`
	// Policy chooses among the VFs that are free.
	Policy placement.Policy `toml:"policy"`
	// Dir is kubelet's directory for device plugins, below the host's root.
	Dir string `toml:"dir"`
}

// Conf says what configuration files the devices get.
type Conf struct {
	// Inject is false when pods bring their own files.
	Inject bool `toml:"inject"`
	devconf.Options
}

// Metrics says where the daemon's state is served over HTTP.
type Metrics struct {
	// Listen is an IP address and a port: "127.0.0.1:9812". "" for no metrics.
	Listen string `toml:"listen"`
}

// Check refuses what is no address. A name is none: it could be another's tomorrow.
func (m Metrics) Check() error {
	if m.Listen == "" {
		return nil
	}
	if a, err := netip.ParseAddrPort(m.Listen); err != nil || a.Port() == 0 {
		return fmt.Errorf("metrics.listen %q: expected an IP address and a port, for example 127.0.0.1:9812", m.Listen)
	}
	return nil
}

// Events says where a person is told that a pod was refused its devices.
type Events struct {
	// Kubernetes makes an Event of the pod for it, with the service account
	// of the daemon's own pod.
	Kubernetes bool `toml:"kubernetes"`
}

// Default returns the configuration of a node that says nothing.
func Default() *Config {
	return &Config{
		Handlers:         []string{"kata", "kata-*"},
		Profile:          profile.VFIO,
		MemlockAllowance: 64 << 20,
		RunDir:           "/run/kata-qat",
		NRI:              NRI{Socket: "/var/run/nri/nri.sock", Index: "10"},
		Containerd:       Containerd{State: defaults.DefaultStateDir, Namespace: "k8s.io"},
		CDI:              CDI{Dir: "/var/run/cdi"},
		Kubelet:          Kubelet{PodResources: "/var/lib/kubelet/pod-resources/kubelet.sock", Timeout: Duration(time.Second), Domain: "qat.intel.com"},
		DevicePlugin:     DevicePlugin{Policy: placement.Balanced, Dir: "/var/lib/kubelet/device-plugins"},
		Conf:             Conf{Inject: true, Options: devconf.DefaultOptions()},
		Provision:        DefaultProvision(),
	}
}

// Load reads a file. A file that does not exist is an error only when it was
// named by the user; without one the defaults hold.
func Load(file string, named bool) (*Config, error) {
	b, err := os.ReadFile(file)
	switch {
	case errors.Is(err, os.ErrNotExist) && !named:
		return Default(), nil
	case err != nil:
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return Parse(file, b)
}

// Parse reads a configuration; name is for errors.
func Parse(name string, b []byte) (*Config, error) {
	c := Default()
	dec := toml.NewDecoder(strings.NewReader(string(b))).DisallowUnknownFields()
	if err := dec.Decode(c); err != nil {
		return nil, decodeError(name, err)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", name, err)
	}
	return c, nil
}

// decodeError makes one line of what the decoder says.
func decodeError(name string, err error) error {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
		e := &unknown.Errors[0]
		row, _ := e.Position()
		return fmt.Errorf("configuration %s:%d: unknown key %q: see docs/configuration.md for the keys there are", name, row, strings.Join(e.Key(), "."))
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		row, col := bad.Position()
		return fmt.Errorf("configuration %s:%d:%d: %s", name, row, col, strings.TrimPrefix(bad.Error(), "toml: "))
	}
	return fmt.Errorf("configuration %s: %s", name, strings.TrimPrefix(err.Error(), "toml: "))
}

func (c *Config) check() error {
	if len(c.Handlers) == 0 {
		return errors.New(`handlers: expected at least one runtime handler, for example ["kata", "kata-*"]`)
	}
	for _, h := range c.Handlers {
		if err := pattern("handlers", h); err != nil {
			return err
		}
	}
	if _, err := profile.Parse(string(c.Profile)); err != nil {
		return err
	}
	for h, p := range c.Profiles {
		if err := pattern("profiles", h); err != nil {
			return err
		}
		if _, err := profile.Parse(string(p)); err != nil {
			return fmt.Errorf("profiles.%s: %w", h, err)
		}
	}
	if !filepath.IsAbs(c.RunDir) || filepath.Clean(c.RunDir) == "/" {
		return fmt.Errorf("run_dir %q: expected an absolute directory of its own, for example /run/kata-qat", c.RunDir)
	}
	if c.Kubelet.Timeout <= 0 || c.Kubelet.Timeout > Duration(2*time.Second) {
		return fmt.Errorf("kubelet.timeout %s: expected more than 0 and at most 2s, the time that the runtime gives an NRI plugin", time.Duration(c.Kubelet.Timeout))
	}
	if c.Kubelet.Domain == "" || strings.Contains(c.Kubelet.Domain, "/") {
		return fmt.Errorf("kubelet.domain %q: expected the part of the resource name before the slash, for example qat.intel.com", c.Kubelet.Domain)
	}
	if err := c.checkDevicePlugin(); err != nil {
		return err
	}
	if err := c.Conf.Validate(); err != nil {
		return err
	}
	if err := c.Metrics.Check(); err != nil {
		return err
	}
	return c.Provision.Check()
}

func (c *Config) checkDevicePlugin() error {
	d := c.DevicePlugin
	if _, err := placement.ParsePolicy(string(d.Policy)); err != nil {
		return fmt.Errorf("device_plugin.policy: %w", err)
	}
	if !filepath.IsAbs(d.Dir) || filepath.Clean(d.Dir) == "/" {
		return fmt.Errorf("device_plugin.dir %q: expected kubelet's directory for device plugins, for example /var/lib/kubelet/device-plugins", d.Dir)
	}
	if d.Enable && c.Standalone {
		return errors.New("device_plugin.enable and standalone are both true: expected one of them: with a kubelet the scheduler hands devices out, without one the pods' annotations ask for them")
	}
	return nil
}

func pattern(key, p string) error {
	if _, err := path.Match(p, ""); err != nil || p == "" {
		return fmt.Errorf("%s: %q is no pattern of a runtime handler: expected for example \"kata\" or \"kata-*\"", key, p)
	}
	return nil
}

// ProfileOf returns the profile of a runtime handler, and false for a handler
// that is not to get devices. An exact name in Profiles wins over a pattern.
func (c *Config) ProfileOf(handler string) (profile.Profile, bool) {
	if !matchAny(c.Handlers, handler) {
		return "", false
	}
	if p, ok := c.Profiles[handler]; ok {
		return p, true
	}
	best := ""
	for h := range c.Profiles { // the longest pattern is the most specific
		if ok, _ := path.Match(h, handler); ok && (len(h) > len(best) || len(h) == len(best) && h < best) {
			best = h
		}
	}
	if best != "" {
		return c.Profiles[best], true
	}
	return c.Profile, true
}

func matchAny(patterns []string, handler string) bool {
	for _, p := range patterns {
		if ok, _ := path.Match(p, handler); ok {
			return true
		}
	}
	return false
}

// Size is an amount of memory in bytes, written with a unit: "64MiB", "1GiB",
// or "0".
type Size uint64

// UnmarshalText reads a size.
func (s *Size) UnmarshalText(b []byte) error {
	n, err := units.RAMInBytes(string(b))
	if err != nil || n < 0 {
		return fmt.Errorf("size %q: expected a number with a unit, for example 64MiB", b)
	}
	*s = Size(n)
	return nil
}

// Duration is a time span, written with a unit: "500ms", "1s".
type Duration time.Duration

// UnmarshalText reads a duration.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("duration %q: expected a number with a unit, for example 500ms or 1s", b)
	}
	*d = Duration(v)
	return nil
}
