package driver

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"strings"
	"testing"

	"github.com/bindgate/bindgate/policy/boundary"
	"github.com/bindgate/bindgate/wire"
)

// helper answers as told, after the request went through the wire and was found good.
func helper(t *testing.T, asked *wire.Request, reply *wire.Reply, err error) *Local {
	return NewLocal(func(_ context.Context, req *wire.Request) (*wire.Reply, error) {
		got, bad := wire.DecodeRequest(boundary.Encode(req))
		if bad != nil {
			t.Errorf("the helper would refuse it: %v", bad)
			return nil, bad
		}
		*asked = *got
		return reply, err
	})
}

func block(name string) wire.Fields {
	return wire.Fields{{Key: "mount", Value: "/volumes/" + name}, {Key: "name", Value: name}, {Key: "mode", Value: "755"},
		{Key: "uid", Value: "1"}, {Key: "gid", Value: "2"}, {Key: "time", Value: "1577934245"}}
}

func TestLocal(t *testing.T) {
	var asked wire.Request
	ctx := t.Context()
	d := helper(t, &asked, &wire.Reply{Blocks: []wire.Fields{block("v")}}, nil)
	want := Volume{Name: "v", Mountpoint: "/volumes/v", CreatedAt: "2020-01-02T03:04:05Z", Options: map[string]string{"mode": "755", "uid": "1", "gid": "2"}}
	if v, err := d.Get(ctx, "v"); err != nil || !reflect.DeepEqual(v, want) || asked.Op != wire.OpListVolumes || asked.Name != "v" {
		t.Errorf("Get: %+v, %v, by %+v", v, err, asked)
	}
	if m, err := d.Mount(ctx, "v", "id1"); err != nil || m != "/volumes/v" || asked.Op != wire.OpListVolumes {
		t.Errorf("Mount: %q, %v", m, err)
	}
	if m, err := d.Path(ctx, "v"); err != nil || m != "/volumes/v" {
		t.Errorf("Path: %q, %v", m, err)
	}
	if all, err := d.List(ctx); err != nil || !reflect.DeepEqual(all, []Volume{want}) || asked.Name != "" {
		t.Errorf("List: %+v, %v", all, err)
	}
	if err := d.Remove(ctx, "v"); err != nil || asked.Op != wire.OpRemoveVolume || asked.Name != "v" {
		t.Errorf("Remove: %v, by %+v", err, asked)
	}
	asked = wire.Request{}
	if err := d.Unmount(ctx, "v", "id1"); err != nil || asked.Op != "" {
		t.Errorf("Unmount: %v, by %+v", err, asked)
	}
	if c, err := d.Capabilities(ctx); err != nil || c.Scope != ScopeLocal {
		t.Errorf("Capabilities: %v, %v", c, err)
	}
}

func TestLocalCreate(t *testing.T) {
	for _, c := range []struct {
		opts map[string]string
		says string // of the refusal; "" for none
	}{
		{nil, ""},
		{map[string]string{"mode": "0755", "uid": "0", "gid": "4294967294"}, ""},
		{map[string]string{"mode": "3777"}, ""},
		{map[string]string{"mode": "4755"}, "mode"},
		{map[string]string{"mode": "0o755"}, "mode"},
		{map[string]string{"mode": "rwx"}, "mode"},
		{map[string]string{"mode": ""}, "mode"},
		{map[string]string{"uid": "-1"}, "uid"},
		{map[string]string{"uid": "+1"}, "uid"},
		{map[string]string{"uid": "01"}, "uid"},
		{map[string]string{"uid": " 1"}, "uid"},
		{map[string]string{"uid": "root"}, "uid"},
		{map[string]string{"gid": "4294967295"}, "gid"},
		{map[string]string{"size": "5"}, `"size"; there are mode, uid and gid`},
		{map[string]string{"Mode": "755"}, `"Mode"`},
		{map[string]string{"": ""}, "no option"},
	} {
		var asked wire.Request
		err := helper(t, &asked, &wire.Reply{}, nil).Create(t.Context(), "v", maps.Clone(c.opts))
		switch {
		case c.says != "":
			wants(t, err, wire.InvalidRequest, "create", `cannot create local volume "v"`, c.says)
			if asked.Op != "" {
				t.Errorf("%v: asked all the same", c.opts)
			}
		case err != nil || asked.Op != wire.OpCreateVolume || asked.Name != "v":
			t.Errorf("%v: %v, by %+v", c.opts, err, asked)
		case c.opts["uid"] != "" && (*asked.Mode != 0o755 || *asked.UID != 0 || *asked.GID != 4294967294):
			t.Errorf("%v: by %+v", c.opts, asked)
		case c.opts == nil && (asked.Mode != nil || asked.UID != nil || asked.GID != nil):
			t.Errorf("defaults are the helper's: %+v", asked)
		}
	}
}

func TestLocalErrors(t *testing.T) {
	ctx := t.Context()
	var asked wire.Request
	none := helper(t, &asked, &wire.Reply{}, nil)
	_, get := none.Get(ctx, "v")
	wants(t, get, wire.VolumeNotFound, "get", `"v"`)
	_, mount := none.Mount(ctx, "v", "id1")
	wants(t, mount, wire.VolumeNotFound, "mount", `"v"`)
	if all, err := none.List(ctx); err != nil || all == nil || len(all) != 0 {
		t.Errorf("List: %v, %v", all, err)
	}
	// Another volume than the one asked for is not it.
	_, get = helper(t, &asked, &wire.Reply{Blocks: []wire.Fields{block("w")}}, nil).Get(ctx, "v")
	wants(t, get, wire.VolumeNotFound, "get", `"v"`)
	_, get = helper(t, &asked, &wire.Reply{Blocks: []wire.Fields{{{Key: "mount", Value: "/x"}}}}, nil).Get(ctx, "v")
	wants(t, get, wire.Internal, "get")

	said := wire.Errorf(wire.NotFound, "volume", "cannot remove volume v: none").WithHint("look")
	wants(t, helper(t, &asked, &wire.Reply{Err: said}, nil).Remove(ctx, "v"), wire.VolumeNotFound, "remove", "none")
	said.Code = wire.Busy
	e := wants(t, helper(t, &asked, nil, said).Remove(ctx, "v"), wire.Busy, "remove", "none")
	if e.Hint != "look" || said.Stage != "volume" {
		t.Errorf("got %+v from %+v", e, said)
	}
	if err := helper(t, &asked, nil, errors.New("boom")).Remove(ctx, "v"); wire.AsError(err).Code != wire.Internal {
		t.Errorf("got %v", err)
	}
	asked = wire.Request{}
	for _, name := range []string{"", "a/b", "..", ".x", "a b", "a\n", strings.Repeat("v", 256)} {
		_, get := none.Get(ctx, name)
		wants(t, get, wire.InvalidRequest, "get")
		wants(t, none.Create(ctx, name, nil), wire.InvalidRequest, "create")
		wants(t, none.Remove(ctx, name), wire.InvalidRequest, "remove")
	}
	if asked.Op != "" {
		t.Errorf("asked all the same: %+v", asked)
	}
}
