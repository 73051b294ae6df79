package lifecycle

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/policy/driver"
	"github.com/bindgate/bindgate/wire"
)

func refused1(string) error {
	return wire.Errorf(wire.DriverError, "unmount", "cannot unmount volume: device is busy").Because(driver.ErrRefused)
}

func TestOneMountAndOneUnmountWithTheSameIDForManyContainers(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	for i := range 3 {
		iso := w.open(t, fmt.Sprintf("owner%d", i)) // several agents share a host
		ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	}
	mounts := w.calls("mount")
	if len(mounts) != 1 {
		t.Fatalf("%v", mounts)
	}
	for i := range 3 {
		equal(t, "unmounts before the last is cleaned up", w.calls("unmount"), []string{})
		out := ok[*Cleaned](t)(w.open(t, fmt.Sprintf("owner%d", i)).Cleanup(t.Context(), "web", CleanupOptions{}))
		if (len(out.Unmounted) == 1) != (i == 2) {
			t.Errorf("cleanup %d: %+v", i, out)
		}
	}
	equal(t, "unmounts", w.calls("unmount"), []string{"un" + mounts[0]})
	w.empty(t)
}

func TestCountingByContainerMountsForEach(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	w.policy.Drivers["fake"] = config.Driver{Counting: config.CountContainer}
	iso := w.open(t, "")
	for _, id := range []string{"c1", "c2"} {
		ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, id, "a:/a")))
	}
	if m := w.calls("mount"); len(m) != 2 || m[0] == m[1] {
		t.Errorf("%v", m)
	}
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "c1", CleanupOptions{}))
	equal(t, "unmount", w.calls("unmount"), []string{"un" + w.calls("mount")[0]})
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "c2", CleanupOptions{}))
	w.empty(t)
}

func TestOperationsOnOneVolumeRunInOrder(t *testing.T) {
	w := newWorld(t)
	w.create(t, "shared")
	var wg sync.WaitGroup
	for i := range 16 {
		iso := w.open(t, "") // each as a process of its own
		wg.Go(func() {
			for n := range 3 {
				id := fmt.Sprintf("c%d-%d", i, n)
				if _, err := iso.Prepare(t.Context(), request(t, id, "shared:/a")); err != nil {
					t.Error(err)
				}
				if _, err := iso.Cleanup(t.Context(), id, CleanupOptions{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	mounts, unmounts := w.calls("mount"), w.calls("unmount")
	if len(mounts) == 0 || len(mounts) != len(unmounts) {
		t.Errorf("%d mounts, %d unmounts", len(mounts), len(unmounts))
	}
	for i := range mounts {
		if unmounts[i] != "un"+mounts[i] {
			t.Errorf("%s was followed by %s", mounts[i], unmounts[i])
		}
	}
	w.empty(t)
}

func TestDifferentVolumesRunInParallel(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a", "b", "c")
	var all sync.WaitGroup
	all.Add(3)
	w.on("mount", func(string) error {
		all.Done()
		all.Wait() // until each is being mounted
		return nil
	})
	var wg sync.WaitGroup
	wg.Go(func() { ok[*Prepared](t)(w.open(t, "").Prepare(t.Context(), request(t, "web", "a:/a", "b:/b"))) })
	wg.Go(func() { ok[*Prepared](t)(w.open(t, "").Prepare(t.Context(), request(t, "db", "c:/c"))) })
	wg.Wait()
}

func TestSlowVolumeDoesNotHoldUpOthersOfItsContainer(t *testing.T) {
	w := newWorld(t)
	w.create(t, "slow", "quick")
	begun, release := w.hang("mount fake/slow")
	first := make(chan error, 1)
	go func() {
		_, err := w.open(t, "").Prepare(t.Context(), request(t, "web", "slow:/a", "quick:/b"))
		first <- err
	}()
	<-begun
	// quick is web's too, and free as soon as it is mounted.
	ok[*Prepared](t)(w.open(t, "").Prepare(patience(t), request(t, "db", "quick:/b")))
	release()
	if err := <-first; err != nil {
		t.Error(err)
	}
}

func TestFailedUnmountIsPendingAndTriedAgain(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	w.on("unmount", refused1)
	out, err := iso.Cleanup(t.Context(), "web", CleanupOptions{})
	e := want(t, err, wire.Pending, "device is busy", "clean up container web")
	if e.Exit() != 75 || out == nil || len(out.Pending) != 1 || out.Pending[0].Since.IsZero() || !strings.Contains(out.Pending[0].Error, "device is busy") || out.Pending[0].Holders == nil {
		t.Fatalf("%+v", out)
	}
	since := out.Pending[0].Since
	s := ok[*Status](t)(iso.Status(t.Context(), StatusQuery{}))
	if len(s.Volumes) != 1 || len(s.Volumes[0].Containers) != 0 || s.Volumes[0].Pending == nil {
		t.Errorf("it counts as a reference: %+v", s.Volumes)
	}
	rec, err := iso.Recover(t.Context(), RecoverOptions{})
	want(t, err, wire.Pending)
	if len(rec.Pending) != 1 || !rec.Pending[0].Since.Equal(since) {
		t.Errorf("%+v, first tried at %v", rec, since)
	}
	if n := len(w.calls("unmount")); n != 2 {
		t.Errorf("recover asked %d times", n-1)
	}
	w.off()
	out = ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{}))
	equal(t, "unmounted", out.Unmounted, []VolumeRef{{"fake", "a"}})
	w.empty(t)
}

func TestPrepareCancelsAPendingUnmount(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	w.on("unmount", refused1)
	want(t, second(iso.Cleanup(t.Context(), "web", CleanupOptions{})), wire.Pending)
	w.off()
	calls := len(w.calls())
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "db", "a:/a")))
	equal(t, "calls of the new prepare", w.calls()[calls:], []string{})
	// What is left of the first does not take it away from the second.
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{}))
	if len(w.mounted(t)) != 1 {
		t.Error("unmounted under a container")
	}
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "db", CleanupOptions{}))
	w.empty(t)
}

func TestUnmountThatDoesNotAnswerIsPendingAndAskedAgainFirst(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	w.policy.Drivers["fake"] = config.Driver{Timeouts: config.DriverTimeouts{Unmount: 1}}
	iso := w.open(t, "")
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	_, release := w.hang("unmount")
	want(t, second(iso.Cleanup(t.Context(), "web", CleanupOptions{})), wire.Pending, "did not answer within")
	done := make(chan struct{})
	w.mu.Lock()
	w.after = func(string) error { close(done); return nil }
	w.mu.Unlock()
	release()
	<-done // it was unmounted after all, and nobody noticed
	w.off()
	w.policy.Drivers["fake"] = config.Driver{}
	p := ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "db", "a:/a")))
	if _, err := os.Stat(p.Volumes[0].Mountpoint); err != nil {
		t.Errorf("the volume is not mounted: %v", err)
	}
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{}))
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "db", CleanupOptions{}))
	w.empty(t)
}

func TestLostMountIsAskedForAgainWithTheSameID(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	// The driver mounted it on a mountpoint, which is none any more: the plugin was restarted.
	edit(t, iso, volumeID{"fake", "a"}, func(v *volumeRecord) { v.Holds[0].WasMount = true })
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "db", "a:/a")))
	if m := w.calls("mount"); len(m) != 2 || m[0] != m[1] {
		t.Errorf("%v", m)
	}
	equal(t, "unmount", w.calls("unmount"), []string{})
	for _, id := range []string{"web", "db"} {
		ok[*Cleaned](t)(iso.Cleanup(t.Context(), id, CleanupOptions{}))
	}
	equal(t, "unmount", w.calls("unmount"), []string{"un" + w.calls("mount")[0]})
	w.empty(t)
}

func TestLostMountThatCannotBeHadAgainLeavesTheOthersAsTheyWere(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	edit(t, iso, volumeID{"fake", "a"}, func(v *volumeRecord) { v.Holds[0].WasMount = true })
	w.on("mount", func(string) error {
		return wire.Errorf(wire.DriverError, "mount", "cannot mount: no").Because(driver.ErrRefused)
	})
	want(t, second(iso.Prepare(t.Context(), request(t, "db", "a:/a"))), wire.DriverError)
	w.off()
	s := ok[*Status](t)(iso.Status(t.Context(), StatusQuery{}))
	equal(t, "users", s.Volumes[0].Containers, []string{"web"})
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{}))
	w.empty(t)
}

func TestReferenceWithoutARecordOfItsContainerCountsNothing(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "ghost", "a:/a")))
	if err := iso.containers.Remove("default@ghost"); err != nil {
		t.Fatal(err)
	}
	out := ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{}))
	if len(out.Unmounted) != 1 {
		t.Errorf("%+v", out)
	}
	w.empty(t)
}

func TestVolumeMountKeepsAReferenceOfItsOwn(t *testing.T) {
	w := newWorld(t)
	iso := w.open(t, "")
	m := ok[*VolumeInfo](t)(iso.VolumeMount(t.Context(), "fake", "a", map[string]string{"k": "v=w"}, false))
	if m.Mountpoint == "" || m.Created != true {
		t.Errorf("%+v", m)
	}
	ok[*VolumeInfo](t)(iso.VolumeMount(t.Context(), "fake", "a", nil, true))
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{}))
	if len(w.calls("mount")) != 1 || len(w.calls("unmount")) != 0 {
		t.Errorf("%v", w.calls())
	}
	want(t, second(iso.VolumeRemove(t.Context(), "fake", "a")), wire.Busy, "volume mount")
	ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{}))
	want(t, second(w.open(t, "other").VolumeUnmount(t.Context(), "fake", "a")), wire.NotFound, "volume mount")
	out := ok[*Cleaned](t)(iso.VolumeUnmount(t.Context(), "fake", "a"))
	equal(t, "unmounted", out.Unmounted, []VolumeRef{{"fake", "a"}})
	want(t, second(iso.VolumeUnmount(t.Context(), "fake", "a")), wire.NotFound)
	w.empty(t)
}

func TestVolumeUnmountDoesNotUnmountUnderAContainer(t *testing.T) {
	w := newWorld(t)
	iso := w.open(t, "")
	ok[*VolumeInfo](t)(iso.VolumeMount(t.Context(), "fake", "a", nil, false))
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	out := ok[*Cleaned](t)(iso.VolumeUnmount(t.Context(), "fake", "a"))
	if len(out.Unmounted) != 0 || len(w.calls("unmount")) != 0 {
		t.Errorf("%+v", out)
	}
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{}))
	w.empty(t)
}

func TestVolumeCommands(t *testing.T) {
	w := newWorld(t)
	iso := w.open(t, "")
	v := ok[*VolumeInfo](t)(iso.VolumeCreate(t.Context(), "fake", "a", map[string]string{"size": "5"}))
	if v.Created != true || v.Options["size"] != "5" {
		t.Errorf("%+v", v)
	}
	v = ok[*VolumeInfo](t)(iso.VolumeCreate(t.Context(), "fake", "a", map[string]string{"size": "6"}))
	if v.Created != false || len(v.Warnings) != 1 || len(w.calls("create")) != 1 {
		t.Errorf("%+v", v)
	}
	want(t, second(iso.VolumeInspect(t.Context(), "fake", "none")), wire.VolumeNotFound, "inspect volume fake/none")
	want(t, second(iso.VolumeInspect(t.Context(), "../x", "none")), wire.InvalidRequest)
	want(t, second(iso.VolumeInspect(t.Context(), "fake", "")), wire.InvalidRequest)
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	v = ok[*VolumeInfo](t)(iso.VolumeInspect(t.Context(), "fake", "a"))
	equal(t, "containers", v.Containers, []string{"web"})
	l := ok[*VolumeList](t)(iso.VolumeList(t.Context(), "fake"))
	if len(l.Volumes) != 1 || l.Volumes[0].Name != "a" || l.Volumes[0].Containers[0] != "web" {
		t.Errorf("%+v", l)
	}
	for filter, n := range map[[2]string]int{{"name", "a*"}: 1, {"name", "b"}: 0, {"driver", "fake"}: 1, {"used", "false"}: 0, {"used", "true"}: 1} {
		l := ok[*VolumeList](t)(iso.VolumeList(t.Context(), "fake"))
		if err := l.Filter(filter[0], filter[1]); err != nil || len(l.Volumes) != n {
			t.Errorf("%v: %+v, %v", filter, l, err)
		}
	}
	want(t, l.Filter("size", "5"), wire.Usage)
	want(t, second(iso.VolumeRemove(t.Context(), "fake", "a")), wire.Busy, "web")
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{}))
	w.policy.Volume.RemoveDisable = true
	want(t, second(iso.VolumeRemove(t.Context(), "fake", "a")), wire.Denied, "remove_disable")
	w.policy.Volume.RemoveDisable = false
	equal(t, "removals", w.calls("remove"), []string{})
	ok[*VolumeInfo](t)(iso.VolumeRemove(t.Context(), "fake", "a"))
	equal(t, "removals", w.calls("remove"), []string{"remove fake/a"})
}

// What the driver local would refuse is refused before anybody is asked, or anything written.
func TestBadLocalVolumeIsRefusedByItself(t *testing.T) {
	w := newWorld(t)
	iso, err := Open(Options{Policy: w.policy, BootID: w.boot, Helper: w.helper})
	if err != nil {
		t.Fatal(err)
	}
	defer iso.Close()
	for name, opts := range map[string]map[string]string{"../x": nil, "a:b": nil, "v": {"size": "5"}, "w": {"mode": "7777"}, "x": {"uid": "\x1b"}} {
		want(t, second(iso.VolumeCreate(t.Context(), "local", name, opts)), wire.InvalidRequest, "cannot use the volume")
		want(t, second(iso.VolumeMount(t.Context(), "local", name, opts, false)), wire.InvalidRequest, "cannot use the volume")
	}
	equal(t, "calls", w.calls(), []string{})
	if s := ok[*Status](t)(iso.Status(t.Context(), StatusQuery{})); len(s.Volumes) > 0 {
		t.Errorf("%+v", s.Volumes)
	}
}

func TestRulesHoldForVolumeCommands(t *testing.T) {
	w := newWorld(t)
	w.create(t, "ro", "rw", "job")
	w.policy.Rules = []config.Rule{
		{Driver: "fake", Volume: "ro", Modes: []string{"ro"}, Action: "allow"},
		{Driver: "fake", Volume: "rw", Modes: []string{"rw"}, Containers: []string{"*"}, Action: "allow"},
		{Driver: "fake", Volume: "job", Containers: []string{"web-*"}, Action: "allow"},
	}
	iso := w.open(t, "")
	ok[*VolumeInfo](t)(iso.VolumeInspect(t.Context(), "fake", "ro"))
	ok[*VolumeInfo](t)(iso.VolumeInspect(t.Context(), "fake", "rw"))
	l := ok[*VolumeList](t)(iso.VolumeList(t.Context(), "fake"))
	if len(l.Volumes) != 2 {
		t.Errorf("%+v", l)
	}
	calls := len(w.calls())
	want(t, second(iso.VolumeMount(t.Context(), "fake", "ro", nil, false)), wire.Denied)
	want(t, second(iso.VolumeRemove(t.Context(), "fake", "ro")), wire.Denied)
	want(t, second(iso.VolumeCreate(t.Context(), "fake", "other", nil)), wire.Denied, "[[rule]]")
	want(t, second(iso.VolumePath(t.Context(), "fake", "job")), wire.Denied)
	equal(t, "calls", w.calls()[calls:], []string{})
}

func TestPolicyCheckSaysWhichRuleAndDoesNothing(t *testing.T) {
	w := newWorld(t)
	w.policy.Rules = []config.Rule{{Volume: "x", Action: "deny"}, {Containers: []string{"web"}, Action: "allow"}}
	iso := w.open(t, "")
	out, err := iso.PolicyCheck(request(t, "web", "x:/x", "y:/y"))
	want(t, err, wire.Denied)
	if out.Allowed || out.Volumes[0].Rule != 1 || out.Volumes[0].Allowed || out.Volumes[0].Hint == "" || out.Volumes[1].Rule != 2 || !out.Volumes[1].Allowed {
		t.Errorf("%+v", out)
	}
	out, err = iso.PolicyCheck(Request{Job: job(t, "y:/y")})
	want(t, err, wire.Denied)
	if out.Volumes[0].Rule != 0 {
		t.Errorf("%+v", out)
	}
	ok[*PolicyCheck](t)(iso.PolicyCheck(request(t, "web", "y:/y")))
	equal(t, "calls", w.calls(), []string{})
}

// edit changes a volume's record as something outside bindgate did.
func edit(t *testing.T, iso *Isolator, id volumeID, do func(*volumeRecord)) {
	t.Helper()
	v, err := iso.readVolume(id)
	if err != nil {
		t.Fatal(err)
	}
	do(v)
	data, _ := json.Marshal(v)
	if err := iso.volumes.Write(id.key(), data); err != nil {
		t.Fatal(err)
	}
}

func TestRulesSeeTheCleanPath(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	w.policy.Rules = []config.Rule{{Paths: []string{"/etc", "/etc/*"}, Action: "deny"}, {Action: "allow"}}
	iso := w.open(t, "")
	for _, path := range []string{"/etc", "/etc/", "//etc", "/./etc", "/etc//x"} {
		r := request(t, "web", "a:/a")
		r.Job.Volumes[0].ContainerPath = path
		want(t, second(iso.Prepare(t.Context(), r)), wire.Denied)
		if out, err := iso.PolicyCheck(r); err == nil || out.Volumes[0].Rule != 1 {
			t.Errorf("%s: %+v, %v", path, out, err)
		}
	}
	equal(t, "calls", w.calls("get", "mount"), []string{})
}

func TestWhatOneHasOneMayGiveBack(t *testing.T) {
	w := newWorld(t)
	iso := w.open(t, "")
	ok[*VolumeInfo](t)(iso.VolumeMount(t.Context(), "fake", "a", nil, false))
	w.policy.Rules = nil
	want(t, second(w.open(t, "other").VolumeUnmount(t.Context(), "fake", "a")), wire.Denied)
	ok[*Cleaned](t)(iso.VolumeUnmount(t.Context(), "fake", "a"))
	want(t, second(iso.VolumeUnmount(t.Context(), "fake", "a")), wire.Denied)
	w.empty(t)
}

// T30: what was asked for stands in the message, on one line.
func TestMessagesAreOneLine(t *testing.T) {
	w := newWorld(t)
	iso := w.open(t, "")
	const bad = "a\nbindgate: all is well\x1b[2J"
	for _, err := range []error{
		second(iso.Prepare(t.Context(), Request{Container: bad})),
		second(iso.Isolate(t.Context(), bad, 1)),
		second(iso.Cleanup(t.Context(), bad, CleanupOptions{})),
		second(iso.Usage(t.Context(), bad)),
		second(iso.VolumePath(t.Context(), "fake", bad)),
		second(iso.VolumePath(t.Context(), bad, "v")),
		second(iso.VolumeMount(t.Context(), "fake", bad, nil, false)),
		second(iso.VolumeUnmount(t.Context(), "fake", bad)),
	} {
		if e := want(t, err, wire.InvalidRequest); strings.ContainsAny(e.Message+e.Hint, "\n\x1b") {
			t.Errorf("%q", e.Message)
		}
	}
	equal(t, "calls", w.calls(), []string{})
}

// A plugin of the first days knows neither Get nor List.
func TestCreatedVolumeNeedNotBeFound(t *testing.T) {
	w := newWorld(t)
	w.on("get", func(string) error { return wire.Errorf(wire.VolumeNotFound, "get", "cannot look up volume") })
	v := ok[*VolumeInfo](t)(w.open(t, "").VolumeCreate(t.Context(), "fake", "a", map[string]string{"size": "5"}))
	if v.Created != true || v.Options["size"] != "5" {
		t.Errorf("%+v", v)
	}
}

// A volume was lost, and whoever asked for it again was killed before he heard the answer. It is mounted, and a container has it: it is not let go under it.
func TestLostMountThatCameBackUnheardIsNotLetGo(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	cutOff := func() {
		edit(t, iso, volumeID{"fake", "a"}, func(v *volumeRecord) {
			h := v.Holds[0]
			h.State, h.WasMount, h.Mountpoint, h.Late = mountAsked, true, "/proc", time.Now().Add(time.Hour) // a mount
		})
	}
	cutOff()
	p := ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "db", "a:/a")))
	equal(t, "where it is mounted", []string{p.Volumes[0].Mountpoint}, []string{"/proc"})
	cutOff()
	ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{Known: []string{"web", "db"}}))
	if v, err := iso.readVolume(volumeID{"fake", "a"}); err != nil || v.Holds[0].State != mountDone || !v.Holds[0].Late.IsZero() {
		t.Errorf("%+v, %v", v.Holds, err)
	}
	if len(w.calls("mount")) != 1 || len(w.calls("unmount")) > 0 {
		t.Error(w.calls())
	}
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "web", CleanupOptions{}))
	ok[*Cleaned](t)(iso.Cleanup(t.Context(), "db", CleanupOptions{}))
	w.empty(t)
}

// A volume was lost, and the Mount that was to bring it back was given up: a driver that says "not mounted" then is asked again when that one may have come.
func TestLostMountThatComesBackLateIsUnmounted(t *testing.T) {
	w := newWorld(t)
	w.create(t, "a")
	iso := w.open(t, "")
	ok[*Prepared](t)(iso.Prepare(t.Context(), request(t, "web", "a:/a")))
	id := ""
	edit(t, iso, volumeID{"fake", "a"}, func(v *volumeRecord) { v.Holds[0].WasMount, id = true, v.Holds[0].ID })
	d := &fakeDriver{w, "fake"}
	if err := d.Unmount(t.Context(), "a", id); err != nil { // it was restarted
		t.Fatal(err)
	}
	w.on("mount", func(string) error { return wire.Errorf(wire.Timeout, "mount", "cannot mount: no answer") })
	want(t, second(iso.Prepare(t.Context(), request(t, "db", "a:/a"))), wire.Timeout)
	w.off()
	want(t, second(iso.Cleanup(t.Context(), "web", CleanupOptions{})), wire.Pending, "may still carry out a call to mount it")
	ok[string](t)(d.Mount(t.Context(), "a", id))
	out := ok[*Recovered](t)(iso.Recover(t.Context(), RecoverOptions{}))
	equal(t, "unmounted", out.Unmounted, []VolumeRef{{"fake", "a"}})
	w.empty(t)
}

// What a driver mounted is gone with the boot, also where the mountpoint was no mount of its own, so that it does not show.
func TestMountOfAnEarlierBootIsLost(t *testing.T) {
	w := newWorld(t)
	iso := w.open(t, "")
	ok[*VolumeInfo](t)(iso.VolumeMount(t.Context(), "fake", "a", nil, false))
	restart := func(boot string) *Isolator {
		t.Helper()
		v, err := iso.readVolume(volumeID{"fake", "a"})
		if err == nil {
			err = (&fakeDriver{w, "fake"}).Unmount(t.Context(), "a", v.Holds[0].ID)
		}
		if err != nil {
			t.Fatal(err)
		}
		w.boot = boot
		return w.open(t, "")
	}
	iso = restart("boot-2")
	ok[*VolumeInfo](t)(iso.VolumeMount(t.Context(), "fake", "a", nil, true))
	if m := w.calls("mount"); len(m) != 2 || m[0] != m[1] {
		t.Errorf("it was not asked for again: %v", m)
	}
	iso = restart("boot-3")
	w.on("unmount", func(string) error {
		return wire.Errorf(wire.DriverError, "unmount", "cannot unmount: it is in no state to")
	})
	ok[*Cleaned](t)(iso.VolumeUnmount(t.Context(), "fake", "a"))
	w.off()
	w.empty(t)
}
