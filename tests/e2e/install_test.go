package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/bindgate/bindgate/conf"
	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/tests/harness"
)

func checkout(t *testing.T) string {
	t.Helper()
	dir, err := harness.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// makeIn runs make in the checkout, as root, on what the harness has built.
func makeIn(t *testing.T, h *harness.Host, args ...string) harness.Result {
	t.Helper()
	cmd := exec.Command("make", append(args, "SUDO=", "BIN=bin/test", "BINDGATE_USER="+harness.PolicyUser, "BINDGATE_GROUP="+harness.PolicyUser)...)
	cmd.Dir = checkout(t)
	return h.Do(cmd).OK(t)
}

// onlyRead are the files that make install puts besides what the harness does, below the installed tree: the system or people read them, no other test does.
func onlyRead(t *testing.T, docs string) []string {
	t.Helper()
	files := []string{"/etc/apparmor.d/bindgate-helper", "/prefix/lib/sysusers.d/bindgate.conf", "/prefix/lib/tmpfiles.d/bindgate.conf", "/prefix/share/bindgate/plugins.conf",
		"/prefix/share/bindgate/oci/hooks.d/bindgate.json", "/prefix/share/bindgate/oci/podman/bindgate-precreate.json", "/prefix/share/bash-completion/completions/bindgate",
		"/prefix/share/fish/vendor_completions.d/bindgate.fish", "/prefix/share/zsh/site-functions/_bindgate"}
	pages, err := filepath.Glob(docs + "/man/*")
	if err != nil || len(pages) < 30 {
		t.Fatalf("%d pages (%v)", len(pages), err)
	}
	for _, page := range pages {
		files = append(files, "/prefix/share/man/man"+page[len(page)-1:]+"/"+filepath.Base(page))
	}
	return files
}

// What was not built is found before anything is put.
func TestInstallOfWhatIsNotBuilt(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		at := "/run/installed"
		cmd := exec.Command("make", "install-built", "SUDO=", "BIN=bin/test", "DOCS="+h.Path("docs"), "PREFIX="+at+"/prefix", "SYSCONFDIR="+at+"/etc", "LOCALSTATEDIR="+at+"/var", "RUNDIR="+at+"/run",
			"BINDGATE_USER="+harness.PolicyUser, "BINDGATE_GROUP="+harness.PolicyUser)
		cmd.Dir = checkout(t)
		if r := h.Do(cmd).Exits(t, 2); !strings.Contains(r.Stderr, "cannot install: "+h.Path("docs")+"/man/* is not there") {
			t.Errorf("%v", r)
		}
		if _, err := os.Stat(at); err == nil {
			t.Error("it put something all the same")
		}
	})
}

func TestInstall(t *testing.T) {
	harness.Run(t, func(h *harness.Host) {
		at := "/run/installed"
		docs := h.Path("docs")
		manual := exec.Command(h.Program("manual"), docs)
		manual.Dir, manual.Env = checkout(t), []string{"SOURCE_DATE_EPOCH=1700000000"}
		h.Do(manual).OK(t)
		paths := []string{"DOCS=" + docs, "PREFIX=" + at + "/prefix", "SYSCONFDIR=" + at + "/etc", "LOCALSTATEDIR=" + at + "/var", "RUNDIR=" + at + "/run"}
		r := makeIn(t, h, append([]string{"install-built"}, paths...)...)
		if r.Stderr != "" {
			t.Errorf("make install warns: %s", r.Stderr)
		}
		// Modes and owners are those of the harness' tree, which all other tests run in, and of what only people and the system read.
		got := map[string]string{}
		for _, line := range h.Tree(at) {
			f := strings.Fields(line)
			got[strings.TrimPrefix(f[0], at)] = f[1] + " " + f[2]
		}
		want := map[string]string{}
		for _, dir := range []string{"prefix", "etc", "var", "run"} {
			for _, line := range h.Tree(h.Path(dir)) {
				f := strings.Fields(line)
				want[strings.TrimPrefix(f[0], harness.Root)] = f[1] + " " + f[2]
			}
		}
		for _, file := range onlyRead(t, docs) {
			for dir := filepath.Dir(file); want[dir] == ""; dir = filepath.Dir(dir) {
				want[dir] = "drwxr-xr-x 0:0"
			}
			want[file] = "-rw-r--r-- 0:0"
		}
		delete(got, "")
		if !reflect.DeepEqual(got, want) {
			t.Errorf("make install put\n%v\nwant\n%v", got, want)
		}
		if !strings.HasPrefix(got["/prefix/libexec/bindgate/bindgate-helper"], "urwxr-x--- 0:64801") {
			t.Errorf("the helper is %s", got["/prefix/libexec/bindgate/bindgate-helper"])
		}

		// They name this installation.
		for _, line := range h.Tree(at) {
			file := strings.Fields(line)[0]
			if !strings.HasPrefix(strings.Fields(line)[1], "-") || strings.HasSuffix(file, "/bin/bindgate") {
				continue
			}
			if text := h.ReadFile(file); regexp.MustCompile("@[A-Z_]+@").MatchString(text) || strings.Contains(text, "/usr/local") {
				t.Errorf("%s is not of this installation:\n%s", file, text)
			}
		}
		for _, unit := range []string{"bindgate-helper.socket", "bindgate-helper@.service", "bindgate-plugins.service", "bindgate-recover.service", "bindgate-watch.service"} {
			if text := h.ReadFile(at + "/prefix/lib/systemd/system/" + unit); !strings.Contains(text, at+"/") {
				t.Errorf("%s is not of this installation:\n%s", unit, text)
			}
		}

		// What is shipped: no target rule, the local source only, and all that is commented out is the default.
		data := h.ReadFile(at + "/etc/bindgate/helper.toml")
		shipped, err := conf.ParseHelper([]byte(data))
		if err != nil {
			t.Fatal(err)
		}
		defaults := conf.DefaultHelper()
		defaults.Sources = []conf.Source{{Path: at + "/var/lib/bindgate/volumes"}}
		if !reflect.DeepEqual(shipped, defaults) {
			t.Errorf("helper.toml is\n%+v\nwant\n%+v", shipped, defaults)
		}
		policy, err := config.ParsePolicy([]byte(h.ReadFile(at + "/etc/bindgate/policy.toml")))
		if err != nil || !reflect.DeepEqual(policy, config.DefaultPolicy()) {
			t.Errorf("policy.toml is\n%+v (%v)\nwant\n%+v", policy, err, config.DefaultPolicy())
		}

		// What the operator wrote stays; so does somebody else's dvdcli.
		h.WriteFile(at+"/etc/bindgate/helper.toml", "# mine\n", 0o644)
		if err := os.Remove(at + "/prefix/bin/dvdcli"); err != nil {
			t.Fatal(err)
		}
		h.WriteFile(at+"/prefix/bin/dvdcli", "theirs", 0o755)
		makeIn(t, h, append([]string{"install-built"}, paths...)...)
		if h.ReadFile(at+"/etc/bindgate/helper.toml") != "# mine\n" || h.ReadFile(at+"/prefix/bin/dvdcli") != "theirs" {
			t.Error("make install wrote over what was there")
		}
		r = makeIn(t, h, append([]string{"uninstall"}, paths...)...)
		for path, there := range map[string]bool{"prefix/bin/bindgate": false, "prefix/libexec/bindgate": false, "prefix/bin/dvdcli": true, "prefix/lib/systemd/system/bindgate-watch.service": false,
			"etc/bindgate/helper.toml": true, "run/bindgate": false, "var/lib/bindgate": false} {
			if _, err := os.Lstat(filepath.Join(at, path)); (err == nil) != there {
				t.Errorf("after make uninstall: %s is there: %v, want %v", path, err == nil, there)
			}
		}
		for _, line := range h.Tree(at + "/prefix") {
			if file := strings.Fields(line)[0]; strings.Fields(line)[1][0] != 'd' && file != at+"/prefix/bin/dvdcli" {
				t.Errorf("make uninstall left %s", file)
			}
		}
		if !strings.Contains(r.Stdout, "left "+at+"/etc/bindgate") {
			t.Errorf("make uninstall does not say what it left: %q", r.Stdout)
		}
	})
}
