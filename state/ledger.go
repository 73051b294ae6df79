package state

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/bindgate/bindgate/wire"
)

// A Ledger is the helper's memory of what it attached: one record per mount namespace, named by its 64-bit id, and for each container an index entry, a symlink whose text is that id; another for each folder that was made. The
// kernel knows the rest: whether a recorded mount is there is asked of it by the mount's unique id, so a record is written before the attach and need not be touched after.
type Ledger struct{ *Store }

// A LedgerRecord is all that is attached in one mount namespace.
type LedgerRecord struct {
	NS     uint64 // 64-bit id of the mount namespace
	Inode  uint64 // its inode number, to open it by handle
	Mounts []LedgerMount
}

// A LedgerMount is one attached volume, or one that was about to be.
type LedgerMount struct {
	UID                  uint32 // who attached it
	Owner, Container     string
	PID                  int    // of the container's process then, as the caller saw it
	Target, Source, Mode string // container_path, clean; host path; wire.ModeRO or ModeRW
	ID                   uint64 // STATX_MNT_ID_UNIQUE
	Path                 string // resolved, from the root that the container had
	Prefix               string // of that root in the namespace, before the pivot
	Root, Base           string // which directory that root was, and the deepest of Path that was there before (privops.RootID)
	HostPath             string // where the host sees it, in a sandbox directory or a named rootfs; "" for others
	Made                 int    // how many of Path's last components were to be made
	RootUID, RootGID     int    // file system ids of the container's root user
}

// IsOf reports whether the mount belongs to a container of an owner, attached by uid.
func (m *LedgerMount) IsOf(uid uint32, owner, container string) bool {
	return m.UID == uid && m.Owner == owner && m.Container == container
}

// Inherit leaves to m what was made for another mount in which its mountpoint lies, so that it goes with the last that needs it.
func (m *LedgerMount) Inherit(from *LedgerMount) {
	mine, its, same := strings.Split(m.Path, "/"), strings.Split(from.Path, "/"), 0
	for same < min(len(mine), len(its)) && mine[same] == its[same] {
		same++
	}
	if first := len(its) - from.Made; m.Root == from.Root && (m.Target[0] == '/') == (from.Target[0] == '/') && first < same && len(mine)-m.Made <= same && first < len(mine)-m.Made {
		m.Made, m.Base = len(mine)-first, from.Base
	}
}

// A folder that was made for a mount is known by what it is (privops.RootID), since containers may see it under several names. Its entry, a symlink whose text is the namespace that it was made for, says
// by its prefix that it is that namespace's to remove; that another namespace mounted something on it too, so that it is nobody's any more; or that it is being removed. An entry changes by being renamed,
// so of two who want it one gets it.
const owned, shared, going = "at+", "sh+", "go+"

// Own notes that folder was made for a mount of ns.
func (l *Ledger) Own(folder string, ns uint64) error {
	for _, was := range []string{owned, shared, going} { // of another one, which had its inode number
		l.root.Remove(was + folder)
	}
	return l.sync("create", owned+folder, l.root.Symlink(recordName(ns), owned+folder))
}

// Share notes that something of ns is about to be mounted on folder, which the kernel would take away with it. Error: busy, if that is under way: if its namespace's lock is free, a crash cut it off.
func (l *Ledger) Share(folder string, ns uint64) error {
	busy := wire.Errorf(wire.Busy, "ledger", "cannot attach: what was made there for another container is being removed").WithHint("try again")
	if now, err := l.root.Readlink(owned + folder); err == nil && now != recordName(ns) && l.root.Rename(owned+folder, shared+folder) != nil {
		return busy
	}
	if now, err := l.root.Readlink(going + folder); err == nil && now != recordName(ns) {
		lock, err := l.Lock(NoWait, Key(now))
		if err != nil {
			return busy
		}
		defer lock.Unlock()
		return l.sync("share", folder, l.root.Rename(going+folder, shared+folder))
	}
	return nil
}

// Removal returns a function that calls remove for a folder that was made for ns, unless it is nobody's. One without an entry is: a crash came between. Errors: fs.ErrExist for what is not ns' to
// remove, system where the ledger cannot tell, and what remove says.
func (l *Ledger) Removal(ns uint64) func(folder string, remove func() error) error {
	return func(folder string, remove func() error) error {
		now, err := l.root.Readlink(owned + folder)
		_, nobodys := l.root.Lstat(shared + folder) // asked after: an entry that becomes one is found in one place or the other
		mine := err == nil && now == recordName(ns)
		if mine {
			err = l.root.Rename(owned+folder, going+folder)
		}
		switch {
		case mine && errors.Is(err, fs.ErrNotExist), !mine && (err == nil || nobodys == nil):
			return fs.ErrExist
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return l.failed("take", owned+folder, err)
		}
		if err = remove(); err != nil {
			l.root.Rename(going+folder, owned+folder)
		} else {
			l.root.Remove(going + folder)
		}
		return err
	}
}

// LockName waits for the lock of a name, however long.
func (l *Ledger) LockName(n string) (*Lock, error) { return l.Lock(context.Background(), Key(n)) }

// LockEntry locks the entry of a container. Whoever locks a record too locks this first.
func (l *Ledger) LockEntry(uid uint32, owner, container string) (*Lock, error) {
	return l.LockName(indexName(uid, owner, container))
}

// LockNS locks the record of a mount namespace.
func (l *Ledger) LockNS(ns uint64) (*Lock, error) { return l.LockName(recordName(ns)) }

func recordName(ns uint64) string { return strconv.FormatUint(ns, 10) }

// indexName is the name of a container's entry. "+" is in no id, so two containers cannot have one name (T28).
func indexName(uid uint32, owner, container string) string {
	return "by+" + strconv.FormatUint(uint64(uid), 10) + "+" + owner + "+" + container
}

// ReadNS returns the record of a namespace, which is empty if there is none or if it is of an earlier boot. Errors: state_corrupt, system.
func (l *Ledger) ReadNS(ns uint64) (*LedgerRecord, error) {
	r, err := l.Read(recordName(ns))
	if errors.Is(err, fs.ErrNotExist) || err == nil && r.Boot != l.boot {
		return &LedgerRecord{NS: ns}, nil
	} else if err != nil {
		return nil, err
	}
	if record, err := parseLedger(r.Payload); err == nil && record.NS == ns {
		return record, nil
	}
	return nil, wire.Errorf(wire.StateCorrupt, "ledger", "cannot trust the record of the mount namespace %d", ns).WithHint("bindgate recover moves it aside")
}

// WriteNS writes a record, or removes one that has no mounts.
func (l *Ledger) WriteNS(r *LedgerRecord) error {
	if len(r.Mounts) == 0 {
		return l.Remove(recordName(r.NS))
	}
	return l.Write(recordName(r.NS), r.encode())
}

// Find returns the namespace that a container's entry names; false if there is none. That it cannot be read is an error: what was attached must not be taken for nothing.
func (l *Ledger) Find(uid uint32, owner, container string) (uint64, bool, error) {
	return l.index(indexName(uid, owner, container))
}

func (l *Ledger) index(name string) (ns uint64, ok bool, err error) {
	text, err := l.root.Readlink(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, false, l.failed("read", name, err)
	}
	ns, err = strconv.ParseUint(text, 10, 64)
	return ns, err == nil, nil
}

// Enter makes the entry of a container say ns. It is written before the record, so an entry may name a record that does not know the container, never the other way round.
func (l *Ledger) Enter(uid uint32, owner, container string, ns uint64) error {
	name := indexName(uid, owner, container)
	if now, ok, _ := l.Find(uid, owner, container); ok && now == ns {
		return nil
	}
	l.root.Remove(name)
	return l.sync("create", name, l.root.Symlink(recordName(ns), name))
}

// Leave removes the entry of a container of which the record that it names has nothing any more.
func (l *Ledger) Leave(uid uint32, owner, container string, r *LedgerRecord) {
	if !slices.ContainsFunc(r.Mounts, func(m LedgerMount) bool { return m.IsOf(uid, owner, container) }) {
		l.root.Remove(indexName(uid, owner, container))
	}
}

// Namespaces returns the ids of all namespaces that have a record.
func (l *Ledger) Namespaces() (ids []uint64, err error) {
	names, err := l.List()
	for _, name := range names {
		if id, err := strconv.ParseUint(name, 10, 64); err == nil && recordName(id) == name {
			ids = append(ids, id)
		}
	}
	return ids, err
}

// SweepIndex removes the entries that name a namespace whose record knows nothing of them, or whose removal was cut off by a crash and then finished, as it is while all that is on record is mounted; under its
// lock, since an attach writes the entry first, and the container's, since the attach may be to another namespace. What is still locked when ctx ends is left for another time.
func (l *Ledger) SweepIndex(ctx context.Context, mounted func(id, ns uint64) bool) {
	entries, _ := l.entries()
	for _, e := range entries {
		if ns, ok, _ := l.index(e); ok {
			if own, err := l.Lock(ctx, Key(e)); err == nil {
				if lock, err := l.Lock(ctx, Key(recordName(ns))); err == nil {
					now, _, _ := l.index(e)
					record, err := l.ReadNS(ns)
					in := func(m LedgerMount) bool {
						return e[:3] != "by+" && (e[:3] != going || !mounted(m.ID, ns)) || e == indexName(m.UID, m.Owner, m.Container)
					}
					if err == nil && now == ns && !slices.ContainsFunc(record.Mounts, in) {
						l.root.Remove(e)
					}
					lock.Unlock()
				}
				own.Unlock()
			}
		}
	}
}

func (r *LedgerRecord) encode() []byte {
	num := func(n uint64) string { return strconv.FormatUint(n, 10) }
	m := &wire.Message{Head: wire.Pairs("ns", num(r.NS), "inode", num(r.Inode))}
	for _, x := range r.Mounts {
		m.Blocks = append(m.Blocks, wire.Pairs("mount", x.Target, "uid", num(uint64(x.UID)), "owner", x.Owner, "container", x.Container, "pid", num(uint64(x.PID)), "source", x.Source, "mode", x.Mode,
			"id", num(x.ID), "path", x.Path, "prefix", x.Prefix, "root", x.Root, "base", x.Base, "host", x.HostPath, "made", num(uint64(x.Made)), "root-uid", num(uint64(x.RootUID)), "root-gid", num(uint64(x.RootGID))))
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
		r.Mounts = append(r.Mounts, LedgerMount{UID: uint32(num(b, "uid")), Owner: b.Get("owner"), Container: b.Get("container"), PID: int(num(b, "pid")), Target: b.Get("mount"), Source: b.Get("source"),
			Mode: b.Get("mode"), ID: num(b, "id"), Path: b.Get("path"), Prefix: b.Get("prefix"), Root: b.Get("root"), Base: b.Get("base"), HostPath: b.Get("host"), Made: int(num(b, "made")), RootUID: int(num(b, "root-uid")), RootGID: int(num(b, "root-gid"))})
	}
	return r, err
}
