//go:build runtimes

package runtimes

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/bindgate/bindgate/tests/harness"
)

// containerd starts containerd with its CRI plugin, configured as examples/kubernetes shows, and returns how to make calls of the CRI.
func containerd(t *testing.T, h *harness.Host) func(args ...string) harness.Result {
	t.Helper()
	checkout, err := harness.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	examples := filepath.Join(checkout, "examples/kubernetes")
	dir := h.Mkdir(h.Path("containerd"), 0o711)
	base := dir + "/bindgate.json"
	h.Sh(examples + "/containerd-spec | sed 's,/usr/local/bin/bindgate," + h.Bindgate() + ",' >" + base).OK(t)
	h.WriteFile(dir+"/config.toml", fmt.Sprintf(`version = 2
root = %q
state = %q
[grpc]
address = %q
[plugins."io.containerd.internal.v1.opt"]
path = %q
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "docker.io/library/busybox:1"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
`, dir+"/root", dir+"/state", dir+"/sock", dir+"/opt")+strings.ReplaceAll(h.ReadFile(examples+"/containerd.toml"), "/etc/containerd/bindgate.json", base), 0o644)
	toml := h.ReadFile(examples + "/helper.toml")
	for _, line := range strings.Split(toml, "\n") { // where root filesystems lie, beneath our state folder
		if line, ok := strings.CutPrefix(line, `rootfs_roots = ["/run/containerd/`); ok {
			h.HelperTOML(strings.Replace(harness.DefaultHelperTOML, "rootfs_roots = [", "rootfs_roots = [\""+dir+"/state/"+strings.TrimSuffix(line, "]")+", ", 1))
		}
	}
	log, err := os.Create(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("containerd", "--config", dir+"/config.toml")
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = []string{path}, "/", log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if t.Failed() {
			t.Log(h.ReadFile(dir + "/log"))
		}
		h.Sh("rm -rf " + dir)
	})
	client := h.Program("cri")
	call := func(args ...string) harness.Result {
		return h.Do(exec.Command(client, append([]string{dir + "/sock"}, args...)...))
	}
	if r := call("version").OK(t); !strings.HasPrefix(r.Stdout, "containerd ") {
		t.Fatal(r)
	}
	// An image as docker save writes it.
	h.Sh(`cd ` + h.Mkdir(dir+"/image", 0o755) + ` && mv ` + image(h) + ` layer.tar
printf '{"architecture":"%s","os":"linux","config":{"Cmd":["/bin/sleep","2147483647"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' $(dpkg --print-architecture) $(sha256sum layer.tar | cut -d' ' -f1) >config.json
printf '[{"Config":"config.json","RepoTags":["docker.io/library/busybox:1"],"Layers":["layer.tar"]}]' >manifest.json
tar -cf - config.json manifest.json layer.tar | ctr -a ` + dir + `/sock -n k8s.io images import --snapshotter native -`).OK(t)
	return call
}

// TestKubernetesPod is a pod as kubelet makes it with the files of examples/kubernetes: annotations, a runtime class, containerd's CRI.
func TestKubernetesPod(t *testing.T) {
	run(t, func(t *testing.T, h *harness.Host) {
		call := containerd(t, h)
		pod := func(name, class, volume string) harness.Result {
			return call("run", name, h.Cgroup()+"/"+name, class, `{"io.bindgate.volume.0":"`+volume+`","other":"x"}`)
		}
		r := pod("web", "bindgate", "driver=local,name=prod.web,target=/data").OK(t)
		ids := strings.Fields(r.Stdout) // of sandbox and container
		if r := call("exec", ids[1], "sh", "-c", "grep ' /data ' /proc/self/mountinfo; echo written >/data/file").OK(t); !strings.Contains(r.Stdout, " rw,nosuid,nodev") {
			t.Errorf("in the container: %v", r)
		}
		if got := h.ReadFile(h.Volumes() + "/prod.web/file"); got != "written\n" {
			t.Errorf("the volume holds %q", got)
		}
		// The sandbox gets the same annotations, and no volume.
		if s := status(t, h); len(s.Containers) != 1 || s.Containers[0].Container != ids[1] || s.Containers[0].Owner != "oci" || s.Containers[0].Phase != "isolated" {
			t.Errorf("status: %+v", s)
		}
		if r := h.PolicyAs(harness.User{}, "", "doctor", "-o", "json").OK(t); strings.Contains(r.Stdout, `"warning"`) {
			t.Errorf("doctor: %v", r)
		}
		call("stop", ids[0]).OK(t)
		wantNothingLeft(t, h)

		// A missing driver keeps a pod from starting; the reason is in what kubelet makes an event of.
		if r := pod("none", "bindgate", "driver=nosuch,name=prod.web,target=/data").Exits(t, 1); !strings.Contains(r.Stderr, `cannot use driver "nosuch"`) {
			t.Errorf("without a driver: %v", r)
		}
		wantNothingLeft(t, h)

		// A pod without the class has nothing to do with us.
		ids = strings.Fields(pod("plain", "", "driver=local,name=prod.web,target=/data").OK(t).Stdout)
		call("exec", ids[1], "sh", "-c", "grep ' /data ' /proc/self/mountinfo").Exits(t, 1)
		wantNothingLeft(t, h)
		call("stop", ids[0]).OK(t)
	})
}
