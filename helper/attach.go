package main

import (
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/privops"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/wire"
)

// attach does steps 7 to 11 for all volumes of a request, all or nothing.
func (s *session) attach(r *wire.Request) ([]wire.Fields, error) {
	if n := s.config.Limits.MountsPerRequest; len(r.Mounts) > n {
		return nil, wire.Errorf(wire.LimitExceeded, "request", "cannot attach %d volumes at once: mounts_per_request of helper.toml is %d", len(r.Mounts), n)
	}
	target, err := s.host.Pin(r.PID, r.Start, s.config.Targets.Cgroups) // 7
	if err != nil {
		return nil, err
	}
	defer target.Close()
	s.audit.ns = target.NS.ID
	place, err := s.place(r, target)
	if err != nil {
		return nil, err
	}
	list := make([]*privops.Attachment, len(r.Mounts))
	for i := range list {
		list[i] = &privops.Attachment{Mount: &r.Mounts[i], Attr: s.attributes(&r.Mounts[i]), IDMap: r.Mounts[i].IDMap}
		defer list[i].Close()
	}
	rules := s.rules()
	for _, a := range list { // 8
		if a.Source, err = s.source(a.Mount); err != nil {
			return nil, err
		}
		path, err := wire.ParsePath(a.Mount.Path)
		if err != nil {
			return nil, err
		}
		if a.Point, err = place.Resolve(path, a.Source.IsDir, rules); err != nil {
			return nil, err
		}
	}
	if err := privops.Order(list); err != nil {
		return nil, err
	}
	for _, a := range list { // 9
		if err := a.Clone(target); err != nil {
			return nil, err
		}
	}
	if err := privops.Stage(list, target.NS, s.config.Mounts.Lock == conf.LockAlways || target.UserNS >= 0); err != nil {
		return nil, err
	}
	return s.commit(r, target, list) // 10, 11
}

// commit records the attachments and makes them. The lock of the namespace is held from before the record is read until all is done or undone.
func (s *session) commit(r *wire.Request, target *namespace.Target, list []*privops.Attachment) (blocks []wire.Fields, err error) {
	lock, err := s.ledger.LockNS(target.NS.ID)
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	before, err := s.ledger.ReadNS(target.NS.ID)
	if err != nil {
		return nil, err
	}
	if err := s.elsewhere(r, target.NS.ID); err != nil {
		return nil, err
	}
	record := &state.LedgerRecord{NS: target.NS.ID, Inode: target.NS.Inode}
	var stale []state.LedgerMount // what a crash, or the container itself, left of earlier ones
	for _, m := range before.Mounts {
		if namespace.Mounted(m.ID, target.NS.ID) {
			record.Mounts = append(record.Mounts, m)
		} else {
			stale = append(stale, m)
		}
	}
	live := len(record.Mounts)
	for _, a := range list {
		m := state.LedgerMount{UID: s.caller.uid, Owner: r.Owner, Container: r.Container, PID: r.PID, Target: clean(a.Mount.Path), Source: a.Source.Path, Mode: a.Mount.Mode, ID: a.ID,
			Path: a.Point.Path(), Prefix: a.Point.Prefix(), Made: a.Point.Missing(), RootUID: target.UID, RootGID: target.GID}
		at := func(x state.LedgerMount) bool { return x.Prefix+x.Path == m.Prefix+m.Path }
		if i := slices.IndexFunc(record.Mounts[:live], at); i >= 0 {
			return nil, wire.Errorf(wire.Conflict, "ledger", "cannot attach at %s: the container %s has a volume there already", m.Path, record.Mounts[i].Container)
		}
		if i := slices.IndexFunc(stale, at); i >= 0 { // its folders are ours to remove still
			m.Made = max(m.Made, stale[i].Made)
			stale = slices.Delete(stale, i, i+1)
		}
		record.Mounts = append(record.Mounts, m)
	}
	if n := s.config.Limits.MountsPerNamespace; len(record.Mounts) > n {
		return nil, wire.Errorf(wire.LimitExceeded, "ledger", "cannot attach %d more volumes: mounts_per_namespace of helper.toml is %d", len(list), n)
	}

	if err := s.audit.intent(r, record.Mounts[live:]); err != nil { // 10
		return nil, err
	}
	if err := s.ledger.Enter(s.caller.uid, r.Owner, r.Container, target.NS.ID); err != nil {
		return nil, err
	}
	undo := func() {
		s.ledger.WriteNS(before) // without memory on disk the mounts stay in the record; the kernel knows better
		if !slices.ContainsFunc(before.Mounts, func(m state.LedgerMount) bool { return m.IsOf(s.caller.uid, r.Owner, r.Container) }) {
			s.ledger.Leave(s.caller.uid, r.Owner, r.Container)
		}
	}
	if err := s.ledger.WriteNS(record); err != nil {
		undo()
		return nil, err
	}
	err = target.NS.Enter() // 11
	for i := 0; i < len(list) && err == nil; i++ {
		if err = list[i].Attach(s.host.Proc, s.config.Targets.AllowSharedPropagation); err != nil {
			for _, a := range slices.Backward(list[:i]) {
				a.Undo(s.host.Proc)
			}
		}
	}
	if err != nil {
		undo()
		return nil, err
	}
	for _, m := range stale {
		recorded(&m).Detach(s.host, true)
	}
	for _, a := range list {
		locked, made := "0", a.Point.Made()
		if a.Locked {
			locked = "1"
		}
		b := wire.Fields{{Key: "mount", Value: a.Mount.Path}, {Key: "target", Value: a.Point.Path()}, {Key: "id", Value: strconv.FormatUint(a.ID, 10)}, {Key: "locked", Value: locked}}
		if made > 0 {
			b = append(b, wire.Field{Key: "created", Value: strconv.Itoa(made)})
		}
		blocks = append(blocks, b)
	}
	return blocks, nil
}

// elsewhere refuses a container id that has live mounts in another namespace: an id is one container's.
func (s *session) elsewhere(r *wire.Request, ns uint64) error {
	other, ok := s.ledger.Find(s.caller.uid, r.Owner, r.Container)
	if !ok || other == ns {
		return nil
	}
	record, err := s.ledger.ReadNS(other)
	if err != nil {
		return err
	}
	for _, m := range record.Mounts {
		if namespace.Mounted(m.ID, other) && m.IsOf(s.caller.uid, r.Owner, r.Container) {
			return wire.Errorf(wire.Conflict, "ledger", "cannot attach to the container %s in pid %d: it has volumes in another mount namespace, of pid %d", r.Container, r.PID, m.PID).
				WithHint("detach those first")
		}
	}
	return nil
}

// attributes are those that every mount of a volume's tree gets.
func (s *session) attributes(m *wire.Mount) uint64 {
	var attr uint64
	for bit, set := range map[uint64]bool{unix.MOUNT_ATTR_RDONLY: m.Mode == wire.ModeRO, unix.MOUNT_ATTR_NOSUID: !s.config.Mounts.AllowSUID, unix.MOUNT_ATTR_NODEV: !s.config.Mounts.AllowDev,
		unix.MOUNT_ATTR_NOEXEC: m.NoExec || s.config.Mounts.NoExec} {
		if set {
			attr |= bit
		}
	}
	return attr
}

// place pins what the request says of the container's file system.
func (s *session) place(r *wire.Request, target *namespace.Target) (*privops.Place, error) {
	rootfs, err := optional(r.Rootfs)
	if err != nil {
		return nil, err
	}
	if r.Rootfs != "" {
		if _, err := within(rootfs, s.config.Targets.RootfsRoots, "rootfs", "rootfs_roots"); err != nil {
			return nil, err
		}
	}
	relative := func(m wire.Mount) bool { return m.Path[0] != '/' }
	if r.Directory == "" || !slices.ContainsFunc(r.Mounts, relative) {
		return privops.NewPlace(target, rootfs, -1, wire.Path{})
	}
	directory, err := wire.ParsePath(r.Directory)
	if err != nil {
		return nil, err
	}
	root, err := within(directory, s.config.Targets.SandboxRoots, "sandbox directory", "sandbox_roots")
	if err != nil {
		return nil, err
	}
	top, _, err := conf.OpenTrusted(root.String(), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(top)
	sandbox, err := privops.OpenBeneath(top, directory.Components[len(root.Components):])
	if err != nil {
		return nil, wire.Errorf(wire.TargetForbidden, "target", "cannot use the sandbox directory %s: %v", directory, err)
	}
	defer unix.Close(sandbox)
	seen := directory
	if !target.SharesHostRoot || r.Rootfs != "" {
		if seen, err = optional(r.Sandbox); r.Sandbox == "" {
			seen, err = wire.ParsePath(wire.DefaultSandbox)
		}
	}
	if err != nil {
		return nil, err
	}
	return privops.NewPlace(target, rootfs, sandbox, seen)
}

// source pins a mount's source beneath the [[source]] that holds it: the longest, if several do. What is not in one is refused without being looked at (T31).
func (s *session) source(m *wire.Mount) (*privops.Source, error) {
	refused := wire.Errorf(wire.SourceForbidden, "source", "cannot use the source %s: it is not in an allowed source of helper.toml", m.Source)
	path, err := wire.ParsePath(m.Source)
	if err != nil {
		return nil, err
	}
	for _, own := range []string{conf.RunDir(), conf.JournalDir(), conf.HelperTOML()[:len(conf.HelperTOML())-len("/helper.toml")], s.config.Audit.File} {
		if p, err := wire.ParsePath(own); err != nil || p.Contains(path) || path.Contains(p) {
			return nil, refused
		}
	}
	best, rule := wire.Path{}, -1
	for i, src := range s.config.Sources {
		if p, err := wire.ParsePath(src.Path); err == nil && p.Contains(path) && len(p.Components) > len(best.Components) {
			best, rule = p, i
		}
	}
	if rule < 0 {
		return nil, refused
	}
	if m.IDMap && !s.config.Mounts.AllowIDMap {
		return nil, wire.Errorf(wire.Denied, "source", "cannot map the ids of %s: allow_idmap of helper.toml is not set", m.Source)
	}
	src := s.config.Sources[rule]
	fd, private, err := conf.OpenTrusted(src.Path, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, wire.Errorf(wire.SourceForbidden, "source", "cannot use the source %s: %v", m.Source, err).WithHint("%s", wire.AsError(err).Hint)
	}
	defer unix.Close(fd)
	sub, err := optional(m.Subpath)
	if err != nil {
		return nil, err
	}
	root := privops.SourceRoot{FD: fd, Sealed: private, RequireMountpoint: src.RequireMountpoint, AllowFUSE: src.AllowFUSE}
	return privops.PinSource(root, m.Source, path.Components[len(best.Components):], sub.Components)
}

func (s *session) rules() *privops.Rules {
	t := &s.config.Targets
	return &privops.Rules{Deny: paths(t.Deny), DenyUnder: paths(t.DenyUnder), HostPaths: paths(t.HostPaths)}
}

// paths takes apart paths that were validated when the configuration was read.
func paths(list []string) (out []wire.Path) {
	for _, s := range list {
		if p, err := wire.ParsePath(s); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// within finds the allowed root that holds path.
func within(path wire.Path, roots []string, what, key string) (wire.Path, error) {
	for _, r := range paths(roots) {
		if r.Contains(path) && len(r.Components) < len(path.Components) {
			return r, nil
		}
	}
	return wire.Path{}, wire.Errorf(wire.TargetForbidden, "target", "cannot use the %s %s: it is not under targets.%s of helper.toml", what, path, key)
}

func optional(s string) (wire.Path, error) {
	if s == "" {
		return wire.Path{}, nil
	}
	return wire.ParsePath(s)
}

func clean(s string) string {
	p, _ := wire.ParsePath(s)
	return p.String()
}
