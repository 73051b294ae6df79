package state

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/bindgate/bindgate/wire"
)

const bootID = "3f0e2a6c-0a3d-4d4e-8a53-7a1a1a0b8d11"

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir, bootID, true)
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// is checks that an error has this code and one line that says what cannot be done.
func is(t *testing.T, err error, code wire.Code) {
	t.Helper()
	var e *wire.Error
	if !errors.As(err, &e) || e.Code != code || !strings.HasPrefix(e.Message, "cannot ") || strings.Contains(e.Message, "\n") {
		t.Errorf("got %v, want the code %s", err, code)
	}
}

// names returns what is in a folder, hidden files too.
func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestStoreKeepsWhatWasWritten(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for name, payload := range map[string][]byte{"empty": nil, "a+b": []byte("text\nof two lines\n"), "7": {0, 0xff, '\n', 0}, "large": bytes.Repeat([]byte("x"), 1<<20)} {
		must(t, s.Write(name, []byte("the one before")))
		must(t, s.Write(name, payload))
		r, err := s.Read(name)
		if err != nil || r.Boot != bootID || !bytes.Equal(r.Payload, payload) {
			t.Errorf("%s: %.40q of boot %s, %v", name, r.Payload, r.Boot, err)
		}
		if st, err := os.Stat(filepath.Join(dir, name+".rec")); err != nil || st.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
	list, err := s.List()
	slices.Sort(list)
	if err != nil || !slices.Equal(list, []string{"7", "a+b", "empty", "large"}) || len(names(t, dir)) != 4 {
		t.Errorf("%q, %v; in the folder: %q", list, err, names(t, dir))
	}
}

func TestStoreForgetsWhatWasRemoved(t *testing.T) {
	s := open(t, t.TempDir())
	must(t, s.Write("a", []byte("x")))
	must(t, s.Remove("a"))
	must(t, s.Remove("a"))
	_, err := s.Read("a")
	if is(t, err, wire.NotFound); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestFolderThatIsNotThereIsConfig(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/file", nil, 0o600))
	for _, path := range []string{dir + "/no", dir + "/file", ""} {
		_, err := Open(path, bootID, false)
		is(t, err, wire.Config)
	}
}

func TestNamesLeadNowhereElse(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(dir+"/store", 0o700))
	must(t, os.WriteFile(dir+"/outside.rec", encode(bootID, []byte("secret")), 0o600))
	s := open(t, dir+"/store")
	for _, name := range []string{"../outside", "/etc/passwd", dir + "/outside", "a/../../outside"} {
		if r, err := s.Read(name); err == nil {
			t.Errorf("%s was read: %q", name, r.Payload)
		}
		if err := s.Write(name, []byte("x")); err == nil {
			t.Errorf("%s was written", name)
		}
		if err := s.Remove(name); err == nil && !strings.HasPrefix(name, "a/") {
			t.Errorf("%s was removed", name)
		}
	}
	if data, err := os.ReadFile(dir + "/outside.rec"); err != nil || !bytes.Equal(data, encode(bootID, []byte("secret"))) || len(names(t, dir)) != 2 {
		t.Errorf("%q, %v", data, err)
	}
}

// T35: what a crash, a disk or somebody else left is never trusted, never fatal, and can be moved aside.
func TestRecordThatCannotBeTrusted(t *testing.T) {
	good := encode(bootID, []byte("payload\n"))
	sign := func(head string, payload string) []byte { // a right checksum for any first line
		sum := fnv.New64a()
		sum.Write([]byte(head + payload))
		return fmt.Appendf(nil, "%sfnv1a=%016x\n%s", head, sum.Sum64(), payload)
	}
	if !bytes.Equal(sign("bindgate-record schema=1 boot="+bootID+" size=8 ", "payload\n"), good) {
		t.Fatalf("the form is another: %q", good)
	}
	write := func(data []byte) func(*testing.T, string) {
		return func(t *testing.T, path string) { must(t, os.WriteFile(path, data, 0o600)) }
	}
	head := len(encode(bootID, make([]byte, MaxRecord))) - MaxRecord
	cases := map[string]func(t *testing.T, path string){
		"empty":                            write(nil),
		"a newline":                        write([]byte("\n")),
		"zeros":                            write(make([]byte, 4096)),
		"with a byte more":                 write(append(slices.Clone(good), 'x')),
		"twice":                            write(append(slices.Clone(good), good...)),
		"with a byte before":               write(append([]byte{' '}, good...)),
		"of a newer schema":                write(sign("bindgate-record schema=2 boot="+bootID+" size=8 ", "payload\n")),
		"of a schema far away":             write(sign("bindgate-record schema=99999999999999999999 boot="+bootID+" size=8 ", "payload\n")),
		"of schema 0":                      write(sign("bindgate-record schema=0 boot="+bootID+" size=8 ", "payload\n")),
		"of a negative schema":             write(sign("bindgate-record schema=-1 boot="+bootID+" size=8 ", "payload\n")),
		"with a schema of another form":    write(sign("bindgate-record schema=01 boot="+bootID+" size=8 ", "payload\n")),
		"with a size too small":            write(sign("bindgate-record schema=1 boot="+bootID+" size=7 ", "payload\n")),
		"with a size too large":            write(sign("bindgate-record schema=1 boot="+bootID+" size=9 ", "payload\n")),
		"with a negative size":             write(sign("bindgate-record schema=1 boot="+bootID+" size=-8 ", "payload\n")),
		"with a signed size":               write(sign("bindgate-record schema=1 boot="+bootID+" size=+8 ", "payload\n")),
		"with two spaces":                  write(sign("bindgate-record schema=1  boot="+bootID+" size=8 ", "payload\n")),
		"without a boot":                   write(sign("bindgate-record schema=1 boot= size=8 ", "payload\n")),
		"with a field more":                write(sign("bindgate-record schema=1 boot="+bootID+" size=8 more=1 ", "payload\n")),
		"with a checksum in capitals":      write(bytes.Replace(good, good[bytes.Index(good, []byte("fnv1a=")):], bytes.ToUpper(good[bytes.Index(good, []byte("fnv1a=")):]), 1)),
		"without a checksum":               write([]byte("bindgate-record schema=1 boot=" + bootID + " size=8\npayload\n")),
		"with Windows' line ends":          write(bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n"))),
		"JSON":                             write([]byte(`{"schema":1}`)),
		"100 MB long":                      func(t *testing.T, path string) { write(good)(t, path); must(t, os.Truncate(path, 100e6)) },
		"a byte over the limit":            func(t *testing.T, path string) { write(good)(t, path); must(t, os.Truncate(path, MaxRecord+1)) },
		"whole, but a byte over the limit": write(encode(bootID, make([]byte, MaxRecord+1-head))),
		"a directory":                      func(t *testing.T, path string) { must(t, os.Mkdir(path, 0o700)) },
		"a FIFO":                           func(t *testing.T, path string) { must(t, syscall.Mkfifo(path, 0o600)) },
		"a symlink to nowhere":             func(t *testing.T, path string) { must(t, os.Symlink("nowhere", path)) },
		"a symlink to itself":              func(t *testing.T, path string) { must(t, os.Symlink(filepath.Base(path), path)) },
		"a symlink to a good record": func(t *testing.T, path string) {
			write(good)(t, filepath.Dir(path)+"/good")
			must(t, os.Symlink("good", path))
		},
		"a symlink out of the folder": func(t *testing.T, path string) { must(t, os.Symlink("/etc/passwd", path)) },
		"a socket": func(t *testing.T, path string) { // cannot be opened at all
			fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
			must(t, err)
			defer syscall.Close(fd)
			must(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}))
		},
		"with a hard link": func(t *testing.T, path string) { write(good)(t, path); must(t, os.Link(path, path+".other")) },
		"of another user": func(t *testing.T, path string) {
			if os.Geteuid() != 0 {
				t.Fatal("only root can give a file away")
			}
			write(good)(t, path)
			must(t, os.Chown(path, 12345, 0))
		},
	}
	for _, n := range []int{1, 20, bytes.IndexByte(good, '\n'), bytes.IndexByte(good, '\n') + 1, len(good) - 1} {
		cases[fmt.Sprintf("torn at byte %d", n)] = write(good[:n])
	}
	for name, put := range cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			put(t, dir+"/a.rec")
			must(t, s.Write("other", []byte("fine")))
			if r, err := s.Read("a"); err == nil {
				t.Fatalf("it is trusted: %q", r.Payload)
			} else if !strings.HasPrefix(name, "a symlink") {
				is(t, err, wire.StateCorrupt)
			}
			at, err := s.MoveAside("a")
			if _, e := os.Lstat(at); err != nil || e != nil || filepath.Dir(at) != dir+"/corrupt" {
				t.Errorf("it was moved to %s: %v, %v", at, err, e)
			}
			_, err = s.Read("a")
			is(t, err, wire.NotFound)
			if r, err := s.Read("other"); err != nil || string(r.Payload) != "fine" {
				t.Errorf("the other record: %q, %v", r.Payload, err)
			}
			must(t, s.Write("a", []byte("new")))
			if r, err := s.Read("a"); err != nil || string(r.Payload) != "new" {
				t.Errorf("written again: %q, %v", r.Payload, err)
			}
		})
	}
}

func TestEveryFlippedBitAndEveryTearIsFound(t *testing.T) {
	good := encode(bootID, []byte("payload of\x00a record\n"))
	for n := range good {
		if r, err := decode(good[:n]); err == nil {
			t.Errorf("torn at byte %d: %+v", n, r)
		}
	}
	for i := range good {
		for bit := range 8 {
			bad := slices.Clone(good)
			bad[i] ^= 1 << bit
			if r, err := decode(bad); err == nil {
				t.Errorf("byte %d, bit %d: %+v", i, bit, r)
			}
		}
	}
	for i := range good { // and whatever else a byte may be, in the first line
		if good[i] == '\n' {
			break
		}
		for b := range 256 {
			bad := slices.Clone(good)
			bad[i] = byte(b)
			if _, err := decode(bad); err == nil && !bytes.Equal(bad, good) {
				t.Errorf("byte %d is %#x", i, b)
			}
		}
	}
}

func TestRecordTellsOfWhichBootItIs(t *testing.T) {
	dir := t.TempDir()
	before, err := Open(dir, "another-boot", false)
	must(t, err)
	must(t, before.Write("a", []byte("x")))
	if r, err := open(t, dir).Read("a"); err != nil || r.Boot != "another-boot" {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestMoveAsideKeepsEveryOne(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for _, text := range []string{"first", "second", "third"} {
		must(t, os.WriteFile(dir+"/a.rec", []byte(text), 0o600))
		at, err := s.MoveAside("a")
		must(t, err)
		if data, err := os.ReadFile(at); err != nil || string(data) != text {
			t.Errorf("%s: %q, %v", at, data, err)
		}
	}
	if n := names(t, dir+"/corrupt"); len(n) != 3 {
		t.Errorf("%q", n)
	}
	_, err := s.MoveAside("a")
	is(t, err, wire.System)
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("%q, %v", list, err)
	}
}

// T33: a crash leaves temporary files; they are told apart from records, whatever those are called.
func TestSweepTemporary(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	records := []string{"7", "77", "default+web-1", "default+web-12", "a.rec", "a.rec5", "0", "by+0+o+c9"}
	for _, r := range records {
		must(t, s.Write(r, []byte(r)))
		for _, n := range []string{"1", "1234567890"} { // as renameio names them
			must(t, os.WriteFile(dir+"/."+r+".rec"+n, []byte("torn"), 0o600))
		}
	}
	must(t, os.WriteFile(dir+"/.lock", nil, 0o600))
	must(t, os.Mkdir(dir+"/corrupt", 0o700))
	must(t, os.WriteFile(dir+"/corrupt/7.0", nil, 0o600))

	must(t, s.SweepTemporary(func(record string) bool { return record == "7" }))
	if got := names(t, dir); slices.Contains(got, ".7.rec1") || slices.Contains(got, ".7.rec1234567890") || len(got) != 3*len(records) {
		t.Errorf("only those of 7 should have gone: %q", got)
	}
	must(t, s.SweepTemporary(func(string) bool { return false }))
	if got := names(t, dir); len(got) != 3*len(records) {
		t.Errorf("nothing should have gone: %q", got)
	}
	must(t, s.SweepTemporary(func(string) bool { return true }))
	got := names(t, dir)
	if len(got) != len(records)+2 || !slices.Contains(got, ".lock") || !slices.Contains(got, "corrupt") {
		t.Errorf("%q", got)
	}
	for _, r := range records {
		if rec, err := s.Read(r); err != nil || string(rec.Payload) != r {
			t.Errorf("%s: %q, %v", r, rec.Payload, err)
		}
	}
}

func TestTemporaryFileIsNoRecord(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for _, name := range []string{".a.rec", ".a.rec123", ".lock", "a", "a.recx", "corrupt"} {
		must(t, os.WriteFile(dir+"/"+name, encode(bootID, nil), 0o600))
	}
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("%q, %v", list, err)
	}
}

// The premise of SweepTemporary: where a write is interrupted, what is left is named after the record.
func TestWriteThatFailsLeavesTheOldOneAlone(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	must(t, s.Write("a", []byte("old")))
	must(t, os.Mkdir(dir+"/b.rec", 0o700)) // cannot be replaced by a file
	is(t, s.Write("b", []byte("new")), wire.System)
	if got := names(t, dir); len(got) != 2 {
		t.Errorf("something is left: %q", got)
	}
	if os.Geteuid() != 0 {
		must(t, os.Chmod(dir, 0o500))
		is(t, s.Write("a", []byte("new")), wire.System)
		must(t, os.Chmod(dir, 0o700))
	}
	if r, err := s.Read("a"); err != nil || string(r.Payload) != "old" {
		t.Errorf("%q, %v", r.Payload, err)
	}
}

// A reader finds the one or the other, never a part, never none.
func TestReplacementIsAtomic(t *testing.T) {
	s, err := Open(t.TempDir(), bootID, false)
	must(t, err)
	defer s.Close()
	payload := func(n int) []byte { return bytes.Repeat([]byte{byte('a' + n%26)}, 100+n%26*3000) }
	must(t, s.Write("a", payload(0)))
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		readers.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					if n == 0 {
						t.Error("nothing was read meanwhile")
					}
					return
				default:
				}
				r, err := s.Read("a")
				if err != nil || len(r.Payload) == 0 || !bytes.Equal(r.Payload, payload(int(r.Payload[0]-'a'))) {
					t.Errorf("%d bytes, %v", len(r.Payload), err)
					return
				}
			}
		})
	}
	for n := range 300 {
		must(t, s.Write("a", payload(n)))
	}
	close(stop)
	readers.Wait()
}

func TestStoreLeaksNoDescriptor(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	must(t, os.WriteFile(dir+"/torn.rec", []byte("x"), 0o600))
	must(t, os.Symlink("torn.rec", dir+"/link.rec"))
	must(t, os.Mkdir(dir+"/folder.rec", 0o700))
	must(t, s.Write("a", nil))
	s.Read("a")
	before := len(names(t, "/proc/self/fd"))
	for range 20 {
		s.Write("a", []byte("x"))
		s.Write("folder", nil)
		for _, name := range []string{"a", "torn", "link", "folder", "no"} {
			s.Read(name)
		}
		s.List()
		s.SweepTemporary(func(string) bool { return true })
		lock, err := s.Lock(t.Context(), 3)
		must(t, err)
		lock.Unlock()
	}
	if n := len(names(t, "/proc/self/fd")); n > before { // fewer if what another test gave up has ended meanwhile
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

// FuzzRecord: only what encode wrote is a record.
func FuzzRecord(f *testing.F) {
	good := encode(bootID, []byte("payload\n"))
	for _, data := range [][]byte{nil, good, good[:len(good)-1], encode("", nil), encode(bootID, []byte{0, '\n', 0xff}), []byte("bindgate-record schema=2 boot=x size=0 fnv1a=0000000000000000\n"), []byte("bindgate-record schema=1 boot=x size=99999999999999999999 fnv1a=0000000000000000\n")} {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, err := decode(data); err == nil && !bytes.Equal(encode(r.Boot, r.Payload), data) {
			t.Errorf("%q is taken as %+v", data, r)
		} else if err != nil && (r.Payload != nil || strings.Contains(err.Error(), "\n") || !utf8.ValidString(err.Error())) {
			t.Errorf("%q: %+v, %v", data, r, err)
		}
		if r, err := decode(encode(bootID, data)); err != nil || r.Boot != bootID || !bytes.Equal(r.Payload, data) {
			t.Errorf("%q as a payload: %+v, %v", data, r, err)
		}
	})
}
