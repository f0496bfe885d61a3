//go:build faults

package main

import (
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
)

// A build for tests ends itself at the n-th place where a run might be killed:
// KATA_QAT_KILL_AT=n. With 0 it counts them: the last line on stderr has the
// highest number.
func init() {
	at, err := strconv.Atoi(os.Getenv("KATA_QAT_KILL_AT"))
	if err != nil {
		return
	}
	var n atomic.Int64
	provisionFault = func(point string) error {
		i := int(n.Add(1))
		fmt.Fprintf(os.Stderr, "fault %d: %s\n", i, point)
		if i == at {
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return nil
	}
}
