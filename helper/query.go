package main

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/privops"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/wire"
)

// query tells what the caller attached: of one container with the sizes of the filesystems and who uses them, or of all of an owner's without. It waits for no lock: a record is the old or the new one.
func (s *session) query(r *wire.Request) (blocks []wire.Fields, err error) {
	var ids []uint64
	if r.Container != "" {
		if ns, ok := s.ledger.Find(s.caller.uid, r.Owner, r.Container); ok {
			ids = []uint64{ns}
		}
	} else if ids, _, err = s.ledger.Namespaces(); err != nil {
		return nil, err
	}
	for _, id := range ids {
		record, err := s.ledger.ReadNS(id)
		if err != nil {
			continue // sweep reports it
		}
		for _, m := range record.Mounts {
			if m.UID != s.caller.uid || m.Owner != r.Owner || r.Container != "" && m.Container != r.Container {
				continue
			}
			b := wire.Fields{{Key: "mount", Value: m.Target}, {Key: "owner", Value: m.Owner}, {Key: "container", Value: m.Container}, {Key: "pid", Value: strconv.Itoa(m.PID)},
				{Key: "ns", Value: strconv.FormatUint(id, 10)}, {Key: "id", Value: strconv.FormatUint(m.ID, 10)}, {Key: "target", Value: m.Path}, {Key: "source", Value: m.Source}, {Key: "mode", Value: m.Mode}}
			mount, err := namespace.StatMount(m.ID, id)
			if err != nil {
				blocks = append(blocks, append(b, wire.Field{Key: "alive", Value: "0"}))
				continue
			}
			b = append(b, wire.Field{Key: "alive", Value: "1"})
			if r.Container != "" {
				b = append(b, s.usage(record, mount)...)
			}
			blocks = append(blocks, b)
		}
	}
	return blocks, nil
}

// usage tells the size of a mount's filesystem and who holds it.
func (s *session) usage(record *state.LedgerRecord, m namespace.Mount) (f wire.Fields) {
	ns, err := s.host.OpenNS(record.NS, record.Inode)
	if err != nil {
		return nil
	}
	defer unix.Close(ns.FD)
	if fs, err := privops.Statfs(ns, m); err == nil {
		size := uint64(fs.Bsize)
		for _, x := range []struct {
			key string
			n   uint64
		}{{"bytes", fs.Blocks * size}, {"bytes_free", fs.Bavail * size}, {"inodes", fs.Files}, {"inodes_free", fs.Ffree}} {
			f = append(f, wire.Field{Key: x.key, Value: strconv.FormatUint(x.n, 10)})
		}
	}
	return append(f, wire.Field{Key: "holders", Value: strings.Join(s.host.Holders(ns, m), "\n")})
}

// volumes serves the local driver.
func (s *session) volumes(r *wire.Request) (blocks []wire.Fields, err error) {
	fd, _, err := conf.OpenTrusted(conf.VolumesDir(), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	if err := conf.RootOwned(fd, conf.VolumesDir()); err != nil {
		return nil, err
	}
	v := &privops.Volumes{FD: fd, Path: conf.VolumesDir()}
	add := func(vol privops.Volume, more wire.Field) {
		blocks = append(blocks, wire.Fields{{Key: "mount", Value: vol.Path}, {Key: "name", Value: vol.Name}, {Key: "mode", Value: strconv.FormatUint(uint64(vol.Mode), 8)},
			{Key: "uid", Value: strconv.FormatUint(uint64(vol.UID), 10)}, {Key: "gid", Value: strconv.FormatUint(uint64(vol.GID), 10)}, more})
	}
	if r.Op == wire.OpListVolumes {
		list, err := v.List()
		if r.Name != "" {
			list = make([]privops.Volume, 1)
			list[0], err = v.Get(r.Name)
		}
		if err != nil {
			return nil, err
		}
		for _, vol := range list {
			add(vol, wire.Field{Key: "time", Value: strconv.FormatInt(vol.Born, 10)})
		}
		return blocks, nil
	}
	lock, err := s.ledger.LockVolume(r.Name)
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	if r.Op == wire.OpRemoveVolume {
		if err := s.unused(conf.VolumesDir() + "/" + r.Name); err != nil {
			return nil, err
		}
		return nil, v.Remove(r.Name)
	}
	value := func(n *uint32, otherwise uint32) uint32 {
		if n == nil {
			return otherwise
		}
		return *n
	}
	vol, created, err := v.Create(r.Name, value(r.Mode, 0o755), value(r.UID, 0), value(r.GID, 0))
	if err != nil {
		return nil, err
	}
	made := "0"
	if created {
		made = "1"
	}
	add(vol, wire.Field{Key: "created", Value: made})
	return blocks, nil
}

// unused refuses to remove a volume that is attached somewhere, whoever attached it.
func (s *session) unused(path string) error {
	ids, _, err := s.ledger.Namespaces()
	if err != nil {
		return err
	}
	for _, id := range ids {
		record, err := s.ledger.ReadNS(id)
		if err != nil {
			return err
		}
		for _, m := range record.Mounts {
			if namespace.Mounted(m.ID, id) && strings.HasPrefix(m.Source+"/", path+"/") {
				return wire.Errorf(wire.Busy, "volume", "cannot remove the volume at %s: a container has it attached", path).WithHint("see bindgate status; clean the container up first")
			}
		}
	}
	return nil
}
