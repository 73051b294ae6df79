package power

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// What was done, in order.
const (
	create   = "create"
	write    = "write"
	syncFile = "fsync"
	rename   = "rename"
	unlink   = "unlink"
	symlink  = "symlink"
	mkdir    = "mkdir"
	syncDir  = "fsync of the folder"
	asked    = "driver asked" // to, data: what it holds when it has done it
	answered = "driver answered"
	unknown  = "unknown"
)

// An event is one change, one fsync(2), or one call of the driver.
type event struct {
	kind      string
	dir, name string
	to        string
	data      []byte
	holds     map[string][]string // of the driver: what it holds from now on
}

func (e event) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s/%s %s", e.kind, filepath.Base(e.dir), e.name, e.to))
}

// A file is what has a name in a folder. What was written and synced is on disk; of what was written after that anything may be there.
type file struct {
	synced  []byte
	written []byte // all
	link    bool
	dir     bool
}

// A change is what one call does to the names in a folder: a name stands for another file now, or for none (nil).
type change map[string]*file

// A disk is what is certain after some events, and what is not.
type disk struct {
	names   map[string]map[string]*file // by folder: as the programs see it
	synced  map[string]map[string]*file // as it is on disk
	pending map[string][]change         // since the folder's last fsync
	holds   []map[string][]string       // by the driver: one, or two while it is at something
	wrong   error
}

func newDisk(folders ...string) *disk {
	d := &disk{names: map[string]map[string]*file{}, synced: map[string]map[string]*file{}, pending: map[string][]change{}, holds: []map[string][]string{{}}}
	for _, f := range folders {
		d.names[f], d.synced[f] = map[string]*file{}, map[string]*file{}
	}
	return d
}

// apply is one more event.
func (d *disk) apply(e event) {
	f := d.names[e.dir][e.name]
	missing := func() bool {
		if f == nil {
			d.wrong = fmt.Errorf("%v: there is no such file", e)
		}
		return f == nil
	}
	switch e.kind {
	case create:
		d.change(e.dir, change{e.name: {}})
	case symlink:
		d.change(e.dir, change{e.name: {link: true, synced: e.data, written: e.data}})
	case mkdir:
		path := filepath.Join(e.dir, e.name)
		d.change(e.dir, change{e.name: {dir: true}})
		d.names[path], d.synced[path] = map[string]*file{}, map[string]*file{}
	case write:
		if !missing() {
			f.written = append(f.written, e.data...)
		}
	case syncFile:
		if !missing() {
			f.synced = slices.Clone(f.written)
		}
	case rename:
		if !missing() {
			d.change(e.dir, change{e.name: nil, e.to: f})
		}
	case unlink:
		d.change(e.dir, change{e.name: nil})
	case syncDir:
		for _, c := range d.pending[e.dir] {
			c.make(d.synced[e.dir])
		}
		d.pending[e.dir] = nil
	case asked:
		d.holds = append(d.holds, e.holds)
	case answered:
		d.holds = []map[string][]string{e.holds}
	default:
		d.wrong = fmt.Errorf("%s is not known to the model of a disk", e.name)
	}
}

func (d *disk) change(dir string, c change) {
	c.make(d.names[dir])
	d.pending[dir] = append(d.pending[dir], c)
}

func (c change) make(names map[string]*file) {
	for name, f := range c {
		if f == nil {
			delete(names, name)
		} else {
			names[name] = f
		}
	}
}

// Remains are what a disk may hold after the power was lost: by path, what a file holds, or a link's text, or a folder.
type remains map[string]found

type found struct {
	data      string
	link, dir bool
}

// states calls f with every state that what lies under a folder may be in: POSIX promises no order between changes that were not synced, so of those of each folder any subset may have happened, each whole; and of a file's
// data that was not synced nothing, a part, or zeros may be there.
func (d *disk) states(under string, f func(remains)) {
	dirs := slices.DeleteFunc(slices.Sorted(maps.Keys(d.names)), func(dir string) bool { return dir != under && filepath.Dir(dir) != under }) // a folder before what is in it
	var next func(i int, s remains)
	next = func(i int, s remains) {
		if i == len(dirs) {
			f(maps.Clone(s))
			return
		}
		dir := dirs[i]
		if _, top := d.names[filepath.Dir(dir)]; top && !s[dir].dir { // the folder itself was lost
			next(i+1, s)
			return
		}
		for _, chosen := range subsets(d.pending[dir]) {
			names := maps.Clone(d.synced[dir])
			for _, c := range chosen {
				c.make(names)
			}
			d.contents(dir, names, slices.Sorted(maps.Keys(names)), maps.Clone(s), func(s remains) { next(i+1, s) })
		}
	}
	next(0, remains{})
}

// contents goes through what the files of a folder may hold.
func (d *disk) contents(dir string, names map[string]*file, left []string, s remains, f func(remains)) {
	if len(left) == 0 {
		f(s)
		return
	}
	path, x := filepath.Join(dir, left[0]), names[left[0]]
	for _, data := range x.variants() {
		s[path] = found{data: string(data), link: x.link, dir: x.dir}
		d.contents(dir, names, left[1:], s, f)
	}
}

// variants are what may be found of a file.
func (x *file) variants() [][]byte {
	if bytes.Equal(x.synced, x.written) {
		return [][]byte{x.written}
	}
	n := len(x.written)
	half := x.written[:len(x.synced)+(n-len(x.synced))/2]
	zeros := append(slices.Clone(x.synced), make([]byte, n-len(x.synced))...)
	return [][]byte{x.written, x.synced, half, zeros}
}

// subsets are all subsets of what was not synced, in order. Of many changes, as in a folder that is never synced: each beginning, each without one, and each alone.
func subsets(all []change) (list [][]change) {
	if len(all) <= 8 {
		for bits := range 1 << len(all) {
			var s []change
			for i, c := range all {
				if bits&(1<<i) != 0 {
					s = append(s, c)
				}
			}
			list = append(list, s)
		}
		return list
	}
	for i := range len(all) + 1 {
		list = append(list, all[:i])
	}
	for i := range all {
		list = append(list, slices.Concat(all[:i], all[i+1:]), all[i:i+1])
	}
	return list
}

// key is the same for states that no reader can tell apart: of temporary files only that there are some counts.
func (s remains) key() string {
	h := sha256.New()
	for _, path := range slices.Sorted(maps.Keys(s)) {
		if name := filepath.Base(path); strings.HasPrefix(name, ".") {
			fmt.Fprintf(h, "%s/temporary\x00", filepath.Dir(path))
			continue
		}
		fmt.Fprintf(h, "%s\x00%v\x00", path, s[path])
	}
	return string(h.Sum(nil))
}

// put makes folders hold what the state says, as the user's.
func (s remains) put(uid int, folders ...string) error {
	for _, dir := range folders {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	for _, path := range slices.Sorted(maps.Keys(s)) {
		x := s[path]
		err := error(nil)
		switch {
		case x.dir:
			err = os.Mkdir(path, 0o700)
		case x.link:
			err = os.Symlink(x.data, path)
		default:
			err = os.WriteFile(path, []byte(x.data), 0o600)
		}
		if err == nil {
			err = os.Lchown(path, uid, uid)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// lines tell a state for a message.
func (s remains) lines() (list []string) {
	for _, path := range slices.Sorted(maps.Keys(s)) {
		list = append(list, fmt.Sprintf("%s: %.300q", path, s[path].data))
	}
	return list
}
