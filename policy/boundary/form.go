package boundary

import (
	"slices"
	"strconv"

	"github.com/bindgate/bindgate/wire"
)

// Encode returns a request in the wire's form.
func Encode(r *wire.Request) []byte {
	m := &wire.Message{Head: given("op", r.Op, "owner", r.Owner, "container", r.Container, "pid", num(uint64(r.PID)), "start", num(r.Start), "rootfs", r.Rootfs, "directory", r.Directory, "sandbox", r.Sandbox,
		"lazy", one[r.Lazy], "forget", one[r.Forget], "name", r.Name, "mode", opt(r.Mode, 8), "uid", opt(r.UID, 10), "gid", opt(r.GID, 10))}
	for _, x := range r.Mounts {
		m.Blocks = append(m.Blocks, given("mount", x.Path, "source", x.Source, "mode", x.Mode, "subpath", x.Subpath, "noexec", one[x.NoExec], "idmap", one[x.IDMap]))
	}
	return m.Encode()
}

var one = map[bool]string{true: "1"}

// given are the pairs that have a value.
func given(list ...any) wire.Fields {
	return slices.DeleteFunc(wire.Pairs(list...), func(f wire.Field) bool { return f.Value == "" })
}

func num(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}

func opt(n *uint32, base int) string {
	if n == nil {
		return ""
	}
	return strconv.FormatUint(uint64(*n), base)
}

// DecodeReply parses a reply. Its own errors are internal: a helper that answers like that is broken or not ours.
func DecodeReply(data []byte) (*wire.Reply, error) {
	m, err := wire.Decode(data, wire.MaxReply, 1<<20)
	if err != nil {
		return nil, wire.Errorf(wire.Internal, "helper", "cannot read the helper's reply: %v", err)
	}
	r := &wire.Reply{Blocks: m.Blocks}
	if m.Head.Get("status") != "ok" {
		r.Err = &wire.Error{Code: wire.Code(m.Head.Get("code")), Stage: m.Head.Get("stage"), Message: m.Head.Get("message"), Hint: m.Head.Get("hint")}
	}
	return r, nil
}
