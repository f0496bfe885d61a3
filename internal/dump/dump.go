// Package dump shows the OCI specs of a node's containers, and what exactly
// kata-qat changed in them. It takes a spec as generic JSON wherever it may,
// so that nothing that it does not know is lost.
package dump

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/kata-qat/kata-qat/internal/containers"
	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/output"
)

// Source says where specs are read from.
type Source string

// The sources.
const (
	// Auto is the bundle of a container that runs, because that is what the
	// runtime got, and otherwise containerd's record.
	Auto Source = "auto"
	// Containerd is containerd's record only.
	Containerd Source = "containerd"
	// Bundle is the bundles only; containerd is not asked and need not run.
	Bundle Source = "bundle"
)

// Sources are all sources, the default first.
var Sources = []Source{Auto, Containerd, Bundle}

// ParseSource checks the value of --source.
func ParseSource(s string) (Source, error) {
	if !slices.Contains(Sources, Source(s)) {
		return "", fmt.Errorf("source %q: expected auto, containerd or bundle", s)
	}
	return Source(s), nil
}

// Entry is one container with what was injected into it, in short.
type Entry struct {
	containers.Container
	Injected string // "cy=0000:6b:00.1,…": see edits.Injected
	Devices  int    // entries of linux.devices
}

// document is an entry for programs, with the spec last. It must be left to
// the encoder as it is: an own MarshalJSON would escape what the spec does not.
type document struct {
	containers.Container
	Injected string          `json:"injected,omitempty"`
	Spec     json.RawMessage `json:"spec"`
}

// Collect returns the selected containers in the order of their pods. When
// some of them cannot be read it returns the others and an error that joins one
// error for each.
func Collect(ctx context.Context, n containers.Node, from Source, sel Selection) ([]Entry, error) {
	all, errs := list(ctx, n, from, sel)
	if all == nil && errs != nil {
		return nil, errs
	}
	inherit(all)
	chosen, err := sel.choose(all)
	if err != nil {
		return nil, errors.Join(err, errs)
	}
	containers.Sort(chosen)
	entries := make([]Entry, 0, len(chosen))
	for _, c := range chosen {
		if from == Auto {
			// A container that does not run has no bundle: containerd's
			// record stands.
			if _, err := n.Bundles().Spec(&c); err != nil {
				errs = errors.Join(errs, err)
				continue
			}
		}
		e, err := entry(c)
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		entries = append(entries, e)
	}
	return entries, errs
}

// FromBundle returns the container of a bundle directory.
func FromBundle(dir string) (Entry, error) {
	c, err := containers.ReadBundle(dir)
	if err != nil {
		return Entry{}, err
	}
	return entry(*c)
}

func entry(c containers.Container) (Entry, error) {
	f, err := c.Facts()
	if err != nil {
		return Entry{}, err
	}
	return Entry{Container: c, Injected: edits.Injected(f.Annotations), Devices: len(f.Linux.Devices)}, nil
}

// list returns what there is to select from.
func list(ctx context.Context, n containers.Node, from Source, sel Selection) ([]containers.Container, error) {
	if from == Bundle {
		return listBundles(n.Bundles(), sel)
	}
	client, err := n.Client()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	all := []containers.Container{}
	for c, err := range client.All(ctx) {
		if err != nil {
			if from == Auto {
				err = fmt.Errorf("%w, or use --source bundle, which does not need it", err)
			}
			return nil, err
		}
		// Containers that kubelet did not make may lack the labels; what is no
		// spec is reported when it is asked for.
		if c.Pod == "" {
			_ = c.Identify()
		}
		all = append(all, c)
	}
	return all, nil
}

func listBundles(b containers.Bundles, sel Selection) ([]containers.Container, error) {
	ids, err := b.IDs()
	if err != nil {
		return nil, err
	}
	all, errs := []containers.Container{}, error(nil)
	for _, id := range ids {
		c, err := b.Read(id)
		switch {
		case err == nil:
			all = append(all, *c)
		case sel.All || slices.ContainsFunc(sel.Names, func(s string) bool { return strings.HasPrefix(id, s) }):
			errs = errors.Join(errs, err)
		}
	}
	return all, errs
}

// inherit gives containers the runtime handler of their sandbox.
func inherit(all []containers.Container) {
	handlers := make(map[string]string)
	for i := range all {
		if c := &all[i]; c.Type == containers.Sandbox {
			handlers[c.ID] = c.Handler
		}
	}
	for i := range all {
		if c := &all[i]; c.Handler == "" {
			c.Handler = handlers[c.SandboxID]
		}
	}
}

// Write writes the containers: a row for each, or their whole specs as a list.
func Write(w io.Writer, f output.Format, entries []Entry) error {
	if f != output.Table {
		documents := make([]document, len(entries))
		for i, e := range entries {
			documents[i] = document{e.Container, e.Injected, e.Spec}
		}
		return output.Data(w, f, documents)
	}
	if len(entries) == 0 {
		_, err := fmt.Fprintln(w, "no container on this node")
		return err
	}
	rows := make([][]string, len(entries))
	for i, e := range entries {
		runtime := e.Handler
		if runtime == "" {
			runtime = e.Runtime
		}
		rows[i] = []string{e.PodName(), e.Name, e.ShortID(), string(e.Type), runtime, e.Injected, strconv.Itoa(e.Devices), string(e.Source)}
	}
	return output.Rows(w, []string{"POD", "CONTAINER", "ID", "TYPE", "RUNTIME", "QAT VFS", "DEVICES", "SPEC FROM"}, rows)
}

// WriteDiffs writes what was injected into each of the containers: those of a pod
// beside each other where lines of this width have room for it, and otherwise, or
// with width 0, one below the other. One that cannot be compared hides no other:
// the error joins one for each.
func WriteDiffs(w io.Writer, f output.Format, entries []Entry, colours output.Colours, width int) error {
	var errs error
	diffs := make([]Difference, 0, len(entries))
	for _, e := range entries {
		d, err := Diff(e)
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		diffs = append(diffs, d)
	}
	if f == output.Table {
		return errors.Join(writeDiffs(w, diffs, colours, width), errs)
	}
	changes := make([]Changes, len(diffs))
	for i := range diffs {
		changes[i] = diffs[i].Changes()
	}
	return errors.Join(output.Data(w, f, changes), errs)
}
