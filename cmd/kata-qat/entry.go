//go:build entry

package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/urfave/cli/v2"
)

// A build with the tag entry is the program that is called kata-qat on a node.
// It has the one command that runs at every boot, before anything else may, and
// whose work takes less than the start of a program that is linked with
// containerd's, kubelet's and the API server's clients. For any other command it
// becomes the program beside it that has all of them.
const full = "kata-qat-full"

func allCommands() []*cli.Command  { return []*cli.Command{provisionCommand()} }
func provisioners() []*cli.Command { return nil }

// elsewhere becomes the full program unless the command line is one of
// provision host. It returns on an error only, or when there is nothing to do
// elsewhere.
func elsewhere(args []string) error {
	if sorted := sortArgs(newApp(io.Discard, io.Discard), args); slices.Equal(sorted.path, []string{"provision", "host"}) && !slices.Contains(args, completionFlag) {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the program beside this one: %w", err)
	}
	program := filepath.Join(filepath.Dir(self), full)
	err = syscall.Exec(program, args, os.Environ())
	return fmt.Errorf("start %s: %w: install it beside %s, of the same build", program, err, self)
}

// Completion is the full program's.

const (
	completionFlag = "--generate-bash-completion" // urfave/cli's
	completionKey  = "completion"
)

func splitCompletion(args []string) (any, []string)            { return nil, args }
func suggest(func(*cli.Context) []string) cli.BashCompleteFunc { return nil }
