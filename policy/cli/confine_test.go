package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/config"
)

// A process cannot take back what it gave up, so one of its own does it, in the folder that this names.
const confineEnv = "CLI_CONFINE"

// attempts are what a policy process may try, in the folder dir: from several threads, after confine or without it.
func attempts(dir string) map[string]func() error {
	in := func(elem ...string) string { return filepath.Join(append([]string{dir}, elem...)...) }
	read := func(path string) func() error {
		return func() error { _, err := os.ReadFile(path); return err }
	}
	list := func(path string) func() error {
		return func() error { _, err := os.ReadDir(path); return err }
	}
	write := func(path string) func() error {
		return func() error {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
			return errors.Join(err, f.Close())
		}
	}
	return map[string]func() error{
		"read journal":    read(in("journal/record")),
		"write metrics":   write(in("metrics/file")),
		"write journal":   func() error { return os.WriteFile(in("journal/record"), []byte("new"), 0o600) },
		"make in journal": func() error { return os.MkdirAll(in("journal/made/deep"), 0o700) },
		"move in journal": func() error { return moveAndBack(in("journal/record"), in("journal/sub/record")) },
		"list journal":    list(in("journal")),
		"read job":        read(in("jobs/job.json")),
		"read spec":       read(in("specs/secure.json")),
		"read CA of spec": read(in("other/ca.pem")),
		"list specs":      list(in("specs")),
		"list sockets":    list(in("sockets")),
		"read processes":  read("/proc/1/stat"),
		"read mounts":     read("/proc/self/mountinfo"),
		"read users":      read("/etc/passwd"),
		"connect to plugin": func() error {
			c, err := net.Dial("unix", in("sockets/driver.sock"))
			return errors.Join(err, c.Close())
		},
		"*read other":           read(in("other/file")),
		"*read job's neighbour": read(in("jobs/other.json")),
		"*read beside users":    read("/etc/os-release"),
		"*list other":           list(in("other")),
		"*list root":            list("/"),
		"*list home":            list(dir),
		"*write other":          write(in("open/file")),
		"*make file":            write(in("open/new")),
		"*make folder":          func() error { return os.Mkdir(in("open/folder"), 0o700) },
		"*make socket": func() error {
			l, err := net.Listen("unix", in("open/socket"))
			if err == nil {
				l.Close()
			}
			return err
		},
		"*make link":           func() error { return os.Symlink("/", in("open/link")) },
		"*remove":              func() error { return os.Remove(in("open/old")) },
		"*truncate":            func() error { return os.Truncate(in("open/file"), 0) },
		"*move out of journal": func() error { return moveAndBack(in("journal/out"), in("open/out")) },
		"*move into journal":   func() error { return moveAndBack(in("open/file"), in("journal/in")) },
		"*start a program":     func() error { return exec.Command("/bin/true").Run() },
		"*write job":           write(in("jobs/job.json")),
		"*write spec":          write(in("specs/secure.json")),
		"*write process":       write("/proc/self/comm"),
		"*start journal":       func() error { return exec.Command(in("journal/program")).Run() },
	}
}

func moveAndBack(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return os.Rename(to, from)
}

// confinedMain tries everything in several threads that were there before, and says what came of it.
func confinedMain(dir string) {
	p := config.DefaultPolicy()
	p.User, p.Helper.Transport = "nobody", os.Getenv("CLI_TRANSPORT")
	p.State.Dir, p.Plugins.SocketDirs, p.Plugins.SpecDirs = dir+"/journal", []string{dir + "/sockets"}, []string{dir + "/specs"}
	held, err := os.Open(dir + "/other/file")
	if err != nil {
		panic(err)
	}
	var ready, done sync.WaitGroup
	var mu sync.Mutex
	begin := make(chan bool)
	tries := attempts(dir)
	names := slices.Sorted(maps.Keys(tries))
	out := map[string]map[string]bool{}
	for range 4 {
		ready.Add(1)
		done.Go(func() {
			runtime.LockOSThread()
			ready.Done()
			<-begin
			mu.Lock() // one thread at a time: they would be in each other's way
			defer mu.Unlock()
			for _, name := range names {
				came := "ok"
				if err := tries[name](); errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EXDEV) {
					came = "refused"
				} else if err != nil {
					came = err.Error()
				}
				if out[name] == nil {
					out[name] = map[string]bool{}
				}
				out[name][came] = true
			}
		})
	}
	ready.Wait()
	before := capabilities()
	if err := become(p); err != nil {
		panic(err)
	}
	if err := confine(p, []string{dir + "/jobs/job.json", "-", dir + "/missing"}, []string{dir + "/metrics"}); err != nil {
		panic(err)
	}
	close(begin)
	done.Wait()
	for _, name := range names {
		fmt.Println(name + ": " + strings.Join(slices.Sorted(maps.Keys(out[name])), ", "))
	}
	_, err = held.Read(make([]byte, 1))
	fmt.Println("held:", err)
	fmt.Println("capabilities:", before, "then", capabilities())
	fmt.Println("no_new_privs:", statusOf("NoNewPrivs:"))
	os.Exit(0)
}

// capabilities are those that any thread has, but for the bounding set.
func capabilities() string {
	return strings.Join(slices.Concat(statusOf("CapInh:"), statusOf("CapPrm:"), statusOf("CapEff:"), statusOf("CapAmb:")), " ")
}

// statusOf returns the values of a line in the status of our threads, each once.
func statusOf(key string) (values []string) {
	threads, _ := filepath.Glob("/proc/self/task/*/status")
	for _, file := range threads {
		data, _ := os.ReadFile(file)
		for line := range strings.Lines(string(data)) {
			if v, ok := strings.CutPrefix(line, key); ok && !slices.Contains(values, strings.TrimSpace(v)) {
				values = append(values, strings.TrimSpace(v))
			}
		}
	}
	return values
}

func TestConfinement(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("only root can start somebody else")
	}
	dir, err := os.MkdirTemp("/tmp", "confine") // t.TempDir is root's alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	const nobody = 65534
	for _, d := range []string{"", "journal", "journal/sub", "jobs", "specs", "sockets", "other", "open", "metrics"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, d), 0o755), os.Chown(filepath.Join(dir, d), nobody, nobody)); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string]string{"journal/record": "old", "journal/out": "", "journal/program": string(program), "jobs/job.json": "[]", "jobs/other.json": "[]",
		"specs/secure.json": `{"Addr":"tcp://127.0.0.1:1","TLSConfig":{"CAFile":"` + dir + `/other/ca.pem"}}`, "other/ca.pem": "", "other/file": "x", "open/file": "x", "open/old": ""} {
		file = filepath.Join(dir, file)
		if err := errors.Join(os.WriteFile(file, []byte(content), 0o755), os.Chown(file, nobody, nobody)); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", filepath.Join(dir, "sockets/driver.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(filepath.Join(dir, "sockets/driver.sock"), 0o666); err != nil {
		t.Fatal(err)
	}
	run := func(transport string) map[string]string {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = []string{confineEnv + "=" + dir, "CLI_TRANSPORT=" + transport}
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody},
			AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_SYS_NICE}}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		came := map[string]string{}
		for line := range strings.Lines(string(out)) {
			name, v, _ := strings.Cut(strings.TrimSpace(line), ": ")
			came[name] = v
		}
		return came
	}
	none, some := "0000000000000000", "0000000000801000"
	for transport, nnp := range map[string]string{config.TransportExec: "[0]", config.TransportSocket: "[1]"} {
		came := run(transport)
		for name := range attempts(dir) {
			want := "ok"
			if transport == config.TransportSocket && name[0] == '*' {
				want = "refused"
			}
			if name == "*remove" && want == "ok" { // once
				continue
			}
			if strings.HasPrefix(name, "*make ") && want == "ok" && came[name] != "" {
				continue // the first thread's is in the way of the others'
			}
			if came[name] != want {
				t.Errorf("%s: %s: %s, want %s", transport, name, came[name], want)
			}
		}
		if came["held"] != "<nil>" {
			t.Errorf("%s: what was open: %s", transport, came["held"])
		}
		if want := strings.Join([]string{some, some, some, some, "then", none, none, none, none}, " "); came["capabilities"] != want {
			t.Errorf("%s: capabilities %s, want %s", transport, came["capabilities"], want)
		}
		if came["no_new_privs"] != nnp {
			t.Errorf("%s: no_new_privs %s, want %s", transport, came["no_new_privs"], nnp)
		}
		for _, made := range []string{"new", "folder", "link", "socket"} {
			os.RemoveAll(filepath.Join(dir, "open", made))
		}
		os.WriteFile(filepath.Join(dir, "open/old"), nil, 0o644)
	}
}
