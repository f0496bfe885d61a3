//go:build !entry

package main

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/kata-qat/kata-qat/internal/node"
)

func nriPluginCommand() *cli.Command {
	return &cli.Command{
		Name:  "nri-plugin",
		Usage: "run the node daemon: give containers of Kata pods their QAT virtual functions",
		Description: `Connects to the container runtime over NRI and, whenever a container of a Kata
pod is created, injects the VFIO nodes of the virtual functions that the
container holds, their configuration files, the memory limit and the variables
that go with them. Who holds what is learnt from the container's own spec, from
kubelet, or (standalone = true) from the pod's annotations.

It runs until it is told to stop and dials again when the runtime restarts. It
must run as root; deploy/systemd/kata-qat.service starts it at boot. SIGHUP has it
read the devices again.

Examples:
   kata-qat nri-plugin
   kata-qat --config ./config.toml nri-plugin --log-format json
   kata-qat --host-root /host nri-plugin --nri-socket /host/var/run/nri/nri.sock`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "nri-socket", Usage: "the runtime's NRI `SOCKET`, as this process sees it; the default is nri.socket of the configuration"},
			&cli.BoolFlag{Name: "standby", Usage: "while another daemon serves this node, wait, and take its place when it ends"},
			&cli.StringFlag{Name: "metrics-listen", Usage: "`ADDRESS` to serve metrics at, for one that is another on each node; the default is metrics.listen of the configuration"},
			&cli.StringFlag{Name: "log-format", Value: "text", Usage: "`FORMAT` of the log: text or json"},
		},
		Action: func(c *cli.Context) error {
			oneThread()
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			if s := c.String("nri-socket"); s != "" {
				cfg.NRI.Socket = s
			}
			if a := c.String("metrics-listen"); a != "" {
				cfg.Metrics.Listen = a
			}
			if err := cfg.Metrics.Check(); err != nil {
				return err
			}
			log, done, err := node.NewLogger(os.Stderr, c.String("log-level"), c.String("log-format"))
			if err != nil {
				return err
			}
			defer done.Close()
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return node.Run(ctx, node.Options{Config: cfg, Root: c.String("host-root"), Standby: c.Bool("standby"), Log: log})
		},
	}
}

// oneThread has the daemon's goroutines share one thread. A pod waits for a few
// short answers that pass from goroutine to goroutine; waking another processor
// for each step costs more than the steps (docs/performance.md). GOMAXPROCS in
// the environment says otherwise.
func oneThread() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
}
