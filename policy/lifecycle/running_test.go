package lifecycle

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/bindgate/bindgate/wire"
)

func TestIsolateAgainForTheSameProcessChangesNothing(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	c, other := newChild(t), newChild(t)
	want(t, second(iso.Isolate(t.Context(), "web", c.PID)), wire.NotFound, "bindgate prepare")
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	first := ok[*Isolated](t)(iso.Isolate(t.Context(), "web", c.PID))
	calls := len(w.calls())
	again := ok[*Isolated](t)(iso.Isolate(t.Context(), "web", c.PID))
	if fmt.Sprint(first) != fmt.Sprint(again) || len(w.calls()) != calls {
		t.Errorf("%+v, then %+v", first, again)
	}
	want(t, second(iso.Isolate(t.Context(), "web", other.PID)), wire.Conflict, fmt.Sprintf("process %d", c.PID))
}

func TestIsolateRefusesWhatIsNoLivingProcess(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	zombie := newChild(t)
	zombie.end(t)
	want(t, second(iso.Isolate(t.Context(), "web", zombie.PID)), wire.NamespaceGone)
	want(t, second(iso.Isolate(t.Context(), "web", 0)), wire.InvalidRequest)
	want(t, second(iso.Isolate(t.Context(), "web", -1)), wire.InvalidRequest)
	want(t, second(iso.Isolate(t.Context(), "web", 1<<22+1)), wire.NamespaceGone)
	equal(t, "helper", w.calls("helper"), []string{})
	c := newChild(t)
	ok[*Isolated](t)(iso.Isolate(t.Context(), "web", c.PID))
}

func TestRefusedIsolateLeavesTheContainerPrepared(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	c := newChild(t)
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	w.on("helper attach", func(string) error {
		return wire.Errorf(wire.TargetMissing, "target", "cannot attach at /a: it does not exist").WithHint("make it")
	})
	e := want(t, second(iso.Isolate(t.Context(), "web", c.PID)), wire.TargetMissing, "isolate container web", "/a", "make it")
	if e.Exit() != 65 {
		t.Error(e.Exit())
	}
	s := ok[*Status](t)(iso.Status(t.Context(), StatusQuery{}))
	if s.Containers[0].Phase != "prepared" || s.Containers[0].PID != 0 {
		t.Errorf("%+v", s.Containers[0])
	}
	equal(t, "detach", w.calls("helper detach"), []string{})
	w.off()
	ok[*Isolated](t)(iso.Isolate(t.Context(), "web", newChild(t).PID))
}

func TestIsolateWithoutAnAnswerIsTakenBack(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	c := newChild(t)
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	w.after = func(call string) error {
		if strings.HasPrefix(call, "helper attach") { // attached, and the answer was lost
			return wire.Errorf(wire.Timeout, "helper", "cannot do attach: the helper did not answer")
		}
		return nil
	}
	e := want(t, second(iso.Isolate(t.Context(), "web", c.PID)), wire.Timeout)
	if len(e.Undone) != 1 || len(w.ledger()) != 0 {
		t.Errorf("%+v, ledger %v", e, w.ledger())
	}
	w.off()
	ok[*Isolated](t)(iso.Isolate(t.Context(), "web", c.PID))
}

func TestHelpersReplyMustBeAboutWhatWasAsked(t *testing.T) {
	for name, blocks := range map[string][]wire.Fields{
		"nothing":       nil,
		"another path":  {{{Key: "mount", Value: "/other"}, {Key: "id", Value: "1"}}},
		"an id missing": {{{Key: "mount", Value: "/a"}}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create(t, "a")
			iso := w.open(t, "")
			real := iso.helper
			iso.helper = func(ctx context.Context, r *wire.Request) (*wire.Reply, error) {
				reply, err := real(ctx, r)
				if r.Op == wire.OpAttach {
					reply.Blocks = blocks
				}
				return reply, err
			}
			ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
			want(t, second(iso.Isolate(t.Context(), "web", newChild(t).PID)), wire.Internal)
			if len(w.ledger()) != 0 {
				t.Errorf("ledger %v", w.ledger())
			}
		})
	}
}

func TestCleanupOfWhatIsNotKnownIsNoError(t *testing.T) {
	w := newWorld(t)
	iso := w.open(t, "")
	out := ok[*Cleaned](t)(iso.Cleanup(t.Context(), "nobody", CleanupOptions{}))
	if out.Known || out.Detached == nil || out.Unmounted == nil || out.Pending == nil {
		t.Errorf("%+v", out)
	}
	want(t, second(iso.Cleanup(t.Context(), "a/b", CleanupOptions{})), wire.InvalidRequest)
}

func TestCleanupOfALivingContainerIsBusyUnlessForced(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	c := newChild(t)
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	ok[*Isolated](t)(iso.Isolate(t.Context(), "web", c.PID))
	want(t, second(iso.Cleanup(t.Context(), "web", CleanupOptions{})), wire.Busy, fmt.Sprint(c.PID), "--force")
	if len(w.mounted(t)) != 1 || len(w.ledger()) != 1 {
		t.Error("something was done all the same")
	}
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{Force: true}))
	equal(t, "detach", w.calls("helper detach"), []string{"helper detach default web lazy"})
	w.empty(t)
}

func TestZombieIsDead(t *testing.T) {
	w := newWorld(t)
	iso := w.open(t, "")
	c := newChild(t)
	p, err := iso.identify(c.PID)
	if err != nil || !iso.alive(p) {
		t.Fatalf("%+v, %v", p, err)
	}
	other := *p
	other.Start++
	if iso.alive(&other) {
		t.Error("a process with another start time is taken for it")
	}
	other = *p
	other.Inode++
	if iso.alive(&other) {
		t.Error("a process with another pidfd inode is taken for it")
	}
	other = *p
	other.Boot = "earlier"
	if iso.alive(&other) {
		t.Error("a process of an earlier boot is taken for it")
	}
	c.end(t) // a zombie: nobody has waited for it
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", c.PID)); err != nil {
		t.Fatal("the test's process is no zombie")
	}
	if iso.alive(p) {
		t.Error("a zombie is alive")
	}
}

func TestNestedContainersAreCleanedUpBeforeTheirParent(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a", "b")
	iso := w.open(t, "")
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "pod", "a:/a")))
	for _, id := range []string{"c1", "c2"} {
		r := request(t, id, "b:/b")
		r.Parent = "pod"
		ok[*Prepared](t)(iso.Prepare(t.Context(), r))
	}
	want(t, second(iso.Cleanup(t.Context(), "pod", CleanupOptions{})), wire.Busy, "c1, c2")
	want(t, second(iso.Cleanup(t.Context(), "pod", CleanupOptions{Force: true})), wire.Busy, "c1, c2")
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "c1", CleanupOptions{}))
	want(t, second(iso.Cleanup(t.Context(), "pod", CleanupOptions{})), wire.Busy, "c2")
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "c2", CleanupOptions{}))
	parent, err := iso.readContainer(reference{"default", "pod"})
	if err != nil || len(parent.Children) != 0 {
		t.Errorf("%+v, %v", parent, err)
	}
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "pod", CleanupOptions{}))
	w.empty(t)
}

func TestHeldMountKeepsTheVolumeMounted(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	c := newChild(t)
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	ok[*Isolated](t)(iso.Isolate(t.Context(), "web", c.PID))
	c.end(t) // and its namespace lives on
	w.on("helper detach", func(string) error {
		return wire.Errorf(wire.Busy, "detach", "cannot detach /a: it is in use")
	})
	out, err := iso.Cleanup(t.Context(), "web", CleanupOptions{})
	want(t, err, wire.Busy, "42 (nginx worker)")
	if len(out.Pending) != 1 || len(out.Pending[0].Holders) != 2 || out.Pending[0].Holders[1] != (Holder{43, "sh"}) || len(out.Unmounted) != 0 {
		t.Errorf("%+v", out)
	}
	equal(t, "unmount", w.calls("unmount"), []string{})
	w.off()
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{}))
	w.empty(t)
}

func TestForgetDropsTheRecordWithoutTheDriver(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	calls := len(w.calls())
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{Forget: true}))
	equal(t, "calls", w.calls()[calls:], []string{"helper detach default web forget"}) // for the audit log
	s := ok[*Status](t)(iso.Status(t.Context(), StatusQuery{}))
	if len(s.Containers)+len(s.Volumes) != 0 {
		t.Errorf("%+v", s)
	}
}

func TestForgetDropsWhatIsPending(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	w.on("unmount", refused1)
	want(t, second(iso.Cleanup(t.Context(), "web", CleanupOptions{})), wire.Pending)
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{Forget: true}))
	s := ok[*Status](t)(iso.Status(t.Context(), StatusQuery{}))
	if len(s.Containers)+len(s.Volumes) != 0 {
		t.Errorf("%+v", s)
	}
}

func TestAttachMakesARecordAndTheLastDetachDropsIt(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a", "b")
	iso := w.open(t, "")
	c := newChild(t)
	out := ok[*Isolated](t)(iso.Attach(t.Context(), request(t, "web", "a:/a/"), c.PID))
	if len(out.Mounts) != 1 || out.Mounts[0].Name != "a" || out.PID != c.PID {
		t.Errorf("%+v", out)
	}
	out = ok[*Isolated](t)(iso.Attach(t.Context(), request(t, "web", "b:/b:ro"), c.PID))
	if len(out.Mounts) != 1 || out.Mounts[0].Name != "b" {
		t.Errorf("only what was attached is told: %+v", out)
	}
	d := ok[*Cleaned](t)(iso.Detach(t.Context(), "web", Which{Path: "/a"}, false))
	if !d.Known || len(d.Detached) != 1 || d.Detached[0].Name != "a" || len(d.Unmounted) != 1 {
		t.Errorf("%+v", d)
	}
	want(t, second(iso.Detach(t.Context(), "web", Which{Path: "/a"}, false)), wire.NotFound, "/a")
	want(t, second(iso.Detach(t.Context(), "web", Which{Driver: "fake", Name: "a"}, false)), wire.NotFound, "fake/a")
	ok[*Cleaned](t)(iso.Detach(t.Context(), "web", Which{Driver: "fake", Name: "b"}, true))
	if calls := w.calls("helper detach"); calls[len(calls)-1] != "helper detach default web lazy" {
		t.Errorf("%v", calls)
	}
	w.empty(t)
	want(t, second(iso.Detach(t.Context(), "web", Which{Path: "/a"}, false)), wire.NotFound)
	if d := ok[*Cleaned](t)(iso.Detach(t.Context(), "web", Which{All: true}, false)); d.Known {
		t.Errorf("%+v", d)
	}
}

func TestAttachToAnIsolatedContainerAddsToItsRecord(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a", "b", "c")
	iso := w.open(t, "")
	c := newChild(t)
	want(t, second(iso.Attach(t.Context(), request(t, "web", "a:/a"), 1<<22+1)), wire.NamespaceGone)
	w.empty(t)
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	want(t, second(iso.Attach(t.Context(), request(t, "web", "b:/b"), c.PID)), wire.Conflict, "bindgate isolate comes first")
	ok[*Isolated](t)(iso.Isolate(t.Context(), "web", c.PID))
	want(t, second(iso.Attach(t.Context(), request(t, "web", "b:/b"), newChild(t).PID)), wire.Conflict)
	want(t, second(iso.Attach(t.Context(), request(t, "web", "a:/other"), c.PID)), wire.DuplicateVolume)
	want(t, second(iso.Attach(t.Context(), request(t, "web", "b:/a"), c.PID)), wire.InvalidRequest)
	ok[*Isolated](t)(iso.Attach(t.Context(), request(t, "web", "b:/b"), c.PID))
	ok[*Cleaned](t)(iso.Detach(t.Context(), "web", Which{All: true}, false))
	s := ok[*Status](t)(iso.Status(t.Context(), StatusQuery{}))
	if len(s.Containers) != 1 || len(s.Containers[0].Volumes) != 0 {
		t.Errorf("a prepared container stays until its cleanup: %+v", s)
	}
	ok[*Isolated](t)(iso.Attach(t.Context(), request(t, "web", "c:/c"), c.PID))
	c.end(t)
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{}))
	w.empty(t)
}

func TestFailedAttachLeavesTheContainerAsItWas(t *testing.T) {
	for name, at := range map[string]string{"the driver fails": "mount fake/b", "the helper refuses": "helper attach"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create(t, "a", "b", "c")
			iso := w.open(t, "")
			c, other := newChild(t), newChild(t)
			ok[*Isolated](t)(iso.Attach(t.Context(), request(t, "web", "a:/a"), c.PID))
			w.on(at, func(string) error { return wire.Errorf(wire.TargetForbidden, "mount", "cannot: no") })
			want(t, second(iso.Attach(t.Context(), request(t, "web", "b:/b", "c:/c"), c.PID)), wire.TargetForbidden)
			want(t, second(iso.Attach(t.Context(), request(t, "new", "b:/b", "c:/c"), other.PID)), wire.TargetForbidden)
			if at == "helper attach" { // what was made for it is told
				e := want(t, second(iso.Attach(t.Context(), request(t, "new", "made:/m"), other.PID)), wire.TargetForbidden)
				equal(t, "left", e.Left, []Step{{"fake", "made", "create", "a volume is never removed unasked"}})
			}
			w.off()
			s := ok[*Status](t)(iso.Status(t.Context(), StatusQuery{}))
			if len(s.Containers) != 1 || len(s.Containers[0].Mounts) != 1 || len(s.Containers[0].Volumes) != 1 || len(s.Volumes) != 1 {
				t.Errorf("%+v", s)
			}
			if m := w.mounted(t); len(m) != 1 {
				t.Errorf("mounted %v", m)
			}
			ok[*Cleaned](t)(iso.Detach(t.Context(), "web", Which{All: true}, false))
			w.empty(t)
		})
	}
}

func TestFailedUnmountAtDetachIsPendingWithoutTheContainer(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	ok[*Isolated](t)(iso.Attach(t.Context(), request(t, "web", "a:/a"), newChild(t).PID))
	w.on("unmount", refused1)
	out, err := iso.Detach(t.Context(), "web", Which{All: true}, false)
	want(t, err, wire.Pending)
	if len(out.Detached) != 1 || len(out.Pending) != 1 {
		t.Errorf("%+v", out)
	}
	w.off()
	rec := ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{}))
	equal(t, "unmounted", rec.Unmounted, []VolumeRef{{"fake", "a"}})
	w.empty(t)
}

func TestUsageTellsHowFullAndWhoHolds(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a", "b")
	iso := w.open(t, "")
	want(t, second(iso.Usage(t.Context(), "web")), wire.NotFound)
	ok[*Isolated](t)(iso.Attach(t.Context(), request(t, "web", "a:/a"), newChild(t).PID))
	u := ok[*Usage](t)(iso.Usage(t.Context(), "web"))
	if v := u.Volumes[0]; !v.Alive || v.Bytes != 4096 || v.BytesFree != 1024 || v.Inodes != 10 || v.InodesFree != 5 || len(v.Holders) != 2 {
		t.Errorf("%+v", u)
	}
	r := request(t, "agent", "b:/b")
	r.MountsBy = ByAgent
	ok[*Prepared](t)(iso.Prepare(t.Context(), r))
	u = ok[*Usage](t)(iso.Usage(t.Context(), "agent"))
	if v := u.Volumes[0]; !v.Alive || v.Bytes == 0 {
		t.Errorf("%+v", u)
	}
}

func TestStatusWaitsForNothing(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a", "b")
	iso := w.open(t, "")
	ok[*Prepared](t)(w.open(t, "other").Prepare(t.Context(), request(t, "web", "b:/b")))
	begun, release := w.hang("mount fake/a")
	done := make(chan error, 1)
	go func() { done <- second(iso.Prepare(t.Context(), request(t, "web", "a:/a"))) }()
	<-begun // container and volume are locked now
	s := ok[*Status](t)(iso.Status(t.Context(), StatusQuery{}))
	if len(s.Containers) != 2 || s.Containers[0].Phase != "preparing" || len(s.Volumes) != 2 {
		t.Errorf("%+v", s)
	}
	for q, n := range map[StatusQuery][2]int{{Owner: "other"}: {1, 1}, {Owner: "nobody"}: {0, 0}, {Container: "web"}: {2, 2}, {Volume: "fake/b"}: {1, 1}, {Volume: "fake/none"}: {0, 0}} {
		s := ok[*Status](t)(iso.Status(t.Context(), q))
		if len(s.Containers) != n[0] || len(s.Volumes) != n[1] {
			t.Errorf("%+v: %+v", q, s)
		}
	}
	want(t, second(iso.Status(t.Context(), StatusQuery{Volume: "nodriver"})), wire.InvalidRequest)
	release()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestOwnersAreKeptApart(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a", "b")
	one, two := w.open(t, "one"), w.open(t, "two")
	ok[*Prepared](t)(one.Prepare(t.Context(), request(t, "web", "a:/a")))
	ok[*Prepared](t)(two.Prepare(t.Context(), request(t, "web", "b:/b")))
	rec := ok[*Recovered](t)(two.Recover(t.Context(), RecoverOptions{HasKnown: true}))
	equal(t, "cleaned", rec.Cleaned, []string{"web"})
	if m := w.mounted(t); len(m) != 1 || !strings.HasPrefix(m[0], "fake@a") {
		t.Errorf("%v", m)
	}
	if out := ok[*Cleaned](t)(two.Cleanup(t.Context(), "web", CleanupOptions{})); out.Known {
		t.Errorf("%+v", out)
	}
	ok[*Cleaned](t)(one.Cleanup(t.Context(), "web", CleanupOptions{}))
	w.empty(t)
	if _, err := Open(Options{Policy: w.policy, Owner: "a/b"}); err == nil {
		t.Error("an owner with a slash")
	}
}

func TestAttachOfNothingLeavesNoRecord(t *testing.T) {
	w := newWorld(t)
	out := ok[*Isolated](t)(w.open(t, "").Attach(t.Context(), request(t, "web"), newChild(t).PID))
	if out.Mounts == nil || len(out.Mounts) != 0 {
		t.Errorf("%+v", out)
	}
	w.empty(t)
}

func TestDetachThatIsRefusedLeavesThingsAsTheyWere(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a", "b")
	iso := w.open(t, "")
	ok[*Isolated](t)(iso.Attach(t.Context(), request(t, "web", "a:/a", "b:/b"), newChild(t).PID))
	w.on("helper detach", func(string) error {
		return wire.Errorf(wire.Busy, "detach", "cannot detach /a: it is in use")
	})
	out, err := iso.Detach(t.Context(), "web", Which{Path: "/a"}, false)
	want(t, err, wire.Busy, "nginx")
	if len(out.Pending) != 1 || out.Pending[0].Name != "a" {
		t.Errorf("%+v", out)
	}
	w.off()
	ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{}))
	if len(w.ledger()[0].Mounts) != 2 || len(w.mounted(t)) != 2 {
		t.Errorf("recover detached what nobody asked for any more: %v, %v", w.ledger(), w.mounted(t))
	}
	ok[*Cleaned](t)(iso.Detach(t.Context(), "web", Which{All: true}, false))
	w.empty(t)
}

func TestErrorsJSONHasItsLists(t *testing.T) {
	data, err := json.Marshal(failure(wire.Errorf(wire.Busy, "s", "m")))
	if want := `{"code":"busy","message":"m","hint":"","stage":"s","causes":[],"undone":[],"left":[]}`; err != nil || string(data) != want {
		t.Errorf("%s, %v", data, err)
	}
}

func TestAttachNamesTheRootfsOnlyIfItsRequestDoes(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a", "b")
	iso := w.open(t, "")
	var rootfs []string
	real := iso.helper
	iso.helper = func(ctx context.Context, r *wire.Request) (*wire.Reply, error) {
		if r.Op == wire.OpAttach {
			rootfs = append(rootfs, r.Rootfs)
		}
		return real(ctx, r)
	}
	c := newChild(t)
	first := request(t, "web", "a:/a")
	first.Rootfs = "/rootfs" // before it pivots
	ok[*Isolated](t)(iso.Attach(t.Context(), first, c.PID))
	ok[*Isolated](t)(iso.Attach(t.Context(), request(t, "web", "b:/b"), c.PID)) // and after
	equal(t, "rootfs", rootfs, []string{"/rootfs", ""})
}

// A detach that drops a nested container's record tells the parent after it has let go of that: a prepare that wants both takes them in an order of its own.
func TestDetachHoldsNoRecordWhileItWaitsForTheParents(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "parent")))
	r := request(t, "child", "a:/a")
	r.Parent = "parent"
	ok[*Isolated](t)(iso.Attach(t.Context(), r, newChild(t).PID))
	parent, err := w.open(t, "").lockContainers(t.Context(), reference{DefaultOwner, "parent"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- second(iso.Detach(t.Context(), "child", Which{All: true}, false)) }()
	for { // until it has let go of the volume
		if c, err := iso.readContainer(reference{DefaultOwner, "child"}); err == nil && c == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	unlock, err := w.open(t, "").lockContainers(ctx, reference{DefaultOwner, "child"})
	if err != nil {
		t.Error(err)
	} else {
		unlock()
	}
	parent()
	if err := <-done; err != nil {
		t.Error(err)
	}
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "parent", CleanupOptions{}))
	w.empty(t)
}
