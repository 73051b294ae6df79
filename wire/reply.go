package wire

// A Reply is what the helper answers: an error, or the blocks of the operation (docs/wire.md lists their keys).
type Reply struct {
	Err    *Error
	Blocks []Fields
}

// Encode returns the reply in the wire's form.
func (r *Reply) Encode() []byte {
	if e := r.Err; e != nil {
		return (&Message{Head: Pairs("status", "error", "code", string(e.Code), "stage", e.Stage, "message", e.Message, "hint", e.Hint)}).Encode()
	}
	return (&Message{Head: Pairs("status", "ok"), Blocks: r.Blocks}).Encode()
}

// DecodeReply parses a reply. Its own errors are internal: a helper that answers like that is broken or not ours.
func DecodeReply(data []byte) (*Reply, error) {
	m, err := Decode(data, MaxReply, 1<<20)
	if err != nil {
		return nil, Errorf(Internal, "helper", "cannot read the helper's reply: %v", err)
	}
	r := &Reply{Blocks: m.Blocks}
	if m.Head.Get("status") != "ok" {
		r.Err = &Error{Code: Code(m.Head.Get("code")), Stage: m.Head.Get("stage"), Message: m.Head.Get("message"), Hint: m.Head.Get("hint")}
	}
	return r, nil
}
