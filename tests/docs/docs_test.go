// Package docs runs what README and docs tell the reader to type: each fenced block whose language is sh, on a host with bindgate at its default paths, cloned, built and installed as the README
// says. A block goes without if a comment in front of it says why: <!-- not run: WHY -->.
//
// The test does what is others' part: web-1 is a container, 4711 its process, job.json a job, rexray a plugin (tests/plugins/testplugin), and before a cleanup the container has ended. A comment such as "# 64: no arguments"
// behind a command says its exit status.
package docs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/bindgate/bindgate/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// A block is one fence of a document.
type block struct {
	place string // file:line
	mark  string // of the comment before it
	lang  string
	lines []string
}

var mark = regexp.MustCompile(`^<!-- ((?:not )?run: .+) -->$`)

// blocks are those of all documents.
func blocks(t *testing.T, checkout string) (all []block) {
	t.Helper()
	files := []string{"README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md"}
	more, err := filepath.Glob(checkout + "/docs/*.md")
	if err != nil || len(more) < 10 {
		t.Fatal(err, more)
	}
	for _, f := range more {
		files = append(files, strings.TrimPrefix(f, checkout+"/"))
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(checkout, f))
		if err != nil {
			t.Fatal(err)
		}
		var in *block
		before := ""
		for n, line := range strings.Split(string(data), "\n") {
			switch lang, fence := strings.CutPrefix(line, "```"); {
			case fence && in == nil:
				in = &block{place: fmt.Sprintf("%s:%d", f, n+1), lang: lang}
				if m := mark.FindStringSubmatch(before); m != nil {
					in.mark = m[1]
				}
			case fence:
				all = append(all, *in)
				in = nil
			case in != nil:
				in.lines = append(in.lines, line)
			}
			before = line
		}
	}
	return all
}

func checkout(t *testing.T) string {
	t.Helper()
	dir, err := harness.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// Few blocks are not run, and each says why. No commands hide in a fence of another language.
func TestWhatIsNotRunSaysWhy(t *testing.T) {
	run, not := 0, 0
	for _, b := range blocks(t, checkout(t)) {
		if b.lang != "sh" {
			for _, line := range b.lines {
				if regexp.MustCompile(`^(sudo|bindgate|dvdcli|make|podman|systemctl) `).MatchString(line) && !strings.HasPrefix(line, "bindgate-helper ") && !strings.HasPrefix(line, "bindgate  ") {
					t.Errorf("%s: a command in a fence that is not sh, so nobody runs it: %s", b.place, line)
				}
			}
			continue
		}
		if strings.HasPrefix(b.mark, "not run: ") {
			not++
			continue
		}
		run++
	}
	if not > 15 || run < 2*not {
		t.Errorf("%d blocks are run, %d are not", run, not)
	}
}

var exits = regexp.MustCompile(`\s# (\d+): `)

// script makes one of a block that ends with an error at the first line that does not end as it says.
func script(b block) string {
	var s strings.Builder
	for i := 0; i < len(b.lines); i++ {
		line := b.lines[i]
		for strings.HasSuffix(line, "\\") || strings.HasSuffix(line, "|") {
			i++
			line += "\n" + b.lines[i]
		}
		if code := strings.TrimSpace(line); code == "" || strings.HasPrefix(code, "#") {
			continue
		}
		want := "0"
		if m := exits.FindStringSubmatch(line); m != nil {
			want = m[1]
		}
		if strings.Contains(line, "bindgate cleanup") && !strings.Contains(line, "--force") {
			s.WriteString("container_ends\n")
		}
		fmt.Fprintf(&s, "%s\nstatus=$?; [ $status = %s ] || { echo \"exit $status, want %s:\" %s >&2; exit 1; }\n", line, want, want, quote(line))
	}
	return s.String()
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// overlay makes a folder of the machine's writable for the host alone.
func overlay(t *testing.T, h *harness.Host, dir string) {
	t.Helper()
	over := h.Mkdir(h.Path("over", strings.ReplaceAll(dir, "/", "-")), 0o755)
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	h.Mkdir(over+"/up", info.Mode().Perm())
	h.Mkdir(over+"/work", 0o755)
	h.Mount("overlay", dir, "overlay", 0, "lowerdir="+dir+",upperdir="+over+"/up,workdir="+over+"/work")
}

// The README's way from a clone to an installation; then every command of every document, on that.
func TestCommands(t *testing.T) {
	source := checkout(t)
	env := []string{"TERM=dumb", "GOFLAGS=", "GOTOOLCHAIN=local"}
	for _, name := range []string{"GOCACHE", "GOMODCACHE", "GOPROXY"} {
		out, err := exec.Command("go", "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		env = append(env, name+"="+strings.TrimSpace(string(out)))
	}
	all := blocks(t, source)
	harness.Run(t, func(h *harness.Host) {
		dirs := []string{"/etc", "/usr/local", "/var/lib", "/var/log", "/opt"}
		for _, v := range env {
			if dir, ok := strings.CutPrefix(v, "GOCACHE="); ok {
				dirs = append(dirs, dir)
			}
		}
		for _, dir := range dirs {
			overlay(t, h, dir)
		}
		work := h.Mkdir(h.Path("work"), 0o755)
		shims := h.Mkdir(h.Path("shims"), 0o755)
		h.WriteFile(shims+"/sudo", "#!/bin/sh\nexec \"$@\"\n", 0o755) // we are root
		env := append(env, "PATH="+shims+":/usr/local/sbin:/usr/local/bin:"+os.Getenv("PATH")+":/usr/sbin:/sbin", "HOME="+h.Mkdir(h.Path("home"), 0o700),
			// The repository's address leads to this checkout, with what is not committed.
			"GIT_CONFIG_COUNT=2", "GIT_CONFIG_KEY_0=url."+work+"/origin.insteadOf", "GIT_CONFIG_VALUE_0=https://github.com/bindgate/bindgate", "GIT_CONFIG_KEY_1=safe.directory", "GIT_CONFIG_VALUE_1=*")
		do := func(dir, text string) harness.Result {
			cmd := exec.Command("/bin/sh", "-c", text)
			cmd.Dir, cmd.Env = dir, env
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			return h.Do(cmd)
		}
		do(work, "set -e; mkdir origin; git -C "+quote(source)+" ls-files -co --exclude-standard -z | tar -C "+quote(source)+" --null --ignore-failed-read -T - -cf - | tar -C origin -xf -; cd origin; git init -q; git add -A; "+
			"git -c user.name=docs -c user.email=docs@invalid commit -q -m docs").OK(t)

		cloned := false
		for _, b := range all {
			if b.mark == "run: clone" {
				do(work, script(b)).OK(t)
				cloned = true
			}
		}
		if !cloned {
			t.Fatal("the README says nothing of a clone")
		}
		clone := work + "/bindgate"
		// The same bytes wherever, whenever and by whomever they are built.
		do(work+"/origin", "umask 077; export TZ=Pacific/Kiritimati LC_ALL=C USER=other; make -s BIN=bin/again && cmp bin/again/bindgate "+clone+"/bin/bindgate && cmp bin/again/bindgate-helper "+clone+"/bin/bindgate-helper").OK(t)
		h.WriteFile("/etc/bindgate/helper.toml", strings.Replace(h.ReadFile("/etc/bindgate/helper.toml"), "# cgroups = ", "cgroups = [\""+harness.CgroupRule+"\"] # ", 1), 0o644)
		h.WriteFile("/etc/bindgate/policy.toml", strings.Replace(h.ReadFile("/etc/bindgate/policy.toml"), "\n[plugins]\n", "\n[plugins]\nsocket_dirs = [\"/run/docker/plugins\", \""+h.Sockets()+"\"]\n", 1)+"\n[[rule]]\naction = \"allow\"\n", 0o644)
		h.WriteFile(clone+"/job.json", h.ReadFile(clone+"/examples/mesos-containerinfo.json"), 0o644)
		h.Sh("mkdir -p /run/docker/plugins /etc/docker/plugins && mkdir -p " + h.Sockets()).OK(t)
		h.Mkdir("/opt/nomad/data/host_volume_plugins", 0o755)
		h.Plugin("rexray")
		h.Sh("chmod 0666 " + h.Sockets() + "/rexray.sock").OK(t) // of the harness' policy user

		verified := 0
		for i, b := range all {
			if b.lang != "sh" || strings.HasPrefix(b.mark, "not run: ") || b.mark == "run: clone" || b.mark == "run: podman" {
				continue
			}
			t.Run(b.place, func(t *testing.T) {
				h := h.For(t)
				id := fmt.Sprint("c", i)
				c := h.Container(harness.ContainerOptions{ID: id})
				text := script(b)
				begin := "bindgate volume create v\n"
				if !regexp.MustCompile(`bindgate (prepare|attach)`).MatchString(text) { // it is about one that has its volume
					begin += "bindgate attach --container web-1 --pid " + c.PIDString() + " -v v:/data -o json || exit\n"
				}
				text = "container_ends() { runc --root " + rootOf(c) + " delete --force " + id + "; }\n(" + begin + ") >/dev/null\n" + strings.ReplaceAll(text, "4711", c.PIDString())
				r := do(clone, text)
				do(clone, "runc --root "+rootOf(c)+" delete --force "+id+"; bindgate cleanup --force --container web-1; dvdcli unmount --volumedriver=rexray --volumename=db; bindgate cleanup --force --container demo; bindgate recover; for v in $(bindgate volume ls --quiet); do bindgate volume rm $v; done")
				if r.Exit != 0 {
					t.Errorf("%v", r)
				}
				if strings.HasPrefix(b.place, "SECURITY.md:") && strings.Contains(text, "namei") {
					verified++
					for break_, mend := range broken {
						do("/", break_).OK(t)
						if r := do(clone, script(b)); r.Exit == 0 {
							t.Errorf("after %s the verification finds nothing", break_)
						}
						do("/", mend).OK(t)
					}
					do(clone, script(b)).OK(t)
				}
			})
		}
		if verified != 1 {
			t.Errorf("SECURITY.md tells in %d blocks how to verify an installation", verified)
		}
	}, harness.Bare())
}

// broken are installations that the verification of SECURITY.md has to find: how to make one, and how to mend it.
var broken = map[string]string{
	"chmod 4755 /usr/local/libexec/bindgate/bindgate-helper":              "chmod 4750 /usr/local/libexec/bindgate/bindgate-helper",
	"chgrp games /usr/local/libexec/bindgate/bindgate-helper":             "chgrp bindgate /usr/local/libexec/bindgate/bindgate-helper && chmod 4750 /usr/local/libexec/bindgate/bindgate-helper",
	"ln /usr/local/libexec/bindgate/bindgate-helper /usr/local/another":   "rm /usr/local/another",
	"chmod g+w /usr/local/libexec":                                        "chmod g-w /usr/local/libexec",
	"chown bindgate /etc/bindgate":                                        "chown root /etc/bindgate",
	"chmod o+w /etc/bindgate/helper.toml":                                 "chmod o-w /etc/bindgate/helper.toml",
	"mv /etc/bindgate /etc/other && ln -s other /etc/bindgate":            "rm /etc/bindgate && mv /etc/other /etc/bindgate",
	"chmod 0711 /var/lib/bindgate/volumes":                                "chmod 0700 /var/lib/bindgate/volumes",
	"chown bindgate /run/bindgate/ledger":                                 "chown root /run/bindgate/ledger",
	"gpasswd -a nobody bindgate":                                          "gpasswd -d nobody bindgate",
	"setcap cap_sys_admin+ep /usr/local/libexec/bindgate/bindgate-helper": "setcap -r /usr/local/libexec/bindgate/bindgate-helper",
}

// rootOf is where runc has the state of a harness' container.
func rootOf(c *harness.Container) string {
	for i, arg := range c.Runc("x").Args {
		if arg == "--root" {
			return c.Runc("x").Args[i+1]
		}
	}
	return "/run/runc"
}

// The index leads to every document, and every link to a file that is there.
func TestIndexIsComplete(t *testing.T) {
	dir := checkout(t)
	index, err := os.ReadFile(dir + "/docs/README.md")
	if err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(dir + "/docs/*")
	for _, f := range files {
		name := filepath.Base(f)
		if name == "README.md" || strings.HasSuffix(name, ".go") || strings.HasSuffix(name, ".svg") {
			continue
		}
		if !strings.Contains(string(index), "("+name+")") && !strings.Contains(string(index), "("+name+"/)") {
			t.Errorf("docs/README.md does not lead to %s", name)
		}
	}
	// Links lead to files that are there.
	all, _ := filepath.Glob(dir + "/docs/*.md")
	for _, f := range append(all, dir+"/README.md", dir+"/SECURITY.md", dir+"/CONTRIBUTING.md") {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\]\(([^)#:\s]+)(?:#[^)]*)?\)`).FindAllStringSubmatch(string(data), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(f), m[1])); err != nil {
				t.Errorf("%s: %v", f, err)
			}
		}
	}
}
