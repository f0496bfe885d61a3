// Command idleshim becomes the real shim at once: what a shim before the real
// one costs at least.
package main

import (
	"fmt"
	"os"
	"syscall"
)

// real is the real shim; the linker sets it.
var real string

func main() {
	err := syscall.Exec(real, append([]string{real}, os.Args[1:]...), os.Environ())
	fmt.Fprintln(os.Stderr, real, err)
	os.Exit(1)
}
