package main

import (
	"errors"
	"os/user"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/wire"
)

// The audit log has one JSON line of intent before anything becomes visible, one of outcome after, and one per refusal: an append-only file, and syslog where there is one.
type audit struct {
	s      *session
	file   int
	syslog int    // connected datagram socket; -1: no syslog
	exe    string // of the caller
	ns     uint64 // mount namespace of the target, once it is known
}

// Refusals are written down at most refusalBurst times a refusalWindow for each uid; what was left out is counted in the next line (T32).
const (
	refusalBurst  = 20
	refusalWindow = 10 * time.Second
)

func openAudit(s *session) (*audit, error) {
	name := s.config.Audit.File
	dir, _, err := conf.OpenTrusted(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	if err := conf.RootOwned(dir, path.Dir(name)); err != nil {
		return nil, err
	}
	const flags = unix.O_WRONLY | unix.O_APPEND | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, path.Base(name), flags, 0)
	if errors.Is(err, unix.ENOENT) {
		if fd, err = unix.Openat(dir, path.Base(name), flags|unix.O_CREAT, 0o640); err == nil {
			if adm, err := user.LookupGroup("adm"); err == nil {
				gid, _ := strconv.Atoi(adm.Gid)
				unix.Fchown(fd, 0, gid)
			}
		}
	}
	if err != nil {
		return nil, wire.Errorf(wire.Config, "audit", "cannot open the audit log %s: %v", name, err)
	}
	a := &audit{s: s, file: fd, syslog: -1}
	if sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err == nil {
		if a.syslog = sock; unix.Connect(sock, &unix.SockaddrUnix{Name: "/dev/log"}) != nil {
			unix.Close(sock)
			a.syslog = -1
		}
	}
	a.exe = s.host.Exe(s.caller.pid)
	return a, nil
}

// intent writes down what is about to be attached. Its error has the code system: what cannot be written down is not done.
func (a *audit) intent(r *wire.Request, mounts []state.LedgerMount) error {
	l := a.line("intent", r)
	for i := range mounts {
		l.block("mounts", i, "target", mounts[i].Prefix+mounts[i].Path, "source", mounts[i].Source, "mode", mounts[i].Mode, "mount_id", strconv.FormatUint(mounts[i].ID, 10))
	}
	if err := a.write(l); err != nil {
		return wire.Errorf(wire.System, "audit", "cannot write the audit log %s, so nothing is attached: %v", a.s.config.Audit.File, err)
	}
	return nil
}

// outcome writes down how a request ended and returns its error. A failure to write is nobody's error any more. Questions that were answered are not written down.
func (a *audit) outcome(r *wire.Request, blocks []wire.Fields, err error) error {
	what := "done"
	if err != nil {
		what = "failed"
		if code := wire.AsError(err).Code; code.Exit() == wire.Denied.Exit() {
			what = "refused"
		}
	} else if r.Op == wire.OpQuery || r.Op == wire.OpListVolumes {
		return nil
	}
	l := a.line(what, r)
	if err != nil {
		left, ok := a.admitRefusal()
		if !ok {
			return err
		}
		e := wire.AsError(err)
		l.add("code", string(e.Code)).add("stage", e.Stage).add("reason", e.Message)
		if left > 0 {
			l.number("omitted", left)
		}
	}
	for i, b := range blocks {
		l.block("mounts", i, "target", b.Get("mount"), "mount_id", b.Get("id"))
	}
	a.write(l)
	return err
}

// admitRefusal says whether a refusal of this caller is to be written down, and how many were not since the last one that was.
func (a *audit) admitRefusal() (left int, ok bool) {
	name := "refused+" + strconv.FormatUint(uint64(a.s.caller.uid), 10)
	now, start, n := time.Now().Unix(), int64(0), 0
	if r, err := a.s.ledger.Read(name); err == nil {
		f := strings.Fields(string(r.Payload) + " 0 0 0")
		start, _ = strconv.ParseInt(f[0], 10, 64)
		n, _ = strconv.Atoi(f[1])
	}
	if now < start || now-start >= int64(refusalWindow/time.Second) {
		left, start, n = max(n-refusalBurst, 0), now, 0
	}
	n++
	a.s.ledger.Write(name, []byte(strconv.FormatInt(start, 10)+" "+strconv.Itoa(n)))
	return left, n <= refusalBurst
}

func (a *audit) line(what string, r *wire.Request) *line {
	l := &line{}
	c := a.s.caller
	l.add("time", time.Now().UTC().Format(time.RFC3339Nano)).add("boot", a.s.host.BootID).add("event", what)
	l.number("uid", int(c.uid)).number("gid", int(c.gid)).number("pid", c.pid).add("exe", a.exe)
	if r != nil {
		l.add("op", r.Op).add("owner", r.Owner).add("container", r.Container).add("volume", r.Name).number("target_pid", r.PID)
	}
	if a.ns != 0 {
		l.add("mount_namespace", strconv.FormatUint(a.ns, 10))
	}
	return l
}

func (a *audit) write(l *line) error {
	data := append(append(l.b, l.end...), '}', '\n')
	if a.syslog >= 0 {
		unix.Write(a.syslog, append([]byte("<85>bindgate-helper: "), data...)) // authpriv.notice
	}
	n, err := unix.Write(a.file, data) // one write, so that lines do not mix (O_APPEND)
	if err == nil && n < len(data) {
		err = unix.ENOSPC
	}
	return err
}

// A line is a JSON object in the making, of strings, numbers and one list of objects, which comes last. Everything but printable ASCII is escaped, so that nothing that a caller chose can begin a
// new line or speak to a terminal (T30).
type line struct {
	b   []byte
	end string
}

func (l *line) key(key string) {
	if len(l.b) == 0 {
		l.b = append(l.b, '{')
	} else {
		l.b = append(l.b, ',')
	}
	l.quote(key)
	l.b = append(l.b, ':')
}

func (l *line) add(key, value string) *line {
	if value != "" {
		l.key(key)
		l.quote(value)
	}
	return l
}

func (l *line) number(key string, n int) *line {
	if n != 0 {
		l.key(key)
		l.b = strconv.AppendInt(l.b, int64(n), 10)
	}
	return l
}

// block adds the object number i to the list key.
func (l *line) block(key string, i int, pairs ...string) {
	if i == 0 {
		l.key(key)
		l.b, l.end = append(l.b, '['), "]"
	} else {
		l.b = append(l.b, ',')
	}
	object := &line{}
	for p := 0; p < len(pairs); p += 2 {
		object.add(pairs[p], pairs[p+1])
	}
	l.b = append(append(l.b, object.b...), '}')
}

func (l *line) quote(s string) {
	const hex = "0123456789abcdef"
	l.b = append(l.b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			l.b = append(l.b, '\\', byte(r))
		case r >= 0x20 && r < 0x7f:
			l.b = append(l.b, byte(r))
		case r > 0xffff: // a surrogate pair
			r -= 0x10000
			for _, u := range [2]rune{0xd800 + r>>10, 0xdc00 + r&0x3ff} {
				l.b = append(l.b, '\\', 'u', hex[u>>12], hex[u>>8&15], hex[u>>4&15], hex[u&15])
			}
		default:
			l.b = append(l.b, '\\', 'u', hex[r>>12], hex[r>>8&15], hex[r>>4&15], hex[r&15])
		}
	}
	l.b = append(l.b, '"')
}
