package lifecycle

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/policy/driver"
	"github.com/bindgate/bindgate/policy/spec"
	"github.com/bindgate/bindgate/wire"
)

func TestPrepareMountsAndIsolateAttaches(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a", "b")
	iso := w.open(t, "")
	c := newChild(t)
	r := request(t, "web", "a:/data", "b:/logs:ro,noexec,subpath=x/y")
	r.Labels = map[string]string{"task": "t1"}
	p := ok[*Prepared](t)(iso.Prepare(t.Context(), r))
	if len(p.Volumes) != 2 || p.Volumes[0].Mountpoint == "" || p.Volumes[1].Mode != "ro" || p.Volumes[0].Created || p.Mounts != nil || p.Owner != "default" {
		t.Fatalf("%+v", p)
	}
	i := ok[*Isolated](t)(iso.Isolate(t.Context(), "web", c.PID))
	if len(i.Mounts) != 2 || i.Mounts[0].MountID != 1000 || !i.Mounts[0].Locked || i.Mounts[1].Created != 2 || i.PID != c.PID {
		t.Fatalf("%+v", i)
	}
	if src := i.Mounts[1].Source; src != p.Volumes[1].Mountpoint+"/x/y" {
		t.Errorf("source %s", src)
	}
	l := w.ledger()[0]
	if m := l.Mounts[1]; m.Path != "/logs" || m.Source != p.Volumes[1].Mountpoint || m.Subpath != "x/y" || m.Mode != "ro" || !m.NoExec || m.IDMap || l.PID != c.PID {
		t.Errorf("the helper was asked for %+v", l)
	}
	s := ok[*Status](t)(iso.Status(t.Context(), StatusQuery{}))
	if x := s.Containers[0]; x.Phase != "isolated" || !x.Alive || x.PID != c.PID || x.Labels["task"] != "t1" || len(x.Mounts) != 2 {
		t.Errorf("%+v", x)
	}
	equal(t, "users", s.Volumes[0].Containers, []string{"web"})
	c.end(t)
	out := ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{}))
	if !out.Known || len(out.Detached) != 2 || len(out.Unmounted) != 2 || len(out.Pending) != 0 {
		t.Errorf("%+v", out)
	}
	w.empty(t)
}

func TestPrepareWithoutVolumesSucceeds(t *testing.T) {
	w := newWorld(t)
	iso := w.open(t, "")
	p := ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web")))
	if p.Volumes == nil || len(p.Volumes) != 0 || p.Skipped == nil {
		t.Errorf("%+v", p)
	}
	i := ok[*Isolated](t)(iso.Isolate(t.Context(), "web", os.Getpid()))
	if len(i.Mounts) != 0 || len(w.calls()) != 0 {
		t.Errorf("%+v, calls %v", i, w.calls())
	}
	want(t, second(iso.Cleanup(t.Context(), "web", CleanupOptions{})), wire.Busy)
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{Force: true}))
	w.empty(t)
}

func second[T any](_ T, err error) error { return err }

func TestRequestIsRefusedBeforeAnythingIsDone(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a", "b")
	iso := w.open(t, "")
	twice := request(t, "web", "a:/data")
	twice.Job.Volumes = append(twice.Job.Volumes, job(t, "a:/other").Volumes...)
	samePath := request(t, "web", "a:/data")
	samePath.Job.Volumes = append(samePath.Job.Volumes, job(t, "b:/data/").Volumes...)
	inSandbox := request(t, "web", "a:x", "b:/mnt/mesos/sandbox/x")
	inSandbox.Directory = "/var/sandbox"
	parent := request(t, "web", "a:/data")
	parent.Parent = "unknown"
	self := request(t, "web", "a:/data")
	self.Parent = "web"
	rootfs := request(t, "web", "a:/data")
	rootfs.Rootfs = "relative"
	forged := request(t, "web", "a:data")
	forged.Directory = "/var/sandbox\nbindgate: all is well"
	label := request(t, "web", "a:/data")
	label.Labels = map[string]string{"name": "\x1b[2J"}
	by := request(t, "web", "a:/data")
	by.MountsBy = "nobody"
	for name, x := range map[string]struct {
		r    Request
		code wire.Code
	}{
		"the same volume twice is duplicate_volume":                  {twice, wire.DuplicateVolume},
		"two volumes at one path":                                    {samePath, wire.InvalidRequest},
		"a relative and an absolute path that are one place":         {inSandbox, wire.InvalidRequest},
		"a relative path without a sandbox":                          {request(t, "web", "a:x"), wire.InvalidRequest},
		"a container id that is a path":                              {request(t, "../web", "a:/data"), wire.InvalidRequest},
		"a container id that is empty":                               {request(t, "", "a:/data"), wire.InvalidRequest},
		"a parent that is not there":                                 {parent, wire.NotFound},
		"a container that is its own parent":                         {self, wire.InvalidRequest},
		"a rootfs that is not absolute":                              {rootfs, wire.InvalidRequest},
		"a sandbox that the helper would refuse":                     {forged, wire.InvalidRequest},
		"a label with control characters":                            {label, wire.InvalidRequest},
		"mounts by somebody else":                                    {by, wire.InvalidRequest},
		"a driver that cannot be found leaves nothing of the others": {request(t, "web", "no-such//v:/data"), wire.DriverUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			want(t, second(iso.Prepare(t.Context(), x.r)), x.code)
			equal(t, "calls", w.calls(), []string{})
			w.empty(t)
		})
	}
}

func TestRulesDecideBeforeAnyDriverIsCalled(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a", "secret", "c")
	w.policy.Rules = []config.Rule{
		{Driver: "fake", Volume: "secret*", Action: "deny"},
		{Driver: "fake", Volume: "a", Containers: []string{"web-*"}, Owners: []string{"default"}, Modes: []string{"ro"}, Paths: []string{"/data*"}, Action: "allow"},
	}
	iso := w.open(t, "")
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web-1", "a:/data/x:ro")))
	calls := len(w.calls())
	for name, r := range map[string]Request{
		"another mode":      request(t, "web-2", "a:/data:rw"),
		"another path":      request(t, "web-2", "a:/other:ro"),
		"another container": request(t, "db", "a:/data:ro"),
		"another driver":    request(t, "web-2", "other//a:/data:ro"),
		"no rule matches":   request(t, "web-2", "c:/data:ro"),
		"one of two":        request(t, "web-2", "a:/data:ro", "c:/c:ro"),
	} {
		t.Run(name, func(t *testing.T) {
			want(t, second(iso.Prepare(t.Context(), r)), wire.Denied, "no rule", "[[rule]]")
		})
	}
	e := want(t, second(iso.Prepare(t.Context(), request(t, "web-2", "secret:/data:ro", "c:/c:ro"))), wire.Denied, "before rule 1", "rule 1 of policy.toml denies it")
	if len(e.Causes) != 2 {
		t.Errorf("causes %+v", e.Causes)
	}
	equal(t, "calls", w.calls()[calls:], []string{})
}

func TestTheRuleThatARefusalPrintsAllowsIt(t *testing.T) {
	for _, name := range []string{"plain", `quoted "x" \ y`, "with/slash and space", "ü"} {
		w := newWorld(t)
		w.create(t, strings.ReplaceAll(name, "/", "-"))
		w.policy.Rules = nil
		iso := w.open(t, "")
		r := Request{Container: "web", Job: &spec.Job{Volumes: []spec.Volume{{Driver: "fake", Name: strings.ReplaceAll(name, "/", "-"), ContainerPath: "/data", Mode: "ro", Scope: "container"}}}}
		e := want(t, second(iso.Prepare(t.Context(), r)), wire.Denied)
		_, rule, _ := strings.Cut(e.Hint, "\n")
		p, err := config.ParsePolicy([]byte(rule))
		if err != nil {
			t.Fatalf("%v in\n%s", err, rule)
		}
		w.policy.Rules = p.Rules
		ok[*Prepared](t)(iso.Prepare(t.Context(), r))
		r.Container, r.Job.Volumes[0].Mode = "web2", "rw"
		want(t, second(iso.Prepare(t.Context(), r)), wire.Denied)
	}
}

func TestGlob(t *testing.T) {
	for _, x := range []struct {
		pattern, s string
		want       bool
	}{
		{"*", "", true}, {"*", "a/b", true}, {"a", "a", true}, {"a", "ab", false}, {"a*", "a", true}, {"*a", "ba", true}, {"a*c", "abc", true},
		{"a*c", "ac", true}, {"a*c", "acb", false}, {"ab*b", "ab", false}, {"*x*y*", "axbyc", true}, {"*x*y*", "aybxc", false}, {"", "", true},
		{"", "a", false}, {"[a]", "a", false}, {"a?", "ab", false}, {"**", "x", true},
	} {
		if got := glob(x.pattern, x.s); got != x.want {
			t.Errorf("glob(%q, %q) = %v", x.pattern, x.s, got)
		}
	}
}

func TestIntentIsOnDiskBeforeTheDriverIsAsked(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso, other := w.open(t, ""), w.open(t, "")
	w.on("mount", func(call string) error {
		id := strings.Fields(call)[2]
		v, err := other.readVolume(volumeID{"fake", "a"})
		if err != nil || len(v.Holds) != 1 || v.Holds[0].ID != id || v.Holds[0].State != mountAsked || v.Holds[0].Refs[0].Container != "web" {
			t.Errorf("volume's record at the time of Mount: %+v, %v", v, err)
		}
		if len(id) != 64 {
			t.Errorf("id %s", id)
		}
		c, err := other.readContainer(reference{"default", "web"})
		if err != nil || c == nil || c.Phase != phasePreparing || c.Volumes[0].Name != "a" {
			t.Errorf("container's record at the time of Mount: %+v, %v", c, err)
		}
		return nil
	})
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/data")))
	if len(w.calls("mount")) != 1 {
		t.Error(w.calls())
	}
}

func TestIfOneVolumeFailsTheOthersAreWaitedForAndAllUndone(t *testing.T) {
	w := newWorld(t)
	w.create(t, "good", "bad", "slow")
	iso := w.open(t, "")
	failed := make(chan struct{})
	w.on("mount", func(call string) error {
		switch {
		case strings.Contains(call, "/bad"):
			defer close(failed)
			return wire.Errorf(wire.DriverError, "mount", "cannot mount volume bad: no medium").Because(driver.ErrRefused)
		case strings.Contains(call, "/slow"):
			<-failed // it answers only after the other has failed
		}
		return nil
	})
	e := want(t, second(iso.Prepare(t.Context(), request(t, "web", "good:/a", "bad:/b", "slow:/c"))), wire.DriverError, "no medium", "prepare container web")
	if len(e.Causes) != 1 || e.Causes[0].Name != "bad" || e.Causes[0].Stage != "mount" || len(e.Undone) != 2 || len(e.Left) != 0 {
		t.Errorf("%+v", e)
	}
	if n := len(w.calls("unmount fake/good", "unmount fake/slow")); n != 2 {
		t.Errorf("unmounts: %v", w.calls("unmount"))
	}
	if n := len(w.calls("unmount fake/bad")); n != 0 {
		t.Errorf("a volume that the driver refused to mount was unmounted")
	}
	w.empty(t)
}

func TestEveryFailureIsReportedAndTheWorstClassCounts(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a", "b", "c")
	iso := w.open(t, "")
	w.on("mount", func(call string) error {
		switch {
		case strings.Contains(call, "/a"):
			return wire.Errorf(wire.DriverError, "mount", "cannot mount a: A").Because(driver.ErrRefused)
		case strings.Contains(call, "/b"):
			return wire.Errorf(wire.Config, "discover", "cannot use driver: B")
		}
		return wire.Errorf(wire.InvalidRequest, "mount", "cannot mount c: C")
	})
	e := want(t, second(iso.Prepare(t.Context(), request(t, "web", "a:/a", "b:/b", "c:/c"))), wire.Config, "A", "B", "C")
	if len(e.Causes) != 3 || e.Exit() != 78 {
		t.Errorf("%+v", e)
	}
	w.empty(t)
}

func TestClassOfSeveralFailures(t *testing.T) {
	order := []wire.Code{wire.Internal, wire.StateCorrupt, wire.Denied, wire.NotFound, wire.System, wire.DriverError, wire.Busy}
	for i := range order {
		causes := []Cause{}
		for j := len(order) - 1; j >= i; j-- {
			causes = append(causes, Cause{Code: order[j], Message: "m"})
		}
		if e := several("x", causes); e.Code != order[i] {
			t.Errorf("of %v: %s", causes, e.Code)
		}
	}
}

func TestNonsenseFromAMountIsUnmounted(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	w.after = func(call string) error {
		if strings.HasPrefix(call, "mount") {
			return wire.Errorf(wire.DriverError, "mount", "cannot mount volume a: it returned the host's root as mountpoint")
		}
		return nil
	}
	want(t, second(iso.Prepare(t.Context(), request(t, "web", "a:/a"))), wire.DriverError)
	id := strings.Fields(w.calls("mount")[0])[2]
	equal(t, "unmounts", w.calls("unmount"), []string{"unmount fake/a " + id})
	w.empty(t)
}

func TestVolumeIsCreatedUnlessItMustExist(t *testing.T) {
	explicit := map[string]func(*world, *Request){
		"by the request":  func(_ *world, r *Request) { r.ExplicitCreate = true },
		"by the job":      func(_ *world, r *Request) { r.Job.Volumes[0].ExplicitCreate = true },
		"by policy.toml":  func(w *world, _ *Request) { w.policy.Volume.ExplicitCreate = true },
		"by the driver's": func(w *world, _ *Request) { w.policy.Drivers["fake"] = config.Driver{ExplicitCreate: true} },
	}
	for name, set := range explicit {
		t.Run("refused "+name, func(t *testing.T) {
			w := newWorld(t)
			r := request(t, "web", "new:/a")
			set(w, &r)
			iso := w.open(t, "")
			want(t, second(iso.Prepare(t.Context(), r)), wire.VolumeNotFound, "bindgate volume create --driver fake new")
			equal(t, "calls", w.calls(), []string{"get fake/new"})
			w.empty(t)
		})
	}
	w := newWorld(t)
	w.policy.Drivers["fake"] = config.Driver{Options: map[string]string{"size": "1", "type": "ssd"}}
	iso := w.open(t, "")
	r := request(t, "web", "new:/a", "local//here:/b")
	r.Job.Volumes[0].Options = map[string]string{"size": "5"}
	p := ok[*Prepared](t)(iso.Prepare(t.Context(), r))
	if !p.Volumes[0].Created || len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "local/here") {
		t.Errorf("%+v", p)
	}
	data, _ := os.ReadFile(filepath.Join(w.dir, "volumes", "fake@new"))
	if string(data) != `{"size":"5","type":"ssd"}` {
		t.Errorf("options %s", data)
	}
}

func TestIDInUseIsAConflict(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a", "b")
	iso := w.open(t, "")
	c := newChild(t)
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	want(t, second(iso.Prepare(t.Context(), request(t, "web", "a:/a"))), wire.Conflict, "without a process")
	ok[*Isolated](t)(iso.Isolate(t.Context(), "web", c.PID))
	want(t, second(iso.Prepare(t.Context(), request(t, "web", "a:/a"))), wire.Conflict, "bindgate cleanup --owner default --container web")
	if n := len(w.calls("mount")); n != 1 {
		t.Errorf("%d mounts", n)
	}
}

func TestStaleRecordIsCleanedUpFirst(t *testing.T) {
	leave := map[string]func(*testing.T, *world, *Isolator){
		"of a dead process": func(t *testing.T, w *world, iso *Isolator) {
			c := newChild(t)
			ok[*Isolated](t)(iso.Isolate(t.Context(), "web", c.PID))
			c.end(t)
		},
		"of an earlier boot": func(t *testing.T, w *world, iso *Isolator) { w.boot = "boot-2" },
	}
	for name, do := range leave {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create(t, "old", "new")
			iso := w.open(t, "")
			ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "old:/a")))
			do(t, w, iso)
			iso = w.open(t, "")
			ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "new:/a")))
			if m := w.mounted(t); len(m) != 1 || !strings.HasPrefix(m[0], "fake@new/") {
				t.Errorf("mounted: %v", m)
			}
			if len(w.ledger()) != 0 {
				t.Errorf("ledger: %v", w.ledger())
			}
			ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{}))
			w.empty(t)
		})
	}
}

func TestStaleRecordWhoseUnmountFailsDoesNotHoldUpTheNext(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	c := newChild(t)
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	ok[*Isolated](t)(iso.Isolate(t.Context(), "web", c.PID))
	c.end(t)
	w.on("unmount", func(string) error {
		return wire.Errorf(wire.DriverError, "unmount", "cannot unmount: busy").Because(driver.ErrRefused)
	})
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	w.off()
	if n := len(w.calls("mount")); n != 1 {
		t.Errorf("mounts: %v", w.calls("mount"))
	}
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{}))
	w.empty(t)
}

func TestAgentMakesTheMountsAndBinds(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a", "b")
	iso := w.open(t, "")
	r := request(t, "web", "a:/a:ro,noexec", "b:x,subpath=s")
	r.MountsBy, r.Directory = ByAgent, "/sandbox"
	p := ok[*Prepared](t)(iso.Prepare(t.Context(), r))
	if len(p.Mounts) != 2 || p.Mounts[0].Target != "/a" || p.Mounts[1].Target != "/mnt/mesos/sandbox/x" || p.Mounts[1].Source != p.Volumes[1].Mountpoint+"/s" {
		t.Errorf("%+v", p.Mounts)
	}
	equal(t, "options", p.Mounts[0].Options, []string{"rbind", "rprivate", "ro", "nosuid", "nodev", "noexec"})
	c := newChild(t)
	want(t, second(iso.Isolate(t.Context(), "web", c.PID)), wire.Conflict, "bindgate bind")
	ok[*Isolated](t)(iso.Bind(t.Context(), "web", c.PID))
	ok[*Isolated](t)(iso.Bind(t.Context(), "web", c.PID))
	want(t, second(iso.Cleanup(t.Context(), "web", CleanupOptions{})), wire.Busy)
	s := ok[*Status](t)(iso.Status(t.Context(), StatusQuery{}))
	if s.Containers[0].Phase != "bound" || !s.Containers[0].Alive {
		t.Errorf("%+v", s.Containers[0])
	}
	c.end(t)
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{}))
	equal(t, "helper", w.calls("helper"), []string{})
	w.empty(t)
}

func TestHostVolumesAreMountedByTheDriverOnly(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	r := request(t, "web")
	r.Job.Volumes = []spec.Volume{{Driver: "fake", Name: "a", Mode: "rw", Scope: spec.ScopeHost}}
	p := ok[*Prepared](t)(iso.Prepare(t.Context(), r))
	if p.Volumes[0].Scope != "host" || p.Volumes[0].Mountpoint == "" {
		t.Errorf("%+v", p)
	}
	ok[*Isolated](t)(iso.Isolate(t.Context(), "web", os.Getpid()))
	equal(t, "helper", w.calls("helper"), []string{})
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{Force: true}))
	w.empty(t)
}

// hang makes the mount of one volume wait until release is called. It returns when waiting has begun.
func (w *world) hang(prefix string) (begun chan struct{}, release func()) {
	begun, free := make(chan struct{}, 8), make(chan struct{})
	w.on(prefix, func(string) error {
		begun <- struct{}{}
		<-free
		return nil
	})
	return begun, func() { close(free) }
}

func TestInterruptUndoesWhatIsUnderWay(t *testing.T) {
	w := newWorld(t)
	w.create(t, "slow", "quick")
	iso := w.open(t, "")
	begun, release := w.hang("mount fake/slow")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-begun
		cancel()
		release() // the driver's answer comes after the interrupt
	}()
	e := want(t, second(iso.Prepare(ctx, request(t, "web", "slow:/a", "quick:/b"))), wire.Timeout, "interrupted")
	if len(w.mounted(t)) != 0 || len(e.Left) != 0 {
		t.Errorf("mounted %v, %+v", w.mounted(t), e)
	}
	w.empty(t)
}

// deadline is a context whose deadline is set by begin: nothing that comes before has to be quick.
type deadline struct {
	context.Context
	end         time.Time
	set, passed chan struct{}
}

func (d *deadline) begin(in time.Duration) {
	d.end = time.Now().Add(in)
	close(d.set)
	time.AfterFunc(in, func() { close(d.passed) })
}

func (d *deadline) Deadline() (time.Time, bool) {
	select {
	case <-d.set:
		return d.end, true
	default:
		return time.Time{}, false
	}
}

func (d *deadline) Done() <-chan struct{} { return d.passed }

func (d *deadline) Err() error {
	select {
	case <-d.passed:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// Who waits no longer is not kept waiting by what is undone: a driver that does not answer has its volume pending.
func TestUndoEndsWithWhoeverWaitsForIt(t *testing.T) {
	for _, name := range []string{"interrupted", "--timeout"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create(t, "stuck", "bad")
			iso := w.open(t, "")
			iso.grace = time.Millisecond
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			end := &deadline{Context: ctx, set: make(chan struct{}), passed: make(chan struct{})}
			if name == "--timeout" {
				ctx = end
			}
			mounted, release := make(chan struct{}), make(chan struct{})
			w.on("", func(call string) error {
				switch {
				case strings.HasPrefix(call, "mount fake/bad"):
					<-mounted
					if name == "interrupted" {
						cancel()
					} else {
						end.begin(time.Second)
					}
					return wire.Errorf(wire.DriverError, "mount", "cannot mount: no").Because(driver.ErrRefused)
				case strings.HasPrefix(call, "unmount"):
					<-release
				}
				return nil
			})
			w.mu.Lock()
			w.after = func(call string) error {
				if strings.HasPrefix(call, "mount fake/stuck") {
					close(mounted)
				}
				return nil
			}
			w.mu.Unlock()
			e := failure(second(iso.Prepare(ctx, request(t, "web", "stuck:/a", "bad:/b")))) // or else it waits for minutes
			if len(e.Left) != 1 || e.Left[0].Name != "stuck" {
				t.Errorf("%+v", e)
			}
			close(release)
			w.off()
			ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{}))
			w.empty(t)
		})
	}
}

func TestMountThatDoesNotAnswerIsGivenUpWithWhatItWas(t *testing.T) {
	w := newWorld(t)
	w.create(t, "b")
	if err := (&fakeDriver{w, "late"}).Create(t.Context(), "a", nil); err != nil {
		t.Fatal(err)
	}
	w.policy.Drivers["late"] = config.Driver{Timeouts: config.DriverTimeouts{Mount: 50 * time.Millisecond}} // the other one has the time that it takes
	iso := w.open(t, "")
	_, release := w.hang("mount late/a")
	e := want(t, second(iso.Prepare(t.Context(), request(t, "web", "late//a:/a", "b:/b"))), wire.Timeout, "mount volume late/a", "did not answer within")
	if len(e.Causes) != 1 || e.Causes[0].Stage != "mount" || len(e.Left) != 1 || len(e.Undone) != 1 || e.Undone[0].Name != "b" {
		t.Errorf("%+v", e)
	}
	s := ok[*Status](t)(iso.Status(t.Context(), StatusQuery{}))
	if len(s.Containers) != 0 || len(s.Volumes) != 1 || s.Volumes[0].Pending == nil {
		t.Fatalf("%+v", s)
	}
	// The mount completes after its deadline, while we still run: it is unmounted at once, with its id.
	unmounted := make(chan string, 1)
	w.mu.Lock()
	w.after = func(call string) error {
		if strings.HasPrefix(call, "unmount late/a") {
			unmounted <- call
		}
		return nil
	}
	w.mu.Unlock()
	release()
	select {
	case call := <-unmounted:
		if id := strings.Fields(w.calls("mount late/a")[0])[2]; call != "unmount late/a "+id {
			t.Errorf("%s, mounted as %s", call, id)
		}
	case <-patience(t).Done():
		t.Fatal("it was not unmounted")
	}
	unlock, err := iso.lockVolume(t.Context(), volumeID{"late", "a"}) // until it is journalled
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	w.empty(t)
}

func TestMountThatCompletesLaterIsUnmountedByRecover(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	w.policy.Drivers["fake"] = config.Driver{Timeouts: config.DriverTimeouts{Mount: 50 * time.Millisecond}}
	first, err := w.isolator("")
	if err != nil {
		t.Fatal(err)
	}
	begun, release := w.hang("mount fake/a")
	want(t, second(first.Prepare(t.Context(), request(t, "web", "a:/a"))), wire.Timeout)
	first.Close() // the process ends
	done := make(chan struct{})
	w.mu.Lock()
	w.after = func(call string) error { close(done); return nil }
	w.mu.Unlock()
	<-begun
	release()
	<-done
	w.off()
	if len(w.mounted(t)) != 1 {
		t.Fatal("the test's driver did not mount")
	}
	out := ok[*Recovered](t)(w.open(t, "").Recover(t.Context(), RecoverOptions{}))
	equal(t, "unmounted", out.Unmounted, []VolumeRef{{"fake", "a"}})
	w.empty(t)
}

// A driver that says "not mounted" while it is still at a mount that was given up is asked again, as long as the mount may come; but not while somebody else
// has the volume, which one that counts nothing would take from him.
func TestMountThatCompletesAfterTheDriverDeniedItIsUnmounted(t *testing.T) {
	give := func(t *testing.T) (w *world, id string, mount func()) {
		w = newWorld(t)
		w.create(t, "a")
		w.policy.Drivers["fake"] = config.Driver{Timeouts: config.DriverTimeouts{Mount: 50 * time.Millisecond, Unmount: time.Hour}}
		first, err := w.isolator("")
		if err != nil {
			t.Fatal(err)
		}
		begun, release := w.hang("mount fake/a")
		want(t, second(first.Prepare(t.Context(), request(t, "web", "a:/a"))), wire.Timeout)
		first.Close() // the process ends
		<-begun
		patient := *w.policy // what comes then has the time that it takes
		patient.Drivers = map[string]config.Driver{"fake": {Timeouts: config.DriverTimeouts{Unmount: time.Hour}}}
		w.policy = &patient
		id = strings.Fields(w.calls("mount fake/a")[0])[2]
		doubted(t, second(w.open(t, "").Recover(t.Context(), RecoverOptions{})))
		w.mu.Lock()
		w.overlap = nil // that is what it is about
		w.mu.Unlock()
		return w, id, func() {
			done := make(chan struct{})
			w.mu.Lock()
			w.after = func(call string) error { close(done); return nil }
			w.mu.Unlock()
			release()
			<-done
			w.off()
		}
	}
	t.Run("by recover", func(t *testing.T) {
		w, _, mount := give(t)
		if s := ok[*Status](t)(w.open(t, "").Status(t.Context(), StatusQuery{})); len(s.Volumes) != 1 || s.Volumes[0].Pending == nil {
			t.Errorf("status: %+v", s)
		}
		mount()
		out := ok[*Recovered](t)(w.open(t, "").Recover(t.Context(), RecoverOptions{}))
		equal(t, "unmounted", out.Unmounted, []VolumeRef{{"fake", "a"}})
		w.empty(t)
	})
	t.Run("when nobody else has the volume", func(t *testing.T) {
		w, id, mount := give(t)
		mount()
		iso := w.open(t, "")
		ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "next", "a:/a")))
		if calls := w.calls("mount fake/a"); len(calls) != 2 || strings.Contains(calls[1], id) {
			t.Errorf("another Mount has an id of its own: %v", calls)
		}
		asked := len(w.calls("unmount fake/a " + id))
		ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{}))
		if n := len(w.calls("unmount fake/a " + id)); n != asked || len(w.mounted(t)) != 2 {
			t.Errorf("asked %d times, then %d: %v", asked, n, w.mounted(t))
		}
		ok[*Cleaned](t)(iso.Cleanup(t.Context(), "next", CleanupOptions{}))
		ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{}))
		w.empty(t)
	})
	t.Run("no longer than it may come", func(t *testing.T) {
		w, _, mount := give(t)
		iso := w.open(t, "")
		v, err := iso.readVolume(volumeID{"fake", "a"})
		if err != nil || len(v.Holds) != 1 || !v.Holds[0].Doubt || time.Until(v.Holds[0].Late) > time.Hour {
			t.Fatalf("%+v, %v", v, err)
		}
		expire(t, iso)
		out := ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{}))
		equal(t, "unmounted", out.Unmounted, []VolumeRef{{"fake", "a"}})
		w.mu.Lock()
		w.overlap = nil
		w.mu.Unlock()
		w.empty(t)
		mount()
	})
}

func TestDeadlinesNameTheirStage(t *testing.T) {
	for _, stage := range []string{"get", "create"} {
		w := newWorld(t)
		iso := w.open(t, "")
		free := make(chan struct{})
		limit := func() { w.policy.Timeouts.Call = 50 * time.Millisecond }
		if stage == "get" {
			limit()
		}
		w.on("", func(call string) error {
			if strings.HasPrefix(call, stage) {
				<-free
			} else {
				limit() // of the next call: this one has the time that it takes
			}
			return nil
		})
		e := want(t, second(iso.Prepare(t.Context(), request(t, "web", "a:/a"))), wire.Timeout, "fake/a", "did not answer within")
		if e.Stage != stage {
			t.Errorf("stage %s, want %s", e.Stage, stage)
		}
		close(free)
		w.off()
		if len(w.calls("mount")) > 0 {
			t.Error(w.calls())
		}
	}
}

// doubted checks that all that a recover left is what a driver may still be at work on.
func doubted(t *testing.T, err error) {
	t.Helper()
	e := want(t, err, wire.Pending, "may still carry out a call to mount it", "asked again until")
	for _, c := range e.Causes {
		if c.Stage != "unmount" {
			t.Errorf("%+v", c)
		}
	}
}

// expire makes the time be over in which a Mount that was cut off may come.
func expire(t *testing.T, iso *Isolator) {
	t.Helper()
	all, _, err := iso.allVolumes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range all {
		for _, h := range v.Holds {
			h.Late = time.Time{}
		}
		if err := iso.writeVolume(v); err != nil {
			t.Fatal(err)
		}
	}
}

// A prepare was killed while the driver was at its Mount: recover is told that nothing is mounted, and asks again until the Mount's deadline, so that what the
// driver mounts after that is not left.
func TestMountWhoseCallerWasKilledIsUnmountedWhenItComes(t *testing.T) {
	const id = "0123456789abcdef"
	cutOff := func(t *testing.T, others ...string) (w *world, iso *Isolator) {
		w = newWorld(t)
		w.create(t, "a")
		iso = w.open(t, "")
		h := &hold{ID: id, Owner: DefaultOwner, State: mountAsked, Boot: w.boot, Late: time.Now().Add(time.Hour)}
		for _, name := range append(others, "web") {
			c, err := iso.newRecord(request(t, name, "a:/a"))
			if err == nil && name != "web" {
				c.Phase = phasePrepared
			}
			if err == nil {
				err = iso.writeContainer(c)
			}
			if err != nil {
				t.Fatal(err)
			}
			h.ref(c.ref())
		}
		if err := iso.writeVolume(&volumeRecord{volumeID: volumeID{"fake", "a"}, Holds: []*hold{h}}); err != nil {
			t.Fatal(err)
		}
		return w, iso
	}
	mount := func(t *testing.T, w *world) { // what the driver does late
		ok[string](t)((&fakeDriver{w, "fake"}).Mount(t.Context(), "a", id))
	}
	t.Run("by recover", func(t *testing.T) {
		w, iso := cutOff(t)
		for range 2 { // the second finds what the first has left pending
			doubted(t, second(iso.Recover(t.Context(), RecoverOptions{})))
		}
		mount(t, w)
		out := ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{}))
		equal(t, "unmounted", out.Unmounted, []VolumeRef{{"fake", "a"}})
		w.empty(t)
	})
	t.Run("others have the volume with an id of their own", func(t *testing.T) {
		w, iso := cutOff(t, "other") // whose volume was lost, and was being mounted again
		ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "next", "a:/a")))
		s := ok[*Status](t)(iso.Status(t.Context(), StatusQuery{Volume: "fake/a"}))
		if len(s.Volumes) == 0 || !slices.Contains(s.Volumes[0].Containers, "other") || !slices.Contains(s.Volumes[0].Containers, "next") {
			t.Errorf("%+v", s.Volumes)
		}
		mount(t, w)
		if calls := w.calls("mount fake/a"); len(calls) != 2 || strings.Contains(calls[0], id) {
			t.Errorf("%v", calls)
		}
		ok[*Cleaned](t)(iso.Cleanup(t.Context(), "next", CleanupOptions{}))
		ok[*Cleaned](t)(iso.Cleanup(t.Context(), "other", CleanupOptions{}))
		ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{}))
		w.empty(t)
	})
	t.Run("not after a restart of the host, which ends all calls", func(t *testing.T) {
		w, _ := cutOff(t)
		w.boot = "boot-2"
		ok[*Recovered](t)(w.open(t, "").Recover(t.Context(), RecoverOptions{}))
		w.empty(t)
	})
}
