package lifecycle

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// What could not be asked is not known to be dead: a recover that had no descriptor left detached the volumes of living containers.
func TestOnlyWhatIsKnownToBeDeadIs(t *testing.T) {
	iso := &Isolator{boot: "b"}
	p, err := iso.identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	_, failed := iso.identify(p.PID)
	alive := iso.alive(p)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if failed == nil || !alive {
		t.Errorf("without a descriptor: %v, alive %v", failed, alive)
	}
	if other := (&process{PID: p.PID, Inode: p.Inode + 1, Boot: "b"}); iso.alive(other) {
		t.Error("another process of that pid")
	}
	if iso.alive(&process{PID: 1 << 30, Boot: "b"}) || iso.alive(&process{PID: p.PID, Inode: p.Inode, Boot: "c"}) || iso.alive(nil) {
		t.Error("no process, of another boot, none")
	}
}
