//go:build !entry

package main

import (
	"embed"
	"fmt"

	"github.com/urfave/cli/v2"
)

//go:embed completion
var scripts embed.FS

// shells are those that a script is there for.
var shells = []string{"bash", "zsh", "fish"}

func completionCommand() *cli.Command {
	cmd := &cli.Command{
		Name:  "completion",
		Usage: "print the completion script of a shell",
		Description: `Prints a script that completes commands, flags and their values, and for dump the
pods and containers of this node.

Examples:
   source <(kata-qat completion bash)
   kata-qat completion bash >/etc/bash_completion.d/kata-qat
   kata-qat completion zsh >"${fpath[1]}/_kata-qat"
   kata-qat completion fish >~/.config/fish/completions/kata-qat.fish`,
	}
	for _, shell := range shells {
		cmd.Subcommands = append(cmd.Subcommands, &cli.Command{
			Name:  shell,
			Usage: "print the script for " + shell,
			Action: func(c *cli.Context) error {
				if err := noArguments(c); err != nil {
					return err
				}
				script, err := scripts.ReadFile("completion/kata-qat." + shell)
				if err != nil {
					return fmt.Errorf("completion script for %s: %w", shell, err)
				}
				_, err = c.App.Writer.Write(script)
				return err
			},
		})
	}
	return cmd
}
