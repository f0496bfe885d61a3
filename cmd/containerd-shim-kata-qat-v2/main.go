// Containerd-shim-kata-qat-v2 is the shim that containerd starts for a Kata
// runtime with QAT devices; see package shim.
package main

import (
	"fmt"
	"os"

	"github.com/kata-qat/kata-qat/shim"
)

func main() {
	// containerd puts what the shim prints into the pod's events.
	if err := shim.Main(os.Args, os.Environ()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
