// Package watched is a Docker volume plugin inside the test's own process: the real protocol on a real socket, real folders and real bind mounts, and a test that sees each call while the caller
// still waits for the answer. tests/plugins/testplugin is the one to use where a test does not need that.
//
// A volume is a folder Root/data/NAME; Mount binds it to Root/mnt/NAME with nosuid,nodev, and the last Unmount unmounts that. It counts ids: a volume is mounted while an id holds it, and an Unmount with
// an id that holds nothing is an error, as plugins have it that keep books. What a caller has asked that was killed is done before an Unmount that another one asks for after that.
package watched

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A Call is one call of the driver. Create, Mount, Unmount and Remove are passed on, and kept by the plugin.
type Call struct {
	Call, Name, ID string
	Err            error // what was answered
}

func (c Call) String() string {
	s := c.Call + " " + c.Name
	if c.ID != "" {
		s += " " + c.ID[:min(8, len(c.ID))]
	}
	if c.Err != nil {
		s += ": " + c.Err.Error()
	}
	return s
}

// A Plugin is one plugin. Before and After may be set before Start.
type Plugin struct {
	Socket, Root string

	// Lenient is a plugin that answers well to an Unmount with an id that holds nothing. To Calls it is an error still.
	Lenient bool

	// Before is called when a call has arrived, and before anything of it is done; an error is the answer.
	Before func(c Call) error
	// After is called when a call was carried out, whether it went well is in c.Err; an error is the answer although it was carried out.
	After func(c Call) error

	mu       sync.Mutex
	listener net.Listener
	conns    conns
	holders  map[string]map[string]bool // by volume: the ids that hold it
	calls    []Call
}

// Start listens on the socket, which becomes group's. What the plugin had is as it was: to be started again is to be restarted.
func (p *Plugin) Start(group int) error {
	for _, dir := range []string{p.data(""), p.mnt("")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	os.Remove(p.Socket)
	l, err := net.Listen("unix", p.Socket)
	if err != nil {
		return err
	}
	if err := errors.Join(os.Chown(p.Socket, 0, group), os.Chmod(p.Socket, 0o660)); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listener = l
	if p.holders == nil {
		p.holders = map[string]map[string]bool{}
	}
	server := http.Server{Handler: p, ConnContext: withConn}
	go server.Serve(p.conns.track(l))
	return nil
}

// Stop ends listening; the socket is gone then.
func (p *Plugin) Stop() error { return p.listener.Close() }

// Calls returns what the plugin was asked, in the order in which it was done.
func (p *Plugin) Calls() []Call {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.calls)
}

// Holders returns the ids that hold volumes, by volume.
func (p *Plugin) Holders() map[string][]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := map[string][]string{}
	for name, ids := range p.holders {
		if len(ids) > 0 {
			all[name] = slices.Sorted(maps.Keys(ids))
		}
	}
	return all
}

// Set makes the plugin have what Holders said once.
func (p *Plugin) Set(holders map[string][]string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name := range p.holders {
		if err := p.unmount(name); err != nil {
			return err
		}
	}
	p.holders = map[string]map[string]bool{}
	for name, ids := range holders {
		p.holders[name] = map[string]bool{}
		for _, id := range ids {
			p.holders[name][id] = true
		}
		if err := p.mount(name); err != nil {
			return err
		}
	}
	return nil
}

// Lose unmounts a volume behind everybody's back and forgets who held it, as a plugin does that is restarted and has no memory.
func (p *Plugin) Lose(name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.holders, name)
	return p.unmount(name)
}

// Data is the folder that holds what is in a volume; Mountpoint where Mount makes it available.
func (p *Plugin) Data(name string) string       { return p.data(name) }
func (p *Plugin) Mountpoint(name string) string { return p.mnt(name) }

func (p *Plugin) data(name string) string { return filepath.Join(p.Root, "data", name) }
func (p *Plugin) mnt(name string) string  { return filepath.Join(p.Root, "mnt", name) }

func (p *Plugin) mounted(name string) bool {
	var st unix.Statx_t
	return unix.Statx(unix.AT_FDCWD, p.mnt(name), 0, unix.STATX_BASIC_STATS, &st) == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

func (p *Plugin) mount(name string) error {
	if p.mounted(name) {
		return nil
	}
	mnt := p.mnt(name)
	if err := os.MkdirAll(mnt, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(p.data(name), mnt, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", mnt, err)
	}
	return unix.Mount("", mnt, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_NOSUID|unix.MS_NODEV, "")
}

func (p *Plugin) unmount(name string) error {
	if !p.mounted(name) {
		return nil
	}
	return unix.Unmount(p.mnt(name), 0)
}

func (p *Plugin) exists(name string) bool {
	_, err := os.Stat(p.data(name))
	return err == nil && name != "" && name != "." && name != ".."
}

// do carries out one call that changes something.
func (p *Plugin) do(call, name, id string, do func() error) error {
	c := Call{Call: call, Name: name, ID: id}
	if p.Before != nil {
		if err := p.Before(c); err != nil {
			return err
		}
	}
	p.mu.Lock()
	c.Err = do()
	p.calls = append(p.calls, c)
	p.mu.Unlock()
	if p.After != nil {
		if err := p.After(c); err != nil {
			return err
		}
	}
	return c.Err
}

// ServeHTTP is the protocol.
func (p *Plugin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in struct{ Name, ID string }
	json.NewDecoder(r.Body).Decode(&in) // some calls have no body
	out, err := map[string]any{}, error(nil)
	switch call := strings.TrimPrefix(r.URL.Path, "/VolumeDriver."); call {
	case "/Plugin.Activate":
		out["Implements"] = []string{"VolumeDriver"}
	case "Create":
		err = p.do(call, in.Name, "", func() error { return os.MkdirAll(p.data(in.Name), 0o755) })
	case "Mount":
		out["Mountpoint"] = p.mnt(in.Name)
		err = p.do(call, in.Name, in.ID, func() error { return p.hold(in.Name, in.ID) })
	case "Unmount":
		p.conns.awaitEarlier(p.Socket, r.Context())
		if err = p.do(call, in.Name, in.ID, func() error { return p.release(in.Name, in.ID) }); p.Lenient && errors.Is(err, errNotMounted) {
			err = nil
		}
	case "Remove":
		err = p.do(call, in.Name, "", func() error {
			if !p.exists(in.Name) {
				return fmt.Errorf("volume %s not found", in.Name)
			}
			if len(p.holders[in.Name]) > 0 {
				return fmt.Errorf("volume %s is mounted", in.Name)
			}
			return os.RemoveAll(p.data(in.Name))
		})
	case "Get":
		out["Volume"], err = p.get(in.Name)
	case "Path":
		var v map[string]string
		v, err = p.get(in.Name)
		out["Mountpoint"] = v["Mountpoint"]
	case "List":
		list := []map[string]string{}
		entries, _ := os.ReadDir(p.data(""))
		for _, e := range entries {
			if v, err := p.get(e.Name()); err == nil {
				list = append(list, v)
			}
		}
		out["Volumes"] = list
	case "Capabilities":
		out["Capabilities"] = map[string]string{"Scope": "local"}
	default:
		http.NotFound(w, r)
		return
	}
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		out = map[string]any{"Err": err.Error()}
	}
	json.NewEncoder(w).Encode(out)
}

func (p *Plugin) hold(name, id string) error {
	if !p.exists(name) {
		return fmt.Errorf("volume %s not found", name)
	}
	if err := p.mount(name); err != nil {
		return err
	}
	if p.holders[name] == nil {
		p.holders[name] = map[string]bool{}
	}
	p.holders[name][id] = true
	return nil
}

var errNotMounted = errors.New("not mounted")

func (p *Plugin) release(name, id string) error {
	held := p.holders[name]
	if !held[id] {
		return fmt.Errorf("volume %s is %w by %s", name, errNotMounted, id)
	}
	if len(held) == 1 {
		if err := p.unmount(name); err != nil {
			return err
		}
	}
	delete(held, id)
	return nil
}

func (p *Plugin) get(name string) (map[string]string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.exists(name) {
		return nil, fmt.Errorf("volume %s not found", name)
	}
	v := map[string]string{"Name": name}
	if len(p.holders[name]) > 0 {
		v["Mountpoint"] = p.mnt(name)
	}
	return v, nil
}
