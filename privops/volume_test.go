package privops

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/namespace"
)

// A volume that somebody else empties at the same time is removed or it is an error: never is it said to be gone while some of it is left under another name.
func TestRemoveThatIsCutShortIsAnError(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	v, gone, cut := &Volumes{FD: fd, Path: dir}, filepath.Join(dir, ".gone-v"), 0
	for round := 0; round < 50 || cut == 0 && round < 2000; round++ {
		if !v.Create("v", 0o755, uint32(os.Getuid()), uint32(os.Getgid())) {
			t.Fatal("there is a volume already")
		}
		held, err := os.OpenRoot(filepath.Join(dir, "v")) // as a container that was detached lazily has it
		if err != nil {
			t.Fatal(err)
		}
		for i := range 200 {
			if err := held.WriteFile(fmt.Sprint(i), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		begin, done := make(chan bool), make(chan bool)
		go func() {
			defer close(done)
			<-begin
			for i := range 200 {
				held.Remove(fmt.Sprint(199 - i))
			}
		}()
		close(begin)
		err = namespace.Try(func() { v.Remove("v") })
		<-done
		held.Close()
		_, left := os.Lstat(gone)
		if err != nil {
			cut++
		}
		if (err == nil) != os.IsNotExist(left) {
			t.Fatalf("it says %v, and of what is left: %v", err, left)
		}
		if err := namespace.Try(func() { v.Remove("v") }); (err == nil) != (left == nil) { // it goes on where it was cut short
			t.Fatalf("again: %v", err)
		}
	}
	if cut == 0 {
		t.Error("no removal was cut short")
	}
}
