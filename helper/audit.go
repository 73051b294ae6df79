package main

import (
	"fmt"
	"os"
	"path"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/wire"
	"golang.org/x/sys/unix"
)

const refusalBurst, refusalWindow = 20, 10 // so many failures of a uid are written down in so many seconds; the next line counts what was left out (T32)

// openAudit opens the audit log, which has one JSON line of intent before anything becomes visible, one of outcome after, and one per refusal: an append-only file, and syslog where there is one.
func (s *session) openAudit() {
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
	s.log = fd
	s.callerExe, _ = os.Readlink(fmt.Sprintf("/proc/%d/exe", s.callerPID))
	s.syslog, _ = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	unix.Connect(s.syslog, &unix.SockaddrUnix{Name: "/dev/log"}) // where there is none, what is written to it goes nowhere
}

// intent writes down what is about to be done. What cannot be written down is not attached; a detach goes on.
func (s *session) intent(r *wire.Request, mounts []state.LedgerMount) error {
	var list []string
	for _, m := range mounts {
		list = append(list, object("target", m.Prefix+m.Path, "source", m.Source, "mode", m.Mode, "mount_id", m.ID))
	}
	return s.write("intent", r, list)
}

// outcome writes down how a request ended; that it cannot is nobody's error any more. Questions that were answered, also with "no such volume", are left out: they would use up what refusals have room for.
func (s *session) outcome(r *wire.Request, blocks []wire.Fields, err error) {
	if s.log < 0 || r != nil && (r.Op == wire.OpQuery || r.Op == wire.OpListVolumes) && (err == nil || wire.AsError(err).Code == wire.VolumeNotFound) {
		return
	}
	var list []string
	for _, b := range blocks {
		list = append(list, object("target", b.Get("target"), "container_path", b.Get("mount"), "mount_id", b.Get("id")))
	}
	if err == nil {
		s.write("done", r, list)
	} else if omitted, ok := s.admitFailure(); ok {
		e := wire.AsError(err)
		event := map[bool]string{true: "refused", false: "failed"}[e.Code.Exit() == wire.Denied.Exit()]
		s.write(event, r, nil, "code", e.Code, "stage", e.Stage, "reason", e.Message, "omitted", omitted)
	}
}

// admitFailure says whether a failure of this caller is to be written down, and how many were not since the last one that was.
func (s *session) admitFailure() (omitted int, ok bool) {
	name := fmt.Sprint("refused+", s.callerUID)
	lock, _ := s.ledger.LockName(name) // one that cannot be had, or a record that cannot be read, is no reason to keep silent
	defer lock.Unlock()
	now, start, n := time.Now().Unix(), int64(0), 0
	r, _ := s.ledger.Read(name)
	fmt.Sscan(string(r.Payload), &start, &n)
	if now < start || now >= start+refusalWindow {
		omitted, start, n = max(n, refusalBurst)-refusalBurst, now, 0
	}
	s.ledger.Write(name, fmt.Appendf(nil, "%d %d", start, n+1))
	return omitted, n < refusalBurst
}

// write appends one line to the audit log, in one write, so that lines of several writers do not mix (O_APPEND).
func (s *session) write(event string, r *wire.Request, mounts []string, more ...any) error {
	pairs := []any{"time", time.Now().UTC().Format(time.RFC3339Nano), "boot", s.host.BootID, "event", event, "uid", s.callerUID, "gid", s.callerGID, "pid", s.callerPID, "exe", s.callerExe}
	if r != nil {
		pairs = append(pairs, "op", r.Op, "owner", r.Owner, "container", r.Container, "volume", r.Name, "forget", r.Forget, "target_pid", r.PID, "mount_namespace", s.targetNS.Load())
	}
	line := object(append(pairs, more...)...) + "\n"
	if mounts != nil {
		line = strings.TrimSuffix(line, "}\n") + `,"mounts":[` + strings.Join(mounts, ",") + "]}\n"
	}
	unix.Write(s.syslog, []byte("<85>bindgate-helper: "+line)) // authpriv.notice
	n, err := unix.Write(s.log, []byte(line))
	if err == nil && n < len(line) {
		unix.Write(s.log, []byte("\n")) // where there is room again, the next line is its own
		err = unix.ENOSPC
	}
	return err
}

// object returns a JSON object of strings, without those that are empty or "0".
func object(pairs ...any) string {
	var fields []string
	for _, f := range wire.Pairs(pairs...) {
		if f.Value != "" && f.Value != "0" || f.Key == "uid" || f.Key == "gid" {
			fields = append(fields, quote(f.Key)+":"+quote(f.Value))
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
