// Box is the hostile side of the attack tests: a static program that runs in a container. It reads commands from stdin, one a line, and answers each
// with one line, "ok ..." or "error ...". Races run beside the commands until the command stop, which answers how many rounds they made; from hold to go
// they pause.
//
// With arguments it does that one command instead, prints the answer and exits.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() { runtime.LockOSThread() } // commands run on the first thread: its namespaces are what /proc/PID/ns shows

func main() {
	if len(os.Args) > 1 {
		if os.Args[1] == "nnp" { // nnp PROGRAM ARG...: run it with no_new_privs
			if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err == nil {
				unix.Exec(os.Args[2], os.Args[2:], []string{})
			}
			os.Exit(127)
		}
		fmt.Println(do(os.Args[1:]))
		return
	}
	fmt.Println("ready", os.Getpid())
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		fmt.Println(do(strings.Fields(in.Text())))
	}
}

func do(args []string) string {
	f, ok := commands[args[0]]
	if !ok {
		return "error no such command"
	}
	answer, err := f(args[1:])
	if err != nil {
		return "error " + strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return "ok " + answer
}

var commands map[string]func([]string) (string, error)

func init() {
	commands = map[string]func([]string) (string, error){
		"mkdir":   func(a []string) (string, error) { return "", os.MkdirAll(a[0], 0o755) },
		"write":   func(a []string) (string, error) { return "", os.WriteFile(a[0], []byte(a[1]), 0o644) },
		"symlink": func(a []string) (string, error) { return "", os.Symlink(a[0], a[1]) },
		"ls": func(a []string) (string, error) {
			entries, err := os.ReadDir(a[0])
			var names []string
			for _, e := range entries {
				names = append(names, e.Name())
			}
			return strings.Join(names, " "), err
		},
		"tmpfs": func(a []string) (string, error) {
			return "", unix.Mount("tmpfs", a[0], "tmpfs", 0, strings.Join(a[1:], ","))
		},
		"bind":    func(a []string) (string, error) { return "", unix.Mount(a[0], a[1], "", unix.MS_BIND|unix.MS_REC, "") },
		"move":    func(a []string) (string, error) { return "", unix.Mount(a[0], a[1], "", unix.MS_MOVE, "") },
		"umount":  func(a []string) (string, error) { return "", unix.Unmount(a[0], unix.MNT_DETACH) },
		"private": func(a []string) (string, error) { return "", unix.Mount("", a[0], "", unix.MS_PRIVATE|unix.MS_REC, "") },
		"chroot":  func(a []string) (string, error) { return "", errors.Join(unix.Chroot(a[0]), unix.Chdir("/")) },
		"pivot": func(a []string) (string, error) { // as runc does it: the old root is stacked on the new one and taken away
			return "", errors.Join(unix.Chdir(a[0]), unix.PivotRoot(".", "."), unix.Unmount(".", unix.MNT_DETACH), unix.Chdir("/"))
		},
		"cwd": func(a []string) (string, error) { return "", unix.Chdir(a[0]) },
		"open": func(a []string) (string, error) {
			fd, err := unix.Open(a[0], unix.O_RDONLY|unix.O_CLOEXEC, 0)
			return strconv.Itoa(fd), err
		},
		"close": func(a []string) (string, error) {
			fd, _ := strconv.Atoi(a[0])
			return "", unix.Close(fd)
		},
		"connect": func(a []string) (string, error) {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err == nil {
				err = unix.Connect(fd, &unix.SockaddrUnix{Name: a[0]})
			}
			return strconv.Itoa(fd), err
		},
		"dial": func(a []string) (string, error) { // send the bytes of a file to a socket; answer what comes back
			request, err := os.ReadFile(a[1])
			if err != nil {
				return "", err
			}
			c, err := net.Dial("unix", a[0])
			if err != nil {
				return "", err
			}
			c.Write(request)
			c.(*net.UnixConn).CloseWrite()
			reply, err := io.ReadAll(c)
			return strconv.Quote(string(reply)), err
		},
		"comm":     func(a []string) (string, error) { return "", os.WriteFile("/proc/self/comm", []byte(unquote(a[0])), 0) },
		"fork":     fork,
		"fuse":     fuse,
		"weaken":   weaken,
		"nested":   nested,
		"stop":     stop,
		"hold":     func([]string) (string, error) { gate.Lock(); held = true; return "", nil },
		"go":       func([]string) (string, error) { held = false; gate.Unlock(); return "", nil },
		"exchange": func(a []string) (string, error) { return race(func() { exchange(a[0], a[1]) }) },
		"rename": func(a []string) (string, error) {
			return race(func() { unix.Rename(a[0], a[1]); unix.Rename(a[1], a[0]) })
		},
		"remake": func(a []string) (string, error) { return race(func() { unix.Rmdir(a[0]); unix.Mkdir(a[0], 0o755) }) },
		"plant": func(a []string) (string, error) { // a link where a directory is about to be made
			return race(func() { unix.Symlink(a[0], a[1]); unix.Unlink(a[1]); unix.Mkdir(a[1], 0o755); unix.Rmdir(a[1]) })
		},
		"cover": func(a []string) (string, error) { // a mount where something is about to be attached
			return race(func() { unix.Mount(a[0], a[1], "", unix.MS_BIND, ""); unix.Unmount(a[1], unix.MNT_DETACH) })
		},
		"poll": poll,
	}
}

func unquote(s string) string {
	t, _ := strconv.Unquote(s)
	return t
}

func exchange(a, b string) { unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE) }

var (
	stopping atomic.Bool
	rounds   atomic.Int64
	found    atomic.Value // what a poll has found, a string
	running  int
	ended    = make(chan bool)
	gate     sync.Mutex // held for each round of a race, and while they pause
	held     bool
)

func race(f func()) (string, error) {
	running++
	go func() {
		for !stopping.Load() {
			gate.Lock()
			f()
			rounds.Add(1)
			gate.Unlock()
		}
		ended <- true
	}()
	return "", nil
}

// stop ends all races and answers their rounds, and what a poll has found.
func stop([]string) (string, error) {
	stopping.Store(true)
	if held {
		held = false
		gate.Unlock()
	}
	for ; running > 0; running-- {
		<-ended
	}
	stopping.Store(false)
	what, _ := found.Swap("").(string)
	return strings.TrimSpace(strconv.FormatInt(rounds.Swap(0), 10) + " " + what), nil
}

// poll looks at whatever is mounted at a path, without pause, and notes a mount that lacks one of the flags of statfs(2) (second argument). The mount
// that is there now is the one below. The count is of mounts that were seen.
func poll(a []string) (string, error) {
	want, _ := strconv.ParseInt(a[1], 10, 64)
	look := func() (uint64, int64) {
		fd, err := unix.Open(a[0], unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return 0, want
		}
		defer unix.Close(fd)
		var fs unix.Statfs_t
		var stx unix.Statx_t
		if unix.Fstatfs(fd, &fs) != nil || unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID_UNIQUE, &stx) != nil {
			return 0, want
		}
		return stx.Mnt_id, fs.Flags
	}
	base, _ := look()
	running++
	go func() {
		last := base
		for !stopping.Load() {
			gate.Lock()
			id, flags := look()
			gate.Unlock()
			if id != base && id != 0 {
				if id != last {
					rounds.Add(1)
				}
				if flags&want != want {
					found.Store(fmt.Sprintf("weak %x", flags))
				}
			}
			last = id
		}
		ended <- true
	}()
	return "", nil
}

// fork leaves a process in our namespaces that outlives us and ends when its stdin does, which is ours.
func fork([]string) (string, error) {
	cmd := exec.Command("/proc/self/exe")
	in, err := unix.FcntlInt(0, unix.F_DUPFD, 3)
	if err != nil {
		return "", err
	}
	cmd.Stdin = os.NewFile(uintptr(in), "stdin")
	if err := cmd.Start(); err != nil {
		return "", err
	}
	return strconv.Itoa(cmd.Process.Pid), nil
}

// fuse mounts a FUSE filesystem on a path. Its server counts what it is asked, and could as well never answer. stop answers the count.
func fuse(a []string) (string, error) {
	dev, err := unix.Open(a[1], unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	if err := unix.Mount("box", a[0], "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", dev)); err != nil {
		return "", err
	}
	buf := make([]byte, 1<<17)
	if _, err := unix.Read(dev, buf); err != nil { // FUSE_INIT
		return "", err
	}
	out := make([]byte, 16+64) // struct fuse_out_header, struct fuse_init_out
	*(*uint32)(unsafe.Pointer(&out[0])) = uint32(len(out))
	*(*uint64)(unsafe.Pointer(&out[8])) = *(*uint64)(unsafe.Pointer(&buf[8])) // unique
	*(*uint32)(unsafe.Pointer(&out[16])), *(*uint32)(unsafe.Pointer(&out[20])) = 7, 31
	*(*uint32)(unsafe.Pointer(&out[36])) = 4096 // max_write
	if _, err := unix.Write(dev, out); err != nil {
		return "", err
	}
	go func() {
		for {
			n, err := unix.Read(dev, buf)
			if err != nil {
				return
			}
			if op := *(*uint32)(unsafe.Pointer(&buf[4])); n >= 40 && op != 2 && op != 42 { // FORGET has no answer
				rounds.Add(1)
				out := make([]byte, 16)
				*(*uint32)(unsafe.Pointer(&out[0])) = 16
				*(*int32)(unsafe.Pointer(&out[4])) = -int32(unix.ENOENT)
				*(*uint64)(unsafe.Pointer(&out[8])) = *(*uint64)(unsafe.Pointer(&buf[8]))
				unix.Write(dev, out)
			}
		}
	}()
	return strconv.Itoa(dev), nil
}

// The flags that a mount may have lost, as statfs(2), mount(2) and mount_setattr(2) call them.
var bits = []struct {
	name     string
	st, ms   int64
	attr     uint64
	optional bool // not every mount has it to begin with
}{
	{"ro", unix.ST_RDONLY, unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY, true},
	{"nosuid", unix.ST_NOSUID, unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID, false},
	{"nodev", unix.ST_NODEV, unix.MS_NODEV, unix.MOUNT_ATTR_NODEV, false},
	{"noexec", unix.ST_NOEXEC, unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC, true},
}

// weaken tries whatever root can to take its attributes from each mount that is named, and answers what worked. Of "eperm" attempts the kernel said that
// they are not permitted.
func weaken(paths []string) (string, error) {
	var weak []string
	tried, eperm := 0, 0
	flags := func(path string) int64 {
		var fs unix.Statfs_t
		if unix.Statfs(path, &fs) != nil {
			return -1
		}
		return fs.Flags
	}
	note := func(err error) {
		if tried++; err == unix.EPERM {
			eperm++
		}
	}
	// direct tries it on the mount at a path; how says how that came to be.
	direct := func(path, how, name string) {
		was := flags(path)
		for _, b := range bits {
			if was&b.st == 0 {
				if !b.optional {
					weak = append(weak, name+":"+how+":no-"+b.name)
				}
				continue
			}
			var keep uintptr
			for _, o := range bits {
				if was&o.st != 0 && o.name != b.name {
					keep |= uintptr(o.ms)
				}
			}
			for way, f := range map[string]func() error{
				"remount": func() error { return unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|keep, "") },
				"bare":    func() error { return unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND, "") },
				"sb":      func() error { return unix.Mount("", path, "", unix.MS_REMOUNT|keep, "") },
				"setattr": func() error {
					return unix.MountSetattr(unix.AT_FDCWD, path, 0, &unix.MountAttr{Attr_clr: b.attr})
				},
				"recursive": func() error {
					return unix.MountSetattr(unix.AT_FDCWD, path, unix.AT_RECURSIVE, &unix.MountAttr{Attr_clr: b.attr})
				},
			} {
				note(f())
				if flags(path)&b.st == 0 {
					weak = append(weak, name+":"+how+":"+way+":"+b.name)
				}
			}
		}
		if was&unix.ST_RDONLY != 0 {
			if fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
				unix.Close(fd)
				weak = append(weak, name+":"+how+":opened-for-writing")
			}
			if err := os.WriteFile(path+"/written", nil, 0o644); err == nil {
				weak = append(weak, name+":"+how+":written")
			}
		}
		if fd, err := unix.Open(path+"/node", unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			unix.Close(fd)
			weak = append(weak, name+":"+how+":device-opened")
		}
	}
	for i, path := range paths {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		scratch := fmt.Sprintf("/tmp/scratch%d-%d", os.Getpid(), i)
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			os.Mkdir(scratch, 0o755)
		} else {
			os.WriteFile(scratch, nil, 0o644)
		}
		name := filepath.Base(path)
		direct(path, "itself", name)
		if err := unix.Mount(path, scratch, "", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			direct(scratch, "copy", name)
			if _, err := os.Stat(path + "/sub"); err == nil && unix.Mount(path+"/sub", scratch, "", unix.MS_BIND|unix.MS_REC, "") == nil {
				direct(scratch, "copy-of-below", name)
				unix.Unmount(scratch, unix.MNT_DETACH)
			}
			unix.Unmount(scratch, unix.MNT_DETACH)
		}
		if err := unix.Mount(path, scratch, "", unix.MS_BIND, ""); err == nil { // not recursive: what a submount covers would show
			direct(scratch, "flat", name)
			if _, err := os.Stat(scratch + "/sub/covered"); err == nil {
				weak = append(weak, name+":uncovered-by-copy")
			}
			unix.Unmount(scratch, unix.MNT_DETACH)
		}
		if fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE); err == nil {
			for _, b := range bits {
				for _, how := range []uint{0, unix.AT_RECURSIVE} {
					var was, now unix.Statfs_t
					unix.Fstatfs(fd, &was)
					note(unix.MountSetattr(fd, "", how|unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_clr: b.attr}))
					if unix.Fstatfs(fd, &now); was.Flags&b.st != 0 && now.Flags&b.st == 0 {
						weak = append(weak, name+":detached:"+b.name)
					}
				}
			}
			unix.Close(fd)
		}
		if unix.Mount(path, scratch, "", unix.MS_MOVE, "") == nil {
			direct(scratch, "moved", name)
			unix.Mount(scratch, path, "", unix.MS_MOVE, "")
		}
		if _, err := os.Stat(path + "/sub"); err == nil {
			for _, how := range []int{0, unix.MNT_DETACH} {
				note(unix.Unmount(path+"/sub", how))
			}
			if _, err := os.Stat(path + "/sub/covered"); err == nil {
				weak = append(weak, name+":uncovered-by-umount")
			}
			direct(path+"/sub", "submount", name)
		}
		os.Remove(scratch)
	}
	return strings.Join(append([]string{fmt.Sprintf("tried=%d eperm=%d", tried, eperm)}, weak...), " "), nil
}

// nested is weaken in a mount namespace of its own ("mnt"), or in a user and a mount namespace ("user").
func nested(a []string) (string, error) {
	cmd := exec.Command("/proc/self/exe", append([]string{"weaken"}, a[1:]...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if a[0] == "user" {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		one := []syscall.SysProcIDMap{{Size: 1}}
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = one, one
	}
	cmd.Stdin = os.Stdin // a container need not have a /dev/null
	out, err := cmd.CombinedOutput()
	answer, ok := strings.CutPrefix(strings.TrimSpace(string(out)), "ok ")
	if err == nil && !ok {
		err = errors.New(string(out))
	}
	return answer, err
}
