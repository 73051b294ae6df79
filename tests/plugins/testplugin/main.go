// Testplugin is a Docker volume plugin for tests: real protocol, real folders, and on request real mounts and real trouble.
//
//	testplugin -socket PATH -root DIR [-count calls|ids|none] [-bind] [-file] [-log FILE] [-fail CALL:NAME=MESSAGE]... [-delay CALL:NAME=DURATION]... [-hold CALL:NAME=FIFO]...
//
// A volume is a folder DIR/data/NAME (with -file a file), NAME escaped as in a URL. Without -bind it is its own mountpoint; with -bind, Mount binds it
// to DIR/mnt/NAME with nosuid,nodev and the last Unmount unmounts that. It prints "ready" when it listens, and removes its socket on SIGTERM.
//
// -count is how Mount and Unmount balance, which plugins disagree about: by the number of calls, by the ids that hold the volume, or not at all, so
// that any Unmount lets it go. -log gets one line of JSON for each call as it arrives: {"call":"Mount","name":"v","id":"..."}. -fail answers a call for
// a volume with an error, -delay waits before carrying it out; NAME is empty for List and Capabilities.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"net"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/docker/go-plugins-helpers/volume"
	"golang.org/x/sys/unix"
)

func main() {
	p := &plugin{holders: map[string]map[string]int{}, fail: map[string]string{}, delay: map[string]time.Duration{}, hold: map[string]string{}}
	socket := flag.String("socket", "", "listen on the unix socket `PATH`")
	logfile := flag.String("log", "", "append each call to `FILE`")
	flag.StringVar(&p.root, "root", "", "keep the volumes in `DIR`")
	flag.StringVar(&p.count, "count", "calls", "balance Mount and Unmount by `calls`, ids or none")
	flag.BoolVar(&p.bind, "bind", false, "make real bind mounts")
	flag.BoolVar(&p.file, "file", false, "volumes are single files")
	flag.Func("fail", "fail a call: `CALL:NAME=MESSAGE`", func(s string) error {
		k, v, ok := strings.Cut(s, "=")
		if p.fail[k] = v; !ok {
			return errors.New("want CALL:NAME=MESSAGE")
		}
		return nil
	})
	flag.Func("delay", "delay a call: `CALL:NAME=DURATION`", func(s string) (err error) {
		k, v, _ := strings.Cut(s, "=")
		p.delay[k], err = time.ParseDuration(v)
		return err
	})
	flag.Func("hold", "hold a call until somebody has written to a FIFO: `CALL:NAME=FIFO`", func(s string) error {
		k, v, _ := strings.Cut(s, "=")
		p.hold[k] = v
		return nil
	})
	flag.Parse()
	if *socket == "" || p.root == "" || p.count != "calls" && p.count != "ids" && p.count != "none" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(64)
	}
	if err := p.serve(*socket, *logfile); err != nil {
		log.Fatalf("testplugin: %v", err)
	}
}

func (p *plugin) serve(socket, logfile string) error {
	for _, dir := range []string{p.data(""), p.mnt("")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if logfile != "" {
		f, err := os.OpenFile(logfile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		p.log = f
	}
	// The socket of a plugin that was killed is still there.
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-stop
		l.Close()
	}()
	fmt.Println("ready")
	if err := volume.NewHandler(p).Serve(l); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

type plugin struct {
	root, count string
	bind, file  bool
	fail        map[string]string
	delay       map[string]time.Duration
	hold        map[string]string

	mu      sync.Mutex
	log     *os.File
	holders map[string]map[string]int // volume -> id -> number of mounts
}

var _ volume.Driver = (*plugin)(nil)

func (p *plugin) data(name string) string { return filepath.Join(p.root, "data", url.PathEscape(name)) }
func (p *plugin) mnt(name string) string  { return filepath.Join(p.root, "mnt", url.PathEscape(name)) }

// begin logs the call, waits and fails as told, and returns holding the lock.
func (p *plugin) begin(call, name, id string) (unlock func(), err error) {
	p.mu.Lock()
	if p.log != nil {
		line, _ := json.Marshal(struct {
			Call string `json:"call"`
			Name string `json:"name,omitempty"`
			ID   string `json:"id,omitempty"`
		}{call, name, id})
		if _, err := p.log.Write(append(line, '\n')); err != nil {
			log.Fatalf("testplugin: %v", err)
		}
	}
	if d, fifo := p.delay[call+":"+name], p.hold[call+":"+name]; d > 0 || fifo != "" {
		p.mu.Unlock()
		if fifo != "" {
			if _, err := os.ReadFile(fifo); err != nil {
				log.Fatalf("testplugin: %v", err)
			}
		}
		time.Sleep(d)
		p.mu.Lock()
	}
	if msg, ok := p.fail[call+":"+name]; ok {
		p.mu.Unlock()
		return nil, errors.New(msg)
	}
	return p.mu.Unlock, nil
}

func (p *plugin) lookup(name string) (*volume.Volume, error) {
	info, err := os.Stat(p.data(name))
	if err != nil || name == "" || name == "." || name == ".." {
		return nil, fmt.Errorf("volume %s not found", name)
	}
	v := &volume.Volume{Name: name, CreatedAt: info.ModTime().UTC().Format(time.RFC3339)}
	if len(p.holders[name]) > 0 {
		v.Mountpoint = p.mountpoint(name)
	}
	return v, nil
}

func (p *plugin) mountpoint(name string) string {
	if p.bind {
		return p.mnt(name)
	}
	return p.data(name)
}

// Create implements volume.Driver. It leaves a volume that exists as it is.
func (p *plugin) Create(r *volume.CreateRequest) error {
	unlock, err := p.begin("Create", r.Name, "")
	if err != nil {
		return err
	}
	defer unlock()
	if r.Name == "" || r.Name == "." || r.Name == ".." {
		return fmt.Errorf("bad name %q", r.Name)
	}
	return p.make(p.data(r.Name))
}

func (p *plugin) make(path string) error {
	if p.file {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	}
	return os.MkdirAll(path, 0o755)
}

// List implements volume.Driver.
func (p *plugin) List() (*volume.ListResponse, error) {
	unlock, err := p.begin("List", "", "")
	if err != nil {
		return nil, err
	}
	defer unlock()
	entries, err := os.ReadDir(p.data(""))
	if err != nil {
		return nil, err
	}
	r := &volume.ListResponse{}
	for _, e := range entries {
		name, err := url.PathUnescape(e.Name())
		if err != nil {
			return nil, err
		}
		v, err := p.lookup(name)
		if err != nil {
			return nil, err
		}
		r.Volumes = append(r.Volumes, v)
	}
	return r, nil
}

// Get implements volume.Driver.
func (p *plugin) Get(r *volume.GetRequest) (*volume.GetResponse, error) {
	unlock, err := p.begin("Get", r.Name, "")
	if err != nil {
		return nil, err
	}
	defer unlock()
	v, err := p.lookup(r.Name)
	return &volume.GetResponse{Volume: v}, err
}

// Path implements volume.Driver. A volume that is not mounted has none.
func (p *plugin) Path(r *volume.PathRequest) (*volume.PathResponse, error) {
	unlock, err := p.begin("Path", r.Name, "")
	if err != nil {
		return nil, err
	}
	defer unlock()
	v, err := p.lookup(r.Name)
	if err != nil {
		return nil, err
	}
	return &volume.PathResponse{Mountpoint: v.Mountpoint}, nil
}

// Remove implements volume.Driver. A volume in use stays.
func (p *plugin) Remove(r *volume.RemoveRequest) error {
	unlock, err := p.begin("Remove", r.Name, "")
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := p.lookup(r.Name); err != nil {
		return err
	}
	if len(p.holders[r.Name]) > 0 {
		return fmt.Errorf("volume %s is mounted", r.Name)
	}
	return os.RemoveAll(p.data(r.Name))
}

// Mount implements volume.Driver.
func (p *plugin) Mount(r *volume.MountRequest) (*volume.MountResponse, error) {
	unlock, err := p.begin("Mount", r.Name, r.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := p.lookup(r.Name); err != nil {
		return nil, err
	}
	if p.bind {
		if err := p.attach(r.Name); err != nil {
			return nil, err
		}
	}
	if p.holders[r.Name] == nil {
		p.holders[r.Name] = map[string]int{}
	}
	p.holders[r.Name][r.ID]++
	return &volume.MountResponse{Mountpoint: p.mountpoint(r.Name)}, nil
}

// Unmount implements volume.Driver.
func (p *plugin) Unmount(r *volume.UnmountRequest) error {
	unlock, err := p.begin("Unmount", r.Name, r.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := p.lookup(r.Name); err != nil {
		return err
	}
	left, err := p.release(r.Name, r.ID)
	if err != nil {
		return err
	}
	if left == 0 && p.bind {
		if err := unix.Unmount(p.mnt(r.Name), 0); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: not mounted, which is the aim
			return fmt.Errorf("umount %s: %w", p.mnt(r.Name), err)
		}
	}
	if left == 0 {
		delete(p.holders, r.Name)
	}
	return nil
}

// release is what is left of a volume's holders after one Unmount. The last one is dropped only after the unmount.
func (p *plugin) release(name, id string) (left int, err error) {
	held := p.holders[name]
	total := 0
	for _, n := range held {
		total += n
	}
	switch p.count {
	case "none":
		return 0, nil
	case "ids":
		if held[id] == 0 {
			return 0, fmt.Errorf("volume %s is not mounted by %s", name, id)
		}
		if len(held) > 1 {
			delete(held, id)
			return len(held), nil
		}
		return 0, nil
	}
	if total == 0 {
		return 0, fmt.Errorf("volume %s is not mounted", name)
	}
	if total > 1 {
		if held[id] == 0 { // calls are counted, whoever made them
			for id = range held {
				break
			}
		}
		if held[id]--; held[id] == 0 {
			delete(held, id)
		}
	}
	return total - 1, nil
}

// attach binds the volume to its mountpoint, unless a mount is there already: of this process, or of one before it.
func (p *plugin) attach(name string) error {
	data, mnt := p.data(name), p.mnt(name)
	if err := p.make(mnt); err != nil {
		return err
	}
	var x unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, mnt, 0, unix.STATX_BASIC_STATS, &x); err != nil {
		return err
	}
	if x.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return nil
	}
	if err := unix.Mount(data, mnt, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount --bind %s %s: %w", data, mnt, err)
	}
	if err := unix.Mount("", mnt, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return errors.Join(fmt.Errorf("remount %s: %w", mnt, err), unix.Unmount(mnt, unix.MNT_DETACH))
	}
	return nil
}

// Capabilities implements volume.Driver, which leaves it no way to fail.
func (p *plugin) Capabilities() *volume.CapabilitiesResponse {
	if unlock, err := p.begin("Capabilities", "", ""); err == nil {
		unlock()
	}
	return &volume.CapabilitiesResponse{Capabilities: volume.Capability{Scope: "local"}}
}
