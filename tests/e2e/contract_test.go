package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/bindgate/bindgate/tests/harness"
	"github.com/bindgate/bindgate/wire"
)

// shape is a document's keys, in order, and the kinds of their values: s, n, b for a string, a number, a boolean, [...] for a list of one shape, {...}.
func shape(v any) string {
	switch v := v.(type) {
	case map[string]any:
		var keys []string
		for _, k := range slices.Sorted(maps.Keys(v)) {
			keys = append(keys, k+":"+shape(v[k]))
		}
		return "{" + strings.Join(keys, " ") + "}"
	case []any:
		var items []string
		for _, item := range v {
			items = append(items, shape(item))
		}
		return "[" + strings.Join(slices.Compact(items), "|") + "]"
	case string:
		return "s"
	case float64:
		return "n"
	case bool:
		return "b"
	}
	return fmt.Sprintf("%T", v)
}

func wantShape(t *testing.T, what, doc, want string) {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(doc), &v); err != nil || shape(v) != want {
		t.Errorf("%s has the shape\n%s, want\n%s (%v): %s", what, shape(v), want, err, doc)
	}
}

// The documents of DESIGN section 8 have exactly the keys that it lists, of these kinds. None of the commands says -o json: stdout is no terminal.
func TestContract(t *testing.T) {
	const (
		volume   = "{container_path:s created:b driver:s mode:s mountpoint:s name:s scope:s}"
		mount    = "{container_path:s created:n driver:s locked:b mode:s mount_id:n name:s source:s target:s}"
		ref      = "{driver:s name:s}"
		detached = "{container_path:s driver:s name:s}"
		pending  = "{driver:s error:s holders:[] name:s since:s}"
		job      = `{"type":"MESOS","volumes":[{"container_path":"/v","mode":"RO","source":{"type":"DOCKER_VOLUME","docker_volume":{"driver":"plugin","name":"v"}}},{"container_path":"x","mode":"RW","host_path":"/x"}]}`
	)
	harness.Run(t, func(h *harness.Host) {
		h.AllowAll()
		h.Plugin("plugin")
		h.Plugin("stuck", "-fail", "Unmount:v=device is busy", "-fail", "Mount:bad=no medium")
		h.Policy("volume", "create", "local1").OK(t)
		c := h.Container(harness.ContainerOptions{ID: "c"})
		pid := c.PIDString()
		for _, x := range []struct {
			args  string
			exit  int
			shape string
		}{
			{"prepare --container c", 0, "{container:s owner:s schema:s skipped:[{index:n type:s}] volumes:[" + volume + "]}"},
			{"prepare --container agent --mounts-by agent", 0, "{container:s mounts:[{options:[s] source:s target:s}] owner:s schema:s skipped:[{index:n type:s}] volumes:[" + volume + "]}"},
			{"isolate --container c --pid " + pid, 0, "{container:s mounts:[" + mount + "] pid:n schema:s}"},
			{"bind --container agent --pid " + pid, 0, "{container:s mounts:[] pid:n schema:s}"},
			{"attach --container c --pid " + pid + " -v local1:/l", 0, "{container:s mounts:[" + mount + "] pid:n schema:s}"},
			{"status --container c", 0, "{containers:[{alive:b container:s labels:{} mounts:[" + mount + "] owner:s phase:s pid:n volumes:[" + volume + "]}] schema:s volumes:[{containers:[s] driver:s mountpoint:s name:s}]}"},
			{"detach --container c --path /l", 0, "{container:s detached:[" + detached + "] known:b pending:[] schema:s unmounted:[" + ref + "]}"},
			{"cleanup --container c --force", 0, "{container:s detached:[" + detached + "] known:b pending:[] schema:s unmounted:[]}"},
			{"cleanup --container agent --force", 0, "{container:s detached:[] known:b pending:[] schema:s unmounted:[" + ref + "]}"},
			{"cleanup --container unknown", 0, "{container:s detached:[] known:b pending:[] schema:s unmounted:[]}"},
			{"prepare --container stuck --mount driver=stuck,name=v,target=/v", 0, "{container:s owner:s schema:s skipped:[] volumes:[" + volume + "]}"},
			{"cleanup --container stuck", 75, "{container:s detached:[] known:b pending:[" + pending + "] schema:s unmounted:[]}"},
			{"recover", 75, "{cleaned:[] corrupt:[] errors:[] kept:[] orphans:[] pending:[" + pending + "] rolled_back:[] schema:s unmounted:[]}"},
			{"volume path local1", 0, "{driver:s mountpoint:s name:s schema:s}"},
			{"volume create local2", 0, "{created:b driver:s mountpoint:s name:s options:{gid:s mode:s uid:s} schema:s}"},
			{"volume inspect local2", 0, "{created:s driver:s mountpoint:s name:s options:{gid:s mode:s uid:s} schema:s}"},
			{"volume ls --driver local", 0, "{schema:s volumes:[{containers:[] driver:s mountpoint:s name:s}]}"},
			{"policy check", 0, "{allowed:b schema:s volumes:[{allowed:b container_path:s driver:s mode:s name:s rule:n why:s}]}"},
		} {
			wantShape(t, x.args, h.PolicyIn(job, strings.Fields(x.args)...).Exits(t, x.exit).Stdout, x.shape)
		}
		// Of an error: the causes with their time, what was undone, what is left.
		r := h.Policy("prepare", "-o", "json", "--container", "c", plugin("stuck", "bad", "/b"), plugin("plugin", "v", "/v"))
		r.Fails(t, wire.DriverError)
		wantShape(t, "an error", r.Stderr, "{error:{causes:[{code:s driver:s elapsed_ms:n message:s name:s stage:s}] code:s hint:s left:[{driver:s error:s name:s stage:s}] message:s stage:s undone:[{driver:s name:s stage:s}]} schema:s}")
		if r.Stdout != "" {
			t.Errorf("stdout: %q", r.Stdout)
		}
		// With VOLUMES nobody reads stdin: it stays the caller's.
		in, out, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		out.WriteString("the caller's")
		out.Close()
		cmd := h.Command(harness.User{UID: harness.PolicyUID, GID: harness.PolicyGID}, h.Bindgate(), "prepare", "--container", "c", "-v", "local1:/l")
		cmd.Stdin = in
		h.Do(cmd).OK(t)
		if left, err := io.ReadAll(in); err != nil || string(left) != "the caller's" {
			t.Errorf("of stdin %q is left: %v", left, err)
		}
	})
}
