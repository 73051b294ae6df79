package state

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/bindgate/bindgate/wire"
)

func ledger(t *testing.T, dir string) *Ledger { return &Ledger{Store: open(t, dir)} }

func mount(uid uint32, owner, container, target string) LedgerMount {
	return LedgerMount{Whose: Whose{uid, owner, container}, PID: 4711, Source: "/v/a b=c", Mode: "ro", HostPath: "/h",
		Recorded: wire.Recorded{Target: target, ID: 1 << 33, Path: target, Prefix: "/r", Made: 2, RootUID: 100000, RootGID: 100001}}
}

func TestLedgerRoundTrip(t *testing.T) {
	for name, r := range map[string]*LedgerRecord{
		"one mount":       {NS: 1, Inode: 4026531841, Mounts: []LedgerMount{mount(0, "default", "web-1", "/data")}},
		"many":            {NS: math.MaxUint64, Inode: math.MaxUint32, Mounts: []LedgerMount{mount(1000, "o", "a", "/a"), mount(1000, "o", "a", "/a/b"), mount(math.MaxUint32, "o:2", "b", "rel/ative")}},
		"hostile strings": {NS: 7, Mounts: []LedgerMount{{Recorded: wire.Recorded{Target: "/\n\x1b\xff", Path: "mount=/x", ID: math.MaxUint64}, Source: "=end=\n"}}},
		"zeros":           {NS: 7, Mounts: []LedgerMount{{}}},
	} {
		t.Run(name, func(t *testing.T) {
			l := ledger(t, t.TempDir())
			must(t, l.WriteNS(r))
			if again, err := l.ReadNS(r.NS); err != nil || !reflect.DeepEqual(again, r) {
				t.Errorf("%+v, %v", again, err)
			}
			if ids, err := l.Namespaces(); err != nil || !slices.Equal(ids, []uint64{r.NS}) {
				t.Errorf("%v, %v", ids, err)
			}
		})
	}
}

func TestRecordWithoutMountsIsRemoved(t *testing.T) {
	dir := t.TempDir()
	l := ledger(t, dir)
	must(t, l.WriteNS(&LedgerRecord{NS: 7, Mounts: []LedgerMount{mount(0, "o", "c", "/a")}}))
	must(t, l.WriteNS(&LedgerRecord{NS: 7}))
	must(t, l.WriteNS(&LedgerRecord{NS: 7}))
	if r, err := l.ReadNS(7); err != nil || !reflect.DeepEqual(r, &LedgerRecord{NS: 7}) || len(names(t, dir)) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestRecordOfAnEarlierBootIsEmpty(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, "another-boot", false)
	must(t, err)
	must(t, (&Ledger{Store: s}).WriteNS(&LedgerRecord{NS: 7, Mounts: []LedgerMount{mount(0, "o", "c", "/a")}}))
	if r, err := ledger(t, dir).ReadNS(7); err != nil || len(r.Mounts) != 0 || r.NS != 7 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestLedgerRecordThatCannotBeTrusted(t *testing.T) {
	good := (&LedgerRecord{NS: 7, Mounts: []LedgerMount{mount(1000, "o", "c", "/a")}}).encode()
	for name, payload := range map[string]string{
		"empty":                        "",
		"of another namespace":         string((&LedgerRecord{NS: 8}).encode()),
		"without a namespace":          "bindgate=1\x00inode=1\x00end=\x00",
		"without an inode":             "bindgate=1\x00ns=7\x00end=\x00",
		"JSON":                         `{"ns":7}`,
		"cut":                          string(good[:len(good)-1]),
		"with a negative id":           strings.Replace(string(good), "\x00id=", "\x00id=-", 1),
		"with an id that is no number": strings.Replace(string(good), "\x00id=", "\x00id=x", 1),
		"with an id over 64 bits":      strings.Replace(string(good), "\x00id=8589934592", "\x00id=18446744073709551616", 1),
		"with an empty uid":            strings.Replace(string(good), "uid=1000\x00", "uid=\x00", 1),
		"without a uid":                strings.Replace(string(good), "\x00uid=1000", "", 1),
		"without a count of made":      strings.Replace(string(good), "\x00made=2", "", 1),
		"with a key twice":             strings.Replace(string(good), "\x00uid=1000", "\x00uid=1000\x00uid=0", 1),
	} {
		t.Run(name, func(t *testing.T) {
			l := ledger(t, t.TempDir())
			if payload == string(good) {
				t.Fatal("nothing was changed")
			}
			must(t, l.Write("7", []byte(payload)))
			if r, err := l.ReadNS(7); err == nil {
				t.Errorf("%+v", r)
			} else {
				is(t, err, wire.StateCorrupt)
			}
		})
	}
}

func TestIndexFindsAContainer(t *testing.T) {
	dir := t.TempDir()
	l := ledger(t, dir)
	if _, ok, _ := l.Find(Whose{0, "o", "c"}); ok {
		t.Error("it is found before it was entered")
	}
	must(t, l.Enter(Whose{1000, "o", "c"}, math.MaxUint64))
	must(t, l.Enter(Whose{1000, "o", "c"}, math.MaxUint64))
	must(t, l.Enter(Whose{1001, "o", "c"}, 8))
	if ns, ok, _ := l.Find(Whose{1000, "o", "c"}); !ok || ns != math.MaxUint64 {
		t.Errorf("%d, %v", ns, ok)
	}
	must(t, l.Enter(Whose{1000, "o", "c"}, 9)) // it is another namespace's now
	if ns, ok, _ := l.Find(Whose{1000, "o", "c"}); !ok || ns != 9 {
		t.Errorf("%d, %v", ns, ok)
	}
	for _, k := range []struct {
		uid              uint32
		owner, container string
	}{{0, "o", "c"}, {100, "o", "c"}, {10001, "o", "c"}, {1000, "", "c"}, {1000, "o", ""}, {1000, "o2", "c"}, {1000, "o", "c2"}, {1000, "O", "c"}} {
		if ns, ok, _ := l.Find(Whose{k.uid, k.owner, k.container}); ok {
			t.Errorf("%v finds %d", k, ns)
		}
	}
	l.Leave(Whose{1000, "o", "c"}, &LedgerRecord{})
	l.Leave(Whose{1000, "o", "c"}, &LedgerRecord{})
	if _, ok, _ := l.Find(Whose{1000, "o", "c"}); ok {
		t.Error("it is found after it left")
	}
	if ns, ok, _ := l.Find(Whose{1001, "o", "c"}); !ok || ns != 8 || len(names(t, dir)) != 1 {
		t.Errorf("the other uid's: %d, %v", ns, ok)
	}
}

// T27, T28: whatever ids are chosen within the rule, one container's entry is never another's.
func TestIndexEntriesNeverCollide(t *testing.T) {
	l := ledger(t, t.TempDir())
	seen := map[string]string{}
	parts := []string{"a", "a.b", "a:b", "1", "10", "0", "a-b", "a_b", "a.rec", "b.rec5", "A", strings.Repeat("x", 32)}
	for _, uid := range []uint32{0, 1, 10, 100, math.MaxUint32} {
		for _, o := range parts {
			for _, c := range append(parts, strings.Repeat("y", 128)) {
				must(t, wire.CheckOwner(o))
				must(t, wire.CheckContainer(c))
				name, key := Whose{uid, o, c}.entry(), fmt.Sprint(uid, "|", o, "|", c)
				if other, ok := seen[name]; ok {
					t.Fatalf("%s and %s are both %s", key, other, name)
				}
				if seen[name] = key; len(name) > 255 || strings.ContainsAny(name, "/\x00") {
					t.Errorf("%s is no file name", name)
				}
			}
		}
	}
	must(t, l.Enter(Whose{math.MaxUint32, strings.Repeat("o", 32), strings.Repeat("c", 128)}, 7)) // the longest there is
	must(t, l.WriteNS(&LedgerRecord{NS: 7, Mounts: []LedgerMount{mount(0, "o", "7", "/a")}}))
	must(t, l.Enter(Whose{0, "o", "7"}, 5))
	if r, err := l.ReadNS(7); err != nil || len(r.Mounts) != 1 {
		t.Errorf("a container called 7 is no namespace: %+v, %v", r, err)
	}
}

func TestIndexEntryThatIsNoneFindsNothing(t *testing.T) {
	dir := t.TempDir()
	l := ledger(t, dir)
	name := dir + "/" + Whose{1, "o", "c"}.entry()
	for _, text := range []string{"x", "-1", "../7", "7.rec", "18446744073709551616", " 7"} {
		must(t, os.Symlink(text, name))
		if ns, ok, _ := l.Find(Whose{1, "o", "c"}); ok {
			t.Errorf("%q is taken as %d", text, ns)
		}
		must(t, l.Enter(Whose{1, "o", "c"}, 7)) // and can be replaced
		if ns, ok, _ := l.Find(Whose{1, "o", "c"}); !ok || ns != 7 {
			t.Errorf("%d, %v", ns, ok)
		}
		must(t, os.Remove(name))
	}
	must(t, os.WriteFile(name, []byte("7"), 0o600))
	if ns, ok, _ := l.Find(Whose{1, "o", "c"}); ok {
		t.Errorf("a file is taken as %d", ns)
	}
}

func TestSweepIndexKeepsWhatHasARecord(t *testing.T) {
	dir := t.TempDir()
	l := ledger(t, dir)
	must(t, l.Enter(Whose{1, "o", "alive"}, 7))
	must(t, l.Enter(Whose{2, "o", "alive-too"}, 7))
	must(t, l.Enter(Whose{1, "o", "gone"}, 8))
	must(t, l.Enter(Whose{1, "o", "a.rec"}, 9))
	must(t, l.Enter(Whose{1, "o", "unmounted"}, 7))
	must(t, l.WriteNS(&LedgerRecord{NS: 7, Mounts: []LedgerMount{mount(1, "o", "alive", "/a"), mount(2, "o", "alive-too", "/b")}}))
	alive, half := mount(1, "o", "alive", "/a"), mount(1, "o", "half", "/h")
	half.ID = alive.ID + 1
	must(t, l.WriteNS(&LedgerRecord{NS: 10, Mounts: []LedgerMount{alive, half}}))
	for folder, ns := range map[string]uint64{"1:1": 7, "1:2": 8, "1:3": 10} {
		must(t, l.Own(folder, ns))
		must(t, l.Own("2"+folder, ns))
		must(t, l.Share("2"+folder, 77))
	}
	for folder, ns := range map[string]uint64{"31:1": 7, "31:2": 8, "31:3": 10} { // a crash while it was removed
		must(t, l.Own(folder, ns))
		must(t, os.Rename(filepath.Join(dir, owned+folder), filepath.Join(dir, going+folder)))
	}
	l.SweepIndex(t.Context(), func(id, ns uint64) bool { return id != half.ID })
	for name, want := range map[string]bool{owned + "1:1": true, owned + "1:2": false, owned + "1:3": true, shared + "21:1": true, shared + "21:2": false, shared + "21:3": true,
		going + "31:1": false, going + "31:2": false, going + "31:3": true} {
		if _, err := os.Lstat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	for container, want := range map[string]bool{"alive": true, "gone": false, "a.rec": false, "unmounted": false} {
		if _, ok, _ := l.Find(Whose{1, "o", container}); ok != want {
			t.Errorf("%s: %v", container, ok)
		}
	}
	if _, ok, _ := l.Find(Whose{2, "o", "alive-too"}); !ok {
		t.Error("another uid's entry went")
	}
	if r, err := l.ReadNS(7); err != nil || len(r.Mounts) != 2 {
		t.Errorf("%+v, %v", r, err)
	}
}

// A folder is removed by whom it was made for, unless another namespace uses it; while it is removed nobody else gets it, and a removal that a crash cut off keeps nobody from it.
func TestFolderIsRemovedOrShared(t *testing.T) {
	dir := t.TempDir()
	l := ledger(t, dir)
	count := 0
	remove := func(err error) func() error { return func() error { count++; return err } }
	must(t, l.Own("1:1", 7))
	if err := l.Disown("1:1", 8, remove(nil)); !errors.Is(err, fs.ErrExist) || count != 0 {
		t.Errorf("what was made for another namespace: %v", err)
	}
	if err := l.Disown("1:1", 7, remove(fs.ErrPermission)); !errors.Is(err, fs.ErrPermission) || count != 1 {
		t.Errorf("what cannot be removed: %v", err)
	}
	must(t, l.Disown("1:1", 7, func() error {
		if err := l.Share("1:1", 8); err == nil || wire.AsError(err).Code != wire.Busy {
			t.Errorf("while it is removed: %v", err)
		}
		return nil
	}))
	must(t, l.Share("1:1", 8)) // its number is another's now
	must(t, l.Disown("1:1", 7, remove(nil)))
	must(t, l.Own("1:1", 7))
	must(t, l.Share("1:1", 7))
	must(t, l.Share("1:1", 8))
	if err := l.Disown("1:1", 7, remove(nil)); !errors.Is(err, fs.ErrExist) || count != 2 {
		t.Errorf("what another namespace uses is removed: %v", err)
	}
	must(t, l.Own("1:1", 9))
	must(t, os.Rename(filepath.Join(dir, owned+"1:1"), filepath.Join(dir, going+"1:1"))) // a crash cut the removal off
	must(t, l.Share("1:1", 9))
	must(t, l.Share("1:1", 8))
	if err := l.Disown("1:1", 9, remove(nil)); !errors.Is(err, fs.ErrExist) || count != 2 {
		t.Errorf("what another namespace uses since the crash is removed: %v", err)
	}
	must(t, l.Own("1:1", 9))
	must(t, os.Rename(filepath.Join(dir, owned+"1:1"), filepath.Join(dir, going+"1:1")))
	must(t, l.Disown("1:1", 9, remove(nil)))
	if left := names(t, dir); len(left) != 1 || count != 3 {
		t.Errorf("left: %q", left)
	}
}

// Who removes a folder has its namespace's lock, and does not wait for a sweep that waits for that.
func TestSweepIndexHoldsNoFolderWhileItWaits(t *testing.T) {
	dir := t.TempDir()
	l := ledger(t, dir)
	must(t, l.WriteNS(&LedgerRecord{NS: 7, Mounts: []LedgerMount{mount(1, "o", "c", "/a")}}))
	must(t, l.Own("1:1", 7))
	lock, err := l.LockNS(7)
	must(t, err)
	swept := make(chan bool)
	go func() { ledger(t, dir).SweepIndex(t.Context(), func(id, ns uint64) bool { return true }); close(swept) }()
	info, err := os.Stat(filepath.Join(dir, lockFile))
	must(t, err)
	for waits := regexp.MustCompile(fmt.Sprintf(`(?m)-> OFDLCK .*:%d [0-9]`, info.Sys().(*syscall.Stat_t).Ino)); ; { // proc_locks(5)
		locks, err := os.ReadFile("/proc/locks")
		must(t, err)
		if waits.Match(locks) {
			break
		}
	}
	must(t, l.Disown("1:1", 7, func() error { return nil })) // waits for ever, if the sweep has the folder's lock
	lock.Unlock()
	<-swept
}

func TestNamespacesAreOnlyNumbersInTheirOneForm(t *testing.T) {
	l := ledger(t, t.TempDir())
	for _, name := range []string{"7", "18446744073709551615", "07", "+8", "-1", "x", "refused+1000", "18446744073709551616", "7.0"} {
		must(t, l.Write(name, nil))
	}
	must(t, l.Enter(Whose{1, "o", "9.rec"}, 9))
	ids, err := l.Namespaces()
	slices.Sort(ids)
	if err != nil || !slices.Equal(ids, []uint64{7, math.MaxUint64}) {
		t.Errorf("%v, %v", ids, err)
	}
}

func TestLocksOfNamespacesAreApart(t *testing.T) {
	l := ledger(t, t.TempDir())
	var held []*Lock
	for _, ns := range []uint64{1, 2, 3, 1 << 40} {
		lock, err := l.LockNS(ns)
		must(t, err)
		held = append(held, lock)
	}
	for _, h := range held {
		h.Unlock()
	}
}

// FuzzLedger: refused, or a record that is itself when written down again.
func FuzzLedger(f *testing.F) {
	good := (&LedgerRecord{NS: 7, Inode: 4026531841, Mounts: []LedgerMount{mount(1000, "o", "c", "/a"), mount(0, "o", "c", "b")}}).encode()
	for _, data := range []string{"", string(good), string(good[:len(good)-6]), "bindgate=1\x00ns=7\x00inode=1\x00end=\x00", "bindgate=1\x00ns=-7\x00inode=1\x00end=\x00", "bindgate=1\x00ns=7\x00inode=1\x00mount=\x00uid=4294967296\x00end=\x00"} {
		f.Add([]byte(data))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseLedger(data)
		if err != nil {
			return
		}
		if again, err := parseLedger(r.encode()); err != nil || !reflect.DeepEqual(again, r) {
			t.Errorf("%+v is %+v the second time, and %v", r, again, err)
		}
	})
}
