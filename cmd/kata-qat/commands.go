//go:build !entry

package main

import (
	"github.com/urfave/cli/v2"

	"github.com/kata-qat/kata-qat/internal/containers"
)

// allCommands are all that there are.
func allCommands() []*cli.Command {
	return []*cli.Command{
		dumpCommand(),
		devicesCommand(),
		countersCommand(),
		verifyCommand(),
		topologyCommand(),
		doctorCommand(),
		kernelConfigCommand(),
		nriPluginCommand(),
		provisionCommand(),
		completionCommand(),
		versionCommand(),
		waitCommand(),
	}
}

// provisioners are those below provision, but for that of the host.
func provisioners() []*cli.Command {
	return []*cli.Command{provisionGuestCommand(), provisionRuntimeCommand(), provisionNodeCommand(), provisionClusterCommand()}
}

// elsewhere does nothing in a program that has every command.
func elsewhere([]string) error { return nil }

// nodeOf says where the containers are.
func nodeOf(c *cli.Context) containers.Node {
	return containers.Node{
		Root: c.String("host-root"), Address: c.String("containerd"),
		Namespace: c.String("containerd-namespace"), State: c.String("state"),
	}
}
