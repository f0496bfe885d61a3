//go:build !entry

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/kata-qat/kata-qat/internal/output"
	"github.com/kata-qat/kata-qat/internal/topology"
)

// svg is topology's format beside those of data.
const svg = "svg"

func topologyCommand() *cli.Command {
	return &cli.Command{
		Name:  "topology",
		Usage: "draw where the QAT devices are and which pods hold them, for a ticket or a wiki",
		Description: `Draws this machine's sockets and NUMA nodes, the physical functions at them, their
virtual functions with their IOMMU groups, and the pods that hold those: as an SVG
picture, readable in light and dark surroundings, or as data. A VF's tooltip has all
that is known of it. What is wrong with a device stands below.

Examples:
   kata-qat topology -f node-1.svg
   kata-qat topology > node-1.svg
   kata-qat topology -o json | jq -r '.pods[] | select(.numaNodes | length > 1) | .name'`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "write to `FILE` instead of stdout"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: svg, Usage: "`FORMAT`: svg, json or yaml"},
		},
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			format := c.String("output")
			if format != svg && format != string(output.JSON) && format != string(output.YAML) {
				return usage(fmt.Errorf("output format %q: expected svg, json or yaml", format))
			}
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			r, unknown, err := devicesReport(c.Context, c, cfg)
			if err != nil {
				return err
			}
			if unknown != nil {
				fmt.Fprintf(c.App.ErrWriter, "kata-qat: not all holders are known: %s\n", oneLine(unknown))
			}
			root := c.String("host-root")
			t := topology.New(r, topology.Sockets(root), topology.Host(root), time.Now())
			return toFile(c.App.Writer, c.String("file"), func(w io.Writer) error {
				if format == svg {
					return t.WriteSVG(w)
				}
				return output.Data(w, output.Format(format), t)
			})
		},
	}
}

// toFile has write write to a file, which is left alone when it fails, or to
// stdout when no file is named.
func toFile(stdout io.Writer, file string, write func(io.Writer) error) error {
	if file == "" {
		return write(stdout)
	}
	var b bytes.Buffer
	if err := write(&b); err != nil {
		return err
	}
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write the topology: %w", err)
	}
	return nil
}
