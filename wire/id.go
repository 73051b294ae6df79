package wire

// CheckID checks a container's id: [A-Za-z0-9][A-Za-z0-9_.:-]{0,127}. The rule keeps an id usable as part of a file name (T28). what names it in the
// error, which is invalid_request.
func CheckID(what, s string) error { return checkName(what, s, 128, true) }

// CheckOwner checks an owner: as an id, of at most 32 bytes.
func CheckOwner(s string) error { return checkName("owner", s, 32, true) }

// CheckVolumeName checks the name of a local volume: Docker's rule for its local driver, [a-zA-Z0-9][a-zA-Z0-9_.-]*, of at most 255 bytes.
func CheckVolumeName(s string) error { return checkName("volume name", s, maxComponent, false) }

func checkName(what, s string, max int, colon bool) error {
	ok := len(s) > 0 && len(s) <= max
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		ok = letter || i > 0 && (c == '_' || c == '.' || c == '-' || c == ':' && colon)
	}
	if !ok {
		set := "_.-"
		if colon {
			set = "_.:-"
		}
		return Errorf(InvalidRequest, "request", "cannot use %s as a %s: it is 1 to %d letters, digits and %s, and begins with a letter or digit",
			quote(s), what, max, set)
	}
	return nil
}
