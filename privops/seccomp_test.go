package privops

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// data is struct seccomp_data.
type data struct {
	nr, arch uint32
	args     [6]uint64
}

// run interprets a filter as the kernel does (classic BPF, as far as program uses it) and marks the instructions that it came by.
func run(prog []unix.SockFilter, d data, seen []bool) (uint32, error) {
	acc := uint32(0)
	for pc, steps := 0, 0; ; steps++ {
		if pc < 0 || pc >= len(prog) {
			return 0, fmt.Errorf("instruction %d of %d", pc, len(prog))
		}
		seen[pc] = true
		in := prog[pc]
		pc++
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			switch {
			case in.K == 0:
				acc = d.nr
			case in.K == 4:
				acc = d.arch
			case in.K >= 16 && in.K < 64 && in.K%4 == 0:
				acc = uint32(d.args[(in.K-16)/8] >> (in.K % 8 * 8))
			default:
				return 0, fmt.Errorf("a load from %d", in.K)
			}
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			pc += jump(acc == in.K, in)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			pc += jump(acc >= in.K, in)
		case unix.BPF_RET | unix.BPF_K:
			return in.K, nil
		default:
			return 0, fmt.Errorf("the code %#x", in.Code)
		}
	}
}

func jump(cond bool, in unix.SockFilter) int {
	if cond {
		return int(in.Jt)
	}
	return int(in.Jf)
}

const (
	allow  = uint32(unix.SECCOMP_RET_ALLOW)
	kill   = uint32(unix.SECCOMP_RET_KILL_PROCESS)
	enosys = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.ENOSYS)
	eperm  = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.EPERM)
)

// checkProgram interprets the filter for every number that there is or may be and compares with the lists. skip are numbers that are judged by their arguments.
func checkProgram(t *testing.T, prog []unix.SockFilter, arch uint32, yes, deadly, skip []int) {
	t.Helper()
	seen := make([]bool, len(prog))
	numbers := []uint32{0x3fffffff, 0x40000000, 0x40000001, 0x40000000 + 59, 0x400001ff, 0x7fffffff, 0x80000000, 0xffffffff, 4095, 1 << 16}
	for n := range uint32(1101) {
		numbers = append(numbers, n)
	}
	for _, n := range numbers {
		want := enosys
		switch {
		case n >= 0x40000000: // x32 numbers
			want = kill
		case slices.Contains(skip, int(n)):
			run(prog, data{nr: n, arch: arch}, seen)
			continue
		case slices.Contains(deadly, int(n)):
			want = kill
		case slices.Contains(yes, int(n)):
			want = allow
		}
		for _, args := range [][6]uint64{{}, {^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}} {
			if got, err := run(prog, data{n, arch, args}, seen); err != nil || got != want {
				t.Errorf("system call %d answers %#x, want %#x (%v)", n, got, want, err)
			}
		}
		for _, foreign := range []uint32{0, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_ARM, unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_RISCV64, ^uint32(0)} {
			if got, err := run(prog, data{nr: n, arch: foreign}, seen); foreign != arch && (err != nil || got != kill) {
				t.Errorf("system call %d of the architecture %#x answers %#x (%v)", n, foreign, got, err)
			}
		}
	}
	for pc, in := range prog {
		if in.Code&7 == unix.BPF_JMP && (pc+1+int(in.Jt) >= len(prog) || pc+1+int(in.Jf) >= len(prog)) {
			t.Errorf("instruction %d jumps out", pc)
		}
		if !seen[pc] && !slices.ContainsFunc([]uint32{allow, eperm}, func(k uint32) bool { return in.K == k }) {
			t.Errorf("instruction %d is never reached: %+v", pc, in)
		}
	}
	if prog[len(prog)-1].Code&7 != unix.BPF_RET || len(prog) > 4096 {
		t.Errorf("%d instructions, the last is %+v", len(prog), prog[len(prog)-1])
	}
}

func numbers() (yes []int) {
	for _, c := range allowed {
		yes = append(yes, c.nr)
	}
	return yes
}

func TestFilterSaysWhatTheListsSay(t *testing.T) {
	checkProgram(t, program(), arch.audit, numbers(), deadly, []int{unix.SYS_CLONE, unix.SYS_IOCTL})
}

func TestListsAreSane(t *testing.T) {
	seen := map[int]bool{}
	for _, n := range append(append(numbers(), deadly...), unix.SYS_CLONE, unix.SYS_IOCTL) {
		if seen[n] || n < 0 || n >= 1024 {
			t.Errorf("%d is listed twice, or out of range", n)
		}
		seen[n] = true
	}
	for _, c := range allowed {
		if c.why == "" {
			t.Errorf("%d is allowed without a reason", c.nr)
		}
	}
	// What turns a hole into a way in: none of it is allowed, and what an attacker would reach for kills.
	for name, n := range map[string]int{"execve": unix.SYS_EXECVE, "execveat": unix.SYS_EXECVEAT, "ptrace": unix.SYS_PTRACE, "process_vm_readv": unix.SYS_PROCESS_VM_READV, "process_vm_writev": unix.SYS_PROCESS_VM_WRITEV,
		"bpf": unix.SYS_BPF, "init_module": unix.SYS_INIT_MODULE, "finit_module": unix.SYS_FINIT_MODULE, "kexec_load": unix.SYS_KEXEC_LOAD, "io_uring_setup": unix.SYS_IO_URING_SETUP, "userfaultfd": unix.SYS_USERFAULTFD} {
		if !slices.Contains(deadly, n) {
			t.Errorf("%s does not kill", name)
		}
	}
	for name, n := range map[string]int{"mount": unix.SYS_MOUNT, "clone3": unix.SYS_CLONE3, "socket": unix.SYS_SOCKET, "connect": unix.SYS_CONNECT, "kill": unix.SYS_KILL, "setuid": unix.SYS_SETUID, "setresuid": unix.SYS_SETRESUID,
		"setgroups": unix.SYS_SETGROUPS, "prctl": unix.SYS_PRCTL, "seccomp": unix.SYS_SECCOMP, "linkat": unix.SYS_LINKAT, "fchownat": unix.SYS_FCHOWNAT, "fchmodat": unix.SYS_FCHMODAT, "setxattr": unix.SYS_SETXATTR,
		"memfd_create": unix.SYS_MEMFD_CREATE, "name_to_handle_at": unix.SYS_NAME_TO_HANDLE_AT, "pidfd_send_signal": unix.SYS_PIDFD_SEND_SIGNAL, "io_uring_enter": unix.SYS_IO_URING_ENTER, "truncate": unix.SYS_TRUNCATE} {
		if seen[n] && !slices.Contains(deadly, n) {
			t.Errorf("%s is allowed", name)
		}
	}
}

// clone and ioctl are allowed with a few arguments only.
func TestFilterJudgesArguments(t *testing.T) {
	prog := program()
	seen := make([]bool, len(prog))
	ask := func(nr int, args ...uint64) uint32 {
		d := data{nr: uint32(nr), arch: arch.audit}
		copy(d.args[:], args)
		got, err := run(prog, d, seen)
		if err != nil {
			t.Error(err)
		}
		return got
	}
	thread, child := uint64(cloneFlags[0]), uint64(cloneFlags[1])
	cases := []struct {
		name string
		got  uint32
		want uint32
	}{
		{"the runtime makes a thread", ask(unix.SYS_CLONE, thread, 1, 2, 3, 4), allow},
		{"the staging child", ask(unix.SYS_CLONE, child), allow},
		{"the flag in the second argument only", ask(unix.SYS_CLONE, 0, thread), eperm},
		{"fork", ask(unix.SYS_CLONE, uint64(unix.SIGCHLD)), eperm},
		{"vfork", ask(unix.SYS_CLONE, unix.CLONE_VFORK|unix.CLONE_VM|uint64(unix.SIGCHLD)), eperm},
		{"no flags", ask(unix.SYS_CLONE), eperm},
		{"a thread of another process", ask(unix.SYS_CLONE, thread|unix.CLONE_PARENT), eperm},
		{"a traced thread", ask(unix.SYS_CLONE, thread|unix.CLONE_PTRACE), eperm},
		{"the child with an exit signal", ask(unix.SYS_CLONE, child|uint64(unix.SIGCHLD)), eperm},
		{"the child with a pid namespace", ask(unix.SYS_CLONE, child|unix.CLONE_NEWPID), eperm},
		{"the child without its user namespace", ask(unix.SYS_CLONE, child&^unix.CLONE_NEWUSER), eperm},
		{"the child without waiting for it", ask(unix.SYS_CLONE, child&^unix.CLONE_VFORK), eperm},
		{"the child in our memory", ask(unix.SYS_CLONE, child|unix.CLONE_VM), eperm},
		{"another ioctl", ask(unix.SYS_IOCTL, 0, unix.TIOCSTI), eperm},
		{"pushing input to a terminal", ask(unix.SYS_IOCTL, 3, unix.TIOCLINUX), eperm},
		{"the parent namespace", ask(unix.SYS_IOCTL, 3, unix.NS_GET_PARENT), eperm},
		{"another namespace of a pidfd", ask(unix.SYS_IOCTL, 3, unix.PIDFD_GET_USER_NAMESPACE), eperm},
		{"no ioctl", ask(unix.SYS_IOCTL), eperm},
		{"an allowed ioctl as the descriptor", ask(unix.SYS_IOCTL, unix.NS_GET_USERNS, 0), eperm},
	}
	for _, n := range ioctls {
		cases = append(cases, struct {
			name string
			got  uint32
			want uint32
		}{fmt.Sprintf("the ioctl %#x", n), ask(unix.SYS_IOCTL, 3, uint64(n)), allow})
	}
	for _, c := range cases {
		if c.got != c.want {
			t.Errorf("%s answers %#x, want %#x", c.name, c.got, c.want)
		}
	}
	if len(cloneFlags) != 2 || len(ioctls) != 3 {
		t.Errorf("%d clones and %d ioctls are allowed", len(cloneFlags), len(ioctls))
	}
	if child&0xff != 0 || child&unix.CLONE_NEWUSER == 0 || child&unix.CLONE_VM != 0 {
		t.Errorf("the child's flags are %#x", child)
	}
	// Each bit more or less is refused: nothing of the flags is ignored.
	for _, f := range []uint64{thread, child} {
		for bit := range 32 {
			if g := f ^ 1<<bit; g != thread && g != child && ask(unix.SYS_CLONE, g) != eperm {
				t.Errorf("clone with %#x is allowed", g)
			}
		}
	}
	for _, n := range ioctls {
		for bit := range 32 {
			if g := n ^ 1<<bit; !slices.Contains(ioctls, g) && ask(unix.SYS_IOCTL, 3, uint64(g)) != eperm {
				t.Errorf("ioctl %#x is allowed", g)
			}
		}
	}
}

// tables are the numbers of an architecture's system calls, from the same package that the filter's come from.
func table(t *testing.T, arch string) map[string]int {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(strings.TrimSpace(string(out)) + "/unix/zsysnum_linux_" + arch + ".go")
	if err != nil {
		t.Fatal(err)
	}
	numbers := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^\t(SYS_\w+)\s*= (\d+)$`).FindAllStringSubmatch(string(text), -1) {
		numbers[m[1]], _ = strconv.Atoi(m[2])
	}
	if len(numbers) < 250 {
		t.Fatalf("%d numbers for %s", len(numbers), arch)
	}
	return numbers
}

// The lists mean the same on both architectures, and the filter for the other one is right too, but for clone and ioctl, whose numbers are compiled in.
func TestListsOnBothArchitectures(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "seccomp.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	lists := map[string][]string{} // of the variables allowed, deadly and arch: the names and numbers in them
	for _, d := range file.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.VAR {
			continue
		}
		for _, s := range g.Specs {
			spec := s.(*ast.ValueSpec)
			for _, v := range spec.Values {
				ast.Inspect(v, func(n ast.Node) bool {
					switch n := n.(type) {
					case *ast.SelectorExpr:
						lists[spec.Names[0].Name] = append(lists[spec.Names[0].Name], n.Sel.Name)
					case *ast.BasicLit:
						lists[spec.Names[0].Name] = append(lists[spec.Names[0].Name], strings.Trim(n.Value, `"`))
					}
					return true
				})
			}
		}
	}
	names := func(list string) (out []string) {
		for _, s := range lists[list] {
			if strings.HasPrefix(s, "SYS_") {
				out = append(out, s)
			}
		}
		return out
	}
	audit := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}
	for a, number := range audit {
		t.Run(a, func(t *testing.T) {
			of := table(t, a)
			own := lists["arch"][slices.Index(lists["arch"], a):]
			if !slices.Contains(own[:min(len(own), 6)], strconv.Itoa(of["SYS_NEWFSTATAT"])) {
				t.Errorf("fstatat is %d; arch says %q", of["SYS_NEWFSTATAT"], own)
			}
			yes, no := []int{of["SYS_NEWFSTATAT"]}, []int(nil)
			for _, n := range names("allowed") {
				yes = append(yes, of[n])
			}
			for _, n := range names("deadly") {
				no = append(no, of[n])
			}
			for _, n := range append(names("allowed"), names("deadly")...) {
				if _, ok := of[n]; !ok {
					t.Errorf("%s has no number", n)
				}
			}
			if a == runtime.GOARCH {
				if !slices.Equal(slices.Sorted(slices.Values(yes)), slices.Sorted(slices.Values(numbers()))) || !slices.Equal(no, deadly) {
					t.Errorf("the file says %v and %v", yes, no)
				}
				return
			}
			was, wasAllowed, wasDeadly := arch, allowed, deadly
			defer func() { arch, allowed, deadly = was, wasAllowed, wasDeadly }()
			arch.audit, allowed, deadly = number, nil, no
			for _, n := range yes {
				allowed = append(allowed, struct {
					nr  int
					why string
				}{n, "of " + a})
			}
			checkProgram(t, program(), number, yes, no, []int{unix.SYS_CLONE, unix.SYS_IOCTL})
		})
	}
}

// The other architecture must at least compile, with its own numbers.
func TestOtherArchitectureCompiles(t *testing.T) {
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	cmd := exec.Command("go", "vet", ".")
	cmd.Env = append(cmd.Environ(), "GOARCH="+other, "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("for %s: %v\n%s", other, err, out)
	}
}
