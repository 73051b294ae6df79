package lifecycle

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/bindgate/bindgate/wire"
)

// A sighting is a mount that a process in another mount namespace sees.
type sighting struct {
	pid int
	*mountinfo.Info
}

// strayed finds out what is still mounted in the container of those entries that the journal has as attached and that the helper did not detach, having no
// record of them: there is nothing there, since the container unmounted it or has ended; or the record was corrupt, and was moved aside. What nobody can detach
// any more stays the container's until it has unmounted it or ended, and the driver is not told to unmount it. The result is who has it.
func (iso *Isolator) strayed(ctx context.Context, c *containerRecord, inside []*entry, gone []Detached, how cleanHow) (list []Pending) {
	for _, e := range inside {
		if e.Attached == nil || how.swept || slices.ContainsFunc(gone, func(d Detached) bool { return clean(d.ContainerPath) == clean(e.ContainerPath) }) {
			continue
		}
		seen := how.seen
		if iso.alive(c.Process) {
			seen = func() []sighting { return sightings(c.Process.PID) }
		} else if v, err := iso.readVolume(e.volumeID); err == nil && slices.ContainsFunc(v.inUse(), func(r reference) bool { return r != c.ref() }) {
			continue // it may be that one's, and is not unmounted anyway
		} else if seen == nil {
			seen = func() []sighting { return sightings() }
		}
		on, root := hostMount(e.source())
		p := Pending{Driver: e.Driver, Name: e.Name, Holders: []Holder{}}
		for _, m := range seen() {
			if on != nil && m.Major == on.Major && m.Minor == on.Minor && m.Root == root && m.Mountpoint == e.Attached.Target {
				p.Holders = append(p.Holders, Holder{m.pid, comm(m.pid)})
			}
		}
		if len(p.Holders) == 0 {
			continue
		}
		if e.Since.IsZero() {
			e.Since = time.Now().UTC()
		}
		if c.Phase != phaseCleaning {
			e.Pending = false // it is attached, and stays so
		}
		p.Since, p.Error = e.Since, fmt.Sprintf("cannot detach %s: the helper has lost its record of it, and it is mounted in the container still", e.ContainerPath)
		list = append(list, p)
	}
	return list
}

// strayedError says what to do.
func strayedError(list []Pending) error {
	says := make([]string, len(list))
	for i, p := range list {
		says[i] = p.Error
	}
	return wire.Errorf(wire.Busy, "ledger", "%s", strings.Join(says, "; ")).WithHint("unmount it in the container, or end the container; then clean up again")
}

// hostMount is the mount of the host that a path lies on, and the path within its filesystem; nil if that is not known.
func hostMount(path string) (on *mountinfo.Info, root string) {
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil || len(mounts) == 0 {
		return nil, ""
	}
	slices.Reverse(mounts) // of several at one place the last is on top
	on = slices.MaxFunc(mounts, func(a, b *mountinfo.Info) int { return len(a.Mountpoint) - len(b.Mountpoint) })
	return on, filepath.Join(on.Root, strings.TrimPrefix(path, on.Mountpoint))
}

// sightings are the mounts of processes, of all if none is named; each mount namespace's once, ours left out. Everyone may read them.
func sightings(pids ...int) (list []sighting) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	if len(pids) > 0 {
		dirs = dirs[:0]
		for _, pid := range pids {
			dirs = append(dirs, "/proc/"+strconv.Itoa(pid))
		}
	}
	known := map[string]bool{}
	for _, dir := range append([]string{"/proc/self"}, dirs...) {
		f, err := os.Open(dir + "/mountinfo")
		if err != nil {
			continue
		}
		r := bufio.NewReader(f)
		first, _ := r.ReadString('\n')
		if root, _, _ := strings.Cut(first, " "); first != "" && !known[root] { // the id of its first mount tells a namespace
			known[root] = true
			if mounts, err := mountinfo.GetMountsFromReader(io.MultiReader(strings.NewReader(first), r), nil); err == nil && dir != "/proc/self" {
				pid, _ := strconv.Atoi(filepath.Base(dir))
				for _, m := range mounts {
					list = append(list, sighting{pid, m})
				}
			}
		}
		f.Close()
	}
	return list
}
