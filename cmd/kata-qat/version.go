//go:build !entry

package main

import (
	"fmt"
	"runtime"

	"github.com/urfave/cli/v2"

	"github.com/kata-qat/kata-qat/internal/output"
	"github.com/kata-qat/kata-qat/internal/version"
)

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "show which build this is",
		Description: `Shows the version and, with -o json|yaml, the commit, the Go release and the
platform that it was built with and for.

Examples:
   kata-qat version
   kata-qat version -o json`,
		Flags: []cli.Flag{outputFlag()},
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			format, err := output.ParseFormat(c.String("output"))
			if err != nil {
				return usage(err)
			}
			if format == output.Table {
				_, err := fmt.Fprintf(c.App.Writer, "kata-qat %s (commit %s)\n", version.Version, version.Commit)
				return err
			}
			return output.Data(c.App.Writer, format, map[string]string{
				"version": version.Version, "commit": version.Commit,
				"go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH,
			})
		},
	}
}
