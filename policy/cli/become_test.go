package cli

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/wire"
)

const becomeEnv = "CLI_BECOME"

// A process that became somebody else cannot go back to being the test, so a process of its own does it.
func TestMain(m *testing.M) {
	if dir := os.Getenv(confineEnv); dir != "" {
		confinedMain(dir)
	}
	name := os.Getenv(becomeEnv)
	if name == "" {
		os.Exit(m.Run())
	}
	p := config.DefaultPolicy()
	p.User, p.Groups = name, []string{"4242"}
	if err := become(p); err != nil {
		fmt.Println(wire.AsError(err).Code, err)
		os.Exit(1)
	}
	r, e, s := unix.Getresuid()
	rg, eg, sg := unix.Getresgid()
	groups, _ := unix.Getgroups()
	fmt.Println(r, e, s, rg, eg, sg, len(groups), syscall.Setuid(0) != nil, syscall.Setresgid(0, 0, 0) != nil, os.Getenv("KEPT"))
	os.Exit(0)
}

func TestRootBecomesThePolicyUserForGood(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("only root can become somebody else")
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	as := func(name string, attr *syscall.SysProcAttr) (string, error) {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = []string{becomeEnv + "=" + name, "KEPT=yes"}
		cmd.SysProcAttr = attr
		out, err := cmd.Output()
		return strings.TrimSpace(string(out)), err
	}
	out, err := as("nobody", nil)
	u, g := nobody.Uid, nobody.Gid
	if want := strings.Join([]string{u, u, u, g, g, g, "2", "true", "true", "yes"}, " "); err != nil || out != want {
		t.Errorf("got %q, %v; want %q", out, err, want)
	}
	var id uint32
	fmt.Sscan(u, &id)
	// Its own groups it may keep: they are what whoever started it gave it.
	self := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}}
	if out, err := as("nobody", self); err != nil || !strings.HasPrefix(out, u+" "+u+" "+u) {
		t.Errorf("started as the policy user: %q, %v", out, err)
	}
	out, err = as("daemon", self)
	if err == nil || !strings.HasPrefix(out, "denied ") || !strings.Contains(out, "daemon") || !strings.Contains(out, "uid "+u) {
		t.Errorf("started as somebody else: %q, %v", out, err)
	}
}
