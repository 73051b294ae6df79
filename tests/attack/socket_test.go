package attack

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// A boxListener does what systemd does for a socket unit with Accept=yes, one connection at a time: root accepts, and starts the helper with the
// connection as descriptors 0 and 1 and an environment of its own.
type boxListener struct {
	h    *boxHost
	l    *net.UnixListener
	Path string
}

func (h *boxHost) listen() *boxListener {
	h.t.Helper()
	path := h.Path("run/bindgate/helper.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	h.must(err)
	h.must(os.Chmod(path, 0o666)) // more open than packaged: the peer's credentials have to do
	h.t.Cleanup(func() { l.Close() })
	return &boxListener{h, l, path}
}

// serve serves the next connection, and returns the helper's exit status when it has ended.
func (l *boxListener) serve() int {
	c, err := l.l.AcceptUnix()
	if err != nil {
		return -1
	}
	f, err := c.File()
	c.Close()
	if err != nil {
		return -1
	}
	defer f.Close()
	cmd := exec.Command(l.h.HelperPath())
	cmd.Env = []string{"LANG=C", "PATH=/usr/bin", "INVOCATION_ID=0", "LISTEN_FDS=1", "GODEBUG=gctrace=1"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = f, f, os.Stderr
	cmd.Run()
	return cmd.ProcessState.ExitCode()
}

// nnp is a command as somebody with no_new_privs set.
func (h *boxHost) nnp(user harness.User, args ...string) *exec.Cmd {
	return h.Command(user, h.Box, append([]string{"nnp"}, args...)...)
}

// over sends a request over the socket, from a process of the user's that has no_new_privs.
func (l *boxListener) over(user harness.User, r *wire.Request) *wire.Reply {
	h := l.h
	h.t.Helper()
	file := h.Path("tmp/request")
	h.WriteFile(file, string(boundary.Encode(r)), 0o644)
	exit := make(chan int)
	go func() { exit <- l.serve() }()
	res := h.Do(h.nnp(user, h.Box, "dial", l.Path, file)).OK(h.t)
	text, err := strconv.Unquote(strings.TrimPrefix(strings.TrimSpace(res.Stdout), "ok "))
	if err != nil {
		h.t.Fatalf("%v: %v", err, res)
	}
	reply, err := boundary.DecodeReply([]byte(text))
	if err != nil {
		h.t.Fatalf("%v: %v", err, res)
	}
	want := 0
	if reply.Err != nil {
		want = reply.Err.Code.Exit()
	}
	if got := <-exit; got != want {
		h.t.Errorf("the helper exits %d, want %d", got, want)
	}
	return reply
}

// A caller with no_new_privs: the setuid bit has no effect for it, and it is told so. The socket serves it.
func TestSocket_NoNewPrivs(t *testing.T) {
	boxRun(t, func(t *testing.T, h *boxHost) {
		c := h.Container(harness.ContainerOptions{ID: "c"})
		res := h.Do(func() *exec.Cmd {
			cmd := h.nnp(boxPolicy, h.HelperPath())
			cmd.Stdin = strings.NewReader(string(boundary.Encode(h.request(c.Pid(), "/data"))))
			return cmd
		}())
		reply, err := boundary.DecodeReply([]byte(res.Stdout))
		if err != nil || reply.Err == nil || reply.Err.Code != wire.Config || res.Exit != 78 || !strings.Contains(reply.Err.Message+reply.Err.Hint, "no_new_privs") {
			t.Errorf("by setuid: %v", res)
		}
		h.wantAt(c.Pid(), "/data", 0)

		l := h.listen()
		h.untouched(func() {
			reply := l.over(boxPolicy, h.request(c.Pid(), "/data"))
			boxOK(t, reply)
			h.wantAt(c.Pid(), "/data", 1)
			// It is the same caller as by the other way.
			if q := h.Helper(&wire.Request{Op: wire.OpQuery, Owner: "default"}); len(q.Blocks) != 1 {
				t.Errorf("query: %v", q.Blocks)
			}
			boxOK(t, h.detach(c.Pid(), false))
		})
		if log := h.ReadFile(h.AuditLog()); !strings.Contains(log, `"uid":"`+strconv.Itoa(harness.PolicyUID)+`"`) || strings.Contains(log, `"uid":"0"`) {
			t.Errorf("the audit log has another caller: %s", log)
		}
		boxRefused(t, "an outsider", l.over(boxOutsider, h.request(c.Pid(), "/data")), wire.Denied)
		boxRefused(t, "an outsider lists", l.over(boxOutsider, &wire.Request{Op: wire.OpListVolumes}), wire.Denied)
		boxRefused(t, "the caller's own namespace", l.over(boxPolicy, h.request(os.Getpid(), "/data")), wire.NamespaceHost)

		// The policy program, all of it.
		h.AllowAll()
		h.PolicyTOML(h.ReadFile(h.Path("etc/bindgate/policy.toml")) + "[helper]\ntransport = \"socket\"\nsocket = \"" + l.Path + "\"\n")
		stop := make(chan bool)
		go func() {
			defer close(stop)
			for l.serve() >= 0 {
			}
		}()
		h.Do(h.nnp(boxPolicy, h.Bindgate(), "attach", "--container", "c", "--pid", c.PIDString(), "-v", "v:/data")).OK(t)
		h.wantAt(c.Pid(), "/data", 1)
		h.Do(h.nnp(boxPolicy, h.Bindgate(), "detach", "--container", "c", "--all")).OK(t)
		h.wantAt(c.Pid(), "/data", 0)
		l.l.Close()
		<-stop
	})
}

// An ordinary caller passes a socket of root's as descriptor 0: its peer's credentials are root's, and count for nothing.
func TestSocket_RootsSocketOfAnOrdinaryCaller(t *testing.T) {
	boxRun(t, func(t *testing.T, h *boxHost) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		h.must(err)
		near, far := os.NewFile(uintptr(pair[0]), "near"), os.NewFile(uintptr(pair[1]), "far")
		defer near.Close()
		// The naive way: ask the socket who is there.
		if peer, err := unix.GetsockoptUcred(pair[1], unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil || peer.Uid != 0 {
			t.Fatalf("the naive way does not take it for root's: %v %v", peer, err)
		}
		near.Write(boundary.Encode(&wire.Request{Op: wire.OpListVolumes}))
		unix.Shutdown(pair[0], unix.SHUT_WR)
		cmd := h.Command(boxOutsider, h.HelperPath())
		cmd.Stdin, cmd.Stdout = far, far
		h.Do(cmd).Exits(t, 77)
		far.Close()
		buf := make([]byte, 4096)
		n, _ := near.Read(buf)
		reply, err := boundary.DecodeReply(buf[:n])
		h.must(err)
		boxRefused(t, "with root's socket", reply, wire.Denied)
		if log := h.ReadFile(h.AuditLog()); !strings.Contains(log, fmt.Sprintf(`"uid":"%d"`, harness.OutsiderUID)) || strings.Contains(log, `"uid":"0"`) {
			t.Errorf("the audit log has another caller: %s", log)
		}
	})
}

// The caller hands its connection on and ends: whose namespace is not to be attached into, and who is in the audit log, cannot be told any more. Its pid may
// be another process' by then.
func TestSocket_CallerThatIsGone(t *testing.T) {
	for _, again := range []bool{false, true} {
		t.Run(fmt.Sprintf("its pid is used again: %v", again), func(t *testing.T) {
			boxRun(t, func(t *testing.T, h *boxHost) {
				c := h.Container(harness.ContainerOptions{ID: "c"})
				l := h.listen()
				p := h.start(h.Command(boxPolicy, h.Box))
				fd, err := strconv.Atoi(p.do("connect " + l.Path))
				h.must(err)
				pidfd, err := unix.PidfdOpen(p.pid, 0)
				h.must(err)
				mine, err := unix.PidfdGetfd(pidfd, fd, 0)
				h.must(err)
				unix.Close(pidfd)
				near := os.NewFile(uintptr(mine), "connection")
				defer near.Close()
				p.end()
				if again {
					var other *exec.Cmd
					for range 100 {
						h.must(os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(p.pid-1)), 0))
						other = exec.Command("busybox", "sleep", "2147483647")
						h.must(other.Start())
						if other.Process.Pid == p.pid {
							break
						}
						other.Process.Kill()
						other.Wait()
					}
					if other.Process.Pid != p.pid {
						t.Fatalf("the pid %d is not given again", p.pid)
					}
					defer func() { other.Process.Kill(); other.Wait() }()
				}
				near.Write(boundary.Encode(h.request(c.Pid(), "/data")))
				unix.Shutdown(mine, unix.SHUT_WR)
				l.serve()
				buf := make([]byte, 4096)
				n, _ := near.Read(buf)
				reply, err := boundary.DecodeReply(buf[:n])
				h.must(err)
				boxRefused(t, "a caller that is gone", reply, wire.NamespaceGone, wire.Denied)
				h.wantAt(c.Pid(), "/data", 0)
				if log, _ := os.ReadFile(h.AuditLog()); strings.Contains(string(log), "busybox") {
					t.Errorf("the audit log has a process that had nothing to do with it: %s", log)
				}
			})
		})
	}
}
