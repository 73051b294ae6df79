package wire

import (
	"slices"
	"strconv"
)

// The helper's operations.
const (
	OpAttach, OpDetach, OpQuery, OpSweep          = "attach", "detach", "query", "sweep"
	OpCreateVolume, OpRemoveVolume, OpListVolumes = "create-volume", "remove-volume", "list-volumes"
)

// Modes of a mount.
const ModeRO, ModeRW = "ro", "rw"

// DefaultSandbox is where a container sees its sandbox directory unless told otherwise (Mesos' --sandbox_directory).
const DefaultSandbox = "/mnt/mesos/sandbox"

// A Request is what a caller asks of the helper. Which fields an operation takes is in the tables below; the others are zero.
type Request struct {
	Op               string
	Owner, Container string // the agent that the records belong to; the container's id
	PID              int    // the container's process, as the caller sees it
	Start            uint64 // its start time in clock ticks (proc_pid_stat(5), field 22); 0: not given
	Rootfs           string // host path of the root filesystem, before the container pivots
	Directory        string // host path of the sandbox directory
	Sandbox          string // where the container sees it; default DefaultSandbox
	Lazy             bool   // detach although somebody uses the mount
	Forget           bool   // for the audit log: the caller forgets the container without asking its drivers
	Name             string // of a local volume
	Mode             *uint32
	UID, GID         *uint32
	Mounts           []Mount
}

// A Mount is one volume to attach, or for detach just the container path of one that is attached.
type Mount struct {
	Path, Source, Subpath string // container_path as the job says it; absolute host path; relative, beneath Source
	Mode                  string // ModeRO or ModeRW
	NoExec, IDMap         bool
}

// Which keys an operation takes: those that must be there, and those that may.
var (
	headMust  = map[string][]string{OpAttach: {"owner", "container", "pid"}, OpDetach: {"owner", "container"}, OpQuery: {"owner"}, OpCreateVolume: {"name"}, OpRemoveVolume: {"name"}, OpListVolumes: {}, OpSweep: {"owner"}}
	headMay   = map[string][]string{OpAttach: {"start", "rootfs", "directory", "sandbox"}, OpDetach: {"lazy", "forget"}, OpQuery: {"container"}, OpCreateVolume: {"mode", "uid", "gid"}, OpListVolumes: {"name"}}
	blockMust = map[string][]string{OpAttach: {"mount", "source", "mode"}, OpDetach: {"mount"}}
	blockMay  = map[string][]string{OpAttach: {"subpath", "noexec", "idmap"}}
)

// A slot ties a key to the place of its value in a Request or Mount.
type slot struct {
	key string
	get func() string        // "" where there is none
	set func(v string) error // checks the value
}

func (r *Request) slots() []slot {
	return []slot{
		text("op", &r.Op, func(string) error { return nil }), text("owner", &r.Owner, CheckOwner), text("container", &r.Container, CheckContainer), number("pid", &r.PID, 10, 1, 1<<22), number("start", &r.Start, 10, 1, 1<<63-1),
		text("rootfs", &r.Rootfs, absolute), text("directory", &r.Directory, absolute), text("sandbox", &r.Sandbox, absolute), flag("lazy", &r.Lazy), flag("forget", &r.Forget), text("name", &r.Name, CheckVolumeName),
		optional("mode", &r.Mode, 8, 0o3777), optional("uid", &r.UID, 10, 1<<32-2), optional("gid", &r.GID, 10, 1<<32-2),
	}
}

func (m *Mount) slots() []slot {
	return []slot{text("mount", &m.Path, anyPath), text("source", &m.Source, absolute), text("mode", &m.Mode, mode), text("subpath", &m.Subpath, below), flag("noexec", &m.NoExec), flag("idmap", &m.IDMap)}
}

// Encode returns the request in the wire's form.
func (r *Request) Encode() []byte {
	m := &Message{Head: collect(r.slots())}
	for i := range r.Mounts {
		m.Blocks = append(m.Blocks, collect(r.Mounts[i].slots()))
	}
	return m.Encode()
}

func collect(slots []slot) (f Fields) {
	for _, s := range slots {
		if v := s.get(); v != "" {
			f = append(f, Field{s.key, v})
		}
	}
	return f
}

// DecodeRequest parses a request and checks all that can be checked without looking at the system: known operation and keys, every value in its range. Errors are invalid_request (65) or
// limit_exceeded (77).
func DecodeRequest(data []byte) (*Request, error) {
	m, err := Decode(data, MaxRequest, MaxBlocks)
	if err != nil {
		return nil, err
	}
	r := &Request{}
	op := m.Head.Get("op")
	switch {
	case len(m.Head) == 0 || m.Head[0].Key != "op":
		return nil, invalid("cannot read the request: op= is not its second field")
	case headMust[op] == nil:
		return nil, invalid("cannot do op=%s: no such operation", quote(op))
	case len(m.Blocks) > 0 && blockMust[op] == nil:
		return nil, invalid("cannot read the request: %s takes no mount=", op)
	case len(m.Blocks) == 0 && op == OpAttach:
		return nil, invalid("cannot read the request: attach needs a mount=")
	}
	if err := fill(r.slots(), m.Head, append(headMust[op], "op"), headMay[op]); err != nil {
		return nil, err
	}
	r.Mounts = make([]Mount, len(m.Blocks))
	for i, b := range m.Blocks {
		if err := fill(r.Mounts[i].slots(), b, blockMust[op], blockMay[op]); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func fill(slots []slot, fields Fields, must, may []string) error {
	for _, f := range fields {
		i := slices.IndexFunc(slots, func(s slot) bool { return s.key == f.Key })
		if i < 0 || !slices.Contains(must, f.Key) && !slices.Contains(may, f.Key) {
			return invalid("cannot read the request: it has the key %s= where none is taken", f.Key)
		}
		if Printable(f.Value) != f.Value {
			return invalid("cannot read the request: %s= holds control characters or is not UTF-8", f.Key)
		}
		if err := slots[i].set(f.Value); err != nil {
			return err
		}
	}
	for _, key := range must {
		if _, ok := fields.Lookup(key); !ok {
			return invalid("cannot read the request: it lacks %s=", key)
		}
	}
	return nil
}

func text(key string, p *string, check func(string) error) slot {
	return slot{key, func() string { return *p }, func(v string) error {
		*p = v
		return check(v)
	}}
}

func flag(key string, p *bool) slot {
	return slot{key, func() string { return map[bool]string{true: "1"}[*p] }, func(v string) error {
		if *p = true; v != "1" {
			return invalid("cannot use %s=%s: it is 1 or left out", key, quote(v))
		}
		return nil
	}}
}

// number takes digits only: no sign, no space, no leading zero but in octal.
func number[T int | uint32 | uint64](key string, p *T, base int, min, max uint64) slot {
	format := func(n uint64) string { return strconv.FormatUint(n, base) }
	return slot{key, func() string {
		if *p == 0 {
			return ""
		}
		return format(uint64(*p))
	}, func(v string) error {
		n, err := strconv.ParseUint(v, base, 64)
		if err != nil || n < min || n > max || base == 10 && format(n) != v {
			return invalid("cannot use %s=%s: it is a number from %s to %s", key, quote(v), format(min), format(max))
		}
		*p = T(n)
		return nil
	}}
}

func optional(key string, p **uint32, base int, max uint64) slot {
	return slot{key, func() string {
		if *p == nil {
			return ""
		}
		return strconv.FormatUint(uint64(**p), base)
	}, func(v string) error {
		*p = new(uint32)
		return number(key, *p, base, 0, max).set(v)
	}}
}

func anyPath(v string) error {
	_, err := ParsePath(v)
	return err
}

func absolute(v string) error {
	p, err := ParsePath(v)
	if err == nil && !p.Absolute {
		err = invalid("cannot use the path %s: it must be absolute", quote(v))
	}
	return err
}

func below(v string) error {
	p, err := ParsePath(v)
	if err == nil && (p.Absolute || len(p.Components) == 0) {
		err = invalid("cannot use subpath=%s: it must be relative, below the volume's root", quote(v))
	}
	return err
}

func mode(v string) error {
	if v != ModeRO && v != ModeRW {
		return invalid("cannot use mode=%s: it is ro or rw", quote(v))
	}
	return nil
}
