package wire

import "strings"

const alphanumeric = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

// CheckID checks an id: [A-Za-z0-9][A-Za-z0-9_.:-]{0,127}. The rule keeps it usable as part of a file name (T28). what names it in the error, which is invalid_request.
func CheckID(what, s string) error { return checkName(what, s, "_.:-", 128) }

// CheckContainer checks a container's id.
func CheckContainer(s string) error { return CheckID("container", s) }

// CheckOwner checks an owner: as an id, of at most 32 bytes.
func CheckOwner(s string) error { return checkName("owner", s, "_.:-", 32) }

// CheckVolumeName checks the name of a local volume: Docker's rule for its local driver, [a-zA-Z0-9][a-zA-Z0-9_.-]*, of at most 248 bytes, which leaves room for a prefix in a file name.
func CheckVolumeName(s string) error { return checkName("volume name", s, "_.-", 248) }

func checkName(what, s, more string, max int) error {
	if s == "" || len(s) > max || strings.Trim(s[:1], alphanumeric) != "" ||
		strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune(alphanumeric+more, r) }) {
		return invalid("cannot use %s as a %s: it is 1 to %d letters, digits and %s, and begins with a letter or digit", quote(s), what, max, more)
	}
	return nil
}
