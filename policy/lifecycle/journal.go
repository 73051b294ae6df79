package lifecycle

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/policy/spec"
	"github.com/bindgate/bindgate/state"
	"github.com/bindgate/bindgate/wire"
)

// The journal has two folders. containers/ holds a record for each container: the intent first, then how far it came. volumes/ holds a record for each
// volume in use: its id for the driver, its mountpoint, who refers to it. A reference counts only if the container's record confirms it, and a container's
// record is written before its references and removed after them, so that a crash between the two leaves nothing that counts and is not there.
//
// Locks: the container first, then one volume at a time. Nobody who holds a volume's lock waits for anything but the driver, so nobody waits in a circle.

// A volumeID is a volume's identity.
type volumeID struct {
	Driver string `json:"driver"`
	Name   string `json:"name"`
}

func (v volumeID) String() string { return v.Driver + "/" + v.Name }

// key is the name of the volume's record: a volume's name may hold anything, and be long.
func (v volumeID) key() string {
	sum := sha256.Sum256([]byte(v.Driver + "\x00" + v.Name))
	return hex.EncodeToString(sum[:])
}

// A reference says who uses a volume: a container, or the owner himself (volume mount) if Container is empty.
type reference struct {
	Owner     string `json:"owner"`
	Container string `json:"container,omitempty"`
}

// key is the name of the container's record. Neither part can hold an @, so no two have one name (T28).
func (r reference) key() string { return r.Owner + "@" + r.Container }

func (r reference) String() string {
	if r.Container == "" {
		return "volume mount (owner " + r.Owner + ")"
	}
	return r.Container
}

// How far a container came.
const (
	phasePreparing = "preparing" // the drivers are being asked; found without its lock held: cut off
	phasePrepared  = "prepared"  // waits for its process
	phaseIsolating = "isolating" // the helper is being asked
	phaseIsolated  = "isolated"  // attached
	phaseBound     = "bound"     // the agent made the mounts itself
	phaseCleaning  = "cleaning"  // being cleaned up, or cleaned up but for what is pending
)

// Who makes the mounts in the container.
const (
	ByHelper = "helper"
	ByAgent  = "agent"
)

// containerRecord is a container's record.
type containerRecord struct {
	Owner     string            `json:"owner"`
	Container string            `json:"container"`
	Phase     string            `json:"phase"`
	Boot      string            `json:"boot"` // in which it was prepared
	Since     time.Time         `json:"since"`
	Parent    string            `json:"parent,omitempty"`
	Children  []string          `json:"children,omitempty"` // whose Parent this was; each confirmed by its own record
	Labels    map[string]string `json:"labels,omitempty"`
	Rootfs    string            `json:"rootfs,omitempty"`
	Directory string            `json:"directory,omitempty"`
	Sandbox   string            `json:"sandbox,omitempty"`
	MountsBy  string            `json:"mounts_by"`
	Implicit  bool              `json:"implicit,omitempty"` // attach made it; its last detach drops it
	Process   *process          `json:"process,omitempty"`
	Volumes   []*entry          `json:"volumes"`
}

func (c *containerRecord) ref() reference { return reference{c.Owner, c.Container} }

// An entry is one volume of a container.
type entry struct {
	volumeID
	ContainerPath string            `json:"container_path,omitempty"`
	Mode          string            `json:"mode"`
	Scope         string            `json:"scope"`
	Options       map[string]string `json:"options,omitempty"`
	Subpath       string            `json:"subpath,omitempty"`
	NoExec        bool              `json:"noexec,omitempty"`
	IDMap         bool              `json:"idmap,omitempty"`

	ID         string    `json:"id,omitempty"` // for the driver
	Mountpoint string    `json:"mountpoint,omitempty"`
	Created    bool      `json:"created,omitempty"`  // it did not exist before
	Pending    bool      `json:"pending,omitempty"`  // attach was asked for it and has not ended, or detach
	Since      time.Time `json:"since,omitzero"`     // of the first attempt to detach it that failed
	Attached   *mounted  `json:"attached,omitempty"` // what the helper made of it
}

// mounted is what the helper says of one mount.
type mounted struct {
	Target  string `json:"target"`
	MountID uint64 `json:"mount_id"`
	Created int    `json:"created"` // components of the path that it made
	Locked  bool   `json:"locked"`
}

// source is what is mounted: the volume's root, or what is beneath it.
func (e *entry) source() string {
	if e.Subpath == "" {
		return e.Mountpoint
	}
	return strings.TrimSuffix(e.Mountpoint, "/") + "/" + e.Subpath
}

// States of what a driver mounted.
const (
	mountAsked   = "mounting"        // found without the volume's lock held: a crash; it may be mounted or not
	mountDone    = "mounted"         // the driver said so
	mountPending = "unmount_pending" // to be unmounted; counts as no reference
)

// A hold is one Mount of the driver. A volume has one, or one per container with counting = "container".
type hold struct {
	ID         string      `json:"id"` // for the driver
	Owner      string      `json:"owner"`
	State      string      `json:"state"`
	Mountpoint string      `json:"mountpoint,omitempty"`
	WasMount   bool        `json:"was_mount,omitempty"` // the mountpoint was one, so that it shows when it is lost
	Boot       string      `json:"boot"`
	Refs       []reference `json:"refs,omitempty"`
	Since      time.Time   `json:"since"`            // of the first attempt to unmount
	Error      string      `json:"error,omitempty"`  // of the last one
	Unsure     bool        `json:"unsure,omitempty"` // whether it is mounted, because a call was given up
	Own        bool        `json:"own,omitempty"`    // for one container alone
	Late       time.Time   `json:"late,omitzero"`    // until when a Mount whose caller was killed, or gave it up, may be carried out
	Doubt      bool        `json:"doubt,omitempty"`  // before that, the driver said that it is not mounted
}

// volumeRecord is a volume's record.
type volumeRecord struct {
	volumeID
	Holds []*hold `json:"holds"`
}

// find returns the hold that ref uses or, for a new reference, may use.
func (v *volumeRecord) find(ref reference, perContainer bool) *hold {
	for _, h := range v.Holds {
		if slices.Contains(h.Refs, ref) {
			return h
		}
	}
	for _, h := range v.Holds {
		if !h.Own && !perContainer && !h.Doubt {
			return h
		}
	}
	return nil
}

func (v *volumeRecord) drop(h *hold) {
	v.Holds = slices.DeleteFunc(v.Holds, func(x *hold) bool { return x == h })
}

// settle drops a hold that was let go, unless in doubt: then the driver is asked again when nobody else has the volume.
func (v *volumeRecord) settle(h *hold) {
	if !h.Doubt {
		v.drop(h)
		return
	}
	h.State, h.Unsure, h.Refs, h.Since = mountPending, true, nil, time.Now().UTC()
	h.Error = "the driver says that it is not mounted, and may still carry out a call to mount it that was cut off; it is asked again until " + h.Late.Format(time.RFC3339)
}

func (v *volumeRecord) inUse() []reference {
	var refs []reference
	for _, h := range v.Holds {
		refs = append(refs, h.Refs...)
	}
	return refs
}

func (h *hold) unref(ref reference) {
	h.Refs = slices.DeleteFunc(h.Refs, func(r reference) bool { return r == ref })
}

func (h *hold) ref(ref reference) {
	if !slices.Contains(h.Refs, ref) {
		h.Refs = append(h.Refs, ref)
	}
}

// newID makes an id for a driver, of the form of Docker's container ids.
func newID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// readContainer returns a container's record; nil without error where there is none.
func (iso *Isolator) readContainer(ref reference) (*containerRecord, error) {
	c := &containerRecord{}
	ok, err := read(iso.containers, ref.key(), c)
	if err != nil || !ok {
		return nil, err
	}
	if c.ref() != ref || slices.Contains(c.Volumes, nil) {
		return nil, wire.Errorf(wire.StateCorrupt, "state", "cannot trust the record of container %s: it speaks of %s, or of nothing", ref.Container, c.ref().key()).
			WithHint("bindgate recover moves it aside")
	}
	return c, nil
}

func (iso *Isolator) writeContainer(c *containerRecord) error {
	return write(iso.containers, c.ref().key(), c)
}

func (iso *Isolator) dropContainer(c *containerRecord) error {
	return iso.containers.Remove(c.ref().key())
}

// readVolume returns a volume's record, an empty one where there is none.
func (iso *Isolator) readVolume(id volumeID) (*volumeRecord, error) {
	v, err := iso.readVolumeNamed(id.key())
	if v == nil && err == nil {
		return &volumeRecord{volumeID: id}, nil
	}
	return v, err
}

// writeVolume writes a volume's record, or removes the one of a volume that nobody holds.
func (iso *Isolator) writeVolume(v *volumeRecord) error {
	if len(v.Holds) == 0 {
		return iso.volumes.Remove(v.key())
	}
	return write(iso.volumes, v.key(), v)
}

func read(s *state.Store, name string, to any) (bool, error) {
	rec, err := s.Read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if isCode(err, wire.StateCorrupt) {
		return false, wire.AsError(err).WithHint("bindgate recover moves it aside and carries on with the rest")
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(rec.Payload, to); err != nil {
		return false, wire.Errorf(wire.StateCorrupt, "state", "cannot trust the record %s: %v", name, err).
			WithHint("bindgate recover moves it aside and carries on with the rest")
	}
	return true, nil
}

func write(s *state.Store, name string, from any) error {
	data, err := json.Marshal(from)
	if err != nil {
		return wire.Errorf(wire.Internal, "state", "cannot encode the record %s: %v", name, err)
	}
	return s.Write(name, data)
}

// confirmed reports whether a reference is one: whether the container's record has the volume. A record that cannot be read may have it.
func (iso *Isolator) confirmed(ref reference, id volumeID) bool {
	if ref.Container == "" {
		return true
	}
	c, err := iso.readContainer(ref)
	if err != nil {
		return true
	}
	return c != nil && slices.ContainsFunc(c.Volumes, func(e *entry) bool { return e.volumeID == id })
}

// lockContainers locks the records of containers, each once, in one order for all, so that two who want the same two cannot wait for each other.
func (iso *Isolator) lockContainers(ctx context.Context, refs ...reference) (unlock func(), err error) {
	ctx, cancel := iso.lockLimit(ctx)
	defer cancel()
	var keys []uint64
	for _, r := range refs {
		keys = append(keys, state.Key(r.key())>>1) // the store's locks know no more of a key
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	held := map[uint64]*state.Lock{}
	release := func() {
		for _, l := range held {
			l.Unlock()
		}
	}
	for _, k := range keys {
		l, err := iso.containers.Lock(ctx, k<<1)
		if err != nil {
			release()
			return nil, lockFailed(err, "container "+refs[0].Container)
		}
		held[k] = l
	}
	for _, r := range refs {
		iso.held.Store(r.key(), held[state.Key(r.key())>>1])
	}
	return func() {
		for _, r := range refs {
			iso.held.Delete(r.key())
		}
		release()
	}, nil
}

func (iso *Isolator) lockVolume(ctx context.Context, id volumeID) (unlock func(), err error) {
	ctx, cancel := iso.lockLimit(ctx)
	defer cancel()
	l, err := iso.volumes.Lock(ctx, state.Key(id.key()))
	if err != nil {
		return nil, lockFailed(err, "volume "+id.String())
	}
	iso.held.Store(id.key(), l)
	return func() {
		iso.held.Delete(id.key())
		l.Unlock()
	}, nil
}

// holding returns a context in which the helper, too, holds the lock of what a request is about until it ends.
func (iso *Isolator) holding(ctx context.Context, r *wire.Request) context.Context {
	key := reference{r.Owner, r.Container}.key()
	if r.Name != "" {
		key = volumeID{localDriver, r.Name}.key()
	}
	if l, ok := iso.held.Load(key); ok {
		ctx = boundary.Holding(ctx, l.(*state.Lock).F)
	}
	return ctx
}

// lockLimit is the longest that anybody holds a lock for a reason: the calls of the driver that has the most time for them.
func (iso *Isolator) lockLimit(ctx context.Context) (context.Context, context.CancelFunc) {
	var longest time.Duration
	for _, name := range append(slices.Collect(maps.Keys(iso.policy.Drivers)), "") { // "": one without timeouts of its own
		t := iso.policy.For(name)
		longest = max(longest, t.Mount+t.Unmount+t.Call)
	}
	return context.WithTimeout(ctx, longest)
}

func lockFailed(err error, what string) error {
	if !isCode(err, wire.Timeout) {
		return err
	}
	return wire.Errorf(wire.Timeout, "lock", "cannot lock %s: another bindgate is at work on it", what).Because(errors.Unwrap(err))
}

// entryOf is a job's volume as a container's record has it.
func entryOf(v spec.Volume) *entry {
	return &entry{volumeID: volumeID{v.Driver, v.Name}, ContainerPath: v.ContainerPath, Mode: v.Mode, Scope: v.Scope, Options: v.Options,
		Subpath: v.Subpath, NoExec: v.NoExec, IDMap: v.IDMap}
}

func sortIDs[T any](list []T, id func(T) volumeID) {
	slices.SortFunc(list, func(a, b T) int {
		return cmp.Or(cmp.Compare(id(a).Driver, id(b).Driver), cmp.Compare(id(a).Name, id(b).Name))
	})
}
