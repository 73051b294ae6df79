// Package state keeps the records of both processes: an atomic store, locks, and the helper's ledger. The store keeps bytes; the ledger's are in the wire's form, the policy's journal is JSON.
// A record begins with a line: schema, boot, size and a checksum of it all. It is the old one or the new one, never a part of either. What cannot be trusted is never used, never fatal to others.
package state

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/bindgate/bindgate/wire"
	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

const (
	Schema, MaxRecord = 1, 16 << 20 // version of the record's form; bytes: a longer file is corrupt
	ext               = ".rec"      // of every record's file. It ends in no digit, so a temporary file, which is named after the record with a random number behind it, tells whose it is
	lockFile          = ".lock"     // the one on which a store's locks are held, each on one byte, so that there is none per lock to make, to leave behind or to remove while somebody waits for it
)

// A Store is a folder of records. Everything in it is done relative to the folder's descriptor, following no symlink out of it.
type Store struct {
	root      *os.Root
	dir, boot string
	durable   bool
	uid       uint32 // whose every record must be; asked at the start, since the helper's filter lets nobody ask later
}

// Open opens the folder of a store, which must exist. boot is the boot_id that is written into records. A durable store survives the loss of power: after each change the folder is synced too.
func Open(dir, boot string, durable bool) (*Store, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, wire.Errorf(wire.Config, "state", "cannot open the folder of records %s: %v", dir, cmp.Or(errors.Unwrap(err), err)).Because(err)
	}
	return &Store{root, dir, boot, durable, uint32(os.Geteuid())}, nil
}

// A Record is what a file of the store says, and in which boot it was written.
type Record struct {
	Boot    string
	Payload []byte
}

func encode(boot string, payload []byte) []byte {
	head := fmt.Appendf(nil, "bindgate-record schema=%d boot=%s size=%d ", Schema, boot, len(payload))
	sum := fnv.New64a() // finds every change of one byte; the tables of a CRC would cost more than all the rest of a write
	sum.Write(append(head, payload...))
	return append(fmt.Appendf(head, "fnv1a=%016x\n", sum.Sum64()), payload...)
}

func decode(data []byte) (Record, error) {
	line, payload, _ := bytes.Cut(data, []byte{'\n'})
	schema, boot := 0, ""
	if _, err := fmt.Sscanf(string(line), "bindgate-record schema=%d boot=%s ", &schema, &boot); err == nil && schema > Schema {
		return Record{}, fmt.Errorf("its schema %d is newer than %d", schema, Schema)
	} else if err != nil || !bytes.Equal(encode(boot, payload), data) {
		return Record{}, errors.New("its first line is not that of a record, or its checksum or size is wrong")
	}
	return Record{boot, payload}, nil
}

// Read returns the record name. Errors: not_found, which matches fs.ErrNotExist; state_corrupt for one that cannot be trusted; system.
func (s *Store) Read(name string) (Record, error) {
	r, data, why := Record{}, []byte(nil), errors.New("it is not a regular file of ours, of link count 1 and bounded size")
	ours := func(info os.FileInfo) bool {
		st := info.Sys().(*syscall.Stat_t)
		return info.Mode().IsRegular() && st.Uid == s.uid && st.Nlink <= 1 && st.Size <= MaxRecord // 0 links: it was replaced while it was opened
	}
	info, err := s.root.Lstat(name + ext)
	if err == nil && ours(info) { // os.Root follows links that stay within it; another's, or a socket, may not open
		f, e := s.root.OpenFile(name+ext, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if info, err = f.Stat(); err == nil && ours(info) {
			data, err = io.ReadAll(io.LimitReader(f, MaxRecord+1))
			r, why = decode(data)
		}
		f.Close()
		err = cmp.Or(e, err) // of no file Stat fails too
	}
	if errors.Is(err, os.ErrNotExist) {
		return Record{}, wire.Errorf(wire.NotFound, "state", "cannot find the record %s/%s", s.dir, name).Because(os.ErrNotExist)
	} else if err != nil {
		return Record{}, s.failed("read", name, err)
	} else if why != nil {
		return Record{}, wire.Errorf(wire.StateCorrupt, "state", "cannot trust the record %s/%s: %v", s.dir, name, why).WithHint("bindgate recover moves it aside")
	}
	return r, nil
}

// Write makes payload the record name, whole or not at all. When it returns without error the record is on disk. Errors: limit_exceeded, system.
func (s *Store) Write(name string, payload []byte) error {
	if len(payload) > MaxRecord-1024 { // the first line is shorter
		return wire.Errorf(wire.LimitExceeded, "state", "cannot write the record %s/%s: it would be over %d bytes", s.dir, name, MaxRecord)
	}
	f, err := renameio.NewPendingFile(name+ext, renameio.WithRoot(s.root), renameio.WithPermissions(0o600)) // WriteFile would leave it behind where a stat fails, and keep the mode of the old one
	if err == nil {
		defer f.Cleanup()
		if _, err = f.Write(encode(s.boot, payload)); err == nil {
			err = f.CloseAtomicallyReplace()
		}
	}
	return s.sync("write", name, err)
}

// Remove removes the record name; one that is not there is no error.
func (s *Store) Remove(name string) error {
	return s.sync("remove", name, gone(s.root.Remove(name+ext)))
}
func (s *Store) Close() error { return s.root.Close() }

// gone returns err, but nil where what it is about is gone.
func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// List returns the names of the records, in no order. Temporary files, folders and the lock file are not among them.
func (s *Store) List() (names []string, err error) {
	entries, err := s.entries()
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e, ext); ok && !strings.HasPrefix(name, ".") {
			names = append(names, name)
		}
	}
	return names, err
}

// MoveAside moves a record that cannot be trusted into the folder corrupt/, where nothing reads it again, and returns its path for the report.
func (s *Store) MoveAside(name string) (string, error) {
	if err := s.root.Mkdir("corrupt", 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", s.failed("create", "corrupt", err)
	}
	to := fmt.Sprintf("corrupt/%s.%d", name, time.Now().UnixNano())
	return s.dir + "/" + to, s.sync("move aside", name, s.root.Rename(name+ext, to))
}

// SweepTemporary removes the temporary files that a crash left of the records that mine admits. Where the lock of a record's name is taken, a writer is at work, and nothing is removed.
func (s *Store) SweepTemporary(mine func(record string) bool) error {
	entries, err := s.entries()
	for _, e := range entries { // renameio names them "." + file + a random number
		name, ok := strings.CutSuffix(strings.TrimRight(strings.TrimPrefix(e, "."), "0123456789"), ext)
		if ok && strings.HasPrefix(e, ".") && mine(name) {
			if lock, busy := s.Lock(NoWait, Key(name)); busy == nil {
				err = cmp.Or(err, s.failed("remove a temporary file of", name, gone(s.root.Remove(e))))
				lock.Unlock()
			}
		}
	}
	return err
}

func (s *Store) entries() (names []string, err error) {
	d, e := s.root.Open(".")
	names, err = d.Readdirnames(-1)
	d.Close()
	return names, s.failed("list", ".", cmp.Or(e, err))
}

// sync ends a change: if it went well, what it changed in the folder is put on disk, which renameio leaves to its caller. The ledger need not be: what it describes does not outlive the boot.
func (s *Store) sync(verb, name string, err error) error {
	if err == nil && s.durable {
		d, e := s.root.Open(".")
		err = cmp.Or(e, d.Sync())
		d.Close()
	}
	return s.failed(verb, name, err)
}

func (s *Store) failed(verb, name string, err error) error {
	if err == nil {
		return nil
	}
	return wire.Errorf(wire.System, "state", "cannot %s %s/%s: %v", verb, s.dir, name, cmp.Or(errors.Unwrap(err), err)).Because(err) // the errno, without the path again
}

// A Lock is an open file description lock (fcntl_locking(2)), held until Unlock or until nobody has its open file description any more, however that ends. The zero Lock may be unlocked.
type Lock struct{ F *os.File }

func (l *Lock) Unlock() { l.F.Close() }

// Key returns the lock key of a name. Nobody can choose a name that has the key of another's: whoever holds it would keep that one waiting.
func Key(parts ...string) uint64 {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return binary.BigEndian.Uint64(sum[:])
}

var NoWait, _ = context.WithDeadline(context.Background(), time.Time{}) // has ended: a lock that is not free is not waited for

// Lock waits for the lock of key, to hold it alone; LockAs alone (unix.F_WRLCK) or shared with others (F_RDLCK). With an error (timeout when ctx ends first, or system) the Lock is the zero Lock.
func (s *Store) Lock(ctx context.Context, key uint64) (*Lock, error) {
	return s.LockAs(ctx, key, unix.F_WRLCK)
}

func (s *Store) LockAs(ctx context.Context, key uint64, kind int16) (*Lock, error) {
	f, err := s.root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return &Lock{}, s.failed("open", lockFile, err)
	}
	l := unix.Flock_t{Type: kind, Start: int64(key >> 1), Len: 1}
	if err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l); errors.Is(err, unix.EAGAIN) {
		done := make(chan error, 1)
		go func() { done <- unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &l) }()
		select {
		case err = <-done:
		case <-ctx.Done():
			go func() { <-done; f.Close() }() // the descriptor must outlive the call that waits on it
			return &Lock{}, wire.Errorf(wire.Timeout, "lock", "cannot lock a record in %s: another process is at work on it", s.dir).Because(ctx.Err())
		}
	}
	if err == nil {
		return &Lock{f}, nil
	}
	f.Close()
	if errors.Is(err, unix.EINTR) { // a signal ended the wait
		return s.LockAs(ctx, key, kind)
	}
	return &Lock{}, s.failed("lock", lockFile, err)
}
