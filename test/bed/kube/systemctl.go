package kube

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// systemctl stands in for systemd's: programs that provision a node ask it for
// containerd's state and have it restart containerd. It must work with nothing
// but the node's root, from within a container that mounts it: a request and the
// path for the answer go through one pipe, the answer through another.
const systemctl = `#!/bin/sh
set -e
answer=$(mktemp -u ` + Dir + `/systemctl.XXXXXXXX)
mkfifo -m 600 "$answer"
trap 'rm -f "$answer"' EXIT
echo "$answer $1 $2" >` + systemctlPipe + `
read -r code text <"$answer"
[ -z "$text" ] || echo "$text"
exit "$code"
`

const systemctlPipe = Dir + "/systemctl"

// serveSystemctl installs systemctl and answers it as long as the bed lasts.
func (b *Bed) serveSystemctl() error {
	if err := os.WriteFile(filepath.Join(sbinDir, "systemctl"), []byte(systemctl), 0o755); err != nil {
		return err
	}
	if err := unix.Mkfifo(systemctlPipe, 0o600); err != nil {
		return fmt.Errorf("make %s: %w", systemctlPipe, err)
	}
	// For writing, too: so it does not end when those who ask have gone.
	pipe, err := os.OpenFile(systemctlPipe, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	go func() {
		defer pipe.Close()
		for lines := bufio.NewScanner(pipe); lines.Scan(); {
			go b.answer(lines.Text())
		}
	}()
	return nil
}

// answer answers one request.
func (b *Bed) answer(request string) {
	answer, command, _ := strings.Cut(request, " ")
	verb, unit, _ := strings.Cut(command, " ")
	code, text := 0, ""
	switch s := b.find(strings.TrimSuffix(unit, ".service")); {
	case unit == "": // daemon-reload and the like
	case s == nil && verb == "is-active":
		code, text = 3, "inactive"
	case s == nil:
		code, text = 5, "Unit "+unit+" not loaded."
	case verb == "is-active" && s.PID() == 0:
		code, text = 3, "activating"
	case verb == "is-active":
		text = "active"
	case verb == "restart":
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Restart(ctx); err != nil {
			code, text = 1, err.Error()
		}
	default:
		code, text = 1, "the bed's systemctl cannot "+verb
	}
	// This waits for the one who asked to open it, in vain if he has died.
	f, err := os.OpenFile(answer, os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	fmt.Fprintf(f, "%d %s\n", code, text)
}
