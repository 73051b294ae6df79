package wire

import (
	"strconv"
	"strings"
)

// The helper's operations.
const (
	OpAttach       = "attach"
	OpDetach       = "detach"
	OpQuery        = "query"
	OpCreateVolume = "create-volume"
	OpRemoveVolume = "remove-volume"
	OpListVolumes  = "list-volumes"
	OpSweep        = "sweep"
)

// A Request is what a caller asks of the helper. Which fields an operation takes is in the table below; the others are zero.
type Request struct {
	Op        string
	Owner     string // the agent that the records belong to
	Container string
	PID       int    // the container's process, as the caller sees it
	Start     uint64 // its start time in clock ticks (proc_pid_stat(5), field 22); 0: not given
	Rootfs    string // host path of the root filesystem, before the container pivots
	Directory string // host path of the sandbox directory
	Sandbox   string // where the container sees it; default DefaultSandbox
	Lazy      bool   // detach although somebody uses the mount
	Name      string // of a local volume
	Mode      *uint32
	UID, GID  *uint32
	Mounts    []Mount
}

// A Mount is one volume to attach, or for detach just the container path of one that is attached.
type Mount struct {
	Path    string // container_path as the job says it
	Source  string // absolute host path
	Subpath string // relative, beneath Source
	Mode    string // ModeRO or ModeRW
	NoExec  bool
	IDMap   bool
}

// Modes of a mount.
const (
	ModeRO = "ro"
	ModeRW = "rw"
)

// DefaultSandbox is where a container sees its sandbox directory unless told otherwise (Mesos' --sandbox_directory).
const DefaultSandbox = "/mnt/mesos/sandbox"

// opKeys says which head keys an operation takes: true where one must be there.
var opKeys = map[string]map[string]bool{
	OpAttach:       {"owner": true, "container": true, "pid": true, "start": false, "rootfs": false, "directory": false, "sandbox": false},
	OpDetach:       {"owner": true, "container": true, "lazy": false},
	OpQuery:        {"owner": true, "container": false},
	OpCreateVolume: {"name": true, "mode": false, "uid": false, "gid": false},
	OpRemoveVolume: {"name": true},
	OpListVolumes:  {"name": false},
	OpSweep:        {"owner": true},
}

// blockKeys is the same for the blocks; operations that are not here take none.
var blockKeys = map[string]map[string]bool{
	OpAttach: {"mount": true, "source": true, "mode": true, "subpath": false, "noexec": false, "idmap": false},
	OpDetach: {"mount": true},
}

// Encode returns the request in the wire's form.
func (r *Request) Encode() []byte {
	m := &Message{Head: Fields{{"op", r.Op}}}
	add := func(f *Fields, key, value string) {
		if value != "" {
			*f = append(*f, Field{key, value})
		}
	}
	number := func(key string, n *uint32, base int) {
		if n != nil {
			add(&m.Head, key, strconv.FormatUint(uint64(*n), base))
		}
	}
	add(&m.Head, "owner", r.Owner)
	add(&m.Head, "container", r.Container)
	if r.PID != 0 {
		add(&m.Head, "pid", strconv.Itoa(r.PID))
	}
	if r.Start != 0 {
		add(&m.Head, "start", strconv.FormatUint(r.Start, 10))
	}
	add(&m.Head, "rootfs", r.Rootfs)
	add(&m.Head, "directory", r.Directory)
	add(&m.Head, "sandbox", r.Sandbox)
	add(&m.Head, "lazy", flag(r.Lazy))
	add(&m.Head, "name", r.Name)
	number("mode", r.Mode, 8)
	number("uid", r.UID, 10)
	number("gid", r.GID, 10)
	for _, x := range r.Mounts {
		b := Fields{{"mount", x.Path}}
		add(&b, "source", x.Source)
		add(&b, "mode", x.Mode)
		add(&b, "subpath", x.Subpath)
		add(&b, "noexec", flag(x.NoExec))
		add(&b, "idmap", flag(x.IDMap))
		m.Blocks = append(m.Blocks, b)
	}
	return m.Encode()
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return ""
}

// DecodeRequest parses a request and checks all that can be checked without looking at the system: known operation and keys, every value in its
// range. Errors are invalid_request (65) or limit_exceeded (77).
func DecodeRequest(data []byte) (*Request, error) {
	m, err := Decode(data, MaxRequest, MaxBlocks)
	if err != nil {
		return nil, err
	}
	if len(m.Head) == 0 || m.Head[0].Key != "op" {
		return nil, Errorf(InvalidRequest, "request", "cannot read the request: op= is not its second field")
	}
	r := &Request{Op: m.Head[0].Value}
	if opKeys[r.Op] == nil {
		return nil, Errorf(InvalidRequest, "request", "cannot do op=%s: no such operation", quote(r.Op))
	}
	if err := checkKeys(r.Op, m.Head[1:], opKeys[r.Op]); err != nil {
		return nil, err
	}
	for _, f := range m.Head[1:] {
		if err := r.set(f.Key, f.Value); err != nil {
			return nil, err
		}
	}
	if len(m.Blocks) > 0 && blockKeys[r.Op] == nil {
		return nil, Errorf(InvalidRequest, "request", "cannot read the request: %s takes no mount=", r.Op)
	}
	if len(m.Blocks) == 0 && r.Op == OpAttach {
		return nil, Errorf(InvalidRequest, "request", "cannot read the request: attach needs a mount=")
	}
	r.Mounts = make([]Mount, len(m.Blocks))
	for i, b := range m.Blocks {
		if err := checkKeys(r.Op, b, blockKeys[r.Op]); err != nil {
			return nil, err
		}
		for _, f := range b {
			if err := r.Mounts[i].set(f.Key, f.Value); err != nil {
				return nil, err
			}
		}
	}
	return r, nil
}

func checkKeys(op string, fields Fields, known map[string]bool) error {
	for _, f := range fields {
		if _, ok := known[f.Key]; !ok {
			return Errorf(InvalidRequest, "request", "cannot read the request: %s does not take %s= here", op, f.Key)
		}
		if !printable(f.Value) {
			return Errorf(InvalidRequest, "request", "cannot read the request: %s= holds control characters or is not UTF-8", f.Key)
		}
	}
	for key, must := range known {
		if _, ok := fields.Lookup(key); must && !ok {
			return Errorf(InvalidRequest, "request", "cannot read the request: %s needs %s=", op, key)
		}
	}
	return nil
}

func (r *Request) set(key, v string) (err error) {
	switch key {
	case "owner":
		r.Owner, err = v, CheckOwner(v)
	case "container":
		r.Container, err = v, CheckID("container", v)
	case "pid":
		var n uint64
		n, err = number(key, v, 10, 1, 1<<22) // PID_MAX_LIMIT
		r.PID = int(n)
	case "start":
		r.Start, err = number(key, v, 10, 1, 1<<63-1)
	case "rootfs":
		r.Rootfs, err = v, checkAbsolute(key, v)
	case "directory":
		r.Directory, err = v, checkAbsolute(key, v)
	case "sandbox":
		r.Sandbox, err = v, checkAbsolute(key, v)
	case "lazy":
		r.Lazy, err = true, checkFlag(key, v)
	case "name":
		r.Name, err = v, CheckVolumeName(v)
	case "mode":
		r.Mode, err = number32(key, v, 8, 0o3777)
	case "uid":
		r.UID, err = number32(key, v, 10, 1<<32-2)
	case "gid":
		r.GID, err = number32(key, v, 10, 1<<32-2)
	}
	return err
}

func (m *Mount) set(key, v string) (err error) {
	switch key {
	case "mount":
		m.Path = v
		_, err = ParsePath(v)
	case "source":
		m.Source, err = v, checkAbsolute(key, v)
	case "subpath":
		m.Subpath = v
		var p Path
		if p, err = ParsePath(v); err == nil && (p.Absolute || len(p.Components) == 0) {
			err = Errorf(InvalidRequest, "request", "cannot use subpath=%s: it must be relative, below the volume's root", quote(v))
		}
	case "mode":
		m.Mode = v
		if v != ModeRO && v != ModeRW {
			err = Errorf(InvalidRequest, "request", "cannot use mode=%s: it is ro or rw", quote(v))
		}
	case "noexec":
		m.NoExec, err = true, checkFlag(key, v)
	case "idmap":
		m.IDMap, err = true, checkFlag(key, v)
	}
	return err
}

func checkFlag(key, v string) error {
	if v != "1" {
		return Errorf(InvalidRequest, "request", "cannot use %s=%s: it is 1 or left out", key, quote(v))
	}
	return nil
}

func checkAbsolute(key, v string) error {
	p, err := ParsePath(v)
	if err == nil && !p.Absolute {
		err = Errorf(InvalidRequest, "request", "cannot use %s=%s: it must be an absolute path", key, quote(v))
	}
	return err
}

// number parses digits only: no sign, no space, no leading zero but for octal.
func number(key, v string, base int, min, max uint64) (uint64, error) {
	n, err := strconv.ParseUint(v, base, 64)
	if err != nil || n < min || n > max || strings.HasPrefix(v, "+") || base == 10 && len(v) > 1 && v[0] == '0' {
		return 0, Errorf(InvalidRequest, "request", "cannot use %s=%s: it is a number from %s to %s", key, quote(v),
			strconv.FormatUint(min, base), strconv.FormatUint(max, base))
	}
	return n, nil
}

func number32(key, v string, base int, max uint64) (*uint32, error) {
	n, err := number(key, v, base, 0, max)
	n32 := uint32(n)
	return &n32, err
}

func quote(s string) string {
	if len(s) > 64 {
		s = s[:64]
	}
	return strconv.QuoteToASCII(s)
}
