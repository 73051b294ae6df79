package attack

import (
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/namespace"
	"github.com/bindgate/bindgate/privops"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// A boxCore is the privileged code of an attach in this process, which is the host's root: the same calls as helper/attach.go makes, without records. A race against a container's files is won or lost
// within a millisecond of the fifteen that a process of the installed helper takes, so most of its rounds are made here, one after the other, and the installed helper makes the others.
type boxCore struct {
	h       *boxHost
	host    *namespace.Host
	target  *namespace.Target
	rules   *privops.Rules
	sandbox string // host path of the sandbox directory; "": none
	first   uint   // descriptors from here on are a round's
}

func (h *boxHost) core(pid int, sandbox string) *boxCore {
	h.t.Helper()
	config, err := conf.ParseHelper([]byte(harness.DefaultHelperTOML))
	h.must(err)
	c := &boxCore{h: h, sandbox: sandbox, rules: &privops.Rules{Deny: wire.ParsePaths(config.Targets.Deny), DenyUnder: wire.ParsePaths(config.Targets.DenyUnder), HostPaths: wire.ParsePaths(config.Targets.HostPaths)}}
	h.must(namespace.Try(func() {
		c.host = namespace.OpenHost(os.Getppid(), -1)
		c.target = c.host.Pin(pid, 0, config.Targets.Cgroups)
	}))
	open, err := os.ReadDir("/proc/self/fd")
	h.must(err)
	for _, e := range open {
		fd, _ := strconv.Atoi(e.Name())
		c.first = max(c.first, uint(fd)+1)
	}
	return c
}

// round attaches the source at a path and takes it back, and counts how that ended. What was made and then moved by the race, so that it could not be removed, is removed from
// wherever on the host it may lie now, so that the next round makes it again.
func (c *boxCore) round(path string, counts boxCount, left ...string) {
	c.h.t.Helper()
	parse := func(s string) wire.Path { p, _ := wire.ParsePath(s); return p }
	err := srcOnThread(func() error {
		return namespace.Try(func() {
			place := privops.NewPlace(c.target, c.rules, wire.Path{}, -1)
			if c.sandbox != "" {
				dir, _, err := conf.OpenTrusted(c.sandbox, unix.O_PATH|unix.O_DIRECTORY)
				namespace.Pass(err)
				place.UseSandbox(dir, parse(c.sandbox))
			}
			root, sealed, err := conf.OpenTrusted(c.h.Sources(), unix.O_PATH|unix.O_DIRECTORY)
			namespace.Pass(err)
			a := &privops.Attachment{Mount: &wire.Mount{Path: path, Source: c.h.Source, Mode: wire.ModeRO}, Attr: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV,
				Source: privops.PinSource(privops.SourceRoot{FD: root, Sealed: sealed}, c.h.Source, []string{filepath.Base(c.h.Source)}, nil)}
			a.Clone(c.target)
			a.Point = place.Resolve(parse(path), true)
			privops.Stage([]*privops.Attachment{a}, c.target.NS, false)
			c.target.NS.Enter()
			defer a.Undo(c.host, func(_ string, remove func() error) error { return remove() })
			a.Point.Make(func(string) {})
			a.Attach(false)
		})
	})
	c.h.must(unix.CloseRange(c.first, ^uint(0), 0))
	code := "ok"
	if err != nil {
		code = string(wire.AsError(err).Code)
	}
	counts[code]++
	for _, l := range left {
		os.Remove(l)
	}
}
