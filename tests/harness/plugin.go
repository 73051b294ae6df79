package harness

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// A Plugin is a running volume plugin, tests/plugins/testplugin, as a process of its own that root runs. It is stopped when the test ends.
type Plugin struct {
	h      *Host
	Name   string // as jobs name the driver
	Socket string // in the host's plugin socket folder, for the policy user to connect to
	Root   string // where its volumes lie: Sources()/NAME
	args   []string
	cmd    *exec.Cmd
	once   *sync.Once
}

// A Call is what a plugin was asked.
type Call struct {
	Call string `json:"call"` // Create, Mount, Unmount, ...
	Name string `json:"name"` // of the volume
	ID   string `json:"id"`   // of a Mount or Unmount
}

// Plugin starts a plugin under a name, with further flags for testplugin.
func (h *Host) Plugin(name string, args ...string) *Plugin {
	h.t.Helper()
	p := &Plugin{h: h, Name: name, Socket: filepath.Join(h.Sockets(), name+".sock"), Root: filepath.Join(h.Sources(), name), args: args}
	p.Start()
	return p
}

// Start starts a plugin again that was stopped or killed, and waits until it listens.
func (p *Plugin) Start() {
	h := p.h
	h.t.Helper()
	p.cmd = exec.Command(h.Program("testplugin"), append([]string{"-socket", p.Socket, "-root", p.Root, "-log", p.log()}, p.args...)...)
	p.cmd.Stderr = os.Stderr
	p.once = new(sync.Once)
	out, err := p.cmd.StdoutPipe()
	h.check(err)
	h.check(p.cmd.Start())
	h.t.Cleanup(p.Kill)
	line, _ := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		h.t.Fatalf("harness: the plugin %s does not start: it said %q", p.Name, line)
	}
	h.check(os.Chown(p.Socket, 0, PolicyGID))
	h.check(os.Chmod(p.Socket, 0o660))
}

// Stop asks the plugin to end, and waits until it has; its socket is gone then.
func (p *Plugin) Stop() { p.end(syscall.SIGTERM) }

// Kill kills the plugin; its socket stays, as a crash leaves it.
func (p *Plugin) Kill() { p.end(syscall.SIGKILL) }

func (p *Plugin) end(signal syscall.Signal) {
	p.once.Do(func() {
		p.cmd.Process.Signal(signal)
		p.cmd.Wait()
	})
}

// Calls returns what the plugin was asked so far, in order. Pick limits it to some calls.
func (p *Plugin) Calls(pick ...string) (calls []Call) {
	p.h.t.Helper()
	for line := range strings.Lines(p.h.ReadFile(p.log())) {
		var c Call
		p.h.check(json.Unmarshal([]byte(line), &c))
		for _, name := range pick {
			if c.Call == name {
				calls = append(calls, c)
			}
		}
		if len(pick) == 0 {
			calls = append(calls, c)
		}
	}
	return calls
}

func (p *Plugin) log() string { return p.h.Path("tmp", "plugin-"+p.Name+".log") }
