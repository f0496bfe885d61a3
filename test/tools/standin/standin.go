// Package standin is what the stand-ins for Kata's shim, one for each release of
// containerd, have in common: the record of what they were given, and the
// environment that tells them where to write it. It depends on nothing, so that
// it changes no version of the containerd that a stand-in is built from.
//
// The environment, which a shim has from containerd:
//
//	KATA_STANDIN_RECORD     file to which the record is appended, one JSON object a line
//	KATA_STANDIN_RUNC       the runc binary
//	KATA_STANDIN_RUNC_ROOT  runc's state directory
//	KATA_STANDIN_VM         a program that has a virtual machine for each sandbox:
//	                        it is run with "start" and the bundle before the
//	                        sandbox is created, and with "stop" and the bundle
//	                        when it is deleted. Only with containerd 2.
package standin

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// RuntimeType is Kata's, by which containerd finds the stand-in.
const RuntimeType = "io.containerd.kata.v2"

// event is one line of the record; package bed of the main module reads it.
type event struct {
	Event string `json:"event"` // "invoked" or "create"
	PID   int    `json:"pid"`

	Args []string `json:"args,omitempty"` // of an invocation
	Dir  string   `json:"dir,omitempty"`

	ID            string            `json:"id,omitempty"` // of a Create
	Bundle        string            `json:"bundle,omitempty"`
	ContainerType string            `json:"containerType,omitempty"` // "sandbox" or "container"
	ConfigPath    string            `json:"configPath,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty"`
	Devices       json.RawMessage   `json:"devices,omitempty"` // linux.devices as they are written
}

// spec is what the record has of a bundle's config.json.
type spec struct {
	Annotations map[string]string `json:"annotations"`
	Linux       struct {
		Devices json.RawMessage `json:"devices"`
	} `json:"linux"`
}

// Runc is the runc binary that serves in place of a VM.
func Runc() string { return os.Getenv("KATA_STANDIN_RUNC") }

// RuncRoot is runc's state directory.
func RuncRoot() string { return os.Getenv("KATA_STANDIN_RUNC_ROOT") }

// VM is the command that does to the virtual machine of the sandbox in the bundle
// what verb says, "start" or "stop", or nil if sandboxes have none.
func VM(verb, bundle string) *exec.Cmd {
	program := os.Getenv("KATA_STANDIN_VM")
	if program == "" {
		return nil
	}
	return exec.Command(program, verb, bundle)
}

// Invoked records how this process was started.
func Invoked() error {
	dir, err := os.Getwd()
	if err == nil {
		err = record(event{Event: "invoked", Args: os.Args, Dir: dir})
	}
	if err != nil {
		return fmt.Errorf("containerd-shim-kata-v2 (stand-in): record the invocation: %w", err)
	}
	return nil
}

// Created records that a Create was asked for, with what the bundle's
// config.json says at this moment, and returns what kind of container it is:
// "sandbox" or "container". configPath is that of the request's options.
func Created(id, bundle, configPath string) (kind string, _ error) {
	config, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return "", fmt.Errorf("record the creation of %s: %w", id, err)
	}
	var s spec
	if err := json.Unmarshal(config, &s); err != nil {
		return "", fmt.Errorf("record the creation of %s: read config.json of bundle %s: %w", id, bundle, err)
	}
	kind = s.Annotations["io.kubernetes.cri.container-type"]
	err = record(event{
		Event: "create", ID: id, Bundle: bundle, ConfigPath: configPath,
		ContainerType: kind, Annotations: s.Annotations, Devices: s.Linux.Devices,
	})
	if err != nil {
		return "", fmt.Errorf("record the creation of %s: %w", id, err)
	}
	return kind, nil
}

// record appends one event. A single write to a file opened for appending is
// not torn by the other shims that write to it.
func record(e event) error {
	path := os.Getenv("KATA_STANDIN_RECORD")
	if path == "" {
		return nil
	}
	e.PID = os.Getpid()
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(append(line, '\n'))
	return err
}
