// Package shim stands before the real Kata shim: when containerd starts a
// sandbox it asks the node daemon what the pod holds, writes that into the
// sandbox's config.json, and becomes the real shim. Everything else it passes on
// at once. It does not stay: after exec nothing of it is left, and it sees
// nothing of what containerd and the real shim say to each other.
package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kata-qat/kata-qat/internal/api/oneshot"
)

// ConfigFile is read at every start.
const ConfigFile = "/etc/kata-qat/shim.toml"

// ConfigEnv names another file, for tests and for hosts without a writable
// /etc. containerd's environment is the administrator's.
const ConfigEnv = "KATA_QAT_SHIM_CONFIG"

// Main does what containerd wants of the shim and returns only on an error.
// The bundle is the working directory (containerd, core/runtime/v2/binary.go).
func Main(args, env []string) error {
	handler, err := handlerOf(args[0])
	if err != nil {
		return err
	}
	file := os.Getenv(ConfigEnv)
	if file == "" {
		file = ConfigFile
	}
	cfg, err := LoadConfig(file)
	if err != nil {
		return err
	}
	real, err := cfg.realShim(handler)
	if err != nil {
		return err
	}
	if action(args) == "start" {
		if err := prepare(cfg, handler, "."); err != nil {
			return err
		}
	}
	err = syscall.Exec(real, append([]string{real}, args[1:]...), env)
	return fmt.Errorf("start the real shim %s of runtime handler %s: %w", real, handler, err)
}

// handlerOf derives the runtime handler from the name that the shim was called
// by, for containerd tells a shim everything but that: containerd-shim-NAME-v2
// serves handler NAME. A handler of its own is a link to the same binary.
func handlerOf(argv0 string) (string, error) {
	name := filepath.Base(argv0)
	handler, ok := strings.CutPrefix(name, "containerd-shim-")
	if ok {
		handler, ok = strings.CutSuffix(handler, "-v2")
	}
	if !ok || handler == "" {
		return "", fmt.Errorf("called as %q: expected containerd-shim-<runtime handler>-v2: make a link of that name and give it to containerd as runtime_path", name)
	}
	return handler, nil
}

// action is the last argument, after the flags: "start" or "delete". With
// -info there is none.
func action(args []string) string {
	if last := args[len(args)-1]; !strings.HasPrefix(last, "-") {
		return last
	}
	return ""
}

// prepare edits the bundle when it is a sandbox's. The bundle is unchanged when
// it returns an error.
func prepare(cfg *Config, handler, dir string) error {
	b, err := openBundle(dir)
	if err != nil {
		return err
	}
	if !b.sandbox() {
		return nil
	}
	edits, err := oneshot.PrepareSandbox(cfg.Socket, cfg.wait, b.request(handler))
	if err != nil {
		return fmt.Errorf("kata-qat: sandbox of pod %s: %w", b.pod(), err)
	}
	if len(edits.Devices) == 0 && len(edits.Annotations) == 0 {
		return nil
	}
	if err := b.rewrite(edits); err != nil {
		return fmt.Errorf("kata-qat: sandbox of pod %s: %w", b.pod(), err)
	}
	return nil
}

// realShim is the shim that serves the handler. It is checked here, because
// exec's own error would not say whose setting is wrong.
func (c *Config) realShim(handler string) (string, error) {
	path, ok := c.Runtimes[handler]
	if !ok {
		return "", fmt.Errorf("%s: [runtimes] names no shim for runtime handler %q: expected %s = \"/opt/kata/bin/containerd-shim-kata-v2\" or the like", c.file, handler, handler)
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return "", fmt.Errorf("%s: the real shim of runtime handler %s: %w: is Kata installed there?", c.file, handler, err)
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return "", fmt.Errorf("%s: the real shim of runtime handler %s, %s, is no executable file (mode %v)", c.file, handler, path, info.Mode())
	}
	if self, err := os.Stat("/proc/self/exe"); err == nil && os.SameFile(self, info) {
		return "", fmt.Errorf("%s: the real shim of runtime handler %s, %s, is this shim itself: name Kata's own", c.file, handler, path)
	}
	return path, nil
}
