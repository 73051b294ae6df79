//go:build crash

package crash

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/tests/harness"
)

// A snapshot is all that a verb may change.
type snapshot struct {
	files   map[string]file     // of journal and ledger, and the local driver's volumes
	mounts  map[string]uint64   // unique ids of what is mounted in the container where volumes are, by mountpoint
	made    []string            // what was made there, by name and inode
	holders map[string][]string // what the plugin has mounted
	exact   uint64              // a hash of it, byte for byte
	kind    string              // it, without what differs from run to run
}

type file struct {
	mode     fs.FileMode
	uid, gid int
	data     string // or where a link leads
}

// ours reports whether a file is state: not the locks, and not the audit log's count of refusals, which is written whenever a request fails.
func ours(path string) bool {
	name := strings.TrimPrefix(filepath.Base(path), ".")
	return name != "lock" && !strings.HasPrefix(name, "refused+")
}

func (w *world) walk(f func(path string, d fs.DirEntry) error) {
	w.t.Helper()
	for _, dir := range []string{w.h.Journal(), w.h.Ledger(), w.h.Volumes()} {
		w.check(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || path == dir || !ours(path) {
				return err
			}
			return f(path, d)
		}))
	}
}

func (w *world) capture() *snapshot {
	w.t.Helper()
	s := &snapshot{files: map[string]file{}, mounts: map[string]uint64{}, holders: w.p.Holders()}
	w.walk(func(path string, d fs.DirEntry) error {
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		f := file{mode: info.Mode(), uid: int(st.Uid), gid: int(st.Gid)}
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			f.data = string(data)
		case info.Mode()&fs.ModeSymlink != 0:
			if f.data, err = os.Readlink(path); err != nil {
				return err
			}
		}
		s.files[path] = f
		return nil
	})
	inside := w.h.ReadFile("/proc/" + w.c.PIDString() + "/mountinfo")
	for line := range strings.Lines(inside) {
		if at := strings.Fields(line)[4]; strings.HasPrefix(at, "/srv") || strings.HasPrefix(at, "/tmp") {
			var x unix.Statx_t
			w.check(unix.Statx(unix.AT_FDCWD, w.c.Path(at), 0, unix.STATX_MNT_ID_UNIQUE, &x))
			s.mounts[at] = x.Mnt_id
		}
	}
	for _, path := range w.made() {
		if !slices.Contains(w.root, path) {
			var st unix.Stat_t
			w.check(unix.Lstat(strings.TrimPrefix(path, "made "), &st))
			s.made = append(s.made, fmt.Sprint(path, " ", st.Ino))
		}
	}
	var text strings.Builder
	for _, path := range slices.Sorted(maps.Keys(s.files)) {
		f := s.files[path]
		fmt.Fprintf(&text, "%s %v %d %d\n%s\n", path, f.mode, f.uid, f.gid, f.data)
	}
	fmt.Fprintf(&text, "%v\n%v\n%v\n", s.made, s.mounts, s.holders)
	var lines []string
	for _, line := range w.h.Mountinfo() {
		if strings.Contains(line, harness.Root+"/") { // what others mount meanwhile is theirs
			lines = append(lines, strings.Join(strings.Fields(line)[3:6], " "))
		}
	}
	for line := range strings.Lines(inside) {
		lines = append(lines, "in c: "+strings.Join(strings.Fields(line)[3:6], " "))
	}
	slices.Sort(lines)
	text.WriteString(strings.Join(lines, "\n"))
	sum := fnv.New64a()
	sum.Write([]byte(text.String()))
	s.exact = sum.Sum64()
	s.kind = anonymous(text.String())
	return s
}

// differs matches what differs from run to run: heads of records (checksums and lengths), times, numbers of temporary files, ids, and all other numbers of
// more than two digits: of mounts, namespaces, processes, inodes.
var differs = regexp.MustCompile(`bindgate-record [^\n]*|\d{4}-\d\d-\d\dT[0-9:.]+Z|\.rec\d+|[0-9a-f]{64}|\d{3,}`)

// anonymous gives each of them a number by the order in which they come, so that what was the same is the same still.
func anonymous(text string) string {
	seen := map[string]string{}
	return differs.ReplaceAllStringFunc(text, func(s string) string {
		switch {
		case strings.HasPrefix(s, "bindgate-record "):
			if strings.Contains(s, "fnv1a=") {
				return "head"
			}
			return "part of a head"
		case strings.HasPrefix(s, ".rec"):
			return ".rec*"
		case strings.HasSuffix(s, "Z"):
			return "time"
		case seen[s] == "":
			seen[s] = fmt.Sprintf("#%d", len(seen))
		}
		return seen[s]
	})
}

// restore brings the world back to where the verb is called: by writing the files as they were, if nothing else has changed but what the plugin has; else from
// the beginning.
func (s *sweep) restore() {
	s.t.Helper()
	now, want := s.capture(), s.start
	if !maps.Equal(now.mounts, want.mounts) || !slices.Equal(now.made, want.made) || s.d != s.startD {
		s.wipe()
		s.begin()
		return
	}
	for path, f := range now.files {
		if f != want.files[path] {
			s.check(os.RemoveAll(path))
		}
	}
	for _, path := range slices.Sorted(maps.Keys(want.files)) {
		f := want.files[path]
		if _, err := os.Lstat(path); err == nil {
			continue
		}
		switch {
		case f.mode.IsDir():
			s.check(errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, f.mode)))
		case f.mode.IsRegular():
			s.check(os.WriteFile(path, []byte(f.data), f.mode))
		default:
			s.check(os.Symlink(f.data, path))
		}
		s.check(os.Lchown(path, f.uid, f.gid))
	}
	if !maps.EqualFunc(now.holders, want.holders, slices.Equal) {
		s.check(s.p.Set(want.holders))
	}
	if s.start = s.capture(); s.start.kind != want.kind {
		s.t.Fatalf("what was restored is not what it was:\n%s\n\nbut\n%s", want.kind, s.start.kind)
	}
}

// wipe takes everything away.
func (w *world) wipe() {
	w.t.Helper()
	w.walk(func(path string, d fs.DirEntry) error {
		if filepath.Dir(path) == w.h.Journal() && d.IsDir() {
			return nil
		}
		if err := os.RemoveAll(path); err != nil || !d.IsDir() {
			return err
		}
		return fs.SkipDir
	})
	mounts := slices.Sorted(maps.Keys(w.capture().mounts))
	done, ended := make(chan error, 1), make(chan struct{})
	var inside func()
	inside = func() {
		runtime.LockOSThread() // for good: the thread stays in the container, and ends
		if unix.Gettid() == os.Getpid() {
			go inside() // the first thread does not end, and procfs shows its mounts as ours
			<-ended
			runtime.UnlockOSThread()
			return
		}
		fd, err := unix.Open("/proc/"+w.c.PIDString()+"/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		err = errors.Join(err, unix.Unshare(unix.CLONE_FS), unix.Setns(fd, unix.CLONE_NEWNS), unix.Close(fd))
		for _, at := range slices.Backward(mounts) {
			if err == nil {
				err = unix.Unmount(at, unix.MNT_DETACH)
			}
		}
		done <- err
		close(ended)
	}
	go inside()
	w.check(<-done)
	for _, path := range slices.Backward(w.made()) {
		if !slices.Contains(w.root, path) {
			w.check(os.RemoveAll(strings.TrimPrefix(path, "made ")))
		}
	}
	w.check(w.p.Set(nil))
	w.strange = nil
	w.endD()
}
