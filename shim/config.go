package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/kata-qat/kata-qat/internal/api/oneshot"
)

// Config is the shim's own configuration, small because it is read at every
// start of a pod.
type Config struct {
	// Socket of the node daemon.
	Socket string `toml:"socket"`
	// Timeout for the daemon's answer, "2s"; containerd's patience with a
	// shim is longer.
	Timeout string `toml:"timeout"`
	// Runtimes names the real shim of every runtime handler, with its path.
	Runtimes map[string]string `toml:"runtimes"`

	file string
	wait time.Duration
}

const defaultTimeout = 2 * time.Second

// LoadConfig reads and checks a configuration file.
func LoadConfig(file string) (*Config, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("the shim's configuration: %w: run kata-qat provision runtime, or write it with [runtimes] naming the real shims", err)
	}
	c := &Config{Socket: oneshot.Socket, Timeout: defaultTimeout.String(), file: file}
	if err := toml.NewDecoder(strings.NewReader(string(b))).DisallowUnknownFields().Decode(c); err != nil {
		return nil, decodeError(file, err)
	}
	if c.wait, err = time.ParseDuration(c.Timeout); err != nil || c.wait <= 0 || c.wait > 10*time.Second {
		return nil, fmt.Errorf("%s: timeout %q: expected a time span of at most 10s, for example \"2s\"", file, c.Timeout)
	}
	for handler, path := range c.Runtimes {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("%s: runtimes.%s %q: expected an absolute path", file, handler, path)
		}
	}
	return c, nil
}

func decodeError(file string, err error) error {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
		row, _ := unknown.Errors[0].Position()
		return fmt.Errorf("%s:%d: unknown key %q: expected socket, timeout and [runtimes]", file, row, strings.Join(unknown.Errors[0].Key(), "."))
	}
	return fmt.Errorf("%s: %s", file, strings.TrimPrefix(err.Error(), "toml: "))
}
