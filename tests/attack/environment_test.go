package attack

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// T02: what an environment names is not even opened. Package initialisation comes before main can refuse, and package toml asks there for the local time zone: as root, a file of the caller's choice was
// opened and read, which for a device or a file of tracefs changes something.
func TestT02_EnvironmentOpensNothing(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		bait := h.Path("tmp", "zone")
		callerCheck(t, os.WriteFile(bait, []byte("TZif"), 0o600)) // root's alone
		events, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
		callerCheck(t, err)
		defer unix.Close(events)
		_, err = unix.InotifyAddWatch(events, bait, unix.IN_OPEN)
		callerCheck(t, err)
		opened := func() bool {
			n, err := unix.Read(events, make([]byte, 4096))
			return err == nil && n > 0
		}
		naive := h.Command(harness.User{}, h.Bindgate(), "--version") // the same packages, and nothing that comes before them
		naive.Env = []string{"TZ=" + bait}
		callerRun(h, naive, nil)
		if !opened() {
			t.Fatal("the naive program did not open the file that TZ names")
		}
		for _, env := range [][]string{{"TZ=" + bait}, {"TZ=:" + bait}, {"TZ=x", "ZONEINFO=" + bait}, {"LOCALDOMAIN=x", "TZ=" + bait}} {
			callerRefused(t, callerRun(h, callerCommand(t, h, callerPlan{Env: env}), callerCreate("v")), wire.Usage)
			root := h.Command(harness.User{}, h.HelperPath()) // as systemd starts it
			root.Env = env
			callerSucceeded(t, callerRun(h, root, boundary.Encode(&wire.Request{Op: wire.OpListVolumes})))
			if opened() {
				t.Errorf("%v: the file was opened", env)
			}
		}
	})
}
