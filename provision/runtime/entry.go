package runtime

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/containerdconfig"
	"github.com/kata-qat/kata-qat/internal/tomledit"
	"github.com/kata-qat/kata-qat/nri-plugin"
)

const (
	// Tolerate is the annotation (with /pod or /container.NAME behind it) of
	// what may start while our NRI plugin is not there: static pods, and what
	// the plugin itself needs.
	Tolerate = "tolerate-missing-plugins.kata-qat.io"

	dropInMark = "# Written by kata-qat provision runtime, which replaces it.\n"
	blockBegin = "# BEGIN kata-qat: written by kata-qat provision runtime, which replaces it\n"
	blockEnd   = "# END kata-qat\n"
)

// entry is a handler's table in containerd's configuration.
func (m *machine) entry(c *setup, h handler) string {
	annotations := []string{"io.katacontainers.*"}
	if m.Options.Config.Standalone { // then a pod asks for its VFs
		annotations = append(annotations, "kata-qat.io/*")
	}
	path := containerdconfig.Runtimes(c.criPlugin(), h.name)
	var b strings.Builder
	fmt.Fprintf(&b, "[%s]\n", tomledit.Key(path...))
	fmt.Fprintf(&b, "  runtime_type = %s\n", tomledit.String("io.containerd."+h.name+".v2"))
	fmt.Fprintf(&b, "  runtime_path = %s\n", tomledit.String(m.shimPath(h)))
	fmt.Fprintf(&b, "  privileged_without_host_devices = true\n")
	fmt.Fprintf(&b, "  pod_annotations = %s\n", tomledit.Strings(annotations))
	// As kata-deploy 4.1 has it.
	fmt.Fprintf(&b, "  container_annotations = %s\n", tomledit.Strings([]string{"io.kubernetes.container.terminationMessage*"}))
	fmt.Fprintf(&b, "  [%s]\n", tomledit.Key(append(path, "options")...))
	fmt.Fprintf(&b, "    ConfigPath = %s\n", tomledit.String(m.configPath(h)))
	return b.String()
}

func (m *machine) entries(c *setup) string {
	var all []string
	for _, h := range m.handlers {
		all = append(all, m.entry(c, h))
	}
	return strings.Join(all, "\n")
}

// nri is NRI's table with our plugin required. Of lists it has all that other
// files say, for containerd takes the last.
func (m *machine) nri(c *setup, others []*tomledit.Document) string {
	var b strings.Builder
	fmt.Fprintf(&b, "[%s]\n  disable = false\n  disable_connections = false\n", tomledit.Key("plugins", containerdconfig.NRI))
	if !c.validates() || m.NotRequired {
		return b.String()
	}
	validator := []string{"plugins", containerdconfig.NRI, "default_validator"}
	var required []string
	tolerate := Tolerate
	for _, d := range others {
		if found := d.Strings(append(slices.Clone(validator), "required_plugins")...); found != nil {
			required = found
		}
		if v, _ := d.Get(append(slices.Clone(validator), "tolerate_missing_plugins_annotation")...); v != nil && v != "" {
			tolerate = fmt.Sprint(v)
		}
	}
	if !slices.Contains(required, nriplugin.Name) {
		required = append(slices.Clone(required), nriplugin.Name)
	}
	fmt.Fprintf(&b, "  [%s]\n    enable = true\n", tomledit.Key(validator...))
	fmt.Fprintf(&b, "    required_plugins = %s\n", tomledit.Strings(required))
	fmt.Fprintf(&b, "    # Pods that must start before our plugin have this annotation, \"true\", with\n    # /pod behind its name: static ones, the network's, the plugin's own.\n")
	fmt.Fprintf(&b, "    tolerate_missing_plugins_annotation = %s\n", tomledit.String(tolerate))
	return b.String()
}

// containerdDropIn is our file of a containerd that merges.
func (m *machine) containerdDropIn(c *setup, name string) (string, error) {
	others := slices.DeleteFunc(slices.Clone(c.files), func(d *tomledit.Document) bool { return d.Name() == name })
	validator := []string{"plugins", containerdconfig.NRI, "default_validator", "required_plugins"}
	for _, d := range others {
		if filepath.Dir(d.Name()) == filepath.Dir(name) && d.Name() > name && c.validates() && !m.NotRequired {
			if found := d.Strings(validator...); found != nil && !slices.Contains(found, nriplugin.Name) {
				return "", fmt.Errorf("%s:%d: required_plugins is read after %s and would take our plugin off the list: add %q to it, or give that file a name below 60", d.Name(), d.Line(validator...), name, nriplugin.Name)
			}
		}
	}
	return fmt.Sprintf("%sversion = %d\n\n%s\n%s", dropInMark, c.schema, m.entries(c), m.nri(c, others)), nil
}

// withBlock puts our text into somebody else's file, behind all that is in it.
func withBlock(text, block string) string {
	text = withoutBlock(text)
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return text + "\n" + blockBegin + block + blockEnd
}

func withoutBlock(text string) string {
	before, rest, found := strings.Cut(text, "\n"+blockBegin)
	if !found {
		return text
	}
	_, after, _ := strings.Cut(rest, blockEnd)
	return before + after
}
