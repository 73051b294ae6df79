package lifecycle

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"

	"github.com/bindgate/bindgate/wire"
)

// volumeHolders says who keeps a driver from unmounting what lies at a mountpoint of the host: processes in whose mount namespace it is mounted too, and those
// that have something of it open. The policy user sees its own processes; of the containers of this owner that the helper attached something to, it is asked.
// Best effort: of others nothing is known.
func (iso *Isolator) volumeHolders(ctx context.Context, mountpoint string) []Holder {
	if mountpoint == "" {
		return []Holder{}
	}
	list := visibleHolders(mountpoint)
	reply, err := iso.ask(ctx, &wire.Request{Op: wire.OpQuery, Owner: iso.owner})
	if err != nil {
		return list
	}
	for _, b := range reply.Blocks {
		if b.Get("alive") != "1" || !beneath(mountpoint, b.Get("source")) {
			continue
		}
		id := b.Get("container")
		if c, err := iso.readContainer(reference{iso.owner, id}); err == nil && c != nil && iso.alive(c.Process) {
			list = append(list, Holder{c.Process.PID, comm(c.Process.PID)})
			continue
		}
		// Its first process is gone or unknown; who else is there the helper says.
		if reply, err := iso.ask(ctx, &wire.Request{Op: wire.OpQuery, Owner: iso.owner, Container: id}); err == nil {
			for _, m := range reply.Blocks {
				if m.Get("id") == b.Get("id") {
					list = append(list, holdersOf(m)...)
				}
			}
		}
	}
	slices.SortFunc(list, func(a, b Holder) int { return a.PID - b.PID })
	return slices.Compact(list)
}

// visibleHolders are those of volumeHolders that procfs shows us.
func visibleHolders(mountpoint string) []Holder {
	list := []Holder{}
	ours, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return list
	}
	on, root := hostMount(mountpoint)
	if on == nil {
		return list
	}
	same := func(m *mountinfo.Info) (skip, stop bool) {
		is := m.Major == on.Major && m.Minor == on.Minor && beneath(root, m.Root)
		return !is, is
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		ns, err := os.Readlink(dir + "/ns/mnt")
		if err != nil || pid == os.Getpid() { // another user's
			continue
		}
		holds := opens(dir, mountpoint)
		if ns != ours {
			if f, err := os.Open(dir + "/mountinfo"); err == nil {
				found, err := mountinfo.GetMountsFromReader(f, same)
				holds = err == nil && len(found) > 0
				f.Close()
			}
		}
		if holds {
			list = append(list, Holder{pid, comm(pid)})
		}
	}
	return list
}

// opens reports whether a process of ours has its working directory, its root or a file at or beneath a path.
func opens(dir, path string) bool {
	links, _ := filepath.Glob(dir + "/fd/*")
	return slices.ContainsFunc(append(links, dir+"/cwd", dir+"/root", dir+"/exe"), func(link string) bool {
		to, err := os.Readlink(link)
		return err == nil && beneath(path, to)
	})
}

// beneath reports whether a clean path is dir or lies beneath it.
func beneath(dir, path string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// comm is a process' command, as everyone may see it.
func comm(pid int) string {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return wire.Printable(strings.TrimSpace(string(data)))
}

// who is a list of holders for a message; "" for none.
func who(holders []Holder) string {
	if len(holders) == 0 {
		return ""
	}
	says := make([]string, len(holders))
	for i, h := range holders {
		says[i] = h.String()
	}
	return "held by " + strings.Join(says, ", ")
}
