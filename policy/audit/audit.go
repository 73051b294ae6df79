// Package audit reads the helper's audit log: Open it as root, give up root, then Read what is there and Wait for more.
//
// A line of the log is one JSON object of strings, written in one piece by a helper that may be killed or run out of disk. What is no such line is torn: it is
// counted, and nothing else. While the log is followed it may be renamed, removed and made anew, or emptied.
package audit

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

// Events of the log.
const (
	Intent  = "intent"  // about to be done
	Done    = "done"    // a change that was made
	Failed  = "failed"  // a request that could not be done
	Refused = "refused" // a request that was not allowed: the codes of exit status 77
)

// An Entry is one line. What it does not say is "".
type Entry struct {
	Time           time.Time `json:"time"`
	Boot           string    `json:"boot"`
	Event          string    `json:"event"`
	UID            string    `json:"uid"` // of the caller, as are gid, pid and exe
	GID            string    `json:"gid"`
	PID            string    `json:"pid"`
	Exe            string    `json:"exe"`
	Op             string    `json:"op"`
	Owner          string    `json:"owner"`
	Container      string    `json:"container"`
	Volume         string    `json:"volume"` // the name of a local volume
	Forget         string    `json:"forget"` // 1: the container was forgotten without asking its drivers
	TargetPID      string    `json:"target_pid"`
	MountNamespace string    `json:"mount_namespace"`
	Code           string    `json:"code"`
	Stage          string    `json:"stage"`
	Reason         string    `json:"reason"`
	Omitted        string    `json:"omitted"` // failures of this caller that were not written down before this one
	Mounts         []Mount   `json:"mounts"`

	Raw json.RawMessage `json:"-"` // the line
}

// A Mount is one of a request's. An intent says target, source, mode and id; an outcome what the helper's reply says.
type Mount struct {
	Target        string `json:"target"`
	Source        string `json:"source"`
	Mode          string `json:"mode"`
	ContainerPath string `json:"container_path"`
	MountID       string `json:"mount_id"`
}

// maxLine is longer than any line of 1,024 mounts that a helper of ours writes. What is longer is torn.
const maxLine = 64 << 20

// A Log is open for reading.
type Log struct {
	Torn int // lines that could not be read

	path   string
	folder fs.FileInfo // that it lies in
	events *os.File    // inotify; nil: not followed
	tails  []*tail     // the one that has the name, and before it the one that had it: a helper that has it open still may write to it
}

// Stream reads a log that comes from elsewhere, such as zcat.
func Stream(r io.Reader) *Log { return &Log{path: "-", tails: []*tail{{r: r}}} }

// Open opens a log, and for follow watches the folder that it lies in, so that afterwards neither takes privilege. A log that is not there is empty.
//
// Errors: denied for who may not read it; no_input if its folder is not there, or if it is no regular file.
func Open(path string, follow bool) (*Log, error) {
	l := &Log{path: path}
	var err error
	if l.folder, err = os.Stat(filepath.Dir(path)); err == nil && follow {
		err = l.watch()
	}
	if err == nil {
		err = l.reopen()
	}
	if err != nil {
		l.Close()
		return nil, l.failure(err)
	}
	return l, nil
}

func (l *Log) failure(err error) error {
	switch e := (*wire.Error)(nil); {
	case errors.As(err, &e):
		return err
	case errors.Is(err, fs.ErrPermission):
		return wire.Errorf(wire.Denied, "audit", "cannot read the audit log %s: %v", l.path, unix.EACCES).
			WithHint("it is for root: sudo bindgate audit")
	case errors.Is(err, fs.ErrNotExist):
		return wire.Errorf(wire.NoInput, "audit", "cannot read the audit log %s: its folder is not there", l.path)
	}
	return wire.Errorf(wire.System, "audit", "cannot read the audit log %s: %v", l.path, err).Because(err)
}

// Group returns the group that may read the log: that of the file, or of the next one, which the helper makes root:adm. ok is false if that is root's.
func (l *Log) Group(adm int) (gid int, ok bool) {
	gid = adm
	if n := len(l.tails); n > 0 {
		var st unix.Stat_t
		if f, is := l.tails[n-1].r.(*os.File); is && unix.Fstat(int(f.Fd()), &st) == nil && st.Gid != 0 {
			gid = int(st.Gid)
		}
	}
	return gid, gid > 0
}

// Close closes it.
func (l *Log) Close() {
	for _, t := range l.tails {
		t.close()
	}
	l.events.Close()
}

// watch asks for word of whatever happens to the files of the folder: one watch, which a rename of the log does not take along. That the folder itself is
// removed is heard of in the one above it, since a file that we have open keeps the other watch quiet.
func (l *Log) watch() error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	l.events = os.NewFile(uintptr(fd), "inotify")
	dir := filepath.Dir(l.path)
	_, err = unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_ATTRIB|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR)
	_, err2 := unix.InotifyAddWatch(fd, filepath.Dir(dir), unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_ONLYDIR)
	return cmp.Or(err, err2)
}

// reopen opens the file that has the log's name, if that is another than before.
func (l *Log) reopen() error {
	fd, err := unix.Open(l.path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT { // in between
		return nil
	} else if err != nil {
		return err
	}
	t := &tail{}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return cmp.Or(err, error(wire.Errorf(wire.NoInput, "audit", "cannot read the audit log %s: it is no regular file", l.path)))
	}
	t.r, t.inode = os.NewFile(uintptr(fd), l.path), st.Ino
	if n := len(l.tails); n > 0 && l.tails[n-1].inode == t.inode {
		t.close()
		return nil
	}
	if len(l.tails) > 1 {
		l.tails[0].close()
		l.tails = l.tails[1:]
	}
	l.tails = append(l.tails, t)
	return nil
}

// Read gives each what is there and was not read yet, in order. The end of a line may be still to come.
func (l *Log) Read(each func(*Entry) error) error {
	for _, t := range l.tails {
		if err := t.read(l, each); err != nil {
			return l.failure(err)
		}
	}
	return nil
}

// Wait returns when there may be more to read; with ctx, an error.
func (l *Log) Wait(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { l.events.SetReadDeadline(time.Unix(1, 0)) })()
	var buf [64 << 10]byte
	_, err := l.events.Read(buf[:]) // whatever it was: what there is to read is looked at
	if ctx.Err() != nil {
		return ctx.Err()
	} else if err != nil {
		return l.failure(err)
	}
	if folder, err := os.Stat(filepath.Dir(l.path)); err != nil || !os.SameFile(folder, l.folder) {
		return wire.Errorf(wire.System, "audit", "cannot follow the audit log %s any longer: its folder was moved or removed", l.path)
	}
	err = l.reopen()
	if info, e := os.Lstat(l.path); errors.Is(err, fs.ErrPermission) && e == nil {
		if info.Size() == 0 {
			return nil // the helper makes it, then gives it to its group, then writes
		}
		err = l.reopen()
	}
	if errors.Is(err, fs.ErrPermission) {
		return wire.Errorf(wire.Denied, "audit", "cannot go on with the new audit log %s: the policy user may not read it, and root was given up", l.path).
			WithHint("call bindgate audit again; a log that is rotated should stay root:adm 0640")
	} else if err != nil {
		return l.failure(err)
	}
	return nil
}

// A tail is one file, and how far it was read.
type tail struct {
	r       io.Reader
	inode   uint64
	at      int64
	partial []byte // of the last line
	skip    bool   // the rest of a line that is too long
}

func (t *tail) close() {
	if f, ok := t.r.(*os.File); ok && f != os.Stdin {
		f.Close()
	}
}

func (t *tail) read(l *Log, each func(*Entry) error) error {
	if f, ok := t.r.(*os.File); ok && t.inode != 0 {
		if info, err := f.Stat(); err != nil {
			return err
		} else if info.Size() < t.at { // it was emptied
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return err
			}
			t.at, t.partial, t.skip = 0, nil, false
		}
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := t.r.Read(buf)
		t.at += int64(n)
		for data := buf[:n]; len(data) > 0; {
			line, rest, whole := bytes.Cut(data, []byte("\n"))
			data = rest
			if t.partial = append(t.partial, line...); t.skip || len(t.partial) > maxLine {
				t.partial, t.skip = nil, true
			}
			if !whole {
				continue
			}
			line, t.partial = t.partial, nil
			if e, ok := parse(line); ok && !t.skip {
				if err := each(e); err != nil {
					return err
				}
			} else if len(line) > 0 || t.skip {
				l.Torn++
			}
			t.skip = false
		}
		if err == io.EOF {
			if _, stream := t.r.(*os.File); (!stream || t.inode == 0) && len(t.partial) > 0 {
				l.Torn++ // nothing more will come
				t.partial = nil
			}
			return nil
		} else if err != nil {
			return err
		}
	}
}

// parse reads one line. What has no time or event is none of ours.
func parse(line []byte) (*Entry, bool) {
	e := &Entry{Raw: json.RawMessage(line)}
	if err := json.Unmarshal(line, e); err != nil || e.Time.IsZero() || e.Event == "" {
		return nil, false
	}
	return e, true
}
