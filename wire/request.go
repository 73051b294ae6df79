package wire

import (
	"cmp"
	"slices"
	"strconv"
)

// The helper's operations; the modes of a mount; where a container sees its sandbox directory unless told otherwise (Mesos' --sandbox_directory).
const (
	OpAttach, OpDetach, OpQuery, OpSweep          = "attach", "detach", "query", "sweep"
	OpCreateVolume, OpRemoveVolume, OpListVolumes = "create-volume", "remove-volume", "list-volumes"
	ModeRO, ModeRW, DefaultSandbox                = "ro", "rw", "/mnt/mesos/sandbox"
)

// A Request is what a caller asks of the helper. Which fields an operation takes is in the tables below; the others are zero.
type Request struct {
	Op, Owner, Container, Name string  // what to do; the agent that the records belong to; the container's id; the name of a local volume
	PID                        int     // the container's process, as the caller sees it
	Start                      uint64  // its start time in clock ticks (proc_pid_stat(5), field 22); 0: not given
	Rootfs, Directory, Sandbox string  // host paths of the root filesystem before the container pivots, and of the sandbox directory; where the container sees that, default DefaultSandbox
	Lazy, Forget               bool    // detach although somebody uses the mount; for the audit log: the caller forgets the container without asking its drivers
	Mode, UID, GID             *uint32 // the volume's
	Mounts                     []Mount
}

// A Mount is one volume to attach, or for detach just the container path of one that is attached.
type Mount struct {
	Path, Source, Subpath, Mode string // container_path as the job says it; absolute host path; relative, beneath Source; ModeRO or ModeRW
	NoExec, IDMap               bool
}

// A Recorded mount is what the ledger keeps of an attachment: enough to find that very mount again, and to remove what was made for it.
type Recorded struct {
	ID                     uint64 // STATX_MNT_ID_UNIQUE
	Target, Path, Prefix   string // container_path, clean; resolved, from the root that the container had then; of that root in the namespace, before the pivot
	Root, Base             string // which directory that root was, and the deepest of Path that was there before (privops.RootID)
	Made, RootUID, RootGID int    // how many of Path's last components were to be made; file system ids of the container's root user
}

// Which keys an operation takes: those that must be there, and those that may.
var (
	headMust  = map[string][]string{OpAttach: {"owner", "container", "pid"}, OpDetach: {"owner", "container"}, OpQuery: {"owner"}, OpCreateVolume: {"name"}, OpRemoveVolume: {"name"}, OpListVolumes: {}, OpSweep: {"owner"}}
	headMay   = map[string][]string{OpAttach: {"start", "rootfs", "directory", "sandbox"}, OpDetach: {"lazy", "forget"}, OpQuery: {"container"}, OpCreateVolume: {"mode", "uid", "gid"}, OpListVolumes: {"name"}}
	blockMust = map[string][]string{OpAttach: {"mount", "source", "mode"}, OpDetach: {"mount"}}
	blockMay  = map[string][]string{OpAttach: {"subpath", "noexec", "idmap"}}
)

// DecodeRequest parses a request and checks all that can be checked without looking at the system: known operation and keys, every value in its range. Errors are invalid_request or limit_exceeded.
func DecodeRequest(data []byte) (*Request, error) {
	m, err := Decode(data, MaxRequest, MaxBlocks)
	if err != nil {
		return nil, err
	}
	op := m.Head.Get("op")
	if headMust[op] == nil || m.Head[0].Key != "op" {
		return nil, Errorf(InvalidRequest, "request", "cannot do op=%s: there is no such operation, or it is not the second field", quote(op))
	} else if len(m.Blocks) > 0 && blockMust[op] == nil || len(m.Blocks) == 0 && op == OpAttach {
		return nil, Errorf(InvalidRequest, "request", "cannot do %s with %d mount=", op, len(m.Blocks))
	}
	absolute, below := func(p Path) bool { return p.Absolute }, func(p Path) bool { return !p.Absolute && len(p.Components) > 0 }
	const id = "made of letters, digits, _ . - and in an id :, begins with a letter or digit, and is not too long"
	h := &values{m.Head, keys(m.Head, append(headMust[op], "op"), headMay[op])}
	r := &Request{Op: op, Owner: h.is("owner", id, CheckOwner(h.Get("owner")) == nil), Container: h.is("container", id, CheckContainer(h.Get("container")) == nil), PID: int(h.number("pid", 10, 1, 1<<22)), Start: h.number("start", 10, 1, 1<<63-1),
		Rootfs: h.path("rootfs", absolute), Directory: h.path("directory", absolute), Sandbox: h.path("sandbox", absolute), Lazy: h.flag("lazy"), Forget: h.flag("forget"),
		Name: h.is("name", id, CheckVolumeName(h.Get("name")) == nil), Mode: h.optional("mode", 8, 0o3777), UID: h.optional("uid", 10, 1<<32-2), GID: h.optional("gid", 10, 1<<32-2), Mounts: []Mount{}}
	for _, fields := range m.Blocks {
		b := &values{fields, cmp.Or(h.err, keys(fields, blockMust[op], blockMay[op]))}
		r.Mounts = append(r.Mounts, Mount{Path: b.path("mount", func(Path) bool { return true }), Source: b.path("source", absolute), Subpath: b.path("subpath", below), NoExec: b.flag("noexec"), IDMap: b.flag("idmap"),
			Mode: b.is("mode", "ro or rw", b.Get("mode") == ModeRO || b.Get("mode") == ModeRW)})
		h.err = b.err
	}
	if h.err != nil {
		return nil, h.err
	}
	return r, nil
}

// keys checks that the keys of must are there, and no others but those of may; and that all values can be shown to a person.
func keys(fields Fields, must, may []string) error {
	for _, f := range fields {
		if !slices.Contains(must, f.Key) && !slices.Contains(may, f.Key) || Printable(f.Value) != f.Value {
			return Errorf(InvalidRequest, "request", "cannot read the request: it has the key %s= where none is taken, or with control characters or what is not UTF-8", f.Key)
		}
	}
	for _, key := range must {
		if _, ok := fields.Lookup(key); !ok {
			return Errorf(InvalidRequest, "request", "cannot read the request: it lacks %s=", key)
		}
	}
	return nil
}

// values takes values out of fields; one that is not there is zero. It keeps the first error.
type values struct {
	Fields
	err error
}

func (v *values) is(key, what string, ok bool) string {
	s, there := v.Lookup(key)
	if there && !ok {
		v.err = cmp.Or[error](v.err, Errorf(InvalidRequest, "request", "cannot use %s=%s: it is %s", key, quote(s), what))
	}
	return s
}

func (v *values) flag(key string) bool { return v.is(key, "1 or left out", v.Get(key) == "1") != "" }

func (v *values) path(key string, ok func(Path) bool) string {
	p, err := ParsePath(v.Get(key))
	return v.is(key, "a path without .. and within the kernel's limits, absolute on the host, relative in a volume", err == nil && ok(p))
}

// number takes digits only: no sign, no space, no leading zero but in octal.
func (v *values) number(key string, base int, min, max uint64) uint64 {
	n, err := strconv.ParseUint(v.Get(key), base, 64)
	format := func(n uint64) string { return strconv.FormatUint(n, base) }
	v.is(key, "a number from "+format(min)+" to "+format(max), err == nil && n >= min && n <= max && (base == 8 || format(n) == v.Get(key)))
	return n
}

func (v *values) optional(key string, base int, max uint64) *uint32 {
	if _, ok := v.Lookup(key); !ok {
		return nil
	}
	return new(uint32(v.number(key, base, 0, max)))
}
