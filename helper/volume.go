package main

import (
	"cmp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/privops"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/wire"
)

// volume serves the local driver: create, remove and list its volumes.
func (s *session) volume(r *wire.Request) (blocks []wire.Fields) {
	fd, _, err := conf.OpenTrusted(conf.VolumesDir(), unix.O_RDONLY|unix.O_DIRECTORY)
	namespace.Pass(err)
	must(conf.RootOwned(fd, conf.VolumesDir()))
	v := &privops.Volumes{FD: fd, Path: conf.VolumesDir()}
	if r.Op == wire.OpListVolumes && r.Name == "" {
		for _, vol := range v.List() {
			blocks = append(blocks, describe(vol))
		}
		return blocks
	}
	defer s.held(s.ledger.LockName("volume+" + r.Name)).Unlock()
	if r.Op == wire.OpRemoveVolume {
		s.refuseAttached(v.Path + "/" + r.Name) // before it keeps anybody from attaching it
		defer s.keep(v.Path+"/"+r.Name, unix.F_WRLCK).Unlock()
		s.refuseAttached(v.Path + "/" + r.Name)
		s.intent(r, nil)
		v.Remove(r.Name)
		return nil
	}
	created := r.Op == wire.OpCreateVolume && v.Create(r.Name, *cmp.Or(r.Mode, new(uint32(0o755))), *cmp.Or(r.UID, new(uint32)), *cmp.Or(r.GID, new(uint32)))
	vol, ok := v.Get(r.Name)
	namespace.DieIf(!ok, wire.VolumeNotFound, "volume", "cannot find the local volume %s", r.Name)
	return []wire.Fields{append(describe(vol), wire.Pairs("created", created)...)}
}

func describe(v privops.Volume) wire.Fields {
	return wire.Pairs("mount", v.Path, "name", v.Name, "mode", strconv.FormatUint(uint64(v.Mode), 8), "uid", v.UID, "gid", v.GID, "time", v.Born)
}

// keep keeps a local volume from being removed (unix.F_RDLCK), until the attach is on record, or from being attached (F_WRLCK), by somebody else. Whoever comes second is not kept waiting: busy.
func (s *session) keep(source string, kind int16) *state.Lock {
	local, p := parse(conf.VolumesDir()), parse(source)
	if !local.Contains(p) || p.Contains(local) {
		return &state.Lock{}
	}
	lock, err := s.ledger.LockAs(state.NoWait, state.Key("attached+"+p.Components[len(local.Components)]), kind)
	namespace.Check(err, wire.Busy, "volume", "cannot attach or remove the local volume %s now", p)
	return lock
}

// refuseAttached refuses to remove a volume that is attached somewhere, whoever attached it.
func (s *session) refuseAttached(volume string) {
	for _, id := range must(s.ledger.Namespaces()) {
		for _, m := range must(s.ledger.ReadNS(id)).Mounts {
			namespace.Hint("see bindgate status; clean the container up first").DieIf(strings.HasPrefix(m.Source+"/", volume+"/") && namespace.Mounted(m.ID, id), wire.Busy, "volume", "cannot remove the volume at %s: a container has it attached", volume)
		}
	}
}
