package kernelconfig

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/kata-qat/kata-qat/internal/lazyregexp"
)

// maxConfig bounds what is read: a distribution's configuration has 300 KiB.
const maxConfig = 16 << 20

// Config is a kernel's configuration.
type Config struct {
	// Version is that of the kernel as the file's head says, or zero.
	Version Version
	// Ported is set for the kernel of a distribution that ports drivers back to
	// an old release, as Red Hat and SUSE do: its version says little of what it
	// has.
	Ported bool
	values map[string]string
}

// Value returns an option's value as the file has it, Off when it is off, and
// whether the file mentions it at all. What is not mentioned is off, and cannot
// be turned on by itself: something it depends on is off, or the kernel does not
// have it.
func (c *Config) Value(name string) (value string, mentioned bool) {
	value, mentioned = c.values[name]
	if !mentioned {
		value = Off
	}
	return value, mentioned
}

// Len returns the number of options that the file mentions.
func (c *Config) Len() int { return len(c.values) }

// Running returns the file with the configuration of the kernel that runs, below
// a root directory.
func Running(root string) (string, error) {
	release, err := os.ReadFile(filepath.Join(root, "proc/sys/kernel/osrelease"))
	if err != nil {
		return "", fmt.Errorf("find the configuration of the running kernel: %w", err)
	}
	r := strings.TrimSpace(string(release))
	for _, name := range []string{"proc/config.gz", "boot/config-" + r, "lib/modules/" + r + "/config"} {
		file := filepath.Join(root, name)
		if _, err := os.Stat(file); err == nil {
			return file, nil
		}
	}
	return "", fmt.Errorf("find the configuration of the running kernel %s: none of /proc/config.gz, /boot/config-%[1]s and /lib/modules/%[1]s/config is there: name its file", r)
}

// ReadConfig reads the configuration in a file, perhaps compressed by gzip as
// /proc/config.gz is.
func ReadConfig(file string) (*Config, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read kernel config: %w", err)
	}
	defer f.Close()
	c, err := ParseConfig(f)
	if err != nil {
		return nil, fmt.Errorf("read kernel config %s: %w", file, err)
	}
	return c, nil
}

var (
	head = lazyregexp.New(`^# Linux/\S+ (\S+) Kernel Configuration$`)
	// 5.14.0-427.13.1.el9_4.x86_64 and 5.14.21-150500.55.44-default
	ported = lazyregexp.New(`\.el[0-9]|-[0-9]{6}\.[0-9.]+-`)
)

// ParseConfig reads a configuration, perhaps compressed by gzip. It refuses what
// is none.
func ParseConfig(r io.Reader) (*Config, error) {
	text, err := plain(r)
	if err != nil {
		return nil, err
	}
	c := &Config{values: make(map[string]string)}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, maxConfig)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimRight(lines.Text(), " \t\r")
		if name, value, ok := parseOption(line); ok {
			c.values[name] = value
			continue
		}
		if m := head.FindStringSubmatch(line); m != nil {
			c.Version, _ = ParseVersion(m[1]) // or it stays unknown
			c.Ported = ported.MatchString(m[1])
		}
		if line != "" && line[0] != '#' {
			return nil, fmt.Errorf("line %d is %.40q: expected a comment or CONFIG_NAME=value", n, line)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(c.values) == 0 {
		return nil, errors.New("no CONFIG_ line in it: expected a kernel's configuration, such as /boot/config-*")
	}
	return c, nil
}

// plain returns what r holds without compression.
func plain(r io.Reader) ([]byte, error) {
	in := bufio.NewReader(r)
	r = in
	if magic, _ := in.Peek(2); string(magic) == "\x1f\x8b" {
		unzip, err := gzip.NewReader(in)
		if err != nil {
			return nil, fmt.Errorf("unpack gzip: %w", err)
		}
		r = unzip
	}
	text, err := io.ReadAll(io.LimitReader(r, maxConfig+1))
	switch {
	case err != nil:
		return nil, err
	case len(text) > maxConfig:
		return nil, fmt.Errorf("more than %d MiB: expected a kernel's configuration", maxConfig>>20)
	}
	return text, nil
}

var (
	optionOn  = lazyregexp.New(`^CONFIG_([A-Za-z0-9_]+)=(.*)$`)
	optionOff = lazyregexp.New(`^# CONFIG_([A-Za-z0-9_]+) is not set$`)
)

// parseOption reads a line as Kconfig writes it.
func parseOption(line string) (name, value string, ok bool) {
	if m := optionOn.FindStringSubmatch(line); m != nil {
		return m[1], m[2], true
	}
	if m := optionOff.FindStringSubmatch(line); m != nil {
		return m[1], Off, true
	}
	return "", "", false
}

// option writes a line as Kconfig reads it.
func option(name, value string) string {
	if value == Off {
		return fmt.Sprintf("# CONFIG_%s is not set", name)
	}
	return fmt.Sprintf("CONFIG_%s=%s", name, value)
}
