// Command isolator is a small container agent: it runs jobs in containers with runc, and gives them volumes through bindgate. It shows what an agent has to
// call when, and what to do about each class of failure (docs/isolator.md). It holds no privilege at all: it runs as the policy user with no_new_privs, its
// containers are rootless, and bindgate reaches the helper over its socket.
//
//	isolator -state DIR [-bindgate PATH] [-runc PATH] JOB.json...
//
// A job is {"rootfs": "/dir", "args": ["sh", "-c", "..."], "volumes": ContainerInfo}; the file's name is the container's id. Each job runs once, to its end;
// the agent ends when all have. It can be killed at any moment and started again with the same arguments: containers that run go on meanwhile, and what was
// half done is finished or undone.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

type agent struct {
	state, bindgate, runc string
	lock                  *os.File // held until we end, however that is
}

// A job is one container, from its file to its end.
type job struct {
	id      string
	Rootfs  string          `json:"rootfs"`
	Args    []string        `json:"args"`
	Volumes json.RawMessage `json:"volumes"` // as it comes: bindgate reads it
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("isolator: ")
	a := &agent{}
	flag.StringVar(&a.state, "state", "", "keep what must outlive the agent in `DIR`")
	flag.StringVar(&a.bindgate, "bindgate", "bindgate", "")
	flag.StringVar(&a.runc, "runc", "runc", "")
	flag.Parse()
	if a.state == "" || flag.NArg() == 0 {
		flag.Usage()
		os.Exit(64)
	}
	if err := a.run(flag.Args()); err != nil {
		log.Fatal(err)
	}
}

func (a *agent) run(files []string) error {
	if err := errors.Join(os.MkdirAll(a.state, 0o700), a.alone()); err != nil {
		return err
	}
	var jobs []*job
	for _, file := range files {
		j := &job{id: strings.TrimSuffix(filepath.Base(file), ".json")}
		data, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(data, j)
		}
		if err != nil {
			return fmt.Errorf("cannot read the job %s: %w", file, err)
		}
		jobs = append(jobs, j)
	}
	if err := a.recover(jobs); err != nil {
		return err
	}
	var wg sync.WaitGroup
	failed := make([]error, len(jobs))
	for i, j := range jobs {
		wg.Go(func() {
			if failed[i] = a.job(j); failed[i] != nil {
				failed[i] = fmt.Errorf("job %s: %w", j.id, failed[i])
			}
		})
	}
	wg.Wait()
	return errors.Join(failed...)
}

// recover is the first thing after a start: it names the containers that this agent still has something to do with. Of all others that it once had, bindgate
// lets the volumes go.
func (a *agent) recover(jobs []*job) error {
	var known []string
	for _, j := range jobs {
		if stage := a.stage(j); stage != "" && stage != "done" {
			known = append(known, j.id)
		}
	}
	err := a.call(nil, "recover", "--known", strings.Join(known, ","))
	if later(err) { // some driver cannot be asked now: its volumes are pending, and that is no reason not to start
		log.Printf("recover: %v", err)
		err = nil
	}
	return err
}

// The stages of a job, each on disk before what it stands for is begun.
//
//	""         nothing was done
//	"prepare"  there may be volumes, and a container that has not been started: both can be thrown away
//	"start"    the container was started, or is about to be; runc knows
//	"ended"    it has ended: only tidying is left
//	"done"
func (a *agent) stage(j *job) string {
	data, err := os.ReadFile(filepath.Join(a.state, j.id+".stage"))
	if err != nil {
		return ""
	}
	return string(data)
}

func (a *agent) enter(j *job, stage string) error {
	path := filepath.Join(a.state, j.id+".stage")
	f, err := os.Create(path + ".new")
	if err != nil {
		return err
	}
	_, err = f.WriteString(stage)
	return errors.Join(err, f.Sync(), f.Close(), os.Rename(path+".new", path))
}

// job takes a job from wherever it is to its end.
func (a *agent) job(j *job) error {
	stage := a.stage(j)
	if stage == "start" {
		if err := a.start(j); err != nil {
			return err
		}
		return errors.Join(a.wait(j), a.finish(j))
	}
	switch stage {
	case "done":
		return nil
	case "ended":
		return a.finish(j)
	case "prepare": // begun by an agent that was killed
		if err := a.discard(j); err != nil {
			return err
		}
	}
	if err := a.enter(j, "prepare"); err != nil {
		return err
	}
	if err := a.launch(j); err != nil {
		return errors.Join(err, a.discard(j))
	}
	return errors.Join(a.wait(j), a.finish(j))
}

// launch prepares the volumes, creates the container, attaches the volumes to it while its first process waits, and starts it.
func (a *agent) launch(j *job) error {
	if err := a.call(j.Volumes, "prepare", "--container", j.id, "-"); err != nil {
		return err
	}
	bundle := filepath.Join(a.state, j.id)
	if err := a.bundle(j, bundle); err != nil {
		return err
	}
	if err := a.runcCall(j, "create", "--bundle", bundle, "--pid-file", bundle+".pid", j.id); err != nil {
		return err
	}
	pid, err := os.ReadFile(bundle + ".pid")
	if err != nil {
		return err
	}
	if err := a.call(nil, "isolate", "--container", j.id, "--pid", string(pid)); err != nil {
		return err
	}
	if err := a.enter(j, "start"); err != nil {
		return err
	}
	return a.start(j)
}

// start starts a container, if that was not done. The command that an agent had begun that was killed goes on, and whichever is first starts it.
func (a *agent) start(j *job) error {
	if a.status(j) != "created" {
		return nil
	}
	err := a.runcCall(j, "start", j.id)
	if a.status(j) != "created" {
		return nil
	}
	return err
}

// wait waits for the container's first process, which is no child of ours if we are not the agent that made it.
func (a *agent) wait(j *job) error {
	data, err := os.ReadFile(filepath.Join(a.state, j.id+".pid"))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(string(data))
	if err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if a.status(j) != "running" { // asked after the pidfd is open: the pid may be somebody else's by now
		return nil
	}
	for {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); err != unix.EINTR {
			return err
		}
	}
}

// finish tidies up after a container that has ended.
func (a *agent) finish(j *job) error {
	if err := a.enter(j, "ended"); err != nil {
		return err
	}
	if err := a.discard(j); err != nil {
		return err
	}
	return a.enter(j, "done")
}

// discard removes the container, if there is one, and then lets its volumes go. It can be called again.
func (a *agent) discard(j *job) error {
	if err := a.runcCall(j, "delete", "--force", j.id); err != nil {
		return err
	}
	err := a.call(nil, "cleanup", "--container", j.id)
	if later(err) { // it is on record, and the next recover or cleanup tries again
		log.Printf("job %s: %v", j.id, err)
		return nil
	}
	return err
}

// bundle makes the configuration of a rootless container: one user, the agent's own, who is root in it.
func (a *agent) bundle(j *job, dir string) error {
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return err
	}
	if err := a.runcCall(j, "spec", "--rootless", "--bundle", dir); err != nil {
		return err
	}
	file := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var config map[string]any
	if err := json.Unmarshal(data, &config); err != nil {
		return err
	}
	process := config["process"].(map[string]any)
	process["args"], process["terminal"] = j.Args, false
	config["root"] = map[string]any{"path": j.Rootfs, "readonly": false}
	if data, err = json.Marshal(config); err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o600)
}

// status is what runc says of a container: created, running or stopped; "" if it knows none.
func (a *agent) status(j *job) string {
	out, err := exec.Command(a.runc, "--root", a.runcRoot(), "state", j.id).Output()
	var s struct{ Status string }
	if err != nil || json.Unmarshal(out, &s) != nil {
		return ""
	}
	return s.Status
}

func (a *agent) runcRoot() string { return filepath.Join(a.state, "runc") }

// runcCall runs runc. The container gets a file as its output, since a pipe would end with this agent.
func (a *agent) runcCall(j *job, args ...string) error {
	out, err := os.OpenFile(filepath.Join(a.state, j.id+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(a.runc, append([]string{"--root", a.runcRoot()}, args...)...)
	cmd.Stdout, cmd.Stderr = out, out
	end := unix.SIGKILL
	if args[0] == "start" { // killed half way it would leave a container that has ended and never ran
		end = 0
	}
	if err := run(cmd, end); err != nil {
		return fmt.Errorf("cannot %s with runc: %w (see %s)", args[0], err, out.Name())
	}
	return nil
}

// A failure is what bindgate said no with.
type failure struct {
	verb    string
	exit    int
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (f *failure) Error() string { return fmt.Sprintf("%s: %s (%s)", f.verb, f.Message, f.Code) }

// later reports whether bindgate says that it may work later (exit class 75).
func later(err error) bool {
	var f *failure
	return errors.As(err, &f) && f.exit == 75
}

// call runs one verb of bindgate's. What each class of failure asks for:
//
//	65, 77  the job is wrong, or may not: tell its user, and do not try again
//	69      a driver cannot: try again, a few times
//	75      later it may work: try again; of recover and cleanup, whatever is pending is on record
//	70, 71, 78  this host cannot run jobs with volumes: tell its operator, who calls bindgate doctor
func (a *agent) call(stdin []byte, verb string, args ...string) error {
	const attempts = 5
	for n := 1; ; n++ {
		cmd := exec.Command(a.bindgate, append([]string{verb, "-o", "json"}, args...)...)
		cmd.Stdin = bytes.NewReader(stdin)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		err := run(cmd, unix.SIGTERM) // upon which it undoes what it has begun
		if err == nil {
			return nil
		}
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			return fmt.Errorf("cannot run bindgate: %w", err)
		}
		var doc struct{ Error failure }
		if json.Unmarshal(stderr.Bytes(), &doc) != nil || doc.Error.Message == "" {
			return fmt.Errorf("%s: bindgate failed without a reason: %w: %s", verb, err, stderr.Bytes())
		}
		f := &doc.Error
		f.verb, f.exit = verb, exit.ExitCode()
		again := f.exit == 69 || f.exit == 75 && verb != "recover"
		if !again || n == attempts {
			return f
		}
		log.Printf("%v; trying again", f)
		time.Sleep(time.Duration(n) * 200 * time.Millisecond)
	}
}

// run runs a command that gets the signal end when this agent ends, so that the next one does not meet what this one had begun.
func run(cmd *exec.Cmd, end unix.Signal) error {
	runtime.LockOSThread() // whose end is what Pdeathsig means
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: end}
	return cmd.Run()
}

// alone keeps a second agent from working on the same state.
func (a *agent) alone() error {
	f, err := os.OpenFile(filepath.Join(a.state, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("another agent works in %s: %w", a.state, fs.ErrExist)
	}
	a.lock = f
	return nil
}
