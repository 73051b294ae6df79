package tests

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// privileged are the system calls of the core that change, enter or ask what an ordinary process may not, or that are part of giving privilege up, by the function of package unix that makes them. Each
// must be in the table of SECURITY.md, with the files that make it. One by number (unix.SYS_X) counts as its lower-case name.
var privileged = map[string]string{
	"Setrlimit": "setrlimit", "Setresuid": "setresuid", "Prctl": "prctl", "PrctlRetInt": "prctl", "PidfdOpen": "pidfd_open", "IoctlRetInt": "ioctl", "SetfsuidRetUid": "setfsuid",
	"SetfsgidRetGid": "setfsgid", "OpenTree": "open_tree", "MountSetattr": "mount_setattr", "MoveMount": "move_mount", "Unshare": "unshare", "Setns": "setns", "Fsopen": "fsopen", "FsconfigCreate": "fsconfig",
	"Fsmount": "fsmount", "Fchdir": "fchdir", "Chroot": "chroot", "Unmount": "umount2", "OpenByHandleAt": "open_by_handle_at", "Mkdir": "mkdirat", "Mkdirat": "mkdirat", "Mknodat": "mknodat", "Unlinkat": "unlinkat",
	"Renameat2": "renameat2", "Fchown": "fchown", "Fchmod": "fchmod",
}

// privilegedByNumber are those that the core makes by their number.
var privilegedByNumber = []string{"setgroups", "setresgid", "capset", "seccomp", "ioctl", "statmount", "listmount", "open_tree", "clone"}

// ordinary are those that any process may make; what they can reach, root's rights decide. The table may list them, and must where a capability is for them.
var ordinary = map[string]string{
	"Open": "openat", "Openat": "openat", "Openat2": "openat2", "Fstat": "fstat", "Fstatat": "newfstatat", "Statx": "statx", "Fstatfs": "fstatfs", "Readlinkat": "readlinkat", "ReadDirent": "getdents64", "Seek": "lseek",
	"Read": "read", "Write": "write", "Close": "close", "Fsync": "fsync", "Poll": "ppoll", "FcntlFlock": "fcntl", "Gettid": "gettid", "Chdir": "chdir", "Umask": "umask", "Getrlimit": "prlimit64", "Setitimer": "setitimer",
	"Socket": "socket", "Connect": "connect", "GetsockoptUcred": "getsockopt", "GetsockoptInt": "getsockopt", "Tgkill": "tgkill", "FcntlInt": "fcntl", "Capget": "capget", "NsecToTimeval": "", "Getsockname": "getsockname", "Wait4": "wait4",
	"ParseDirent": "", "NewFileHandle": "", "RawSyscall": "", "RawSyscall6": "", "Syscall": "", "Syscall6": "", // make no call, or one by number
}

// ordinaryByNumber are those that the core makes by number or the filter admits for the Go runtime and the standard library.
var ordinaryByNumber = []string{"rt_sigaction", "rt_sigprocmask", "dup3", "close", "exit_group",
	"futex", "nanosleep", "sched_yield", "restart_syscall", "mmap", "munmap", "madvise", "mprotect", "rt_sigreturn", "sigaltstack", "tgkill", "getpid", "gettid", "epoll_create1", "epoll_ctl", "epoll_pwait", "eventfd2", "exit",
	"getrandom", "clock_gettime", "renameat", "symlinkat"}

// unixTypes are the types of package unix that the core uses, and constants in small letters.
var unixTypes = []string{"ItimerReal", "ItimerVirtual", "ItimerProf", "PathMax", "CapUserData", "CapUserHeader", "ItimerWhich", "Itimerval", "MountAttr", "OpenHow", "PollFd", "Rlimit", "SockFilter", "SockFprog", "SockaddrUnix", "Stat_t", "SizeofSockFilter", "Statfs_t", "Statx_t", "Flock_t"}

// beneathRoot are the system calls of the methods of os.Root by which package state keeps its records, relative to its folder's descriptor. renameio makes the same.
var beneathRoot = map[string]string{"Open": "openat", "OpenFile": "openat", "Lstat": "newfstatat", "Readlink": "readlinkat", "Mkdir": "mkdirat", "Rename": "renameat", "Remove": "unlinkat", "Symlink": "symlinkat", "Close": "close"}

// syscallNames are all that the core uses of package syscall besides constants: nothing in it that has a system call of its own that is privileged.
var syscallNames = []string{"Clearenv", "Setenv", "AllThreadsSyscall", "Madvise", "RawSyscall", "RawSyscall6", "Errno", "Signal", "Stat_t"}

// A scan is what the sources of the core say.
type scan struct {
	calls  map[string][]string // the files that make each system call
	filter []string            // system calls that the filter admits
	caps   map[string][]string // capabilities that each kind of operation keeps: mountCaps, volumeCaps
}

var constant = regexp.MustCompile(`^[A-Z0-9_]+$`)

func scanCore(t *testing.T) *scan {
	t.Helper()
	s := &scan{calls: map[string][]string{}, caps: map[string][]string{}}
	for _, room := range core {
		files, err := filepath.Glob("../" + room + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			s.file(t, strings.TrimPrefix(path, "../"), file)
		}
	}
	filter, err := os.ReadFile("../privops/seccomp.list")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^allow \S+ ([a-z0-9_]+)`).FindAllStringSubmatch(string(filter), -1) {
		s.filter = append(s.filter, m[1])
	}
	if len(s.calls) < 30 || len(s.filter) < 30 {
		t.Fatalf("only %d calls and %d in the filter were found", len(s.calls), len(s.filter))
	}
	return s
}

func (s *scan) file(t *testing.T, name string, file *ast.File) {
	uses := func(call string) {
		if call != "" && !slices.Contains(s.calls[call], name) {
			s.calls[call] = append(s.calls[call], name)
		}
	}
	list := func(n ast.Node, f func(pkg, sel string)) {
		ast.Inspect(n, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok {
					f(x.Name, sel.Sel.Name)
				}
			}
			return true
		})
	}
	for _, i := range file.Imports {
		if i.Name != nil && i.Name.Name != "_" {
			t.Errorf("%s calls %s by the name %s: what it uses of it is not seen here", name, i.Path.Value, i.Name.Name)
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			if fun, ok := n.Fun.(*ast.SelectorExpr); ok && slices.Contains([]string{"Syscall", "Syscall6", "RawSyscall", "RawSyscall6", "AllThreadsSyscall"}, fun.Sel.Name) {
				if number, ok := n.Args[0].(*ast.SelectorExpr); !ok || !strings.HasPrefix(number.Sel.Name, "SYS_") {
					t.Errorf("%s makes a system call by a number without a name", name)
				}
			}
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.SelectorExpr); ok && x.Sel.Name == "root" && strings.HasPrefix(name, "state/") {
				if call := beneathRoot[n.Sel.Name]; call != "" {
					uses(call)
				} else {
					t.Errorf("%s uses os.Root's %s: which system call is that? List it here", name, n.Sel.Name)
				}
			}
		}
		return true
	})
	for _, d := range file.Decls {
		if g, ok := d.(*ast.GenDecl); ok {
			for _, spec := range g.Specs {
				v, ok := spec.(*ast.ValueSpec)
				if !ok {
					continue
				}
				what := v.Names[0].Name
				list(v, func(_, sel string) {
					if strings.HasPrefix(sel, "CAP_") {
						s.caps[what] = append(s.caps[what], sel)
					}
				})
			}
		}
		list(d, func(pkg, sel string) {
			number, byNumber := strings.CutPrefix(sel, "SYS_")
			number = strings.ToLower(number)
			call, isPrivileged := privileged[sel]
			other, isOrdinary := ordinary[sel]
			switch {
			case pkg == "syscall" && !constant.MatchString(sel) && !slices.Contains(syscallNames, sel), pkg == "syscall" && byNumber:
				t.Errorf("%s uses syscall.%s: make it through package unix, or list it here", name, sel)
			case pkg == "os" && slices.Contains([]string{"StartProcess", "Chown", "Lchown", "Chmod", "Link", "Symlink", "Rename", "Remove", "RemoveAll", "Mkdir", "MkdirAll", "Create", "WriteFile"}, sel):
				t.Errorf("%s uses os.%s, which follows links", name, sel)
			case pkg != "unix" || slices.Contains(unixTypes, sel):
			case byNumber && (slices.Contains(privilegedByNumber, number) || slices.Contains(ordinaryByNumber, number)):
				uses(number)
			case byNumber:
				t.Errorf("%s makes the system call %s: is it privileged? List it here, and in SECURITY.md if it is", name, number)
			case constant.MatchString(sel):
			case isPrivileged:
				uses(call)
			case isOrdinary:
				uses(other)
			default:
				t.Errorf("%s uses unix.%s: is it privileged? List it here, and in SECURITY.md if it is", name, sel)
			}
		})
	}
}

// A row of the table "What each privileged line is for" of SECURITY.md.
type row struct {
	step               string
	calls, caps, files []string
	attacks            []string
}

// early says that the row is of a step before the filter and the reduced capabilities are in force.
func (r row) early() bool { return slices.Contains([]string{"1", "2", "3", "4", "5"}, r.step) }

func table(t *testing.T) (rows []row) {
	t.Helper()
	doc, err := os.ReadFile("../SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(doc), "\n## What each privileged line is for\n")
	section, _, _ = strings.Cut(section, "\n## ")
	ticked := regexp.MustCompile("`([^`]+)`")
	quoted := func(cell string) (out []string) {
		for _, m := range ticked.FindAllStringSubmatch(cell, -1) {
			out = append(out, m[1])
		}
		return out
	}
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| step |") {
			continue
		}
		if len(cells) != 6 {
			t.Errorf("a row with %d cells: %s", len(cells), line)
			continue
		}
		r := row{strings.TrimSpace(cells[0]), quoted(cells[1]), regexp.MustCompile(`CAP_\w+`).FindAllString(cells[2], -1), quoted(cells[3]), regexp.MustCompile(`T\d\d`).FindAllString(cells[5], -1)}
		if len(r.calls) == 0 || len(r.files) == 0 || len(r.attacks) == 0 || len(r.caps) == 0 && strings.TrimSpace(cells[2]) != "-" || len(strings.TrimSpace(cells[4])) < 10 {
			t.Errorf("a row that lacks something: %s", line)
		}
		rows = append(rows, r)
	}
	if len(rows) < 20 {
		t.Fatalf("only %d rows were found", len(rows))
	}
	return rows
}

func sorted(list []string) []string { return slices.Compact(slices.Sorted(slices.Values(list))) }

// Every privileged system call of the core is in the table, with every file that makes it; and the table has none that the code does not make.
func TestSecurityListsEveryPrivilegedCall(t *testing.T) {
	code, rows := scanCore(t), table(t)
	documented := map[string][]string{}
	for _, r := range rows {
		made := false
		for _, call := range r.calls {
			for _, file := range r.files {
				if slices.Contains(code.calls[call], file) {
					documented[call] = append(documented[call], file)
					made = true
				}
			}
			if !slices.ContainsFunc(r.files, func(f string) bool { return slices.Contains(code.calls[call], f) }) {
				t.Errorf("SECURITY.md, step %s: none of %v makes %s", r.step, r.files, call)
			}
		}
		for _, file := range r.files {
			if !slices.ContainsFunc(r.calls, func(c string) bool { return slices.Contains(code.calls[c], file) }) {
				t.Errorf("SECURITY.md, step %s: %s makes none of %v", r.step, file, r.calls)
			}
		}
		if !made {
			t.Errorf("SECURITY.md, step %s: nothing of %v is made", r.step, r.calls)
		}
	}
	for _, call := range sorted(slices.Concat(slices.Collect(maps.Values(privileged)), privilegedByNumber)) {
		if len(code.calls[call]) == 0 {
			t.Errorf("%s is listed here as privileged, but the core does not make it", call)
		}
		for _, file := range code.calls[call] {
			if !slices.Contains(documented[call], file) {
				t.Errorf("%s makes the privileged system call %s; the table in SECURITY.md does not say so", file, call)
			}
		}
	}
}

// The capabilities that an operation keeps are those of its rows, no more and no less.
func TestSecurityListsEveryCapability(t *testing.T) {
	code := scanCore(t)
	want := map[string][]string{}
	for _, r := range table(t) {
		switch {
		case r.step == "volume":
			want["volumeCaps"] = append(want["volumeCaps"], r.caps...)
		case !r.early():
			want["mountCaps"] = append(want["mountCaps"], r.caps...)
		}
	}
	for _, kind := range []string{"mountCaps", "volumeCaps"} {
		if got, want := sorted(code.caps[kind]), sorted(want[kind]); len(got) == 0 || !slices.Equal(got, want) {
			t.Errorf("%s of the code are %v; SECURITY.md has rows for %v", kind, got, want)
		}
		delete(code.caps, kind)
	}
	for kind, list := range code.caps {
		t.Errorf("%s names capabilities in another place: %v", kind, list)
	}
}

// What the filter admits is in the table or needs no privilege; what a later step of the table needs, it admits; what only steps before it need, it does not.
func TestSecurityAgreesWithTheFilter(t *testing.T) {
	code := scanCore(t)
	early, late := []string{}, []string{"openat", "statx", "newfstatat", "readlinkat", "fcntl"}
	for _, r := range table(t) {
		if r.early() && !slices.Contains(r.calls, "capset") { // which goes on for as long as there is something to drop
			early = append(early, r.calls...)
		} else {
			late = append(late, r.calls...)
		}
	}
	harmless := slices.Concat(slices.Collect(maps.Values(ordinary)), ordinaryByNumber)
	for _, call := range code.filter {
		if !slices.Contains(late, call) && !slices.Contains(harmless, call) {
			t.Errorf("the filter admits %s, which no step after it in SECURITY.md needs", call)
		}
	}
	for _, call := range sorted(late) {
		if !slices.Contains(code.filter, call) {
			t.Errorf("the filter does not admit %s, which SECURITY.md says is needed", call)
		}
	}
	for _, call := range sorted(early) {
		if slices.Contains(code.filter, call) && !slices.Contains(late, call) {
			t.Errorf("the filter admits %s, which is needed before it only", call)
		}
	}
}
