package main

import (
	"cmp"
	"path"
	"slices"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/privops"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/wire"
	"golang.org/x/sys/unix"
)

// attach does steps 7 to 11 for all volumes of a request, all or nothing.
func (s *session) attach(r *wire.Request) (blocks []wire.Fields) {
	namespace.DieIf(len(r.Mounts) > s.config.Limits.MountsPerRequest, wire.LimitExceeded, "request", "cannot attach %d volumes at once: mounts_per_request of helper.toml is %d", len(r.Mounts), s.config.Limits.MountsPerRequest)
	target := s.host.Pin(r.PID, r.Start, s.config.Targets.Cgroups) // 7
	s.targetNS.Store(target.NS.ID)
	place := s.place(r, target)
	list := make([]*privops.Attachment, len(r.Mounts))
	for i := range list { // 8, 9: a filesystem that does not answer holds us up here, and not whoever waits for our locks
		defer s.keep(r.Mounts[i].Source, unix.F_RDLCK).Unlock()
		list[i] = &privops.Attachment{Mount: &r.Mounts[i], Attr: s.attributes(&r.Mounts[i]), Source: s.source(&r.Mounts[i])}
		list[i].Clone(target)
	}
	defer s.held(s.ledger.LockEntry(s.whose)).Unlock() // until all is done or undone
	defer must(s.ledger.LockNS(target.NS.ID)).Unlock()
	record := must(s.ledger.ReadNS(target.NS.ID))
	record.Inode = target.NS.Inode
	other, _, err := s.ledger.Find(s.whose) // 0, of which there is no record, if it has no entry
	namespace.Pass(err)
	for _, m := range must(s.ledger.ReadNS(other)).Mounts { // an id is one container's
		namespace.Hint("detach those first").DieIf(other != target.NS.ID && m.Whose == s.whose && namespace.Mounted(m.ID, other), wire.Conflict, "ledger", "cannot attach to the container %s in pid %d: it has volumes in the namespace of pid %d", r.Container, r.PID, m.PID)
	}
	s.drop(record, true, func(m state.LedgerMount) bool { return !namespace.Mounted(m.ID, target.NS.ID) }) // what a crash, or the container itself, left of earlier ones
	for _, a := range list {
		a.Point = place.Resolve(parse(a.Mount.Path), a.Source.IsDir)
	}
	privops.Order(list)
	privops.Stage(list, target.NS, s.config.Mounts.Lock == conf.LockAlways || target.UserNS >= 0)
	s.commit(r, target, list, record) // 10, 11
	for i, a := range list {
		a.Release()
		blocks = append(blocks, wire.Pairs("mount", a.Mount.Path, "target", a.Point.Path(), "id", a.ID, "locked", a.Locked))
		if n := a.Point.Record().Made; n > 0 {
			blocks[i] = append(blocks[i], wire.Pairs("created", n)...)
		}
	}
	return blocks
}

// commit records the attachments beside those that the record has, and makes them.
func (s *session) commit(r *wire.Request, target *namespace.Target, list []*privops.Attachment, record *state.LedgerRecord) {
	live, done := len(record.Mounts), 0
	for _, a := range list {
		m := state.LedgerMount{Whose: s.whose, Recorded: a.Point.Record(), PID: r.PID, Source: path.Join(a.Source.Path, a.Mount.Subpath), Mode: a.Mount.Mode}
		m.ID, m.Target = a.ID, parse(a.Mount.Path).String()
		if m.Target[0] != '/' {
			m.HostPath = path.Join(r.Directory, a.Point.InSandbox())
		} else if r.Rootfs != "" {
			m.HostPath = path.Join(r.Rootfs, m.Path)
		}
		same := func(x state.LedgerMount) bool { return x.Root == m.Root && x.Path == m.Path }
		namespace.Hint("detach it first").DieIf(slices.ContainsFunc(record.Mounts[:live], same), wire.Conflict, "ledger", "cannot attach at %s: there is a volume already", m.Path)
		record.Mounts = append(record.Mounts, m)
	}
	namespace.DieIf(len(record.Mounts) > s.config.Limits.MountsPerNamespace, wire.LimitExceeded, "ledger", "cannot attach %d more volumes: mounts_per_namespace of helper.toml is %d", len(list), s.config.Limits.MountsPerNamespace)
	namespace.Check(s.intent(r, record.Mounts[live:]), wire.System, "audit", "cannot write the audit log %s, so nothing is attached", s.config.Audit.File) // 10
	defer func() {
		if done == len(list) {
			return
		}
		for i, a := range slices.Backward(list) { // all of them, whatever becomes of one; what could not be taken back stays on record
			if i > done || namespace.Try(func() { a.Undo(s.host, s.removal(target.NS.ID, &record.Mounts[live+i])) }) == nil && !namespace.Mounted(a.ID, target.NS.ID) {
				record.Mounts = slices.Delete(record.Mounts, live+i, live+i+1)
			}
		}
		s.ledger.WriteNS(record) // where the disk is full the record keeps naming mounts of which the kernel knows better
		s.ledger.Leave(s.whose, record)
	}()
	namespace.Pass(s.ledger.Enter(s.whose, target.NS.ID))
	namespace.Pass(s.ledger.WriteNS(record))
	target.NS.Enter() // 11
	for ; done < len(list); done++ {
		m := &record.Mounts[live+done]
		list[done].Point.Make(func(folder string) { namespace.Pass(s.ledger.Own(folder, target.NS.ID)) })
		namespace.Pass(s.ledger.Share(list[done].Point.ID(), target.NS.ID))
		list[done].Attach(s.config.Targets.AllowSharedPropagation)
		if now := list[done].Point.Record(); now.Made < m.Made { // the container made the rest itself meanwhile: that is not ours to remove
			m.Made, m.Base = now.Made, now.Base
			defer s.ledger.WriteNS(record)
		}
	}
}

func (s *session) attributes(m *wire.Mount) uint64 {
	c, on := &s.config.Mounts, func(bit uint64, set bool) uint64 { return map[bool]uint64{true: bit}[set] }
	return on(unix.MOUNT_ATTR_RDONLY, m.Mode == wire.ModeRO) | on(unix.MOUNT_ATTR_NOSUID, !c.AllowSUID) | on(unix.MOUNT_ATTR_NODEV, !c.AllowDev) | on(unix.MOUNT_ATTR_NOEXEC, m.NoExec || c.NoExec)
}

// place pins what the request says of the container's file system.
func (s *session) place(r *wire.Request, target *namespace.Target) *privops.Place {
	t, host := &s.config.Targets, -1
	if r.Rootfs != "" {
		host = onHost(parse(r.Rootfs), t.RootfsRoots, "rootfs", "rootfs_roots")
	}
	rules := &privops.Rules{Deny: wire.ParsePaths(t.Deny), DenyUnder: wire.ParsePaths(t.DenyUnder), HostPaths: wire.ParsePaths(t.HostPaths)}
	place := privops.NewPlace(target, rules, parse(r.Rootfs), host)
	if r.Directory != "" && slices.ContainsFunc(r.Mounts, func(m wire.Mount) bool { return m.Path[0] != '/' }) {
		seen := map[bool]string{true: r.Directory, false: cmp.Or(r.Sandbox, wire.DefaultSandbox)}[target.SharesHostRoot && r.Rootfs == ""]
		place.UseSandbox(onHost(parse(r.Directory), t.SandboxRoots, "sandbox directory", "sandbox_roots"), parse(seen))
	}
	return place
}

// source pins a mount's source beneath the [[source]] that holds it: the longest, if several do. What is not in one is refused without being looked at (T31), and so is what is ours.
func (s *session) source(m *wire.Mount) *privops.Source {
	asked, own, local := parse(m.Source), wire.ParsePaths(append(conf.Own(), s.config.Audit.File)), parse(conf.VolumesDir())
	rules := slices.DeleteFunc(slices.Clone(s.config.Sources), func(src conf.Source) bool { return !parse(src.Path).Contains(asked) })
	ours := slices.ContainsFunc(own, func(own wire.Path) bool { return own.Contains(asked) || asked.Contains(own) }) || asked.Contains(local) || local.Contains(asked) && wire.CheckVolumeName(asked.Components[len(local.Components)]) != nil // all volumes at once, or one that is being made or removed
	namespace.DieIf(len(rules) == 0 || ours, wire.SourceForbidden, "source", "cannot use the source %s: it is not in an allowed source of helper.toml", m.Source)
	namespace.DieIf(m.IDMap && !s.config.Mounts.AllowIDMap, wire.Denied, "source", "cannot map the ids of %s: allow_idmap of helper.toml is not set", m.Source)
	rule := slices.MaxFunc(rules, func(a, b conf.Source) int { return len(a.Path) - len(b.Path) })
	fd, private, err := conf.OpenTrusted(rule.Path, unix.O_PATH|unix.O_DIRECTORY)
	namespace.Check(err, wire.SourceForbidden, "source", "cannot use the source %s", m.Source)
	root := privops.SourceRoot{FD: fd, Sealed: private, RequireMountpoint: rule.RequireMountpoint, AllowFUSE: rule.AllowFUSE, Ours: local.Contains(asked)}
	return privops.PinSource(root, asked.String(), asked.Components[len(parse(rule.Path).Components):], parse(m.Subpath).Components)
}

func onHost(p wire.Path, roots []string, what, key string) int {
	list := wire.ParsePaths(roots)
	i := slices.IndexFunc(list, func(r wire.Path) bool { return r.Contains(p) && len(r.Components) < len(p.Components) })
	namespace.DieIf(i < 0, wire.TargetForbidden, "target", "cannot use the %s %s: it is not under targets.%s of helper.toml", what, p, key)
	top, _, err := conf.OpenTrusted(list[i].String(), unix.O_PATH|unix.O_DIRECTORY)
	namespace.Pass(err)
	return namespace.Must(privops.Open(top, p.Components[len(list[i].Components):], 0, false))(wire.TargetForbidden, "target", "cannot use the %s %s", what, p)
}

// parse takes apart a path that was checked when it was read; "" has no components.
func parse(s string) wire.Path { p, _ := wire.ParsePath(s); return p }
