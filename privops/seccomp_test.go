package privops

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
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

var update = flag.Bool("update", false, "make the filters of seccomp.list")

// data is struct seccomp_data.
type data struct {
	nr, arch uint32
	args     [6]uint64
}

const (
	allow  = uint32(unix.SECCOMP_RET_ALLOW)
	kill   = uint32(unix.SECCOMP_RET_KILL_PROCESS)
	enosys = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.ENOSYS)
	eperm  = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.EPERM)
)

var audit = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// values are the names that seccomp.list may use for an argument, and judged says which argument of a call they are.
var (
	values = map[string]uint32{"CLONE_VM": unix.CLONE_VM, "CLONE_FS": unix.CLONE_FS, "CLONE_FILES": unix.CLONE_FILES, "CLONE_SIGHAND": unix.CLONE_SIGHAND, "CLONE_SYSVSEM": unix.CLONE_SYSVSEM,
		"CLONE_THREAD": unix.CLONE_THREAD, "CLONE_SETTLS": unix.CLONE_SETTLS, "CLONE_VFORK": unix.CLONE_VFORK, "CLONE_NEWUSER": unix.CLONE_NEWUSER, "CLONE_NEWNS": unix.CLONE_NEWNS,
		"PIDFD_GET_MNT_NAMESPACE": unix.PIDFD_GET_MNT_NAMESPACE, "NS_GET_USERNS": unix.NS_GET_USERNS, "NS_GET_MNTNS_ID": unix.NS_GET_MNTNS_ID, "NS_MNT_GET_NEXT": 0x8010b70b,
		"NS_MNT_GET_PREV": 0x8010b70c}
	judged = map[string]int{"clone": 0, "ioctl": 1}
)

// A rule is what seccomp.list says of one system call on one architecture.
type rule struct {
	name, why string
	deadly    bool
	args      []uint32 // of a call that is judged by an argument: its allowed values
}

var line = regexp.MustCompile(`^(allow|kill) (\*|amd64|arm64) ([a-z0-9_]+)(?:\(([A-Z0-9_|]+)\))? +(\S.+)$`)

// readList reads seccomp.list for an architecture: number -> rule.
func readList(t *testing.T, arch string) map[uint32]*rule {
	t.Helper()
	text, err := os.ReadFile("seccomp.list")
	if err != nil {
		t.Fatal(err)
	}
	of := table(t, arch)
	rules := map[uint32]*rule{}
	for l := range strings.Lines(string(text)) {
		l = strings.TrimSpace(l)
		if l == "" || l[0] == '#' {
			continue
		}
		m := line.FindStringSubmatch(l)
		if m == nil {
			t.Fatalf("seccomp.list: cannot read %q", l)
		}
		if m[2] != "*" && m[2] != arch {
			continue
		}
		n, known := of["SYS_"+strings.ToUpper(m[3])]
		_, byArgument := judged[m[3]]
		if r := rules[n]; !known || byArgument != (m[4] != "") || r != nil && (m[4] == "" || r.deadly) {
			t.Fatalf("seccomp.list: %q is no system call of %s, is listed twice, or is judged by no argument that is known", l, arch)
		}
		if rules[n] == nil {
			rules[n] = &rule{name: m[3], why: m[5], deadly: m[1] == "kill"}
		}
		if m[4] != "" {
			arg := uint32(0)
			for v := range strings.SplitSeq(m[4], "|") {
				if values[v] == 0 {
					t.Fatalf("seccomp.list: unknown value %s", v)
				}
				arg |= values[v]
			}
			rules[n].args = append(rules[n].args, arg)
		}
	}
	if len(rules) < 80 {
		t.Fatalf("%d rules in seccomp.list", len(rules))
	}
	return rules
}

// compile makes the filter: a binary search over the numbers, since the kernel runs it once for every number when it is installed, so that a list would cost more than all else at the helper's start.
func compile(rules map[uint32]*rule, arch string) []unix.SockFilter {
	stmt := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	const load, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_RET | unix.BPF_K
	const jeq, jge = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	verdict := func(n uint32) []unix.SockFilter {
		r := rules[n]
		switch {
		case r == nil:
			return []unix.SockFilter{stmt(ret, enosys)}
		case r.deadly:
			return []unix.SockFilter{stmt(ret, kill)}
		case r.args == nil:
			return []unix.SockFilter{stmt(ret, allow)}
		}
		out := []unix.SockFilter{stmt(load, uint32(16+8*judged[r.name]))} // struct seccomp_data, low half of the argument
		for i, v := range r.args {
			out = append(out, unix.SockFilter{Code: jeq, Jt: uint8(len(r.args) - i), K: v})
		}
		return append(out, stmt(ret, eperm), stmt(ret, allow))
	}
	type leaf struct {
		from uint32 // numbers from here up to the next leaf's
		code []unix.SockFilter
	}
	var leaves []leaf
	for n := range uint32(1024) {
		if code := verdict(n); len(leaves) == 0 || !slices.Equal(leaves[len(leaves)-1].code, code) {
			leaves = append(leaves, leaf{n, code})
		}
	}
	leaves = append(leaves, leaf{1 << 30, []unix.SockFilter{stmt(ret, kill)}}) // x32 numbers
	var search func([]leaf) []unix.SockFilter
	search = func(l []leaf) []unix.SockFilter {
		if len(l) == 1 {
			return l[0].code
		}
		half := len(l) / 2
		low, high := search(l[:half]), search(l[half:])
		return slices.Concat([]unix.SockFilter{{Code: jge, Jt: uint8(len(low)), K: l[half].from}}, low, high)
	}
	head := []unix.SockFilter{stmt(load, 4), {Code: jeq, Jt: 1, K: audit[arch]}, stmt(ret, kill), stmt(load, 0)}
	return append(head, search(leaves)...)
}

// run interprets a filter as the kernel does (classic BPF, as far as it is used) and marks the instructions that it came by.
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

// The filters that are installed are those of seccomp.list, and say for every number that there is or may be what the list says, whatever the arguments.
func TestFilter(t *testing.T) {
	for arch, number := range audit {
		t.Run(arch, func(t *testing.T) {
			rules, file := readList(t, arch), "seccomp_"+arch+".bpf"
			made := new(bytes.Buffer)
			if err := binary.Write(made, binary.LittleEndian, compile(rules, arch)); err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(file, made.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			stored, err := os.ReadFile(file)
			if err != nil || !bytes.Equal(stored, made.Bytes()) {
				t.Fatalf("%s is not what seccomp.list says (%v): go test ./privops -run TestFilter -update", file, err)
			}
			prog := make([]unix.SockFilter, len(stored)/unix.SizeofSockFilter)
			if err := binary.Read(bytes.NewReader(stored), binary.LittleEndian, prog); err != nil {
				t.Fatal(err)
			}
			checkProgram(t, prog, number, rules)
		})
	}
}

func checkProgram(t *testing.T, prog []unix.SockFilter, arch uint32, rules map[uint32]*rule) {
	t.Helper()
	seen := make([]bool, len(prog))
	numbers := []uint32{0x3fffffff, 0x40000000, 0x40000001, 0x40000000 + 59, 0x400001ff, 0x7fffffff, 0x80000000, 0xffffffff, 4095, 1 << 16}
	for n := range uint32(1101) {
		numbers = append(numbers, n)
	}
	for _, n := range numbers {
		want := enosys
		switch r := rules[n]; {
		case n >= 0x40000000: // x32 numbers
			want = kill
		case r == nil:
		case r.deadly:
			want = kill
		case r.args != nil:
			checkArguments(t, prog, arch, n, r, seen)
			continue
		default:
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
		if !seen[pc] {
			t.Errorf("instruction %d is never reached: %+v", pc, in)
		}
	}
	if prog[len(prog)-1].Code&7 != unix.BPF_RET || len(prog) > 4096 {
		t.Errorf("%d instructions, the last is %+v", len(prog), prog[len(prog)-1])
	}
}

// checkArguments asks for the allowed values, each bit more or less, and values in another argument: nothing of it is ignored.
func checkArguments(t *testing.T, prog []unix.SockFilter, arch, n uint32, r *rule, seen []bool) {
	t.Helper()
	ask := func(at int, v uint32) uint32 {
		d := data{nr: n, arch: arch}
		d.args[at] = uint64(v)
		got, err := run(prog, d, seen)
		if err != nil {
			t.Error(err)
		}
		return got
	}
	at := judged[r.name]
	for _, v := range r.args {
		if got := ask(at, v); got != allow {
			t.Errorf("%s(%#x) answers %#x", r.name, v, got)
		}
		if got := ask(at^1, v); got != eperm {
			t.Errorf("%s with %#x as another argument answers %#x", r.name, v, got)
		}
		for bit := range 32 {
			if g := v ^ 1<<bit; !slices.Contains(r.args, g) && ask(at, g) != eperm {
				t.Errorf("%s(%#x) is allowed", r.name, g)
			}
		}
	}
	if got := ask(at, 0); got != eperm {
		t.Errorf("%s(0) answers %#x", r.name, got)
	}
}

// The list admits none of what turns a hole into a way in, whatever its author thinks, and what an attacker would reach for kills.
func TestListIsSane(t *testing.T) {
	rules, of := readList(t, runtime.GOARCH), table(t, runtime.GOARCH)
	find := func(name string) *rule { return rules[of["SYS_"+strings.ToUpper(name)]] }
	for _, name := range []string{"execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "bpf", "init_module", "finit_module", "kexec_load", "io_uring_setup", "userfaultfd"} {
		if r := find(name); r == nil || !r.deadly {
			t.Errorf("%s does not kill", name)
		}
	}
	for _, name := range []string{"mount", "clone3", "socket", "connect", "kill", "setuid", "setresuid", "setgroups", "prctl", "seccomp", "linkat", "fchownat", "fchmodat", "setxattr", "memfd_create", "name_to_handle_at",
		"pidfd_send_signal", "io_uring_enter", "truncate"} {
		if r := find(name); r != nil && !r.deadly {
			t.Errorf("%s is allowed", name)
		}
	}
	clone := find("clone").args
	if len(clone) != 2 || len(find("ioctl").args) > 5 {
		t.Fatalf("%x clones are allowed, and %x ioctls", clone, find("ioctl").args)
	}
	if child := clone[1]; child&0xff != 0 || child&unix.CLONE_NEWUSER == 0 || child&unix.CLONE_VFORK == 0 { // no exit signal, not in the host's user namespace, waited for
		t.Errorf("the child's flags are %#x", child)
	}
}

// table are the numbers of an architecture's system calls.
func table(t *testing.T, arch string) map[string]uint32 {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(strings.TrimSpace(string(out)) + "/unix/zsysnum_linux_" + arch + ".go")
	if err != nil {
		t.Fatal(err)
	}
	numbers := map[string]uint32{}
	for _, m := range regexp.MustCompile(`(?m)^\t(SYS_\w+)\s*= (\d+)$`).FindAllStringSubmatch(string(text), -1) {
		n, _ := strconv.ParseUint(m[2], 10, 32)
		numbers[m[1]] = uint32(n)
	}
	if len(numbers) < 250 {
		t.Fatalf("%d numbers for %s", len(numbers), arch)
	}
	return numbers
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
