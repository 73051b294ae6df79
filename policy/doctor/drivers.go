package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/driver"
	"github.com/bindgate/bindgate/policy/lifecycle"
	"github.com/bindgate/bindgate/wire"
)

// driverLimit is how long one driver may take to answer.
const driverLimit = 10 * time.Second

// sockets finds, as root, the sockets of plugins that the policy user may not see, and what keeps it from using them.
func (d *Doctor) sockets() {
	for _, dir := range d.policy.Plugins.SocketDirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			name, isSocket := strings.CutSuffix(e.Name(), ".sock")
			path := filepath.Join(dir, e.Name())
			if !isSocket {
				path = filepath.Join(path, name+".sock")
			}
			if info, err := os.Lstat(path); err != nil || info.Mode().Type() != fs.ModeSocket {
				continue
			}
			d.behind[name] = true
			if grants := d.grants(path); len(grants) > 0 {
				d.blocked[name] = grants
			}
		}
	}
	for name, c := range d.policy.Drivers {
		if path, ok := strings.CutPrefix(c.Address, "unix://"); ok {
			if grants := d.grants(path); len(grants) > 0 {
				d.blocked[name] = grants
			}
		}
	}
}

// grants returns the commands that let the policy user through to a socket, of which none are needed for one that it may use. The kernel is asked, as the
// policy user on a thread of its own, so that groups, ACLs and security modules count.
func (d *Doctor) grants(socket string) (commands []string) {
	uid, gid := d.policyUID(), d.policyGroups()
	if uid < 0 {
		return nil
	}
	type step struct {
		fd   int
		path string
		mode uint32
	}
	var steps []step
	at := "/"
	for _, name := range strings.Split(strings.Trim(socket, "/"), "/") {
		steps = append(steps, step{path: at, mode: unix.X_OK})
		at = filepath.Join(at, name)
	}
	steps = append(steps, step{path: at, mode: unix.R_OK | unix.W_OK})
	for i := range steps {
		fd, err := unix.Open(steps[i].path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil
		}
		defer unix.Close(fd)
		steps[i].fd = fd
	}
	refused := make(chan []step)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with what it became
		var list []step
		groups := make([]uint32, len(gid))
		for i, g := range gid {
			groups[i] = uint32(g)
		}
		if setgroups(groups) == nil {
			unix.Setfsgid(gid[0])
			unix.Setfsuid(uid)
			if now, _ := unix.SetfsuidRetUid(-1); now == uid {
				for _, s := range steps {
					if err := unix.Faccessat2(s.fd, "", s.mode, unix.AT_EMPTY_PATH|unix.AT_EACCESS); errors.Is(err, unix.EACCES) {
						list = append(list, s)
					}
				}
			}
		}
		refused <- list
	}()
	for _, s := range <-refused {
		perm := "x"
		if s.mode != unix.X_OK {
			perm = "rw"
		}
		commands = append(commands, fmt.Sprintf("setfacl -m u:%s:%s %s", d.policy.User, perm, quote(s.path)))
	}
	return commands
}

// setgroups is that of the calling thread alone.
func setgroups(groups []uint32) error {
	return call(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))))
}

// policyGroups are the groups that bindgate has when root starts it, its own first.
func (d *Doctor) policyGroups() []int {
	gid, _ := d.policyGID()
	list := []int{gid}
	for _, name := range d.policy.Groups {
		if n, err := strconv.Atoi(name); err == nil {
			list = append(list, n)
		} else if g, err := user.LookupGroup(name); err == nil {
			n, _ := strconv.Atoi(g.Gid)
			list = append(list, n)
		}
	}
	return list
}

// drivers asks each driver that there is, as the policy user, all at once.
func (d *Doctor) drivers(ctx context.Context, iso *lifecycle.Isolator) {
	o := driver.Options{SocketDirs: d.policy.Plugins.SocketDirs, SpecDirs: d.policy.Plugins.SpecDirs}
	found, unreadable := driver.Survey(o)
	names := map[string]bool{}
	for _, l := range found {
		names[l.Driver] = true
	}
	for name := range d.policy.Drivers {
		names[name] = true
	}
	for name := range d.behind {
		names[name] = true
	}
	for _, r := range d.policy.Rules {
		if r.Action == "allow" && r.Driver != "" && !strings.Contains(r.Driver, "*") {
			names[r.Driver] = true
		}
	}
	used := map[string]bool{}
	if s, err := iso.Status(ctx, lifecycle.StatusQuery{}); err == nil {
		for _, v := range s.Volumes {
			names[v.Driver], used[v.Driver] = true, true
		}
	}
	delete(names, "local")
	for _, e := range unreadable {
		d.add(Check{Check: "driver.folders", State: Warning, Message: e.Message, Fix: commands(e.Hint), Hint: "volume drivers may be there; as root bindgate doctor sees them"})
	}
	var wg sync.WaitGroup
	for name := range names {
		_, configured := d.policy.Drivers[name]
		wanted := configured || used[name] || iso.MayUse(name)
		wg.Go(func() { d.plugin(ctx, name, wanted) })
	}
	wg.Wait()
	if len(names) == 0 && len(unreadable) == 0 {
		d.ok("driver.plugins", "none in %s", strings.Join(slices.Concat(d.policy.Plugins.SocketDirs, d.policy.Plugins.SpecDirs), ", "))
	}
}

// plugin looks for one driver, and asks it who it is and what volumes it has. One that no job may use can be as broken as it likes.
func (d *Doctor) plugin(ctx context.Context, name string, wanted bool) {
	check := "driver." + wire.Printable(name)
	o := driver.Options{SocketDirs: d.policy.Plugins.SocketDirs, SpecDirs: d.policy.Plugins.SpecDirs, Address: d.policy.Drivers[name].Address, Roots: d.policy.Drivers[name].Roots}
	report := func(err error) {
		e := wire.AsError(err)
		c := Check{Check: check, State: Failed, Code: e.Code, Message: e.Message, Fix: commands(e.Hint), Hint: e.Hint}
		if len(c.Fix) > 0 {
			c.Hint = ""
		}
		if !wanted {
			c.State, c.Code = Warning, ""
		}
		if e.Stage == "discover" {
			d.grant(&c, name)
		}
		d.add(c)
	}
	l := driver.Discover(name, o)
	if l.Err != nil {
		report(l.Err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, min(driverLimit, d.policy.For(name).Call))
	defer cancel()
	p, err := driver.NewPlugin(name, o)
	if err != nil {
		report(err)
		return
	}
	scope, err := p.Capabilities(ctx)
	if err != nil {
		report(err)
		return
	}
	list, err := p.List(ctx)
	if err != nil {
		report(err)
		return
	}
	d.ok(check, "answers at %s: %s, scope %s", l.Address, plural(len(list), "volume"), scope.Scope)
}

// grant makes the commands of a check about a socket complete, and tells what makes them last: a socket is made anew when its plugin starts, and /run at
// each boot.
func (d *Doctor) grant(c *Check, name string) {
	if all := d.blocked[name]; len(all) > 0 {
		c.Fix = all
	}
	if len(c.Fix) == 0 {
		return
	}
	last := strings.Fields(c.Fix[len(c.Fix)-1])
	path := last[len(last)-1]
	if info, err := os.Stat(path); err == nil && info.Mode().Type() == fs.ModeSocket && info.Mode().Perm()&0o060 == 0o060 {
		gid := info.Sys().(*syscall.Stat_t).Gid
		if g, err := user.LookupGroupId(strconv.Itoa(int(gid))); err == nil && gid != 0 && g.Name != "docker" { // those two groups are root, more or less
			c.Fix[len(c.Fix)-1] = fmt.Sprintf("usermod -aG %s %s", quote(g.Name), d.policy.User)
			c.Hint = fmt.Sprintf("and groups = [%q] in policy.toml, for when root starts bindgate", g.Name)
			return
		}
	}
	dir := path
	if strings.HasSuffix(path, ".sock") {
		dir = filepath.Dir(path)
	}
	if under(dir, "/run") || under(dir, "/var/run") {
		c.Hint = fmt.Sprintf("to make it last: printf '%%s\\n' 'd %[1]s 0755 root root' 'a+ %[1]s - - - - u:%[2]s:x,d:u:%[2]s:rw' >/etc/tmpfiles.d/bindgate-plugins.conf && systemd-tmpfiles --create bindgate-plugins.conf", dir, d.policy.User)
	}
}
