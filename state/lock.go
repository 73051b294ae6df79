package state

import (
	"context"
	"errors"
	"hash/fnv"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/wire"
)

// lockFile is the one file on which a store's locks are held. A lock is one byte of it, so there is no file per lock to make, to leave behind or to remove while somebody waits for it. It is an open file
// description lock (fcntl_locking(2)): it goes when its holder does, however that ends.
const lockFile = ".lock"

// A Lock is held until Unlock, or until the process ends.
type Lock struct{ f *os.File }

// Unlock releases the lock.
func (l *Lock) Unlock() { l.f.Close() }

// Key returns the lock key of a name. Two names may have one key; their holders then wait for each other, which is harmless as long as nobody waits for one while holding the other.
func Key(parts ...string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(strings.Join(parts, "\x00")))
	return h.Sum64()
}

// Lock waits for the lock of key. Errors: timeout when ctx ends first, system.
func (s *Store) Lock(ctx context.Context, key uint64) (*Lock, error) {
	f, err := s.root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, s.failed("open", lockFile, err)
	}
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(key >> 1), Len: 1}
	if err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l); errors.Is(err, unix.EAGAIN) {
		done := make(chan error, 1)
		go func() {
			err := error(unix.EINTR)
			for err == unix.EINTR {
				err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &l)
			}
			done <- err
		}()
		select {
		case err = <-done:
		case <-ctx.Done():
			go func() { <-done; f.Close() }() // the descriptor must outlive the call that waits on it
			return nil, wire.Errorf(wire.Timeout, "lock", "cannot lock a record in %s: another process is at work on it", s.dir).Because(ctx.Err())
		}
	}
	if err != nil {
		f.Close()
		return nil, s.failed("lock", lockFile, err)
	}
	return &Lock{f}, nil
}
