package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// flagsFirst sorts a command line so that flags may stand anywhere, as people
// are used to: the flag package stops at the first argument that is none, and
// would take "-o" in "dump ID -o json" for a container. Global flags that stand
// after the command are moved before it. What is unknown stays for the parser
// to refuse.
func flagsFirst(app *cli.App, args []string) []string {
	if len(args) == 0 {
		return args
	}
	if last := len(args) - 1; args[last] == completionFlag { // which must stay the last
		return append(flagsFirst(app, args[:last]), completionFlag)
	}
	global := takesValue(app.Flags)
	before := []string{args[0]}             // with the global flags
	var command, flags, positional []string // of the innermost command
	known, commands, rest := global, app.Commands, args[1:]
	for len(rest) > 0 {
		word := rest[0]
		rest = rest[1:]
		if word == "--" {
			positional = append(append(positional, word), rest...)
			break
		}
		if len(word) < 2 || word[0] != '-' {
			if sub := named(commands, word); sub != nil && len(positional) == 0 {
				command = append(append(command, flags...), word)
				flags, known, commands = nil, takesValue(sub.Flags), sub.Subcommands
			} else {
				positional = append(positional, word)
			}
			continue
		}
		name, _, hasValue := strings.Cut(strings.TrimLeft(word, "-"), "=")
		value, local := known[name]
		to := &flags
		if _, ok := global[name]; ok && !local || len(command) == 0 {
			value, to = global[name], &before
		}
		*to = append(*to, word)
		if value && !hasValue && len(rest) > 0 {
			*to = append(*to, rest[0])
			rest = rest[1:]
		}
	}
	return append(append(append(before, command...), flags...), positional...)
}

// takesValue maps the names of flags to whether they take a value.
func takesValue(flags []cli.Flag) map[string]bool {
	known := make(map[string]bool)
	for _, f := range flags {
		doc, ok := f.(cli.DocGenerationFlag)
		for _, name := range f.Names() {
			known[name] = ok && doc.TakesValue()
		}
	}
	return known
}

func named(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}
