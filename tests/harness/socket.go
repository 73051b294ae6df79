package harness

import (
	"net"
	"os"
	"os/exec"
)

// ServeHelper does what systemd does for bindgate-helper.socket (Accept=yes) until the test ends: root listens where the unit does, and starts the helper
// for each connection, with it as descriptors 0 and 1.
func (h *Host) ServeHelper() {
	h.t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.Path("run/bindgate/helper.sock"), Net: "unix"})
	h.check(err)
	h.check(os.Chown(h.Path("run/bindgate/helper.sock"), 0, PolicyGID))
	h.check(os.Chmod(h.Path("run/bindgate/helper.sock"), 0o660))
	done := make(chan bool)
	go func() {
		defer close(done)
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			f, err := c.File()
			c.Close()
			if err != nil {
				return
			}
			cmd := exec.Command(h.HelperPath())
			cmd.Env = []string{"PATH=/usr/bin", "INVOCATION_ID=0"} // as systemd sets some
			cmd.Stdin, cmd.Stdout, cmd.Stderr = f, f, os.Stderr
			cmd.Run()
			f.Close()
		}
	}()
	h.t.Cleanup(func() { l.Close(); <-done })
}
