//go:build !entry

package main

import "github.com/urfave/cli/v2"

// waitCommand is for pods whose init containers do the work: a DaemonSet must
// have a container that runs, and the image has no other program that could.
func waitCommand() *cli.Command {
	return &cli.Command{
		Name:   "wait",
		Usage:  "do nothing until told to stop",
		Hidden: true,
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			<-c.Context.Done()
			return nil
		},
	}
}
