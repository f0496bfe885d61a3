//go:build !entry

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/kata-qat/kata-qat/internal/containers"
	"github.com/kata-qat/kata-qat/internal/dump"
	"github.com/kata-qat/kata-qat/internal/lazyregexp"
	"github.com/kata-qat/kata-qat/internal/output"
)

const (
	completionFlag = "--generate-bash-completion" // urfave/cli's
	completionKey  = "completion"
	// completionTimeout is how long somebody waits after pressing TAB.
	completionTimeout = 500 * time.Millisecond
)

// words are the last words of a command line that is being completed.
type words struct {
	previous string // "--output" when a value is asked for
	current  string // what is there of the word, perhaps nothing
}

// splitCompletion takes the word that is being completed, which the scripts of
// the completion command put before the flag, off the command line: it is not
// finished, so the parser must not see it.
func splitCompletion(args []string) (words, []string) {
	n := len(args) - 2
	if n < 1 || args[n+1] != completionFlag {
		return words{}, args
	}
	w := words{current: args[n], previous: args[n-1]}
	if strings.HasPrefix(w.previous, "-") && !strings.Contains(w.previous, "=") {
		// A flag without its value is not finished either. One that takes none
		// makes no difference to what is suggested.
		n--
	}
	return w, append(slices.Clone(args[:max(n, 1)]), completionFlag)
}

// flagValues are the values of flags that have few.
var flagValues = map[string][]string{
	"output":    names(output.Formats),
	"source":    names(dump.Sources),
	"log-level": {"error", "warn", "info", "debug"},

	"topology output": {svg, string(output.JSON), string(output.YAML)}, // of one command
}

func names[T ~string](values []T) []string {
	s := make([]string, len(values))
	for i, v := range values {
		s[i] = string(v)
	}
	return s
}

// suggest returns what completes a command: its flags, the values of the flag
// before, its subcommands, and otherwise the arguments.
func suggest(arguments func(*cli.Context) []string) cli.BashCompleteFunc {
	return func(c *cli.Context) {
		w, _ := c.App.Metadata[completionKey].(words)
		for _, s := range suggestions(c, w, arguments) {
			if strings.HasPrefix(s, w.current) {
				fmt.Fprintln(c.App.Writer, s)
			}
		}
	}
}

func suggestions(c *cli.Context, w words, arguments func(*cli.Context) []string) []string {
	flags := slices.Concat(c.Command.Flags, c.App.Flags)
	if strings.HasPrefix(w.previous, "-") {
		name := strings.TrimLeft(w.previous, "-")
		for _, f := range flags {
			if slices.Contains(f.Names(), name) && takesValue([]cli.Flag{f})[name] {
				name := f.Names()[0]
				if own, ok := flagValues[c.Command.Name+" "+name]; ok {
					return own
				}
				return flagValues[name]
			}
		}
	}
	if strings.HasPrefix(w.current, "-") {
		return flagNames(flags)
	}
	var all []string
	for _, sub := range c.Command.Subcommands {
		if !sub.Hidden {
			all = append(all, sub.Name)
		}
	}
	if arguments != nil {
		all = append(all, arguments(c)...)
	}
	return all
}

func flagNames(flags []cli.Flag) []string {
	var all []string
	for _, f := range flags {
		if v, ok := f.(cli.VisibleFlag); ok && !v.IsVisible() {
			continue
		}
		if name := "--" + f.Names()[0]; !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

// safeWord is what may be handed to a shell, whatever it does with it.
var safeWord = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9._/-]*$`)

// podsAndContainers suggests what dump takes.
func podsAndContainers(c *cli.Context) []string { return runningNames(c, true) }

// pods suggests what verify takes.
func pods(c *cli.Context) []string { return runningNames(c, false) }

// runningNames asks containerd. Without it there are none, quickly and quietly.
func runningNames(c *cli.Context, ids bool) []string {
	ctx, cancel := context.WithTimeout(c.Context, completionTimeout)
	defer cancel()
	client, err := nodeOf(c).Client()
	if err != nil {
		return nil
	}
	defer client.Close()
	var all []string
	add := func(s string) {
		if safeWord.MatchString(s) && !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	var cs []containers.Container
	for ctr, err := range client.All(ctx) {
		if err != nil {
			break
		}
		cs = append(cs, ctr)
	}
	containers.Sort(cs)
	for _, ctr := range cs {
		add(ctr.PodName())
	}
	if ids {
		for _, ctr := range cs {
			add(ctr.ShortID())
		}
	}
	return all
}
