package main

import (
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf16"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/wire"
)

// The audit log has one JSON line of intent before anything becomes visible, one of outcome after, and one per refusal: an append-only file, and syslog where there is one.
type audit struct {
	s            *session
	file, syslog int           // syslog: datagram socket, connected if there is one
	exe          string        // of the caller
	ns           atomic.Uint64 // mount namespace of the target, once it is known
}

// Failures are written down at most refusalBurst times a refusalWindow for each uid; what was left out is counted in the next line (T32).
const (
	refusalBurst  = 20
	refusalWindow = 10 // seconds
)

func openAudit(s *session) *audit {
	name := s.config.Audit.File
	dir, _, err := conf.OpenTrusted(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
	namespace.Pass(err)
	must(conf.RootOwned(dir, path.Dir(name)))
	const flags = unix.O_WRONLY | unix.O_APPEND | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, path.Base(name), flags, 0)
	if err == unix.ENOENT {
		fd, err = unix.Openat(dir, path.Base(name), flags|unix.O_CREAT, 0o640)
		if gid, ok := idOf("/etc/group", "adm"); err == nil && ok {
			unix.Fchown(fd, 0, int(gid))
		}
	}
	namespace.Check(err, wire.Config, "audit", "cannot open the audit log %s", name)
	st := must(conf.RootOwned(fd, name))
	namespace.DieIf(st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1, wire.Config, "audit", "cannot trust the audit log %s: it must be a regular file with link count 1", name)
	a := &audit{s: s, file: fd}
	a.exe, _ = os.Readlink("/proc/" + strconv.Itoa(s.caller.pid) + "/exe")
	a.syslog, _ = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	unix.Connect(a.syslog, &unix.SockaddrUnix{Name: "/dev/log"}) // where there is none, what is written to it goes nowhere
	return a
}

// intent writes down what is about to be done. What cannot be written down is not attached; a detach goes on.
func (a *audit) intent(r *wire.Request, mounts []state.LedgerMount) error {
	var list []string
	for _, m := range mounts {
		list = append(list, object("target", m.Prefix+m.Path, "source", m.Source, "mode", m.Mode, "mount_id", strconv.FormatUint(m.ID, 10)))
	}
	return a.write("intent", r, list)
}

// outcome writes down how a request ended. A failure to write is nobody's error any more. Questions that were answered are not written down, also when the answer is that there is no such volume: they would use up what refusals have room for.
func (a *audit) outcome(r *wire.Request, blocks []wire.Fields, err error) {
	if r != nil && (r.Op == wire.OpQuery || r.Op == wire.OpListVolumes) && (err == nil || wire.AsError(err).Code == wire.VolumeNotFound) {
		return
	}
	var list []string
	for _, b := range blocks {
		list = append(list, object("target", b.Get("target"), "container_path", b.Get("mount"), "mount_id", b.Get("id")))
	}
	if err == nil {
		a.write("done", r, list)
	} else {
		e, event := wire.AsError(err), map[bool]string{true: "refused", false: "failed"}[wire.AsError(err).Code.Exit() == wire.Denied.Exit()]
		if omitted, ok := a.admitFailure(); ok {
			a.write(event, r, nil, "code", string(e.Code), "stage", e.Stage, "reason", e.Message, "omitted", omitted)
		}
	}
}

// admitFailure says whether a failure of this caller is to be written down, and how many were not since the last one that was.
func (a *audit) admitFailure() (omitted string, ok bool) {
	name := "refused+" + strconv.FormatUint(uint64(a.s.caller.uid), 10)
	if lock, err := a.s.ledger.LockName(name); err == nil {
		defer lock.Unlock()
	}
	now, start, n := time.Now().Unix(), int64(0), 0
	if r, err := a.s.ledger.Read(name); err == nil {
		fmt.Sscan(string(r.Payload), &start, &n)
	}
	if now < start || now >= start+refusalWindow {
		if n > refusalBurst {
			omitted = strconv.Itoa(n - refusalBurst)
		}
		start, n = now, 0
	}
	a.s.ledger.Write(name, []byte(strconv.FormatInt(start, 10)+" "+strconv.Itoa(n+1)))
	return omitted, n < refusalBurst
}

// write appends one line, in one write, so that lines of several writers do not mix (O_APPEND).
func (a *audit) write(event string, r *wire.Request, mounts []string, more ...string) error {
	c, num := a.s.caller, func(n uint64) string { return strconv.FormatUint(n, 10) }
	pairs := []string{"time", time.Now().UTC().Format(time.RFC3339Nano), "boot", a.s.host.BootID, "event", event, "uid", num(uint64(c.uid)), "gid", num(uint64(c.gid)), "pid", num(uint64(c.pid)), "exe", a.exe}
	if r != nil {
		pairs = append(pairs, "op", r.Op, "owner", r.Owner, "container", r.Container, "volume", r.Name, "forget", map[bool]string{true: "1"}[r.Forget], "target_pid", num(uint64(r.PID)), "mount_namespace", num(a.ns.Load()))
	}
	line := object(append(pairs, more...)...)
	if mounts != nil {
		line = line[:len(line)-1] + `,"mounts":[` + strings.Join(mounts, ",") + "]}"
	}
	line += "\n"
	unix.Write(a.syslog, []byte("<85>bindgate-helper: "+line)) // authpriv.notice
	n, err := unix.Write(a.file, []byte(line))
	if err == nil && n < len(line) {
		unix.Write(a.file, []byte("\n")) // where there is room again, the next line is its own
		err = unix.ENOSPC
	}
	return err
}

// object returns a JSON object of strings, without those that are empty or "0".
func object(pairs ...string) string {
	var fields []string
	for i := 0; i < len(pairs); i += 2 {
		if v := pairs[i+1]; v != "" && v != "0" || pairs[i] == "uid" || pairs[i] == "gid" {
			fields = append(fields, quote(pairs[i])+":"+quote(v))
		}
	}
	return "{" + strings.Join(fields, ",") + "}"
}

// quote returns a JSON string (RFC 8259) in which everything but printable ASCII is escaped, so that nothing that a caller chose can begin a new line or speak to a terminal (T30).
func quote(s string) string {
	b := []byte{'"'}
	for _, u := range utf16.Encode([]rune(s)) {
		if u < 0x20 || u >= 0x7f || u == '"' || u == '\\' {
			b = fmt.Appendf(b, `\u%04x`, u)
		} else {
			b = append(b, byte(u))
		}
	}
	return string(append(b, '"'))
}
