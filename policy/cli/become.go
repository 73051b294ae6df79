package cli

import (
	"errors"
	"os"
	"os/user"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/wire"
)

// become makes this process the policy user, if root started it, for good: group, groups, then uid, in every thread, real, effective and saved; and then looks
// whether it is so. The policy user goes on as he is. Anyone else is refused.
//
// Capabilities go with the uid, or else by themselves.
func become(p *config.Policy) error {
	uid, gid, err := lookup(p.User)
	if err != nil {
		return err
	}
	switch r, e := os.Getuid(), os.Geteuid(); {
	case r == uid && e == uid:
		return dropCapabilities()
	case r != 0 || e != 0:
		return wire.Errorf(wire.Denied, "user", "cannot run as uid %d: bindgate runs as the policy user %s, or as root, which becomes %s first", r, p.User, p.User).
			WithHint("sudo -u %s bindgate ...", p.User)
	}
	groups := []int{gid}
	for _, name := range p.Groups {
		g, err := lookupGroup(name)
		if err != nil {
			return err
		}
		if !slices.Contains(groups, g) {
			groups = append(groups, g)
		}
	}
	// The syscall package's versions apply to all threads, unlike unix's.
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"groups", func() error { return syscall.Setgroups(groups) }},
		{"gid", func() error { return syscall.Setresgid(gid, gid, gid) }},
		{"uid", func() error { return syscall.Setresuid(uid, uid, uid) }},
	} {
		if err := step.do(); err != nil {
			return wire.Errorf(wire.System, "user", "cannot become the policy user %s: cannot set the %s: %v", p.User, step.what, err)
		}
	}
	if err := verify(p.User, uid, gid, groups); err != nil {
		return err
	}
	return dropCapabilities()
}

// verify reads back who we are: a set*id that reports success and did nothing must not go unnoticed (T36).
func verify(name string, uid, gid int, groups []int) error {
	fail := func(what string) error {
		return wire.Errorf(wire.System, "user", "cannot become the policy user %s: %s", name, what)
	}
	r, e, s := unix.Getresuid()
	if r != uid || e != uid || s != uid {
		return fail("the uid did not change")
	}
	r, e, s = unix.Getresgid()
	if r != gid || e != gid || s != gid {
		return fail("the gid did not change")
	}
	have, err := unix.Getgroups()
	if err != nil {
		return fail(err.Error())
	}
	slices.Sort(have)
	slices.Sort(groups)
	if !slices.Equal(have, groups) {
		return fail("the groups did not change")
	}
	if err := syscall.Setuid(0); err == nil || !errors.Is(err, unix.EPERM) {
		return fail("root can be had back")
	}
	return nil
}

// lookup finds the policy user, who is not root.
func lookup(name string) (uid, gid int, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, 0, wire.Errorf(wire.Config, "user", "cannot find the policy user %s: %v", name, err).
			WithHint("make install makes the user; policy.toml names another with user = \"...\"")
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return 0, 0, wire.Errorf(wire.Config, "user", "cannot use the policy user %s: %v", name, err)
	}
	if uid == 0 {
		return 0, 0, wire.Errorf(wire.Config, "user", "cannot use the policy user %s: it has uid 0, and bindgate does not run as root", name)
	}
	return uid, gid, nil
}

// lookupGroup finds a group of policy.toml, by its name or number.
func lookupGroup(name string) (int, error) {
	if n, err := strconv.Atoi(name); err == nil && n >= 0 {
		return n, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, wire.Errorf(wire.Config, "user", "cannot find the group %s of policy.toml: %v", name, err)
	}
	n, err := strconv.Atoi(g.Gid)
	if err != nil {
		return 0, wire.Errorf(wire.Config, "user", "cannot use the group %s of policy.toml: %v", name, err)
	}
	return n, nil
}
