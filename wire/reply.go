package wire

// A Reply is what the helper answers: an error, or the blocks of the operation (docs/wire.md lists their keys; each begins with mount=).
type Reply struct {
	Err    *Error
	Blocks []Fields
}

// Encode returns the reply in the wire's form.
func (r *Reply) Encode() []byte {
	m := &Message{Head: Fields{{"status", "ok"}}, Blocks: r.Blocks}
	if r.Err != nil {
		m.Blocks = nil
		m.Head = Fields{{"status", "error"}, {"code", string(r.Err.Code)}, {"stage", r.Err.Stage}, {"message", r.Err.Message}}
		if r.Err.Hint != "" {
			m.Head = append(m.Head, Field{"hint", r.Err.Hint})
		}
	}
	return m.Encode()
}

// DecodeReply parses a reply. Its own errors are internal: a helper that answers like that is broken or not ours.
func DecodeReply(data []byte) (*Reply, error) {
	m, err := Decode(data, MaxReply, 1<<20)
	if err != nil {
		return nil, Errorf(Internal, "helper", "cannot read the helper's reply: %v", err)
	}
	r := &Reply{Blocks: m.Blocks}
	switch m.Head.Get("status") {
	case "ok":
	case "error":
		r.Err = &Error{Code: Code(m.Head.Get("code")), Stage: m.Head.Get("stage"), Message: m.Head.Get("message"), Hint: m.Head.Get("hint")}
	default:
		return nil, Errorf(Internal, "helper", "cannot read the helper's reply: it has no status")
	}
	return r, nil
}
