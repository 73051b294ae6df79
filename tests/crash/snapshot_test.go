//go:build crash

package crash

import (
	"cmp"
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

	records "github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
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
	var files, links []string
	for _, path := range slices.Sorted(maps.Keys(s.files)) {
		f := s.files[path]
		text := fmt.Sprintf("%s %v %d %d\n%s\n", path, f.mode, f.uid, f.gid, f.data)
		if f.mode&fs.ModeSymlink != 0 {
			links = append(links, text)
		} else {
			files = append(files, text)
		}
	}
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
	rest := fmt.Sprintf("%v\n%v\n%v\n%s\n", s.made, s.mounts, s.holders, strings.Join(lines, "\n"))
	sum := fnv.New64a()
	sum.Write([]byte(strings.Join(files, "") + rest + strings.Join(links, "")))
	s.exact = sum.Sum64()
	s.kind = kind(files, rest, links)
	return s
}

// differs matches what differs from run to run: heads of records (checksums and lengths), times, numbers of temporary files, ids, and all other numbers of
// more than one digit: of mounts, namespaces, processes, inodes.
var differs = regexp.MustCompile(`bindgate-record [^\n]*|\d{4}-\d\d-\d\dT[0-9:.]+Z|\.rec\d+|[0-9a-f]{64}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|pid"?[=:]\d+|\d{3,}`)

// kind gives each of them a number by the order in which they come, so that what was the same is the same still. The order is that of what is without them. A
// link of the ledger has nothing but such in it: it comes last, when records and folders have given their numbers to what it names.
func kind(files []string, rest string, links []string) string {
	seen, last := map[string]string{}, false
	name := func(s string) string {
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
		case seen[s] == "" && last:
			return "#"
		case seen[s] == "":
			seen[s] = fmt.Sprintf("#%d", len(seen))
		}
		return seen[s]
	}
	slices.SortStableFunc(files, func(a, b string) int {
		return strings.Compare(differs.ReplaceAllLiteralString(a, "#"), differs.ReplaceAllLiteralString(b, "#"))
	})
	text := differs.ReplaceAllStringFunc(strings.Join(files, "")+rest, name)
	last = true
	for i := range links {
		links[i] = differs.ReplaceAllStringFunc(links[i], name)
	}
	slices.Sort(links)
	return text + strings.Join(links, "")
}

// restore brings the world back to where the verb is called, by writing the files as they were. What was attached is attached anew, by the helper alone, and
// the journal is told what differs: the ids of mounts, and who the second container is.
func (s *sweep) restore() {
	s.t.Helper()
	now, want := s.capture(), s.start
	attach := !maps.Equal(now.mounts, want.mounts) || !slices.Equal(now.made, want.made) || s.d != s.startD
	if attach {
		s.wipe()
		now = s.capture()
	}
	for path, f := range now.files {
		if f != want.files[path] {
			s.check(os.RemoveAll(path))
		}
	}
	for _, path := range slices.Sorted(maps.Keys(want.files)) {
		if _, err := os.Lstat(path); err != nil && !(attach && filepath.Dir(path) == s.h.Ledger()) {
			s.check(want.files[path].write(path))
		}
	}
	if !maps.EqualFunc(s.p.Holders(), want.holders, slices.Equal) {
		s.check(s.p.Set(want.holders))
	}
	if attach {
		s.attach()
	}
	if s.mark(); s.start.kind != want.kind {
		s.t.Fatalf("what was restored is not what it was:\n%s\n\nbut\n%s", want.kind, s.start.kind)
	}
}

func (f file) write(path string) (err error) {
	switch {
	case f.mode.IsDir():
		err = errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, f.mode))
	case f.mode.IsRegular():
		err = os.WriteFile(path, []byte(f.data), f.mode)
	default:
		err = os.Symlink(f.data, path)
	}
	return errors.Join(err, os.Lchown(path, f.uid, f.gid))
}

// numbers matches what differs, in a record of the journal.
var numbers = regexp.MustCompile(`"(mount_id|pid|start|inode)":\d+`)

// attach has the helper attach what it had attached where the verb is called.
func (s *sweep) attach() {
	s.t.Helper()
	renamed := map[string]string{}
	rename := func(key string, was, is any) {
		renamed[fmt.Sprintf("%q:%v", key, was)] = fmt.Sprintf("%q:%v", key, is)
	}
	for _, id := range []string{"d", "c"} { // in the order in which it was
		r := &wire.Request{Op: wire.OpAttach, Owner: "default", Container: id, PID: s.c.Pid()}
		var was []ledgerMount
		for _, m := range s.begun.ledger {
			if m.container == id {
				was = append(was, m)
				r.Mounts = append(r.Mounts, wire.Mount{Path: m.target, Source: m.source, Mode: m.mode})
			}
		}
		if was == nil {
			continue
		}
		if id == "d" {
			s.d = s.h.SharedRoot(harness.SharedRootOptions{ID: "d"})
			r.PID, r.Directory = s.d.Pid(), s.sandbox()
			before := s.begun.containers["d"].Process
			start, inode := s.identity(s.d)
			rename("pid", before.PID, r.PID)
			rename("start", before.Start, start)
			rename("inode", before.Inode, inode)
		}
		reply := s.h.Helper(r)
		for _, m := range was {
			i := slices.IndexFunc(reply.Blocks, func(b wire.Fields) bool { return b.Get("mount") == m.target })
			if i < 0 {
				s.t.Fatalf("the helper does not attach %s of %s again: %+v", m.target, id, reply)
			}
			rename("mount_id", m.id, reply.Blocks[i].Get("id"))
		}
		if id == "d" {
			s.d.Kill()
		}
	}
	dir := filepath.Join(s.h.Journal(), "containers")
	for path, f := range s.start.files {
		name, ok := strings.CutSuffix(filepath.Base(path), ".rec")
		if filepath.Dir(path) != dir || !ok {
			continue
		}
		head, payload, _ := strings.Cut(f.data, "\n")
		_, boot, _ := strings.Cut(head, "boot=")
		boot, _, _ = strings.Cut(boot, " ")
		store, err := records.Open(dir, boot, false)
		s.check(err)
		s.check(store.Write(name, []byte(numbers.ReplaceAllStringFunc(payload, func(was string) string { return cmp.Or(renamed[was], was) }))))
		s.check(errors.Join(store.Close(), os.Lchown(path, f.uid, f.gid)))
	}
}

// identity is by what else than its pid the journal knows a container's process.
func (w *world) identity(c *harness.Container) (start string, inode uint64) {
	_, after, _ := strings.Cut(w.h.ReadFile("/proc/"+c.PIDString()+"/stat"), ") ")
	fd, err := unix.PidfdOpen(c.Pid(), 0)
	w.check(err)
	defer unix.Close(fd)
	var st unix.Stat_t
	w.check(unix.Fstat(fd, &st))
	return strings.Fields(after)[19], st.Ino
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
