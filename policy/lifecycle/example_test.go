package lifecycle_test

import (
	"context"
	"fmt"
	"os"

	"github.com/bindgate/bindgate/policy/config"
	"github.com/bindgate/bindgate/policy/driver"
	"github.com/bindgate/bindgate/policy/lifecycle"
	"github.com/bindgate/bindgate/policy/spec"
	"github.com/bindgate/bindgate/wire"
)

// An agent that uses the library instead of the command: prepare before the container exists, isolate when its first process is there, cleanup when it has
// ended. Helper and Driver are set here so that the example needs no installation; without them the installed helper and the plugins of the host are used.
func Example() {
	dir, err := os.MkdirTemp("", "journal")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	policy := config.DefaultPolicy()
	policy.State.Dir = dir
	policy.Rules = []config.Rule{{Driver: "memory", Volume: "data-*", Action: "allow"}}

	iso, err := lifecycle.Open(lifecycle.Options{Policy: policy, Owner: "my-agent", Helper: helper, Driver: drivers})
	if err != nil {
		panic(err)
	}
	defer iso.Close()
	ctx := context.Background()

	job, err := spec.Parse("mesos", []byte(`[{"container_path":"/data","mode":"RW","source":{"type":"DOCKER_VOLUME",
		"docker_volume":{"driver":"memory","name":"data-1"}}}]`), spec.Defaults{})
	if err != nil {
		panic(err)
	}
	prepared, err := iso.Prepare(ctx, lifecycle.Request{Container: "web-1", Job: job})
	if err != nil {
		panic(err)
	}
	fmt.Println("on the host:", prepared.Volumes[0].Mountpoint)

	isolated, err := iso.Isolate(ctx, "web-1", os.Getpid())
	if err != nil {
		panic(err)
	}
	fmt.Println("in the container:", isolated.Mounts[0].Target)

	cleaned, err := iso.Cleanup(ctx, "web-1", lifecycle.CleanupOptions{Force: true})
	if err != nil {
		panic(err)
	}
	fmt.Println("let go:", cleaned.Unmounted)

	job.Volumes[0].Name = "secret"
	_, err = iso.Prepare(ctx, lifecycle.Request{Container: "web-2", Job: job})
	fmt.Println(err)
	// Output:
	// on the host: /mnt/data-1
	// in the container: /data
	// let go: [{memory data-1}]
	// cannot prepare container web-2: cannot use its volumes: cannot use volume memory/secret: no rule of policy.toml allows it
}

// memory is a driver that has every volume and mounts none.
type memory struct{ driver.Driver }

func drivers(string) (driver.Driver, error) { return memory{}, nil }

func (memory) Get(_ context.Context, name string) (driver.Volume, error) {
	return driver.Volume{Name: name}, nil
}
func (memory) Mount(_ context.Context, name, id string) (string, error) { return "/mnt/" + name, nil }
func (memory) Unmount(context.Context, string, string) error            { return nil }

// helper answers as bindgate-helper does.
func helper(_ context.Context, r *wire.Request) (*wire.Reply, error) {
	reply := &wire.Reply{}
	for _, m := range r.Mounts {
		reply.Blocks = append(reply.Blocks, wire.Fields{{Key: "mount", Value: m.Path}, {Key: "target", Value: m.Path}, {Key: "id", Value: "1"}, {Key: "locked", Value: "1"}})
	}
	return reply, nil
}
