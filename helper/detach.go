package main

import (
	"slices"
	"strconv"
	"strings"

	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/privops"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/wire"
)

// detach works from the ledger alone: what is not in it, or is another uid's, owner's or container's, is not touched (T27).
func (s *session) detach(r *wire.Request) ([]wire.Fields, error) {
	uid, ns, found := s.find(r)
	wanted := make([]string, len(r.Mounts))
	for i, m := range r.Mounts {
		wanted[i] = clean(m.Path)
	}
	if !found && len(wanted) == 0 {
		return nil, nil
	}
	lock, err := s.ledger.LockNS(ns)
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	record, err := s.ledger.ReadNS(ns)
	if err != nil {
		return nil, err
	}
	mine := func(m state.LedgerMount) bool { return m.IsOf(uid, r.Owner, r.Container) }
	for _, w := range wanted {
		if !slices.ContainsFunc(record.Mounts, func(m state.LedgerMount) bool { return mine(m) && m.Target == w }) {
			return nil, wire.Errorf(wire.NotFound, "ledger", "cannot detach %s of the container %s: nothing is recorded there", w, r.Container)
		}
	}
	s.audit.ns = ns
	gone, err := s.drop(record, r.Lazy, func(m state.LedgerMount) bool {
		return mine(m) && (len(wanted) == 0 || slices.Contains(wanted, m.Target))
	})
	if !slices.ContainsFunc(record.Mounts, mine) {
		s.ledger.Leave(uid, r.Owner, r.Container)
	}
	return gone, err
}

// find returns under which uid a container is recorded, and in which namespace. Root may detach what others attached.
func (s *session) find(r *wire.Request) (uid uint32, ns uint64, found bool) {
	if ns, found = s.ledger.Find(s.caller.uid, r.Owner, r.Container); found || s.caller.uid != 0 {
		return s.caller.uid, ns, found
	}
	return s.ledger.FindAny(r.Owner, r.Container)
}

// drop detaches the mounts of a record that which names, the last attached first, and takes those that are gone from the record, also when a later one fails. The caller holds the record's lock. A record
// that cannot be written (a full disk) is no failure: it then names a mount that the kernel says is not there.
func (s *session) drop(record *state.LedgerRecord, lazy bool, which func(state.LedgerMount) bool) (gone []wire.Fields, err error) {
	ns, err := s.host.OpenNS(record.NS, record.Inode)
	alive := err == nil
	if err = nil; alive {
		err = ns.Enter()
	}
	var going []*privops.Recorded
	for i := range record.Mounts {
		if which(record.Mounts[i]) {
			going = append(going, recorded(&record.Mounts[i]))
		}
	}
	if alive && !lazy && err == nil {
		err = privops.Unused(s.host, ns, going) // all or nothing
	}
	for i := len(record.Mounts) - 1; i >= 0 && err == nil; i-- {
		m := record.Mounts[i]
		if !which(m) {
			continue
		}
		if alive {
			if err = recorded(&m).Detach(s.host, lazy); err != nil {
				break
			}
		}
		record.Mounts = slices.Delete(record.Mounts, i, i+1)
		gone = append(gone, wire.Fields{{Key: "mount", Value: m.Target}, {Key: "owner", Value: m.Owner}, {Key: "container", Value: m.Container}, {Key: "id", Value: strconv.FormatUint(m.ID, 10)}})
	}
	if len(gone) > 0 {
		s.ledger.WriteNS(record)
	}
	return gone, err
}

func recorded(m *state.LedgerMount) *privops.Recorded {
	return &privops.Recorded{ID: m.ID, Target: m.Target, Names: split(m.Path), Prefix: split(m.Prefix), Made: m.Made, UID: m.RootUID, GID: m.RootGID}
}

func split(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

// sweep brings the ledger to agree with the kernel for one owner of the caller's: mounts that are not there, half-made or ended with their namespace, are dropped and what was made for them is removed.
func (s *session) sweep(r *wire.Request) (gone []wire.Fields, err error) {
	ids, strange, err := s.ledger.Namespaces()
	if err != nil {
		return nil, err
	}
	corrupt := func(name string) {
		if !strings.HasPrefix(name, "refused+") {
			if path, err := s.ledger.MoveAside(name); err == nil {
				gone = append(gone, wire.Fields{{Key: "mount", Value: path}, {Key: "corrupt", Value: "1"}})
			}
		}
	}
	for _, name := range strange {
		corrupt(name)
	}
	for _, id := range ids {
		lock, err := s.ledger.LockNS(id)
		if err != nil {
			return gone, err
		}
		record, err := s.ledger.ReadNS(id)
		if err != nil {
			corrupt(strconv.FormatUint(id, 10))
		} else if len(record.Mounts) == 0 { // of an earlier boot
			s.ledger.WriteNS(record)
		} else {
			dropped, _ := s.drop(record, false, func(m state.LedgerMount) bool {
				return !namespace.Mounted(m.ID, id) && m.UID == s.caller.uid && m.Owner == r.Owner
			})
			gone = append(gone, dropped...)
		}
		s.ledger.SweepTemporary(func(name string) bool { return name == strconv.FormatUint(id, 10) })
		lock.Unlock()
	}
	return gone, s.ledger.SweepIndex()
}
