package lifecycle

import (
	"math"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// A mountpoint behind a folder that is closed to us is found in the list of mounts: among those that are newer than one, and, if it is older, in all of it. The thread has a mount namespace of its own, and ends with the test.
func TestMountBehindAClosedFolder(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test needs root; run: make test")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		dir := t.TempDir()
		closed := filepath.Join(dir, "closed")
		must := func(err error) {
			if err != nil {
				t.Error(err)
				runtime.Goexit()
			}
		}
		must(os.MkdirAll(closed+"/mount", 0o755))
		must(os.MkdirAll(closed+"/none", 0o755))
		must(unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS))
		must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		before := newestMount()
		must(unix.Mount("tmpfs", closed+"/mount", "tmpfs", 0, ""))
		after := newestMount()
		if before == math.MaxUint64 || after <= before || mountpointOf(after) != closed+"/mount" {
			t.Errorf("the newest mount was %d, then %d at %q", before, after, mountpointOf(after))
		}
		must(os.Chmod(closed, 0))
		must(unix.Setfsuid(12345)) // who may not search the folder
		if _, err := os.Stat(closed + "/mount"); !os.IsPermission(err) {
			t.Errorf("the folder is not closed: %v", err)
		}
		for _, newest := range []uint64{before, after, math.MaxUint64, 0} {
			if !isMountSince(closed+"/mount", newest) || isMountSince(closed+"/none", newest) {
				t.Errorf("newer than %d: %v, %v", newest, isMountSince(closed+"/mount", newest), isMountSince(closed+"/none", newest))
			}
		}
		unix.Setfsuid(0)
		unix.Unmount(closed+"/mount", 0)
		unix.Chmod(closed, 0o755)
	}()
	<-done
}
