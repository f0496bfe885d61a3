package node

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/kata-qat/kata-qat/internal/api"
)

// handover is how often a port is tried that the other daemon is about to give up.
const handover = 10 * time.Millisecond

// standBy returns when no other daemon of the node serves, or the context ends. During an update of a
// DaemonSet the new daemon waits so for the end of the old one, which it takes
// the place of in as long as its own start takes; without it the node would be
// without a daemon while a pod is scheduled and its images are looked for.
func standBy(ctx context.Context, runDir string, log *logrus.Entry) error {
	socket := filepath.Join(runDir, api.SocketName)
	for said := false; ctx.Err() == nil; said = true {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return nil // nobody serves; whatever else is wrong, api.Listen says
		}
		if !said {
			log.WithField("socket", socket).Info("another daemon serves: standing by")
		}
		if err := untilClosed(ctx, conn); err != nil {
			return fmt.Errorf("stand by for the daemon at %s: %w", socket, err)
		}
	}
	return nil
}

// untilClosed returns when the peer is gone, which never sends anything of its
// own accord.
func untilClosed(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	_, err := conn.Read(make([]byte, 1))
	if err == nil {
		return fmt.Errorf("it sent something that was not asked for")
	}
	return nil
}
