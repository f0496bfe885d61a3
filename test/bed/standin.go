package bed

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// ShimEvent is something that Kata's stand-in was asked to do.
type ShimEvent struct {
	Event string `json:"event"` // "invoked" or "create"
	PID   int    `json:"pid"`

	// Of an invocation: the arguments with the program's name, and the
	// directory that it was started in.
	Args []string `json:"args"`
	Dir  string   `json:"dir"`

	// Of a Create: what was asked for, and what the bundle's config.json said
	// at that moment. Devices are its linux.devices.
	ID            string              `json:"id"`
	Bundle        string              `json:"bundle"`
	ConfigPath    string              `json:"configPath"`
	ContainerType string              `json:"containerType"` // "sandbox" or "container"
	Annotations   map[string]string   `json:"annotations"`
	Devices       []specs.LinuxDevice `json:"devices"`
}

func (b *Bed) recordPath() string { return b.path("kata-standin.jsonl") }

// ShimEvents are what Kata's stand-in was asked to do so far, in order.
func (b *Bed) ShimEvents() ([]ShimEvent, error) { return ReadShimEvents(b.recordPath()) }

// ReadShimEvents reads the record of Kata's stand-in.
func ReadShimEvents(file string) ([]ShimEvent, error) {
	content, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var events []ShimEvent
	for i, line := range bytes.Split(bytes.TrimSpace(content), []byte("\n")) {
		var e ShimEvent
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("read %s, line %d: %w", file, i+1, err)
		}
		events = append(events, e)
	}
	return events, nil
}

// ShimCreate is the Create that Kata's stand-in had for a container or sandbox.
func (b *Bed) ShimCreate(id string) (ShimEvent, error) {
	events, err := b.ShimEvents()
	if err != nil {
		return ShimEvent{}, err
	}
	for _, e := range events {
		if e.Event == "create" && e.ID == id {
			return e, nil
		}
	}
	return ShimEvent{}, fmt.Errorf("look for %s in the record of Kata's stand-in: no Create for it among %d events", id, len(events))
}
