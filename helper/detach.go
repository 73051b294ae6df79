package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/privops"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/wire"
	"golang.org/x/sys/unix"
)

// detach works from the ledger alone: what is not in it, or is another uid's, owner's or container's, is not touched (T27). Root may detach what others attached.
func (s *session) detach(r *wire.Request) []wire.Fields {
	if _, own, err := s.ledger.Find(s.whose); !own && s.whose.UID == 0 { // one that root has none of is the one uid's who has it
		namespace.Pass(err)
		for _, id := range must(s.ledger.Namespaces()) {
			for _, m := range must(s.ledger.ReadNS(id)).Mounts {
				if m.Owner == r.Owner && m.Container == r.Container {
					namespace.DieIf(s.whose.UID != 0 && s.whose.UID != m.UID, wire.Conflict, "ledger", "cannot tell which container %s is meant: uid %d has one of that id, and uid %d", r.Container, s.whose.UID, m.UID)
					s.whose = m.Whose
				}
			}
		}
	}
	defer s.held(s.ledger.LockEntry(s.whose)).Unlock() // an attach under way is finished or not begun
	ns, found, err := s.ledger.Find(s.whose)
	if namespace.Pass(err); !found && len(r.Mounts) == 0 {
		return nil
	}
	s.targetNS.Store(ns)
	defer must(s.ledger.LockNS(ns)).Unlock()
	record := must(s.ledger.ReadNS(ns))
	var wanted []string
	for _, m := range r.Mounts {
		w := parse(m.Path).String()
		there := func(m state.LedgerMount) bool { return m.Whose == s.whose && m.Target == w }
		namespace.DieIf(!slices.ContainsFunc(record.Mounts, there), wire.NotFound, "ledger", "cannot detach %s of the container %s: nothing is recorded there", w, r.Container)
		wanted = append(wanted, w)
	}
	which := func(m state.LedgerMount) bool {
		return m.Whose == s.whose && (wanted == nil || slices.Contains(wanted, m.Target))
	}
	s.intent(r, slices.DeleteFunc(slices.Clone(record.Mounts), func(m state.LedgerMount) bool { return !which(m) }))
	defer s.ledger.Leave(s.whose, record)
	return s.drop(record, r.Lazy, which)
}

// removal is the ledger's, for what was made for m: it leaves alone what the host has mounted something on, which the kernel would take away too.
func (s *session) removal(ns uint64, m *state.LedgerMount) privops.Removal {
	return func(folder string, remove func() error) error {
		at := parse(m.HostPath)
		at.Components = at.Components[:max(0, len(at.Components)-m.Made+1)]
		if m.HostPath != "" && privops.MountsIn(^uint64(0), s.host.NS.ID, at.String()+"/") > 0 {
			return unix.EEXIST
		}
		return s.ledger.Disown(folder, ns, remove)
	}
}

// drop detaches the mounts of a record that which names, the last attached first, and takes those that are gone from the record, also when a later one fails. The caller holds the record's lock.
func (s *session) drop(record *state.LedgerRecord, lazy bool, which func(state.LedgerMount) bool) (gone []wire.Fields) {
	going, keep := []*wire.Recorded(nil), []uint64(nil)
	for _, m := range record.Mounts {
		if which(m) {
			going = append(going, &m.Recorded)
		} else {
			keep = append(keep, m.ID)
		}
	}
	if len(going) == 0 {
		return nil
	}
	ns, alive := s.host.OpenNS(record.NS, record.Inode)
	if alive {
		defer unix.Close(ns.FD)
		ns.Enter()
		privops.Unused(s.host, ns, going, keep, lazy) // all or nothing
	}
	defer s.ledger.WriteNS(record) // where the disk is full it names mounts of which the kernel says that they are not there
	for i, m := range slices.Backward(slices.Clone(record.Mounts)) {
		if !which(m) {
			continue
		} else if alive {
			privops.Detach(s.host, &m.Recorded, lazy, s.removal(record.NS, &m))
		} else if m.HostPath != "" && m.Made > 0 {
			s.unmakeOnHost(m, s.removal(record.NS, &m))
		}
		record.Mounts = slices.Delete(record.Mounts, i, i+1)
		for j := range record.Mounts {
			record.Mounts[j].Inherit(&m)
		}
		gone = append(gone, wire.Pairs("mount", m.Target, "owner", m.Owner, "container", m.Container, "id", m.ID))
	}
	return gone
}

// unmakeOnHost removes what was made for a mount whose namespace has ended, where the host can reach it: beneath a sandbox or rootfs root of helper.toml.
func (s *session) unmakeOnHost(m state.LedgerMount, removal privops.Removal) {
	s.host.NS.Enter() // a sweep may have been in a container
	at, roots := parse(m.HostPath), wire.ParsePaths(slices.Concat(s.config.Targets.SandboxRoots, s.config.Targets.RootfsRoots))
	for _, root := range slices.DeleteFunc(roots, func(r wire.Path) bool { return !r.Contains(at) }) {
		fd, _, err := conf.OpenTrusted(root.String(), unix.O_PATH|unix.O_DIRECTORY)
		privops.Sure(errors.Unwrap(err), m.HostPath) // a root that is gone or not to be trusted is no place of ours any more
		if err == nil {
			m.Path = "/" + strings.Join(at.Components[len(root.Components):], "/")
			privops.RemoveMade(fd, &m.Recorded, removal)
			unix.Close(fd)
		}
	}
}

// sweep has the ledger agree with the kernel for one owner of the caller's: mounts that are not there, half-made or ended with their namespace, are dropped, and what was made for them and a crash left goes.
func (s *session) sweep(r *wire.Request) (gone []wire.Fields) {
	var failed error
	ctx, cancel := context.WithTimeout(context.Background(), lockDeadline) // whoever holds a lock for longer, such as a helper that a container has hung, keeps only its own record from being swept
	defer cancel()
	for _, id := range must(s.ledger.Namespaces()) {
		failed = cmp.Or(failed, namespace.Try(func() { // one that fails keeps no other from being swept
			defer must(s.ledger.Lock(ctx, state.Key(fmt.Sprint(id)))).Unlock()
			record, err := s.ledger.ReadNS(id)
			if err != nil && wire.AsError(err).Code == wire.StateCorrupt { // it cannot be trusted
				gone = append(gone, wire.Pairs("mount", must(s.ledger.MoveAside(fmt.Sprint(id))), "corrupt", true))
			} else if namespace.Pass(err); len(record.Mounts) == 0 { // of an earlier boot
				s.ledger.WriteNS(record)
			} else {
				gone = append(gone, s.drop(record, true, func(m state.LedgerMount) bool {
					return m.UID == s.callerUID && m.Owner == r.Owner && !namespace.Mounted(m.ID, id)
				})...)
			}
		}))
	}
	s.ledger.SweepIndex(ctx, namespace.Mounted)
	s.ledger.SweepTemporary(func(string) bool { return true })
	namespace.Pass(failed)
	return gone
}

// query tells what the caller attached: of one container with the sizes of the filesystems and who uses them, or of all of an owner's without. It waits for no lock: a record is the old or the new one.
func (s *session) query(r *wire.Request) (blocks []wire.Fields) {
	ns, _, err := s.ledger.Find(s.whose)
	ids := []uint64{ns} // 0, of which there is no record, if nothing is attached to it
	if namespace.Pass(err); r.Container == "" {
		ids = must(s.ledger.Namespaces())
	}
	for _, id := range ids {
		record, err := s.ledger.ReadNS(id)
		if err != nil {
			continue // sweep reports it
		}
		for _, m := range record.Mounts {
			if m.UID != s.callerUID || m.Owner != r.Owner || r.Container != "" && m.Container != r.Container {
				continue
			}
			mount, err := namespace.StatMount(m.ID, id)
			b := wire.Pairs("mount", m.Target, "owner", m.Owner, "container", m.Container, "pid", m.PID, "ns", id, "id", m.ID, "target", m.Path, "source", m.Source, "mode", m.Mode, "alive", err == nil)
			if err == nil && r.Container != "" {
				b = append(b, privops.Usage(s.host, record.NS, record.Inode, mount)...)
			}
			blocks = append(blocks, b)
		}
	}
	return blocks
}

// volume serves the local driver: create, remove and list its volumes.
func (s *session) volume(r *wire.Request) []wire.Fields {
	fd, _, err := conf.OpenTrusted(conf.VolumesDir(), unix.O_RDONLY|unix.O_DIRECTORY)
	namespace.Pass(err)
	must(conf.RootOwned(fd, conf.VolumesDir()))
	v := &privops.Volumes{FD: fd, Path: conf.VolumesDir()}
	if r.Op == wire.OpListVolumes && r.Name == "" {
		return v.List()
	}
	defer s.held(s.ledger.LockName("volume+" + r.Name)).Unlock()
	if r.Op == wire.OpRemoveVolume {
		s.refuseAttached(v.Path + "/" + r.Name) // by whomever; before it keeps anybody from attaching it
		defer s.keep(v.Path+"/"+r.Name, unix.F_WRLCK).Unlock()
		s.refuseAttached(v.Path + "/" + r.Name)
		s.intent(r, nil)
		v.Remove(r.Name)
		return nil
	}
	created := r.Op == wire.OpCreateVolume && v.Create(r.Name, *cmp.Or(r.Mode, new(uint32(0o755))), *cmp.Or(r.UID, new(uint32)), *cmp.Or(r.GID, new(uint32)))
	vol := v.Get(r.Name)
	namespace.DieIf(vol == nil, wire.VolumeNotFound, "volume", "cannot find the local volume %s", r.Name)
	return []wire.Fields{append(vol, wire.Pairs("created", created)...)}
}

// keep keeps a local volume from being removed (unix.F_RDLCK), until the attach is on record, or from being attached (F_WRLCK), by somebody else. Whoever comes second is not kept waiting: busy.
func (s *session) keep(source string, kind int16) *state.Lock {
	local, p := parse(conf.VolumesDir()), parse(source)
	if !local.Contains(p) || p.Contains(local) {
		return &state.Lock{}
	}
	return namespace.Must(s.ledger.LockAs(state.NoWait, state.Key("attached+"+p.Components[len(local.Components)]), kind))(wire.Busy, "volume", "cannot attach or remove the local volume %s now", p)
}

func (s *session) refuseAttached(volume string) {
	for _, id := range must(s.ledger.Namespaces()) {
		for _, m := range must(s.ledger.ReadNS(id)).Mounts {
			namespace.Hint("see bindgate status; clean the container up first").DieIf(strings.HasPrefix(m.Source+"/", volume+"/") && namespace.Mounted(m.ID, id), wire.Busy, "volume", "cannot remove %s: a container has it attached", volume)
		}
	}
}
