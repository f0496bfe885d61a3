// Command generate writes what is made from the chart and from the code, so that
// one fact is in one place: the schema of the values below config, from the
// configuration's types; the table of values in docs/kubernetes.md, from the
// schema; and the plain manifests, from the chart, by Helm. With -check it writes
// nothing, and fails if a file is not as it would be written.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	helm := flag.String("helm", "build/tools/helm/helm", "Helm's `PROGRAM`")
	check := flag.Bool("check", false, "only say which files are not as they should be")
	flag.Parse()
	if err := run(*helm, *check); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

const (
	chart     = "deploy/helm/kata-qat"
	schema    = chart + "/values.schema.json"
	docs      = "docs/kubernetes.md"
	manifests = "deploy/manifests/"
)

func run(helm string, check bool) error {
	wanted := make(map[string][]byte)
	var err error
	if wanted[schema], err = completeSchema(schema); err != nil {
		return err
	}
	if wanted[docs], err = withTable(docs, wanted[schema], chart+"/values.yaml"); err != nil {
		return err
	}
	if !check { // Helm reads the schema, too
		if err := os.WriteFile(schema, wanted[schema], 0o644); err != nil {
			return err
		}
	}
	install, err := render(helm, "--no-hooks")
	if err != nil {
		return err
	}
	uninstall, err := render(helm, "--show-only", "templates/uninstall.yaml")
	if err != nil {
		return err
	}
	wanted[manifests+"kata-qat.yaml"] = header("Everything: kubectl apply --server-side -f kata-qat.yaml", install)
	wanted[manifests+"uninstall.yaml"] = header("Before kata-qat.yaml is deleted: see docs/kubernetes.md", hooksOf("pre-delete", uninstall))
	return write(wanted, check)
}

// render returns the chart's objects with the values that it has by default.
func render(helm string, args ...string) ([]byte, error) {
	cmd := exec.Command(helm, append([]string{"template", "kata-qat", chart, "--namespace", "kata-qat", "--set", "namespace.create=true"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("run helm template: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

func header(what string, objects []byte) []byte {
	return append([]byte("# "+what+"\n# Generated from deploy/helm/kata-qat by make generate.\n"), objects...)
}

// hooksOf are the objects that Helm makes at one point; what is not YAML's own is
// left as it is.
func hooksOf(hook string, objects []byte) []byte {
	var out bytes.Buffer
	for _, o := range strings.Split(string(objects), "\n---\n") {
		if o = strings.TrimPrefix(o, "---\n"); strings.Contains(o, "helm.sh/hook: "+hook) {
			fmt.Fprintf(&out, "---\n%s\n", strings.TrimRight(o, "\n"))
		}
	}
	return out.Bytes()
}

func write(wanted map[string][]byte, check bool) error {
	var stale []string
	for name, content := range wanted {
		is, err := os.ReadFile(name)
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		if bytes.Equal(is, content) {
			continue
		}
		if check {
			stale = append(stale, name)
			continue
		}
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, content, 0o644); err != nil {
			return err
		}
	}
	if len(stale) > 0 {
		return fmt.Errorf("not as they would be generated: %s: run make generate", strings.Join(stale, ", "))
	}
	return nil
}
