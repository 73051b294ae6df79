package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/bindgate/bindgate/wire"
)

// A Ledger is the helper's memory: for each mount namespace a record, named by its 64-bit id, written before an attach and not after (docs/adr/0005); for each container and folder made a symlink to it.
type Ledger struct{ *Store }

type LedgerRecord struct { // all that is attached in one mount namespace: its 64-bit id, its inode number, to open it by handle, and its mounts
	NS, Inode uint64
	Mounts    []LedgerMount
}

// A LedgerMount is one attached volume, or one that was about to be.
type LedgerMount struct {
	Whose
	wire.Recorded
	PID                    int    // of the container's process then, as the caller saw it
	Source, Mode, HostPath string // HostPath: where the host sees it, in a sandbox directory or a named rootfs; "" for others
}

// Whose an attachment is: a container of an owner, attached by uid.
type Whose struct {
	UID              uint32
	Owner, Container string
}

// Inherit leaves to m what was made for another mount in which its mountpoint lies, so that it goes with the last that needs it.
func (m *LedgerMount) Inherit(from *LedgerMount) {
	mine, its := strings.Split(m.Path, "/"), strings.Split(from.Path, "/")
	first, own := max(0, len(its)-from.Made), len(mine)-m.Made
	if m.Root == from.Root && (m.Target[0] == '/') == (from.Target[0] == '/') && first < own && own <= min(len(mine), len(its)) && slices.Equal(mine[:own], its[:own]) {
		m.Made, m.Base = len(mine)-first, from.Base
	}
}

// A folder that was made for a mount has an entry under its privops.RootID, since containers see it under several names. By its prefix the namespace in its text is to remove it, or nobody, or it is being removed.
const owned, shared, going = "at+", "sh+", "go+" // who removes the folder, or renames the entry to shared since another namespace mounts on it, holds the lock of owned

func (l *Ledger) Own(folder string, ns uint64) error { // notes that folder was made for a mount of ns
	for _, was := range []string{owned, shared, going} { // of another one, which had its inode number
		l.root.Remove(was + folder)
	}
	return l.sync("create", owned+folder, l.root.Symlink(recordName(ns), owned+folder))
}

// Share notes that something of ns is about to be mounted on folder, which the kernel would take away with it. Error: busy, if that is under way.
func (l *Ledger) Share(folder string, ns uint64) error {
	for _, was := range []string{owned, going} { // the second if a crash cut its removal off
		if now, err := l.root.Readlink(was + folder); err == nil && now != recordName(ns) {
			lock, err := l.Lock(NoWait, Key(owned+folder))
			defer lock.Unlock()
			if err != nil || l.root.Rename(was+folder, shared+folder) != nil { // or it is gone by now
				return wire.Errorf(wire.Busy, "ledger", "cannot attach: what was made there for another container is being removed").WithHint("try again")
			}
		}
	}
	return nil
}

// Disown calls remove for a folder that was made for ns, or has no entry: a crash came between. Errors: fs.ErrExist for what is not ns' to remove, system where the ledger cannot tell, and what remove says.
func (l *Ledger) Disown(folder string, ns uint64, remove func() error) error {
	lock, locked := l.LockName(owned + folder)
	defer lock.Unlock()
	now, err := l.root.Readlink(owned + folder)
	if failed := errors.Join(locked, l.failed("read", owned+folder, gone(err))); failed != nil {
		return failed
	} else if _, nobodys := l.root.Lstat(shared + folder); nobodys == nil || err == nil && now != recordName(ns) {
		return fs.ErrExist
	}
	l.root.Rename(owned+folder, going+folder)
	if err = remove(); err != nil {
		l.root.Rename(going+folder, owned+folder)
		return err
	}
	l.root.Remove(going + folder)
	return nil
}

// LockName waits for the lock of a name, however long; LockNS for that of a namespace's record, LockEntry for that of a container's entry. The order is: a container's entry, the record, a folder's entry.
func (l *Ledger) LockName(n string) (*Lock, error)  { return l.Lock(context.Background(), Key(n)) }
func (l *Ledger) LockNS(ns uint64) (*Lock, error)   { return l.LockName(recordName(ns)) }
func (l *Ledger) LockEntry(of Whose) (*Lock, error) { return l.LockName(of.entry()) }
func recordName(ns uint64) string                   { return strconv.FormatUint(ns, 10) }
func (w Whose) entry() string                       { return fmt.Sprintf("by+%d+%s+%s", w.UID, w.Owner, w.Container) } // "+" is in no id, so two containers cannot have one name (T28)

// ReadNS returns the record of a namespace, which is empty if there is none or if it is of an earlier boot. Errors: state_corrupt, system.
func (l *Ledger) ReadNS(ns uint64) (*LedgerRecord, error) {
	r, err := l.Read(recordName(ns))
	if errors.Is(err, fs.ErrNotExist) || err == nil && r.Boot != l.boot {
		return &LedgerRecord{NS: ns}, nil
	} else if err != nil {
		return nil, err
	}
	record, err := parseLedger(r.Payload)
	if err != nil || record.NS != ns {
		return nil, wire.Errorf(wire.StateCorrupt, "ledger", "cannot trust the record of the mount namespace %d", ns).WithHint("bindgate recover moves it aside")
	}
	return record, nil
}

func (l *Ledger) WriteNS(r *LedgerRecord) error {
	if len(r.Mounts) == 0 {
		return l.Remove(recordName(r.NS))
	}
	return l.Write(recordName(r.NS), r.encode())
}

// Find returns the namespace that a container's entry names; false if there is none. That it cannot be read is an error: what was attached must not be taken for nothing.
func (l *Ledger) Find(of Whose) (ns uint64, ok bool, err error) {
	text, err := l.root.Readlink(of.entry())
	ns, none := strconv.ParseUint(text, 10, 64)
	return ns, none == nil, l.failed("read", of.entry(), gone(err))
}

// Enter makes the entry of a container say ns, before the record is written: an entry may name a record that does not know the container, never the other way round. Leave removes such an entry.
func (l *Ledger) Enter(of Whose, ns uint64) error {
	if now, ok, _ := l.Find(of); ok && now == ns {
		return nil
	}
	l.root.Remove(of.entry())
	return l.sync("create", of.entry(), l.root.Symlink(recordName(ns), of.entry()))
}

func (l *Ledger) Leave(of Whose, r *LedgerRecord) {
	if !slices.ContainsFunc(r.Mounts, func(m LedgerMount) bool { return m.Whose == of }) {
		l.root.Remove(of.entry())
	}
}

func (l *Ledger) Namespaces() (ids []uint64, err error) {
	names, err := l.List()
	for _, name := range names {
		if id, err := strconv.ParseUint(name, 10, 64); err == nil && recordName(id) == name {
			ids = append(ids, id)
		}
	}
	return ids, err
}

// SweepIndex removes the entries of which the record of the namespace that they name knows nothing; under its lock, and first a container's, as an attach writes the entry first. What is locked until ctx ends stays.
func (l *Ledger) SweepIndex(ctx context.Context, mounted func(id, ns uint64) bool) { // of a removal that a crash cut off nothing is left to do once all that is on record is mounted
	entries, _ := l.entries()
	for _, e := range entries {
		text, _ := l.root.Readlink(e)
		if ns, err := strconv.ParseUint(text, 10, 64); err == nil {
			own, e1, container := &Lock{}, error(nil), strings.HasPrefix(e, "by+")
			if container { // a folder's is locked after the record's, by those who remove it
				own, e1 = l.Lock(ctx, Key(e))
			}
			lock, e2 := l.Lock(ctx, Key(recordName(ns)))
			now, _ := l.root.Readlink(e)
			record, e3 := l.ReadNS(ns)
			if errors.Join(e1, e2, e3) == nil && now == text && !slices.ContainsFunc(record.Mounts, func(m LedgerMount) bool {
				return !container && (!strings.HasPrefix(e, going) || !mounted(m.ID, ns)) || e == m.Whose.entry()
			}) {
				l.root.Remove(e)
			}
			lock.Unlock()
			own.Unlock()
		}
	}
}

func (r *LedgerRecord) encode() []byte {
	m := &wire.Message{Head: wire.Pairs("ns", r.NS, "inode", r.Inode)}
	for _, x := range r.Mounts {
		m.Blocks = append(m.Blocks, wire.Pairs("mount", x.Target, "uid", x.UID, "owner", x.Owner, "container", x.Container, "pid", x.PID, "source", x.Source, "mode", x.Mode, "id", x.ID, "path", x.Path,
			"prefix", x.Prefix, "root", x.Root, "base", x.Base, "host", x.HostPath, "made", x.Made, "root-uid", x.RootUID, "root-gid", x.RootGID))
	}
	return m.Encode()
}

func parseLedger(payload []byte) (*LedgerRecord, error) {
	m, err := wire.Decode(payload, MaxRecord, 1<<20)
	if err != nil {
		return nil, err
	}
	num := func(f wire.Fields, key string) uint64 {
		v, e := strconv.ParseUint(f.Get(key), 10, 64)
		err = errors.Join(err, e)
		return v
	}
	r := &LedgerRecord{NS: num(m.Head, "ns"), Inode: num(m.Head, "inode")}
	for _, b := range m.Blocks {
		r.Mounts = append(r.Mounts, LedgerMount{Whose{uint32(num(b, "uid")), b.Get("owner"), b.Get("container")},
			wire.Recorded{ID: num(b, "id"), Target: b.Get("mount"), Path: b.Get("path"), Prefix: b.Get("prefix"), Root: b.Get("root"), Base: b.Get("base"), Made: int(num(b, "made")), RootUID: int(num(b, "root-uid")), RootGID: int(num(b, "root-gid"))},
			int(num(b, "pid")), b.Get("source"), b.Get("mode"), b.Get("host")})
	}
	return r, err
}
